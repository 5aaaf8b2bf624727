"""Run OpenCompass as it is, in an environment of its own, on a model that is served here.

Its exit code does not tell whether it was successful: a task that fails is a line in its log, and
its summary then has a dash. So what counts are its files, one of predictions and one of results for
every data set, with as many samples as were asked.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

from evaluators import end_with_parent, opencompass_main
from evaluators.backends.vllm_environment import last_words
from evaluators.language_evaluation import LanguageModelOptions
from evaluators.opencompass_config import (
    SERVED_NAME,
    OpenCompassBenchmark,
    config_text,
    lay_out_data,
    write_tokenizer,
)
from evaluators.opencompass_files import (
    RUN,
    opencompass_last_words,
    refuse_unfinished,
    remove_damaged,
    task_logs,
)
from evaluators.serve import Endpoint, end_process, serve_model
from nan_merge.errors import EvaluationError
from nan_merge.publish import write_text_atomically
from nan_merge.tasks import report_progress

LOG, SERVER_LOG = "opencompass.log", "server.log"
_VERSION_SECONDS = 60.0
_POLL_SECONDS = 1.0
# They would lead OpenCompass to our packages, to other data, or past our endpoint.
_NOT_FOR_IT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DATASET_SOURCE", "OPENAI_BASE_URL")


def opencompass_version(python: Path) -> str:
    """The version of OpenCompass in the environment of an interpreter.

    Raises:
        EvaluationError: If there is no such interpreter, or no OpenCompass in its environment.
    """
    how = (
        "Make an environment of its own for it: `make opencompass-engine`, or "
        "`python3.11 -m venv DIR && DIR/bin/pip install -r requirements/opencompass-engine.lock`; "
        "then name DIR/bin/python."
    )
    if not python.is_file():
        raise EvaluationError(f"There is no interpreter {python} with OpenCompass. {how}")
    if re.search(r"[\s'\"$&;()]", str(python)):
        raise EvaluationError(
            f"{python}: OpenCompass hands this path to a shell as it stands, so it may have no "
            "blanks or other signs that mean something there. Make the environment elsewhere."
        )
    code = "import importlib.metadata as found; print(found.version('opencompass'))"
    try:
        asked = subprocess.run(
            [str(python), "-I", "-c", code],
            capture_output=True,
            text=True,
            timeout=_VERSION_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EvaluationError(f"{python} cannot be run: {error}") from error
    if asked.returncode:
        raise EvaluationError(f"{python} has no OpenCompass. {how}")
    return asked.stdout.strip()


def ask_by_opencompass(
    folder: str,
    python: str,
    benchmarks: Sequence[OpenCompassBenchmark],
    options: LanguageModelOptions,
    num_requests: int,
    silence_seconds: float,
) -> None:
    """Serve a checkpoint, and let OpenCompass ask it one benchmark after the other.

    What is finished stays in each benchmark's folder; what an earlier run left there is gone on
    with.

    Args:
        folder: The checkpoint.
        python: Interpreter of the environment with OpenCompass.
        benchmarks: What is asked.
        options: How the model is served; by vLLM.
        num_requests: How many are sent at once.
        silence_seconds: OpenCompass is ended if nothing that it writes grows for so long.

    Raises:
        EvaluationError: If the server or OpenCompass does not start, ends before its time, falls
            silent, or leaves data sets unfinished; with its last words.
    """
    log = Path(benchmarks[0].work) / SERVER_LOG
    key = secrets.token_urlsafe()
    with serve_model(
        Path(folder),
        log,
        name=SERVED_NAME,
        dtype=options.dtype,
        max_length=options.max_length,
        tensor_parallel=options.tensor_parallel,
        eager=options.eager,
        kv_cache_gib=options.kv_cache_gib,
        gpu_memory=options.gpu_memory,
        api_key=key,
    ) as endpoint:
        max_length = _max_length(endpoint, key)
        for asked in benchmarks:
            work = Path(asked.work)
            write_tokenizer(Path(folder), work / "tokenizer")
            text = config_text(
                asked,
                data=lay_out_data(asked, work / "data"),
                tokenizer=work / "tokenizer",
                url=endpoint.url,
                max_length=max_length,
                num_requests=num_requests,
            )
            write_text_atomically(work / "config.py", text)
            run_opencompass(python, asked, key, silence_seconds, endpoint)


def run_opencompass(
    python: str,
    asked: OpenCompassBenchmark,
    key: str,
    silence_seconds: float,
    endpoint: Endpoint | None = None,
) -> None:
    """Run OpenCompass on the configuration in a benchmark's folder until all is there.

    Args:
        python: Interpreter of its environment.
        asked: The benchmark.
        key: For the endpoint.
        silence_seconds: As in `ask_by_opencompass`.
        endpoint: The server that answers; if it ends, so does OpenCompass.

    Raises:
        EvaluationError: As `ask_by_opencompass`.
    """
    work = Path(asked.work)
    log = work / LOG
    remove_damaged(asked)
    # It writes to its working directory, under a path that it hands to a shell without quotes.
    place = tempfile.mkdtemp(prefix="nan-merge-opencompass-")
    program = [python, str(Path(opencompass_main.__file__)), str(work / "config.py")]
    program += ["--work-dir", str(work), "--reuse", RUN]
    start = log.stat().st_size if log.is_file() else 0
    try:
        with log.open("ab") as file:
            process = subprocess.Popen(
                end_with_parent.command(program),
                cwd=place,
                env=_environment(place, key),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait(process, work, silence_seconds, endpoint)
        finally:
            end_process(process)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if process.returncode:
        raise EvaluationError(
            f"OpenCompass ended with exit code {process.returncode}; {log} has all that it "
            f"printed:\n{opencompass_last_words(log, start)}"
        )
    refuse_unfinished(asked, log, start)


def _max_length(endpoint: Endpoint, key: str) -> int:
    """What the server says is the most tokens of a prompt and its answer."""
    request = Request(f"{endpoint.url}/models", headers={"Authorization": f"Bearer {key}"})
    with urlopen(request, timeout=60) as response:
        return int(json.load(response)["data"][0]["max_model_len"])


def _environment(place: str, key: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_IT}
    no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", "localhost")))
    return own | {
        "OPENAI_API_KEY": key,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        "PYTHONUTF8": "1",  # it opens files without naming their encoding
        "PYTHONNOUSERSITE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # the GPUs are the server's
        "COMPASS_DATA_CACHE": place,  # not the user's: the configuration names all data
        "HF_DATASETS_CACHE": place,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _wait(
    process: subprocess.Popen[bytes], work: Path, silence_seconds: float, endpoint: Endpoint | None
) -> None:
    size, heard = _num_bytes(work), time.monotonic()
    while process.poll() is None:
        if endpoint is not None and endpoint.process.poll() is not None:
            raise EvaluationError(
                f"The server ended while OpenCompass asked; {endpoint.log} has all that it "
                f"printed:\n{last_words(endpoint.log)}"
            )
        now = time.monotonic()
        if (grown := _num_bytes(work)) != size:
            report_progress(max(1, grown - size))
            size, heard = grown, now
        elif now - heard > silence_seconds:
            log = [work / LOG, *task_logs(work)][-1]
            words = opencompass_last_words(log, 0)
            raise EvaluationError(
                f"OpenCompass wrote nothing for {silence_seconds:g} s and was ended. The same "
                "command goes on where it stood; raise `silence_seconds` of the engine if answers "
                f"take so long. What it printed last, in {log}:\n{words}"
            )
        time.sleep(_POLL_SECONDS)


def _num_bytes(work: Path) -> int:
    """Of all that it writes; not of the server's log, which grows by itself."""
    total = 0
    for path in [work / LOG, *(work / RUN).rglob("*")]:
        with suppress(OSError):
            total += path.stat().st_size
    return total
