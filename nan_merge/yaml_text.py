"""YAML text to plain values that remember where they stand, and `key=value` overrides on them.

Numbers, booleans and nulls are those of YAML 1.2: `1e-3` is a number (PyYAML alone reads text),
and `no`, `off`, `2020-01-01` and `1:30` are text. Keys are always text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nan_merge.errors import ConfigError

FieldPath = tuple[str | int, ...]

MAX_BYTES = 1_000_000  # PyYAML reads some 100 kB a second; a recipe has a few
MAX_VALUES = 100_000  # aliases of aliases grow exponentially ("billion laughs")
MAX_DEPTH = 50

_SCALARS: dict[str, tuple[str, str]] = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


@dataclass
class Document:
    """The values of one file.

    Attributes:
        name: The file, as messages call it.
        value: Mappings, lists, text, numbers, booleans and None.
        places: Path of a value -> where it was written, e.g. "recipe.yaml:3:1".
        problems: What is wrong with the text although it could be read.
    """

    name: str
    value: Any = None
    places: dict[FieldPath, str] = field(default_factory=dict[FieldPath, str])
    problems: list[str] = field(default_factory=list[str])

    def place(self, path: FieldPath) -> str:
        """Where ``path`` was written; for what is missing, where its section was."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ConfigError: If it cannot be read, is no YAML in UTF-8, empty, larger than 1 MB, or expands
            to more than a sane number of values. Duplicate keys are listed in `problems` instead.
    """
    return parse_document(_read_text(path), str(path))


def parse_document(text: str, name: str) -> Document:
    """Parse YAML text; raises as `read_document`, and calls the text ``name``."""
    try:
        node = yaml.compose(text, Loader=_Yaml12Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        if error.problem == "but found another document":
            raise ConfigError(
                f"{place}: another document begins (`---`), expected one; give each merge a file "
                "of its own"
            ) from error
        reasons = [reason for reason in (error.context, error.problem) if reason]
        raise ConfigError(f"{place}: not valid YAML: {', '.join(reasons)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested more than {MAX_DEPTH} levels deep") from error
    if node is None:
        raise ConfigError(f"{name}: the file is empty")
    document = Document(name)
    document.value = _Reader(document).read(node, ())
    return document


def parse_value(text: str) -> Any:
    """The value of one override, read as YAML; nothing at all is null.

    Raises:
        ConfigError: If it is no YAML.
    """
    if not text.strip():
        return None
    document = parse_document(text, "value")
    if document.problems:
        raise ConfigError("; ".join(document.problems))
    return document.value


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder, expected a YAML file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path}: larger than {MAX_BYTES:,} bytes, expected a recipe or run file (YAML)"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start} is not UTF-8 text, expected a YAML file"
        ) from error


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML's parser with the plain scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute)


for _tag, (_pattern, _first) in _SCALARS.items():
    _Yaml12Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
        _tag, re.compile(f"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first]
    )


class _Reader:
    """Turns nodes into values, noting places; counts them, so that aliases cannot explode."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.num_values = 0

    def read(self, node: yaml.Node, path: FieldPath) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise ConfigError(f"{self.document.name}: more than {MAX_VALUES:,} values")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{self.document.name}: nested more than {MAX_DEPTH} levels deep")
        self.document.places.setdefault(path, self._place(node))
        if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self._place(key_node)}: a key is a list or section, not text")
            key: str = key_node.value
            if key in values:
                self.document.problems.append(
                    f"{self._place(key_node)}: {field_name((*path, key))}: found twice, "
                    f"first on line {first_lines[key]}; expected once"
                )
                continue
            first_lines[key] = key_node.start_mark.line + 1
            self.document.places[(*path, key)] = self._place(key_node)
            values[key] = self.read(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.Node) -> Any:
        text, kind = node.value, node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            return _CONVERT[kind](text)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self._place(node)}: cannot read {shorten(str(text))} as {node.tag}; "
                "expected plain YAML without tags"
            ) from error

    def _place(self, node: yaml.Node) -> str:
        mark = node.start_mark
        return f"{self.document.name}:{mark.line + 1}:{mark.column + 1}"


def field_name(path: FieldPath) -> str:
    """A path as users write it, e.g. ``merges.0.method``."""
    return ".".join(str(part) for part in path)


def shorten(text: str, limit: int = 60) -> str:
    """Text in quotes, on one line and cut to ``limit`` characters."""
    quoted = repr(text)
    return quoted if len(quoted) <= limit else f"{quoted[: limit - 4]}...'"


def _integer(text: str) -> int:
    bases = {"0o": 8, "0x": 16}
    return int(text, bases.get(text[:2], 10))


def _float(text: str) -> float:
    # YAML writes infinity and not-a-number with a leading point, Python without.
    return float(re.sub(r"\.(?=[iInN])", "", text))


_CONVERT = {
    "str": str,
    "null": lambda text: None,  # pyright: ignore[reportUnknownLambdaType]
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _integer,
    "float": _float,
}
