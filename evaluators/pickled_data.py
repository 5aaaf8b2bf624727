"""Read the data in a pickle without running it: text, numbers, tables and arrays of numbers.

A pickle is a program for a small machine. This reader takes its instructions one by one from
`pickletools.genops`, which only parses, and does those that build plain data. What would call or
import anything is not done: of the names that a pickle may ask for, numpy's for arrays are
understood, and stand for what is made here; every other one is an error.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nan_merge.errors import DataError

MAX_BYTES = 2_000_000_000
_ARRAY_NAMES = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_SCALAR_NAMES = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
_BUFFER_NAMES = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
_DTYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "b1"}
_MARK = object()


@dataclass
class _Array:
    """An array whose content is not known yet."""

    content: np.ndarray | None = None


@dataclass
class _Dtype:
    """A type of numbers, by numpy's code, and in which order its bytes lie."""

    code: str
    order: str = "<"


@dataclass(frozen=True)
class _Name:
    """Something that a pickle would import."""

    text: str


@dataclass
class _Machine:
    """Stack and memory while a pickle is read."""

    path: Path
    stack: list[Any] = field(default_factory=list[Any])
    memo: dict[int, Any] = field(default_factory=dict[int, Any])

    def fail(self, what: str) -> DataError:
        """An error about this file."""
        return DataError(
            f"{self.path}: {what}, which is no plain data, so the file was not read on. Where you "
            "trust it, convert it by hand; docs/benchmarks.md shows the layout."
        )

    def to_mark(self) -> list[Any]:
        """Take what lies above the last mark."""
        items: list[Any] = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise self.fail("it ends a group that it never began")
        self.stack.pop()
        return items[::-1]


