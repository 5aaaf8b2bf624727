"""Compile the kernels of a module: `python -m nan_merge.kernels.build MODULE`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numba

from nan_merge.kernels import compiled
from nan_merge.kernels.machine_code import save_kernel

# Division by zero gives infinity or NaN, as numpy and torch have it, and not an exception.
_options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def build(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """A decorator in place of `compiled.compiled`: compile the function now, and keep it."""
    jit: Any = numba.njit

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = jit(signature, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_options)(
            function
        )
        (found,) = dispatcher.overloads.values()
        path = compiled.kept_folder() / f"{function.__name__}.kernel"
        save_kernel(path, found.fndesc.llvm_func_name, found.library.get_llvm_str())
        return dispatcher

    return decorate


def parts_compiled(*parts: Callable[..., Any]) -> tuple[Any, ...]:
    """Parts that call no others, compiled to be called on their own, as tests do."""
    return tuple(numba.njit(**_options)(part) for part in parts)


def main(module: str) -> None:
    """Import a module of kernels so that its parts and kernels are compiled."""
    compiled.part = numba.njit(**_options)
    compiled.compiled = build
    import_module(module)


if __name__ == "__main__":
    main(sys.argv[1])
