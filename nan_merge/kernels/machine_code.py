"""Keep a kernel's machine code in a file, load it and call it.

Functions that numba compiled are called as it lays out their arguments: a place for the result, one
for an exception, then each argument; an array is seven or more of them (who owns it, twice nothing;
number of elements, bytes of one, address, shape, strides).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from nan_merge.errors import NanMergeError
from nan_merge.publish import write_bytes_atomically

_SCALARS: dict[str, Any] = {
    "boolean": ctypes.c_bool,
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "float32": ctypes.c_float,
}
_RESULTS: dict[str, Any] = {
    "boolean": ctypes.c_bool,
    "int64": ctypes.c_int64,
    "void": ctypes.c_void_p,
}
_engines: list[Any] = []  # machine code is theirs: they live as long as the process


@cache
def host_processor() -> str:
    """Name and features of this machine's processor, for which machine code is made."""
    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


@cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True
    )


def save_kernel(path: Path, symbol: str, optimised: str) -> None:
    """Make machine code of a function and keep it.

    Args:
        path: File to write.
        symbol: The function's name in the module.
        optimised: The module in LLVM's language, optimised, with everything that it calls.

    Raises:
        OutputError: If the file cannot be written.
    """
    # What frees memory of arrays that numba owns. Ours are numpy's, so it is never called.
    text = re.sub(
        r"^declare void @NRT_MemInfo_call_dtor\(ptr\).*$",
        "define internal void @NRT_MemInfo_call_dtor(ptr %0) { ret void }",
        optimised,
        flags=re.MULTILINE,
    )
    code = _machine().emit_object(llvm.parse_assembly(text))
    header = {"symbol": symbol, "sha256": hashlib.sha256(code).hexdigest()}
    write_bytes_atomically(path, json.dumps(header).encode() + b"\n" + code)


def load_kernel(path: Path, signature: str) -> Callable[..., Any] | None:
    """The function that `save_kernel` kept, or None if there is none, or only part of it."""
    try:
        header_line, code = path.read_bytes().split(b"\n", 1)
        header = json.loads(header_line)
    except (OSError, ValueError):
        return None
    if header.get("sha256") != hashlib.sha256(code).hexdigest():
        return None
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return _caller(path.stem, engine.get_function_address(header["symbol"]), signature)


def _caller(name: str, address: int, signature: str) -> Callable[..., Any]:
    result, _, listed = signature.partition("(")
    types = re.findall(r"(\w+)(\[[^\]]*\])?", listed)
    makers = [_array_maker(kind, axes) if axes else _scalar_maker(kind) for kind, axes in types]
    flat = [ctypes.c_void_p, ctypes.c_void_p]
    for kind, axes in types:
        flat += _array_types(axes) if axes else [_SCALARS[kind]]
    function = ctypes.CFUNCTYPE(ctypes.c_int32, *flat)(address)
    make_result = _RESULTS[result]

    def call(*arguments: Any) -> Any:
        outcome, exception = make_result(), ctypes.c_void_p()
        words: list[Any] = []
        for make, argument in zip(makers, arguments, strict=True):
            words += make(argument)
        if function(ctypes.byref(outcome), ctypes.byref(exception), *words):
            raise NanMergeError(f"The kernel {name} failed on arrays of wrong sizes.")
        return outcome.value

    return call


def _scalar_maker(kind: str) -> Callable[[Any], Sequence[Any]]:
    to_python = {"boolean": bool, "float32": float}.get(kind, int)
    return lambda value: (to_python(value),)


def _array_types(axes: str) -> list[Any]:
    num_axes = axes.count(":") - 1
    return (
        [ctypes.c_void_p] * 2
        + [ctypes.c_int64] * 2
        + [ctypes.c_void_p]
        + [ctypes.c_int64] * (2 * num_axes)
    )


def _array_maker(kind: str, axes: str) -> Callable[[Any], Sequence[Any]]:
    dtype, num_axes = np.dtype(kind), axes.count(":") - 1

    def make(array: np.ndarray) -> Sequence[Any]:
        if array.dtype != dtype or array.ndim != num_axes or not array.flags.c_contiguous:
            raise TypeError(
                f"a contiguous {kind} array of {num_axes} axes is needed, got {array.dtype} "
                f"{array.shape}"
            )
        address = array.__array_interface__["data"][0]
        return (
            None, None, array.size, array.itemsize, address, *array.shape, *array.strides,
        )  # fmt: skip

    return make
