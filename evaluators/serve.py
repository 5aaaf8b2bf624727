"""Serve a model: vLLM's OpenAI-compatible server on a checkpoint, for this machine alone.

The server is started by its module, not by ``vllm serve``: that command does not find its own
version where the distribution has another name, as the CPU build has.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from evaluators import end_with_parent
from evaluators.backends.vllm_environment import (
    engine_variables,
    is_cpu_build,
    last_words,
    new_engine_folder,
    require_vllm,
)
from evaluators.rendering import check_chat_template, load_tokenizer
from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import EvaluationError

HOST = "127.0.0.1"
_POLL_SECONDS = 0.5
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Endpoint:
    """A server that answers.

    Attributes:
        url: Base URL of the API, e.g. "http://127.0.0.1:8000/v1".
        model: The model's name in requests.
        log: What the server prints.
        process: The server.
    """

    url: str
    model: str
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def serve_model(
    folder: Path,
    log: Path,
    *,
    name: str | None = None,
    port: int = 0,
    dtype: str = "bfloat16",
    max_length: int | None = None,
    tensor_parallel: int = 1,
    eager: bool | None = None,
    kv_cache_gib: int = 2,
    start_seconds: float = 900.0,
    gpu_memory: float = 0.9,
    api_key: str | None = None,
) -> Iterator[Endpoint]:
    """Serve a checkpoint until the block ends, or this process does, however that comes.

    Args:
        folder: A checkpoint in transformers' layout; requests to chat use its chat template.
        log: File for what the server prints; what is in it is kept.
        name: The model's name in requests; by default the folder's.
        port: On 127.0.0.1; 0 takes a free one.
        dtype: "float32" or "bfloat16".
        max_length: Most tokens of a prompt and its answer; by default the model's own.
        tensor_parallel: Over how many GPUs the model is spread.
        eager: Whether to start at once, without compiling the model; by default on a CPU.
        kv_cache_gib: On a CPU, GiB for keys and values.
        start_seconds: How long it may take to start.
        gpu_memory: On a GPU, the share of its memory that it may take.
        api_key: Without it a request is refused; every user of this machine may ask if None.

    Raises:
        CheckpointError: If there are no weights, or the tokenizer cannot be loaded.
        EvaluationError: If there is no chat template, the port is taken, or the server does not
            start; its own last words are in the message.
        MissingExtraError: If vLLM is not installed.
    """
    check_servable(folder, port)
    port = _free_port(port)
    model = name or folder.resolve().name
    options = ["--served-model-name", model, "--dtype", dtype]
    options += ["--tensor-parallel-size", str(tensor_parallel)]
    if max_length is not None:
        options += ["--max-model-len", str(max_length)]
    is_cpu = is_cpu_build()
    if is_cpu if eager is None else eager:
        options.append("--enforce-eager")
    if not is_cpu:
        options += ["--gpu-memory-utilization", str(gpu_memory)]
    workplace = new_engine_folder()
    log.parent.mkdir(parents=True, exist_ok=True)
    start = log.stat().st_size if log.is_file() else 0
    # Not as an argument, which every user of the machine can read.
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    with log.open("ab") as file:
        process = subprocess.Popen(
            _command(folder, port, options),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | engine_variables(kv_cache_gib, workplace) | key,
            start_new_session=True,
        )
    endpoint = Endpoint(f"http://{HOST}:{port}/v1", model, log, process)
    try:
        _wait_until_healthy(endpoint, port, start, start_seconds)
        yield endpoint
    finally:
        end_process(process)
        shutil.rmtree(workplace, ignore_errors=True)


def check_servable(folder: Path, port: int) -> None:
    """See in a second what would fail after a minute; for errors see `serve_model`."""
    require_vllm()
    open_checkpoint(str(folder))
    check_chat_template(load_tokenizer(folder), folder)
    _free_port(port)


def _command(folder: Path, port: int, options: Sequence[str]) -> list[str]:
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    server += ["--host", HOST, "--port", str(port), "--generation-config", "vllm"]
    return end_with_parent.command([*server, *options])


def _free_port(port: int) -> int:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except OSError as error:
            raise EvaluationError(
                f"Port {port} of {HOST} is taken: {error.strerror}. Give another --port, or 0 for "
                "any that is free."
            ) from error
        return int(free.getsockname()[1])


def _wait_until_healthy(endpoint: Endpoint, port: int, start: int, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while True:
        ended = endpoint.process.poll() is not None
        if ended or time.monotonic() > limit:
            what = "ended" if ended else f"does not answer after {seconds:.0f} s"
            raise EvaluationError(
                f"vLLM's server {what}; {endpoint.log} has all that it printed:\n"
                f"{last_words(endpoint.log, start)}"
            )
        with suppress(URLError, OSError), urlopen(f"http://{HOST}:{port}/health", timeout=5):
            return
        time.sleep(_POLL_SECONDS)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process that leads a session to end, then end what is left of its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
