"""Machine code of kernels: kept, loaded without numba, made again when it is damaged."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nan_merge.errors import NanMergeError
from nan_merge.kernels import compiled
from nan_merge.kernels.machine_code import load_kernel
from nan_merge.kernels.philox import PER_STEP, fill_draws

SIGNATURE = "void(uint64, uint64, int64, int64, float32[::1])"


@pytest.fixture
def kept() -> Path:
    fill_draws(1, 2, 0, PER_STEP, np.empty(PER_STEP, np.float32))
    return compiled.kept_folder() / "fill_draws.kernel"


def draws(call: object) -> np.ndarray:
    out = np.empty(8, np.float32)
    call(1, 2, 0, 8, out)  # type: ignore[operator]
    return out


def test_a_process_that_uses_kernels_imports_no_numba(kept: Path):
    script = (
        "import sys, numpy as np\n"
        "from nan_merge.kernels.philox import fill_draws\n"
        "fill_draws(1, 2, 0, 4, np.empty(4, np.float32))\n"
        "print('numba' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(compiled.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("cut", [0, 20, -1])
def test_a_file_that_was_cut_short_or_changed_is_not_loaded(kept: Path, tmp_path: Path, cut: int):
    damaged = tmp_path / kept.name
    damaged.write_bytes(kept.read_bytes()[:cut])
    assert load_kernel(damaged, SIGNATURE) is None
    content = bytearray(kept.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    assert load_kernel(damaged, SIGNATURE) is None


def test_a_kernel_that_is_not_kept_is_compiled(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiled, "kept_folder", lambda: tmp_path)
    built: list[str] = []

    def build(module: str) -> None:
        built.append(module)
        (tmp_path / kept.name).write_bytes(kept.read_bytes())

    monkeypatch.setattr(compiled, "_build", build)
    kernel = compiled.compiled(SIGNATURE)(fill_draws_of_philox())
    assert np.array_equal(draws(kernel), draws(fill_draws))
    assert built == ["nan_merge.kernels.philox"]


def fill_draws_of_philox() -> object:
    def fill_draws(*_: object) -> None:
        """Only its name and module matter here."""

    fill_draws.__module__ = "nan_merge.kernels.philox"
    return fill_draws


def test_compiling_that_fails_says_why(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(NanMergeError, match=r"(?s)Compiling nowhere failed.*No module named"):
        compiled._build("nowhere")


@pytest.mark.parametrize(
    "out", [np.empty(8), np.empty((2, 4), np.float32), np.empty(16, np.float32)[::2]]
)
def test_an_array_of_another_kind_is_refused(out: np.ndarray):
    with pytest.raises(TypeError, match="contiguous float32 array of 1 axes is needed"):
        fill_draws(1, 2, 0, 8, out)