def read_pickled_data(path: Path) -> Any:
    """The plain data in a pickle: dict, list, tuple, str, bytes, int, float, bool, None, arrays.

    Raises:
        DataError: If the file is missing, damaged or too large, or holds anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: has more than {MAX_BYTES:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    machine = _Machine(path)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                break
            _step(machine, opcode.name, argument)
        return _plain(machine, machine.stack[-1])
    except DataError:
        raise
    except Exception as error:  # a damaged or hostile file fails wherever it likes
        raise DataError(f"{path}: is no pickle of plain data: {error}") from error


def _step(machine: _Machine, name: str, argument: Any) -> None:
    stack, memo = machine.stack, machine.memo
    if name in _PUSHES:
        stack.append(argument)
    elif name in _MAKES:
        stack.append(_MAKES[name]())
    elif name in _GROUPS:
        _GROUPS[name](machine)
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[int(argument)] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[int(argument)])
    elif name == "GLOBAL":
        stack.append(_Name(str(argument)))
    elif name not in ("PROTO", "FRAME"):
        raise machine.fail(f"it asks for the instruction {name}")


_PUSHES = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
     "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
     "BINUNICODE",
     "SHORT_BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT")
)  # fmt: skip
_MAKES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


def _append(machine: _Machine) -> None:
    item = machine.stack.pop()
    _container(machine, list).append(item)


def _append_all(machine: _Machine) -> None:
    items = machine.to_mark()
    _container(machine, list).extend(items)


def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _container(machine, dict)[key] = value


def _set_items(machine: _Machine) -> None:
    items = machine.to_mark()
    _container(machine, dict).update(zip(items[::2], items[1::2], strict=True))


def _container(machine: _Machine, kind: type) -> Any:
    if type(machine.stack[-1]) is not kind:
        raise machine.fail(f"it changes a {type(machine.stack[-1]).__name__}")
    return machine.stack[-1]


def _tuple(count: int) -> Callable[[_Machine], None]:
    def make(machine: _Machine) -> None:
        items = tuple(machine.stack[-count:])
        del machine.stack[-count:]
        machine.stack.append(items)

    return make


def _tuple_to_mark(machine: _Machine) -> None:
    machine.stack.append(tuple(machine.to_mark()))


def _list_to_mark(machine: _Machine) -> None:
    machine.stack.append(machine.to_mark())


def _dict_to_mark(machine: _Machine) -> None:
    items = machine.to_mark()
    machine.stack.append(dict(zip(items[::2], items[1::2], strict=True)))


def _stack_name(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(_Name(f"{module} {name}"))


def _reduce(machine: _Machine) -> None:
    """A call: understood for what arrays of numbers are made of, and never done."""
    arguments, name = machine.stack.pop(), machine.stack.pop()
    text = name.text if isinstance(name, _Name) else type(name).__name__
    if text in _ARRAY_NAMES:
        machine.stack.append(_Array())
    elif text in _BUFFER_NAMES:
        data, dtype, shape, order = arguments
        numbers = np.frombuffer(bytes(data), _as_numpy(dtype))
        machine.stack.append(_Array(numbers.reshape(shape, order=str(order))))  # pyright: ignore
    elif text in _SCALAR_NAMES:
        dtype, data = arguments
        raw = data.encode("latin-1") if isinstance(data, str) else data
        machine.stack.append(np.frombuffer(raw, _as_numpy(dtype))[0].item())
    elif text == "numpy dtype" and str(arguments[0]).lstrip("<>|=") in _DTYPES:
        machine.stack.append(_Dtype(str(arguments[0]).lstrip("<>|=")))
    elif text == "_codecs encode" and arguments[1:] in (("latin1",), ("latin-1",)):
        machine.stack.append(str(arguments[0]).encode("latin-1"))
    else:
        raise machine.fail(f"it asks for {text} to be called")


def _as_numpy(dtype: _Dtype) -> np.dtype[Any]:
    return np.dtype(f"{dtype.order}{dtype.code}")


def _build(machine: _Machine) -> None:
    """The state of an array or of its type."""
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, _Dtype):
        target.order = {">": ">", "<": "<"}.get(
            str(state[1]), "|" if target.code[1] == "1" else "<"
        )
    elif isinstance(target, _Array):
        _, shape, dtype, is_fortran, data = state
        raw = data.encode("latin-1") if isinstance(data, str) else data
        numbers = np.frombuffer(raw, _as_numpy(dtype))
        target.content = numbers.reshape(shape, order="F" if is_fortran else "C")
    else:
        raise machine.fail(f"it sets the state of a {type(target).__name__}")


_GROUPS: dict[str, Callable[[_Machine], None]] = {
    "APPEND": _append,
    "APPENDS": _append_all,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _tuple_to_mark,
    "LIST": _list_to_mark,
    "DICT": _dict_to_mark,
    "STACK_GLOBAL": _stack_name,
    "REDUCE": _reduce,
    "BUILD": _build,
}


def _plain(machine: _Machine, value: Any, made: dict[int, Any] | None = None) -> Any:
    """Data in which arrays stand for what they hold; nothing else is left over.

    Args:
        machine: Whose errors name the file.
        value: What was read.
        made: Plain forms by the identity of what was read: a pickle may hold one thing a thousand
            times, in things that it holds a thousand times.
    """
    made = {} if made is None else made
    if id(value) in made:
        return made[id(value)]
    found = value
    if isinstance(value, list | tuple | dict):
        made[id(value)] = None  # something that holds itself holds nothing there
    if isinstance(value, list | tuple):
        found = type(value)(_plain(machine, each, made) for each in value)
    elif isinstance(value, dict):
        pairs = [(_plain(machine, k, made), _plain(machine, v, made)) for k, v in value.items()]
        found = dict(pairs)
    elif isinstance(value, _Array) and value.content is not None:
        found = value.content
    elif isinstance(value, _Array | _Dtype | _Name) or value is _MARK:
        raise machine.fail(f"it holds a {type(value).__name__.strip('_').lower()}")
    made[id(value)] = found
    return found
