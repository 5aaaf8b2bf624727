"""The models of a mergekit file: `models`, or `slices` that come to the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nan_merge.config_messages import describe
from nan_merge.mergekit_parameters import Section, Source
from nan_merge.yaml_text import FieldPath

_STACKING = (
    "taking part of a model's layers, or stacking layers, is not supported; merge whole models: "
    "one slice whose sources all have `layer_range: [0, NUMBER OF LAYERS]`, or `models`"
)


@dataclass(frozen=True)
class Input:
    """One model: how a recipe refers to it, where it stands, and its own parameters."""

    reference: str
    path: FieldPath
    parameters: Section


@dataclass(frozen=True)
class Inputs:
    """All models.

    Attributes:
        path: Where they are listed.
        models: As listed, the base too if it is.
        base: `base_model`, as a recipe refers to it.
        base_path: Where it is named.
        shared: Parameters of all models, the most specific first.
        num_layers: How many layers the slices say that the models have.
    """

    path: FieldPath
    models: tuple[Input, ...]
    base: str | None
    base_path: FieldPath
    shared: tuple[Section, ...]
    num_layers: int | None = None

    @property
    def finetuned(self) -> tuple[Input, ...]:
        """The models but the base."""
        return tuple(each for each in self.models if each.reference != self.base)

    def all_models(self) -> tuple[Input, ...]:
        """The models with the base, which mergekit appends if it is not listed."""
        listed = self.base is None or any(each.reference == self.base for each in self.models)
        base = () if listed else (Input(str(self.base), self.base_path, Section((), {})),)
        return (*self.models, *base)

    def sections_of(self, reference: str) -> tuple[Section, ...]:
        """Where mergekit looks up a parameter of one model, the most specific first."""
        own = [each.parameters for each in self.models if each.reference == reference]
        return (*own, *self.shared)


def read_inputs(source: Source, top: dict[str, Any], globals_: Section) -> Inputs:
    """The models of a file; what is wrong with them is noted in ``source``."""
    base, base_path = top.get("base_model"), ("base_model",)
    shared = (globals_,)
    listed = [key for key in ("models", "slices") if top.get(key)]
    if len(listed) != 1:
        source.fail((), "expected either `models` or `slices`")
        return Inputs((), (), None, base_path, shared)
    num_layers, path = None, ("models",)
    entries, keys = top.get("models"), ("model", "parameters")
    if listed == ["slices"]:
        path, keys = ("slices", 0, "sources"), ("model", "layer_range", "parameters")
        one = _only_slice(source, top["slices"])
        entries = one.get("sources")
        shared = (source.section(("slices", 0, "parameters"), one.get("parameters")), *shared)
        if one.get("base_model") is not None:
            base, base_path = one["base_model"], ("slices", 0, "base_model")
        num_layers = _num_layers(source, path, entries)
    models = _models(source, path, entries, keys)
    named = None if base is None else reference(source, base_path, base)
    return Inputs(path, models, named, base_path, shared, num_layers)


def _models(
    source: Source, path: FieldPath, entries: Any, keys: Sequence[str]
) -> tuple[Input, ...]:
    if not isinstance(entries, list):
        source.fail(path, f"found {describe(entries)}, expected a list of models")
        return ()
    models: list[Input] = []
    for place, entry in enumerate(entries):
        here = (*path, place)
        values = source.mapping(here, entry, keys)
        if "model" not in values:
            source.fail(here, "lacks `model`, expected a folder or hub id")
            continue
        parameters = source.section((*here, "parameters"), values.get("parameters"), of_model=True)
        name = reference(source, (*here, "model"), values["model"])
        if any(each.reference == name for each in models):
            source.fail(here, f"{name} is listed twice; list it once, with both weights added")
        models.append(Input(name, here, parameters))
    return tuple(models)


def _only_slice(source: Source, slices: Any) -> dict[str, Any]:
    if not isinstance(slices, list) or len(slices) != 1:
        source.fail(("slices",), _STACKING)
        return {"sources": []}
    return source.mapping(("slices", 0), slices[0], ("sources", "base_model", "parameters"))


def _num_layers(source: Source, path: FieldPath, entries: Any) -> int | None:
    """The end of all layer ranges, which must be the same and start at 0."""
    found: int | None = None
    for place, entry in enumerate(entries if isinstance(entries, list) else []):
        span = entry.get("layer_range") if isinstance(entry, dict) else None
        where = (*path, place, "layer_range")
        if not (isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)):
            source.fail(where, f"found {describe(span)}, expected [0, NUMBER OF LAYERS]")
        elif span[0] != 0 or span[1] < 1 or span[1] != (found or span[1]):
            source.fail(where, _STACKING)
        else:
            found = span[1]
    return found


def reference(source: Source, path: FieldPath, model: Any) -> str:
    """A model as a recipe refers to it: `path@revision+adapter`."""
    if isinstance(model, str):
        return model
    if not isinstance(model, dict):
        source.fail(path, f"found {describe(model)}, expected a folder or hub id")
        return ""
    if model.get("override_architecture") is not None:
        source.fail((*path, "override_architecture"), "is not supported; remove the key")
    if "path" in model:  # a path with its revision
        values = source.mapping(path, model, ("path", "revision"))
        revision = values.get("revision")
        return f"{values['path']}@{revision}" if revision else str(values["path"])
    values = source.mapping(path, model, ("model", "lora", "override_architecture"))
    parts = [values[key] for key in ("model", "lora") if values.get(key) is not None]
    return "+".join(reference(source, path, part) for part in parts)
