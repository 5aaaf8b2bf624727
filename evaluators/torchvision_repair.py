"""Let a CUDA-linked torchvision import beside a torch without CUDA.

PyPI's torchvision wheels link to CUDA libraries. Beside a CPU torch their operators cannot be
loaded, which torchvision tolerates with one exception: it registers shape functions for
``torchvision::nms`` and ``torchvision::qnms``, and ``import torchvision`` (and with it open_clip
and much of transformers) dies with ``operator torchvision::nms does not exist``. Declaring the
two schemas before that import is enough. Models and PIL transforms then work; the operators
themselves (``torchvision.ops.nms``) still do not.

``python -m evaluators.torchvision_repair --install`` does this for every process of the
environment, Ray workers and servers in subprocesses included: it copies this file beside
torchvision and adds a ``.pth`` line that runs it at start-up. The hook costs nothing until
something imports torchvision. ``--remove`` takes both files away.

This file imports only the standard library, because the copy must work without the project.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder

TYPE_CHECKING = False  # importing typing or pathlib would slow down every start of Python
if TYPE_CHECKING:
    from pathlib import Path

HOOK_MODULE = "_nan_merge_torchvision_repair"
# One line, as .pth files demand, and guarded: a failing hook must not break the interpreter.
PTH_LINE = (
    f'import sys; exec("try:\\n import {HOOK_MODULE} as _repair\\n _repair.install_import_hook()'
    '\\nexcept Exception:\\n pass")\n'
)
# What lets torchvision's compiled part load only beside a torch built for CUDA.
CUDA_LIBRARIES = (b"libtorch_cuda", b"libc10_cuda", b"torch_cuda.dll", b"c10_cuda.dll")

_declared: list[object] = []  # torch drops the schemas when their Library is collected


def is_needed() -> bool:
    """Tell whether torchvision's compiled part wants CUDA libraries that torch lacks.

    Looks at files only; imports neither torch nor torchvision. Costs about 10 ms.
    """
    torch_folder, torchvision_folder = _package_folder("torch"), _package_folder("torchvision")
    if torch_folder is None or torchvision_folder is None:
        return False
    if any((torch_folder / "lib").glob("*torch_cuda*")):
        return False
    extensions = [*torchvision_folder.glob("_C*.so"), *torchvision_folder.glob("_C*.pyd")]
    return any(
        library in extension.read_bytes() for extension in extensions for library in CUDA_LIBRARIES
    )


def repair() -> bool:
    """Declare the two schemas if this environment needs them; safe to call any number of times.

    Returns:
        True if this call declared them, False if there was nothing to do.
    """
    if "torchvision" in sys.modules and not _is_being_imported("torchvision"):
        return False
    if not is_needed():
        return False
    import torch

    missing = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return True


def install_import_hook() -> None:
    """Run ``repair`` just before torchvision's first import in this process."""
    if not any(isinstance(finder, _RepairingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RepairingFinder())


class _RepairingFinder:
    """Finds torchvision like Python does, but repairs before its code runs.

    Only running it triggers the repair: libraries that merely ask whether torchvision is
    installed must not pay for importing torch.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        run_module = spec.loader.exec_module

        def repair_and_run(module: object) -> None:
            try:
                repair()
            except Exception as error:
                print(f"torchvision repair failed: {error}", file=sys.stderr)
            run_module(module)  # pyright: ignore[reportArgumentType]

        spec.loader.exec_module = repair_and_run  # pyright: ignore[reportAttributeAccessIssue]
        return spec


def install_for_all_processes(site_packages: Path | None = None) -> str:
    """Write the hook into site-packages where it is needed; returns what was done."""
    from pathlib import Path

    module, pth = _installed_files(site_packages)
    if not is_needed():
        return "Nothing to do: torch and torchvision of this environment fit each other."
    module.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    pth.write_text(PTH_LINE, encoding="utf-8")
    return f"Wrote {pth} and {module.name}: every new process can import torchvision now."


def remove_for_all_processes(site_packages: Path | None = None) -> str:
    """Take the hook out of site-packages; returns what was done."""
    files = _installed_files(site_packages)
    present = [file for file in files if file.exists()]
    for file in present:
        file.unlink()
    return f"Removed {', '.join(map(str, present))}." if present else "Nothing was installed."


def _installed_files(site_packages: Path | None) -> tuple[Path, Path]:
    import sysconfig
    from pathlib import Path

    folder = site_packages or Path(sysconfig.get_paths()["purelib"])
    return folder / f"{HOOK_MODULE}.py", folder / f"{HOOK_MODULE}.pth"


def _package_folder(name: str) -> Path | None:
    from pathlib import Path

    spec = PathFinder.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _is_being_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def main() -> None:
    """Command line: ``--install``, ``--remove``, or say how things stand."""
    import argparse

    parser = argparse.ArgumentParser(
        description="Let a CUDA torchvision import beside a CPU torch."
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--install", action="store_true", help="for every process of this Python")
    action.add_argument("--remove", action="store_true", help="undo --install")
    options = parser.parse_args()
    try:
        if options.install:
            print(install_for_all_processes())
        elif options.remove:
            print(remove_for_all_processes())
        else:
            print("A repair is needed." if is_needed() else "No repair is needed.")
    except OSError as error:
        sys.exit(f"Cannot change site-packages: {error}")


if __name__ == "__main__":
    main()
