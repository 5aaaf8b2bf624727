"""Configuration files: YAML and `key=value` overrides in, a checked object out.

Everything that is wrong with a file is told at once, one line each:

    recipe.yaml:4:12: method.densty: unknown key, expected one of name, density; did you mean ...
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from nan_merge.config_messages import describe, problem_lines
from nan_merge.errors import ConfigError
from nan_merge.schema_paths import child
from nan_merge.yaml_text import (
    MAX_BYTES,
    Document,
    FieldPath,
    field_name,
    parse_value,
    read_document,
)

T = TypeVar("T", bound=BaseModel)


def load_config(path: Path, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply overrides and check the result against a schema.

    Args:
        path: A YAML file in UTF-8.
        schema: The pydantic model that it must follow.
        overrides: `key=value` each; keys are dotted, with indexes into lists
            (``merges.0.method.density=0.3``), values are YAML. Later ones win.

    Raises:
        ConfigError: If anything is wrong; the message has a line for every problem.
    """
    return check_document(read_document(path), schema, overrides)


def check_document(document: Document, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Apply overrides to a document that was read, and check it; for the rest see `load_config`."""
    problems = document.problems
    for override in overrides:
        try:
            _apply(override, document, schema)
        except ConfigError as error:
            problems.append(f"override {override!r}: {error}")
    try:
        config = schema.model_validate(document.value)
    except ValidationError as error:
        problems += problem_lines(schema, error, document)
    else:
        if not problems:
            return config
    raise ConfigError("\n".join(sorted(problems, key=reading_order)))


def schema_json(schema: type[BaseModel]) -> str:
    """The JSON Schema of a configuration file, for editors that check and complete YAML."""
    content = schema.model_json_schema()
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **content}, indent=2
    )


def reading_order(problem: str) -> tuple[int, int]:
    """Line and column that a problem starts with; overrides, which have none, come last."""
    place = re.match(r".*?:(\d+):(\d+): ", problem)
    if place is None or problem.startswith("override "):
        return MAX_BYTES, 0
    return int(place[1]), int(place[2])


def _apply(override: str, document: Document, schema: type[BaseModel]) -> None:
    """Set one value in the document, making the sections on its way."""
    key, equals, text = override.partition("=")
    path = _parse_key(key)
    if not equals:
        raise ConfigError("expected KEY=VALUE, e.g. seed=1")
    value = parse_value(text)
    annotation: Any = schema
    parent: Any = document.value
    here: FieldPath = ()
    for part in path[:-1]:
        slot = _slot(parent, part, here)
        here = (*here, slot)
        annotation = child(annotation, slot)
        if isinstance(parent, dict) and parent.get(slot) is None:
            parent[slot] = {}
            _move_to_override(document, here, override)
        next_part = path[len(here)]
        if not _can_enter(parent[slot], next_part):
            parent[slot] = _long_form(annotation, parent[slot], here)
        parent = parent[slot]
    slot = _slot(parent, path[-1], here)
    parent[slot] = value
    _move_to_override(document, (*here, slot), override)


def _can_enter(value: Any, part: str) -> bool:
    """Whether ``part`` can be looked up in this value as it stands, without its long form."""
    return isinstance(value, dict) or (isinstance(value, list) and part.isdigit())


def _parse_key(key: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in key.split("."))
    if not all(parts):
        raise ConfigError("expected KEY=VALUE with a dotted key, e.g. method.density=0.3")
    return parts


def _slot(parent: Any, part: str, path: FieldPath) -> str | int:
    """The key or index that ``part`` names in ``parent``."""
    if isinstance(parent, dict):
        return part
    where = field_name(path) or "the file"
    if not isinstance(parent, list):
        raise ConfigError(f"{where} is {describe(parent)}, not a section with a key {part!r}")
    if not part.isdigit() or len(part) > 6 or int(part) >= len(parent):
        size = f"{len(parent)} entries" if len(parent) != 1 else "1 entry"
        raise ConfigError(f"{where} is a list of {size}, expected an index from 0, not {part!r}")
    return int(part)


def _long_form(annotation: Any, value: Any, path: FieldPath) -> Any:
    """``ties`` -> ``{name: ties}``, where the schema takes a short form; else the value itself.

    The schema itself knows its short forms: what it makes of one is the long form.
    """
    if annotation is None:
        return value
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        checked = adapter.validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{field_name(path)} cannot be {describe(value)}") from error
    if not isinstance(checked, BaseModel):
        return value
    full = checked.model_dump(by_alias=True, exclude_unset=True)
    # Without what is derived from the value (a model's name), so that it is derived anew.
    brief = {key: item for key, item in full.items() if item == value}
    try:
        return brief if adapter.validate_python(brief) == checked else full
    except ValidationError:
        return full


def _move_to_override(document: Document, path: FieldPath, override: str) -> None:
    """From now on ``path`` and all below it was written by the override."""
    below = [place for place in document.places if place[: len(path)] == path]
    for place in below:
        del document.places[place]
    document.places[path] = f"override {override!r}"
