"""What a user meets when something is wrong: one clear message, exit code 2, nothing half-made.

What needs a process of its own (a limit, a signal, a library that reads its environment once) gets
one; the others are asked in this one, which takes a fraction of the time.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipelines.cli import app

COMMAND = [sys.executable, "-c", "from pipelines.cli import main; main()"]


def variables_of(folder: Path) -> dict[str, str]:
    return {"NAN_MERGE_CACHE": str(folder / "hashes"), "COLUMNS": "200"}


def run_process(folder: Path, *arguments: str, limit_bytes: int | None = None, **variables: str):
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
        preexec_fn=limit,
        env=os.environ | variables_of(folder) | variables,
    )


@pytest.fixture
def nan_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command in this process, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAN_MERGE_DEBUG", raising=False)
    for name, value in variables_of(tmp_path).items():
        monkeypatch.setenv(name, value)

    def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
        result = CliRunner().invoke(app, arguments)
        return subprocess.CompletedProcess(
            arguments, result.exit_code, result.stdout, result.stderr
        )

    return invoke


def save_model(folder: Path, shape: tuple[int, ...] = (30, 40)) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(len(folder.name))
    tensors = {f"layers.{i}.w": torch.randn(shape, generator=generator) for i in range(3)}
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("base", "maths", "code"):
        save_model(tmp_path / name)
    recipe = {"base": "base", "models": ["maths", "code"], "method": "ties", "coefficients": "nan"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_the_recipe_as_it_is_merges(work: Path):
    result = run_process(work, "merge", "recipe.yaml", "out")
    assert result.returncode == 0, result.stderr
    assert "out is written" in result.stdout
    manifest = json.loads((work / "out" / "merge_manifest.json").read_text())
    assert sum(manifest["coefficients"].values()) == pytest.approx(1)


def test_a_missing_checkpoint(work: Path, nan_merge):
    result = nan_merge("merge", "recipe.yaml", "out", "base=./bse")
    assert_refused(result, "No checkpoint at ./bse", str(work / "bse"))
    assert not (work / "out").exists()


def test_a_truncated_checkpoint(work: Path, nan_merge):
    path = work / "maths" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    result = nan_merge("merge", "recipe.yaml", "out")
    assert_refused(result, "maths/model.safetensors", "1,000 bytes are missing", "cut short")
    assert not (work / "out").exists()


def test_a_typo_in_the_recipe(work: Path, nan_merge):
    (work / "recipe.yaml").write_text(
        "base: base\nmodels: [maths]\nmethod:\n  name: ties\n  densty: 0.1\n"
    )
    result = nan_merge("plan", "recipe.yaml")
    assert_refused(result, "recipe.yaml:5:3: method.densty", "did you mean 'density'?")


def test_a_typo_in_an_override(work: Path, nan_merge):
    result = nan_merge("plan", "recipe.yaml", "coefficients.lamda=0.3")
    assert_refused(result, "coefficients.lamda", "did you mean 'lambda'?")


def test_models_of_different_shapes(work: Path, nan_merge):
    save_model(work / "other", (30, 41))
    result = nan_merge("merge", "recipe.yaml", "out", "models=[maths, other]")
    assert_refused(result, "3 problems", "layers.0.w: other has shape (30, 41)", "(30, 40)")


def test_a_disk_that_fills_up_and_is_freed(work: Path):
    result = run_process(work, "merge", "recipe.yaml", "out", limit_bytes=6000)
    assert_refused(result, "No space left on the disk while writing", "out", "Free some space")
    assert not (work / "out").exists()
    assert run_process(work, "merge", "recipe.yaml", "out").returncode == 0


def test_no_network(work: Path):
    arguments = ("merge", "recipe.yaml", "out", "base=some-org/some-model")
    result = run_process(work, *arguments, HF_HUB_OFFLINE="1")
    assert_refused(result, "some-org/some-model", "hub cannot be reached", "hf download")


def test_an_output_folder_that_holds_something_else(work: Path, nan_merge):
    (work / "out").mkdir()
    (work / "out" / "thesis.txt").write_text("years of work")
    result = nan_merge("merge", "recipe.yaml", "out")
    assert_refused(result, "out exists already")
    assert (work / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"[", b"- 1", b"a: b: c", b"42"])
def test_garbage_instead_of_yaml(work: Path, content: bytes, nan_merge):
    (work / "garbage.yaml").write_bytes(content)
    assert_refused(nan_merge("merge", "garbage.yaml", "out"), "garbage.yaml")
    assert_refused(nan_merge("run", "garbage.yaml"), "garbage.yaml")


def test_the_traceback_is_there_for_who_asks(work: Path, nan_merge):
    result = nan_merge("merge", "recipe.yaml", "out", "base=./bse", "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr


MINIATURE = """
name: miniature
experts:
  tasks: [digits, texture]
  text: {steps: 3}
  pretrain: {steps: 10}
  finetune: {steps: 60}
merges:
  - {name: TA, method: task_arithmetic, coefficients: nan}
evaluate: {benchmarks: [digits, texture]}
track: {mlflow: false}
"""


def test_a_run_folder_that_is_a_file(tmp_path: Path, nan_merge):
    (tmp_path / "run.yaml").write_text(MINIATURE)
    (tmp_path / "thesis").write_text("years of work")
    assert_refused(nan_merge("run", "run.yaml", "run_folder=thesis"), "thesis is a file")
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_a_cluster_that_is_not_there(tmp_path: Path, nan_merge):
    (tmp_path / "run.yaml").write_text(MINIATURE)
    result = nan_merge("run", "run.yaml", "cluster.address=127.0.0.1:1")
    assert_refused(result, "No Ray cluster answers at '127.0.0.1:1'", "cluster.address=local")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("merges.0.name=Individual", "called Individual"),
        ("experts.tasks.1=textur", "did you mean 'texture'"),
        ("evaluate.benchmarks=[digits, digits]", "is named twice"),
        ("experts.backbone=ViT-B-23", "experts.backbone: 'ViT-B-23'"),
    ],
)
def test_names_that_no_run_can_take(tmp_path: Path, override: str, words: str, nan_merge):
    (tmp_path / "run.yaml").write_text(MINIATURE)
    assert_refused(nan_merge("run", "run.yaml", override), words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_ctrl_c_in_the_middle_of_a_run_and_the_run_after_it(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(MINIATURE)
    command = [*COMMAND, "run", "run.yaml"]
    variables = os.environ | {"NAN_MERGE_CACHE": str(tmp_path / "hashes")}
    log = tmp_path / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True,
            env=variables | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while b"Fine-tuning" not in log.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert b"Fine-tuning" in log.read_bytes(), log.read_text()
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=60) == 130, log.read_text()
    assert "Interrupted" in log.read_text()
    assert "Traceback" not in log.read_text()
    (experts,) = (tmp_path / "runs" / "cache").glob("experts-*")
    assert not (experts / "digits").exists()
    pretrained = (experts / "clip").stat().st_mtime_ns

    result = run_process(tmp_path, "run", "run.yaml")
    assert result.returncode == 0, result.stderr
    assert "Pretraining" not in result.stdout
    assert (experts / "clip").stat().st_mtime_ns == pretrained
    assert (tmp_path / "runs" / "miniature" / "report.html").exists()
    assert not list(tmp_path.rglob("*.partial"))
