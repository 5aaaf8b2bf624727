"""Follow a path through a schema: which section owns a field, and what the field may hold."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nan_merge.yaml_text import FieldPath


@dataclass
class Spot:
    """A place in a schema.

    Attributes:
        path: The path without pydantic's labels of union members.
        section: The class whose field the last part of `path` is, if any.
        unions: (path of a union, label of its member) for every union on the way.
    """

    path: FieldPath = ()
    section: type[BaseModel] | None = None
    unions: list[tuple[FieldPath, str]] = field(default_factory=list[tuple[FieldPath, str]])


def locate(schema: type[BaseModel], location: FieldPath) -> Spot:
    """Translate the location of a pydantic error, which names union members, to a plain path."""
    spot, annotation = Spot(), schema
    for part in location:
        members = union_members(annotation)
        if len(members) > 1:
            if not is_discriminated(annotation):
                spot.unions.append((spot.path, str(part)))
            annotation = _member(members, str(part))
            continue
        kind = bare(members[0])
        if is_section(kind):
            spot.section = kind
        elif get_origin(kind) not in (tuple, list, dict):
            continue  # pydantic's name of a validator inside a scalar
        spot.path = (*spot.path, _public_name(kind, part))
        annotation = child(kind, part)
    return spot


def child(annotation: Any, part: str | int) -> Any:
    """What the schema says of one key or list entry; None if it says nothing."""
    for member in union_members(annotation):
        kind = bare(member)
        arguments = get_args(kind)
        if is_section(kind):
            name = next((n for n in kind.model_fields if part in names_of(kind, n)), None)
            if name is not None:
                return typing.get_type_hints(kind, include_extras=True)[name]
        elif get_origin(kind) in (tuple, list) and isinstance(part, int):
            is_fixed = get_origin(kind) is tuple and arguments[-1] is not Ellipsis
            return arguments[min(part, len(arguments) - 1)] if is_fixed else arguments[0]
        elif get_origin(kind) is dict:
            return arguments[1]
    return None


def union_members(annotation: Any) -> list[Any]:
    """The members of a union but None; the annotation alone if it is no union."""
    kind = bare(annotation)
    if get_origin(kind) not in (Union, types.UnionType):
        return [annotation]
    flat: list[Any] = []
    for member in get_args(kind):
        # A union within Annotated stays one for pydantic, with labels of its own.
        nested = get_origin(member) in (Union, types.UnionType)
        flat += union_members(member) if nested else [member]
    return [member for member in flat if member is not type(None)]


def is_discriminated(annotation: Any) -> bool:
    """Whether a key of the section tells the members of this union apart."""
    while get_origin(annotation) is Annotated:
        kind, *metadata = get_args(annotation)
        if any(isinstance(m, FieldInfo) and m.discriminator is not None for m in metadata):
            return True
        annotation = kind
    return False


def is_section(kind: Any) -> typing.TypeGuard[type[BaseModel]]:
    """Whether a type is a section with fields of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def bare(annotation: Any) -> Any:
    """The type within any layers of ``Annotated``."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def field_names(section: type[BaseModel]) -> list[str]:
    """The keys of a section, as users write them."""
    return [info.alias or name for name, info in section.model_fields.items()]


def names_of(section: type[BaseModel], name: str) -> set[str | int]:
    """Every key that sets one field."""
    return {name, section.model_fields[name].alias or name}


def _public_name(kind: Any, part: str | int) -> str | int:
    if is_section(kind) and isinstance(part, str) and part in kind.model_fields:
        return kind.model_fields[part].alias or part
    return part


def _member(members: list[Any], label: str) -> Any:
    for member in members:
        kind = bare(member)
        if not is_section(kind):
            continue
        tags = [
            tag
            for info in kind.model_fields.values()
            if get_origin(info.annotation) is Literal
            for tag in get_args(info.annotation)
        ]
        # A section that checks itself as a whole is called `function-after[check(), Section]`.
        if label in (kind.__name__, *tags) or label.endswith(f", {kind.__name__}]"):
            return member
    same_kind = [
        m for m in members if label.startswith(getattr(get_origin(bare(m)), "__name__", "-"))
    ]
    return same_kind[0] if same_kind else None
