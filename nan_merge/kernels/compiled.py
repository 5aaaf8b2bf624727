"""Kernels: functions whose machine code is made once on a machine, by numba, and kept.

A process that finds the machine code loads it through llvmlite alone: numba, whose import would be
a third of a small merge, is needed only by the process that compiles (`nan_merge.kernels.build`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nan_merge.errors import NanMergeError
from nan_merge.kernels.machine_code import host_processor, load_kernel

HERE = Path(__file__).parent
# Raise it when the form of the kept files changes.
FORM = 1


def part(function: Callable[..., Any]) -> Any:
    """A part of kernels: compiled into each that calls it, and never called on its own."""
    return function


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the function as machine code for exactly these types, in numba's notation.

    The function is compiled or loaded when it is first called. It works without the interpreter's
    lock. Arrays are contiguous; a result is a number, a boolean or nothing.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        loaded: list[Callable[..., Any]] = []
        loading = threading.Lock()

        def call(*arguments: Any) -> Any:
            if not loaded:
                with loading:
                    if not loaded:
                        loaded.append(_load(function.__module__, function.__name__, signature))
            return loaded[0](*arguments)

        call.__doc__, call.__name__ = function.__doc__, function.__name__
        return call

    return decorate


def _load(module: str, name: str, signature: str) -> Callable[..., Any]:
    """Take the kept machine code of a kernel, or have it made."""
    path = kept_folder() / f"{name}.kernel"
    kernel = load_kernel(path, signature)
    if kernel is None:
        _build(module)
        kernel = load_kernel(path, signature)
    if kernel is None:
        raise NanMergeError(
            f"{path} was just compiled and cannot be loaded. Remove the folder {path.parent} and "
            "run the same command again."
        )
    return kernel


def _build(module: str) -> None:
    """Compile every kernel of a module, in a process of its own that imports numba."""
    package_root = str(HERE.parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package_root, *sys.path])}
    command = [sys.executable, "-m", "nan_merge.kernels.build", module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last_words = "\n".join((done.stderr.strip() or "no message").splitlines()[-5:])
        raise NanMergeError(
            f"Compiling {module} failed:\n{last_words}\nIs numba installed for {sys.executable}, "
            f"and can {kept_folder()} be written?"
        )


@cache
def kept_folder() -> Path:
    """Where machine code is kept: beside the package, or else in the user's cache folder.

    Its name is made of all kernels' source, of who compiles, and of the processor.
    """
    content = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))
    maker = f"{FORM} {version('numba')} {version('llvmlite')} {host_processor()}"
    digest = hashlib.sha256(content + maker.encode()).hexdigest()[:16]
    beside = HERE / "__pycache__"
    if os.access(beside if beside.exists() else HERE, os.W_OK):
        return beside / digest
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_home / "nan-merge" / f"kernels-{digest}"
