"""Compile functions by numba, and keep the machine code of kernels for the next process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

HERE = Path(__file__).parent


# A part of kernels: compiled into each that calls it, and never on its own.
part: Any = numba.njit(nogil=True)


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: compile for exactly these types, without the interpreter's lock."""
    compile_for: Any = numba.njit
    config: Any = numba.config

    def decorate(function: Callable[..., Any]) -> Any:
        before, config.CACHE_DIR = config.CACHE_DIR, _kept()
        try:
            return compile_for(signature, nogil=True, cache=True)(function)
        finally:
            config.CACHE_DIR = before

    return decorate


@cache
def _kept() -> str:
    """Where machine code is kept: beside the package, or else in the user's cache folder.

    numba asks only whether the file of a function is as it was, but a kernel also contains the
    code of those that it calls in other files. So the folder's name is made of all of them.
    """
    source = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))
    digest = hashlib.sha256(source).hexdigest()[:16]
    beside = HERE / "__pycache__"
    if os.access(beside if beside.exists() else HERE, os.W_OK):
        return str(beside / digest)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(cache_home / "nan-merge" / f"kernels-{digest}")
