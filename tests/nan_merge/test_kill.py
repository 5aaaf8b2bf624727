"""A merge that is killed at any moment leaves its folder absent or whole, and continues."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SCRIPT = """
import sys
from pathlib import Path
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe
recipe = MergeRecipe.model_validate({
    "base": "base", "models": ["maths", "code"], "method": {"name": "ties", "density": 0.3},
    "coefficients": {"source": "nan", "target": "task_vector"}, "shard_bytes": 4_000_000,
})
print("ready", flush=True)
if sys.stdin.readline():
    merge_checkpoint(recipe, Path(sys.argv[1]), workers=2)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.w": torch.randn(700, 1000, generator=generator) for i in range(12)}
    for name in ("base", "maths", "code"):
        (tmp_path / name).mkdir()
        noise = 0.0 if name == "base" else 0.1
        tensors = {
            key: value + noise * torch.randn(value.shape, generator=generator)
            for key, value in base.items()
        }
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path


def prepare(folder: Path, output: str) -> subprocess.Popen[str]:
    """A process that has a merge to make, and waits for the word to begin."""
    environment = os.environ | {
        "NAN_MERGE_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, output],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def processes_in(folder: Path) -> list[int]:
    """Processes that work in a folder and are not zombies."""
    found: list[int] = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and (process / "cwd").resolve() == folder.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.timeout(280)
def test_killed_at_twenty_moments_it_has_the_bytes_of_an_undisturbed_merge(models: Path):
    process = prepare(models, "undisturbed")
    begin(process)
    started = time.monotonic()
    assert process.wait(timeout=100) == 0
    seconds = time.monotonic() - started
    expected = contents(models / "undisturbed")
    moments = random.Random(0)
    num_unfinished = 0
    following = prepare(models, "killed")
    for attempt in range(20):
        process = following
        begin(process)
        if attempt < 19:  # imports while this one merges
            following = prepare(models, "killed")
        time.sleep(moments.uniform(0, seconds / 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        num_unfinished += not (models / "killed").exists()
        if (models / "killed").exists():  # it came to its end; the next one begins anew
            assert contents(models / "killed") == expected, attempt
            shutil.rmtree(models / "killed")
    time.sleep(1)
    assert processes_in(models) == []
    assert num_unfinished >= 5
    process = prepare(models, "killed")
    begin(process)
    assert process.wait(timeout=100) == 0
    assert contents(models / "killed") == expected
    assert not list(models.glob(".*"))
