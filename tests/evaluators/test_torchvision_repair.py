import subprocess
import sys
from pathlib import Path

import pytest

from evaluators import torchvision_repair

torchvision_repair.repair()
pytest.importorskip("torchvision")


def make_packages(folder: Path, *, torch_has_cuda: bool, torchvision_wants_cuda: bool) -> None:
    (folder / "torch" / "lib").mkdir(parents=True)
    (folder / "torch" / "__init__.py").touch()
    if torch_has_cuda:
        (folder / "torch" / "lib" / "libtorch_cuda.so").touch()
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").touch()
    links = b"libc10.so\0libtorch_cuda.so" if torchvision_wants_cuda else b"libc10.so"
    (folder / "torchvision" / "_C.so").write_bytes(b"\x7fELF" + links)


@pytest.mark.parametrize(
    ("torch_has_cuda", "torchvision_wants_cuda", "needed"),
    [(False, True, True), (True, True, False), (False, False, False), (True, False, False)],
)
def test_needed_only_for_cuda_torchvision_beside_cpu_torch(
    tmp_path, monkeypatch, torch_has_cuda, torchvision_wants_cuda, needed
):
    make_packages(
        tmp_path, torch_has_cuda=torch_has_cuda, torchvision_wants_cuda=torchvision_wants_cuda
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torchvision_repair.is_needed() is needed


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, *arguments, "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_hook_imports_torch_only_when_torchvision_is_imported():
    code = """
import sys
from importlib.util import find_spec
from evaluators import torchvision_repair
torchvision_repair.install_import_hook()
assert find_spec("torchvision") is not None
assert "torch" not in sys.modules
import torchvision
assert torchvision_repair.repair() is False
print(torchvision.models.resnet18.__name__)
"""
    assert run_python(code) == "resnet18"


def test_installed_line_survives_without_its_module():
    output = run_python(f"{torchvision_repair.PTH_LINE}print('alive')", "-I")
    assert output == "alive"


def test_installed_hook_works_without_the_project(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_repair, "is_needed", lambda: True)
    torchvision_repair.install_for_all_processes(tmp_path)
    code = f"""
import site, sys
sys.meta_path[:] = [each for each in sys.meta_path if "repair" not in type(each).__module__]
sys.modules.pop({torchvision_repair.HOOK_MODULE!r}, None)  # one that this environment may have
site.addsitedir({str(tmp_path)!r})  # what Python does with site-packages when it starts
assert "torch" not in sys.modules
assert type(sys.meta_path[0]).__module__ == {torchvision_repair.HOOK_MODULE!r}
import torchvision
print("imported")
"""
    assert run_python(code, "-I") == "imported"


def test_remove_takes_away_what_install_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_repair, "is_needed", lambda: True)
    assert "Wrote" in torchvision_repair.install_for_all_processes(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert "Removed" in torchvision_repair.remove_for_all_processes(tmp_path)
    assert not list(tmp_path.iterdir())
    assert torchvision_repair.remove_for_all_processes(tmp_path) == "Nothing was installed."


def test_install_writes_nothing_where_not_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision_repair, "is_needed", lambda: False)
    assert "Nothing to do" in torchvision_repair.install_for_all_processes(tmp_path)
    assert not list(tmp_path.iterdir())
