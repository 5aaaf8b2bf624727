"""The `parameters` of a mergekit file: where a value is looked up, and what it may be.

Facts from mergekit 0.1.5: config.py (ConfigReader.parameter, evaluate_setting), and the
`parameters()` and `tensor_parameters()` of merge_methods/*.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nan_merge.config_messages import describe, did_you_mean
from nan_merge.yaml_text import Document, FieldPath, field_name

EVERY_NAME = "*"


@dataclass(frozen=True)
class MergekitMethod:
    """What one `merge_method` is called here, and which parameters it reads.

    Attributes:
        name: Ours.
        normalize: mergekit's default of `normalize`; None if the method has none.
        weight: Parameter that becomes a model's `weight`; may differ by tensor.
        per_model: Numbers that may differ by model and tensor -> mergekit's default.
        flags: Parameters that are true or false -> mergekit's default.
        numbers: Other parameters that are one number -> mergekit's default.
    """

    name: str
    normalize: bool | None = None
    weight: str | None = "weight"
    per_model: dict[str, float] = field(default_factory=dict[str, float])
    flags: dict[str, bool] = field(default_factory=dict[str, bool])
    numbers: dict[str, float] = field(default_factory=dict[str, float])


def _task_vectors(
    name: str, *, normalize: bool = False, rescale: bool = False, **per_model: float
) -> MergekitMethod:
    return MergekitMethod(
        name, normalize, "weight", per_model, {"rescale": rescale}, {"lambda": 1.0}
    )


METHODS_OF_MERGEKIT: dict[str, MergekitMethod] = {
    "linear": MergekitMethod("average", normalize=True),
    "slerp": MergekitMethod("slerp", weight="t"),
    "nuslerp": MergekitMethod(
        "nuslerp", flags={"nuslerp_flatten": True, "nuslerp_row_wise": False}
    ),
    "task_arithmetic": _task_vectors("task_arithmetic"),
    "ties": _task_vectors("ties", normalize=True, density=1.0),
    "dare_linear": _task_vectors("dare_linear", rescale=True, density=1.0),
    "dare_ties": _task_vectors("dare_ties", rescale=True, density=1.0),
    "della_linear": _task_vectors("della_linear", rescale=True, density=1.0, epsilon=0.15),
    "della": _task_vectors("della_ties", normalize=True, rescale=True, density=1.0, epsilon=0.15),
    "breadcrumbs": _task_vectors("breadcrumbs", density=1.0, gamma=0.01),
    "breadcrumbs_ties": _task_vectors("breadcrumbs_ties", density=1.0, gamma=0.01),
    "model_stock": MergekitMethod("model_stock", weight=None, flags={"filter_wise": False}),
    "sce": MergekitMethod("sce", weight=None, numbers={"select_topk": 1.0}),
    "passthrough": MergekitMethod("passthrough", weight="scale"),
}
# Of every method together; a parameter that another method reads is no misspelling.
OF_MODELS = frozenset({"weight", "scale", "density", "epsilon", "gamma"})
OF_MERGES = frozenset(
    {"t", "normalize", "rescale", "lambda", "int8_mask", "select_topk", "filter_wise"}
    | {"nuslerp_flatten", "nuslerp_row_wise"}
)


@dataclass(frozen=True)
class Section:
    """One `parameters` section and where it stands."""

    path: FieldPath
    values: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A value of one parameter, put together from all sections that apply.

    Attributes:
        path: Where it was first found.
        rules: (glob pattern, number or gradient); the first whose pattern fits a name counts.
    """

    path: FieldPath
    rules: tuple[tuple[str, float | list[float]], ...]

    @property
    def is_complete(self) -> bool:
        """Whether every tensor gets a value."""
        return self.rules[-1][0] == EVERY_NAME

    @property
    def number(self) -> float | None:
        """The value, if it is the same for every tensor."""
        pattern, value = self.rules[0]
        return None if pattern != EVERY_NAME or isinstance(value, list) else value

    def as_weight(self) -> Any:
        """The same as a model's `weight` in a recipe, in its shortest form."""
        if self.rules[0][0] == EVERY_NAME:
            return self.rules[0][1]
        return [
            {"value": value} if pattern == EVERY_NAME else {"filter": pattern, "value": value}
            for pattern, value in self.rules
        ]

    def completed_by(self, default: float) -> Setting:
        """The same, with a number for tensors that no rule fits."""
        if self.is_complete:
            return self
        return Setting(self.path, (*self.rules, (EVERY_NAME, default)))

    def complement(self) -> Setting:
        """One minus every value: the other end of an interpolation."""
        return Setting(
            self.path,
            tuple(
                (pattern, [1 - each for each in value] if isinstance(value, list) else 1 - value)
                for pattern, value in self.rules
            ),
        )


class Source:
    """A mergekit document that is being read, and what is wrong with it."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[str] = list(document.problems)

    def fail(self, path: FieldPath, message: str) -> None:
        """Note a problem with the place it was written at."""
        name = field_name(path)
        self.problems.append(f"{self.document.place(path)}: {f'{name}: ' if name else ''}{message}")

    def mapping(self, path: FieldPath, value: Any, known: Sequence[str]) -> dict[str, Any]:
        """A section without its unknown keys, which are noted; empty if it is none."""
        if not isinstance(value, dict):
            self.fail(path, f"found {describe(value)}, expected a section of keys and values")
            return {}
        for key in value:
            if key not in known:
                near = did_you_mean(key, known)
                self.fail(
                    (*path, key), f"unknown key, expected one of {', '.join(sorted(known))}{near}"
                )
        return {key: item for key, item in value.items() if key in known}

    def section(self, path: FieldPath, value: Any, *, of_model: bool = False) -> Section:
        """A `parameters` section; one of a model is only looked at for a model's parameters."""
        if value is None:
            return Section(path, {})
        values = self.mapping(path, value, sorted(OF_MODELS | OF_MERGES))
        for key in list(values):
            if of_model and key in OF_MERGES:
                self.fail((*path, key), "is not read under a model; move it to `parameters`")
                del values[key]
        return Section(path, values)

    def setting(self, name: str, sections: Sequence[Section]) -> Setting | None:
        """What mergekit finds, looking through sections from the most to the least specific."""
        rules: list[tuple[str, float | list[float]]] = []
        first: FieldPath | None = None
        for section in sections:
            if name not in section.values:
                continue
            path = (*section.path, name)
            first = first or path
            rules += self._rules(path, section.values[name])
            if rules and rules[-1][0] == EVERY_NAME:
                break
        # A value of which nothing can be read was noted; any number will do to go on.
        return Setting(first, tuple(rules) or ((EVERY_NAME, 1.0),)) if first else None

    def number(self, name: str, sections: Sequence[Section], default: float) -> float:
        """A parameter that must be the same for every tensor."""
        setting = self.setting(name, sections)
        if setting is None:
            return default
        if setting.number is None:
            self.fail(
                setting.path,
                f"gradients and filters are not taken for {name}; give one number",
            )
            return default
        return setting.number

    def flag(self, name: str, sections: Sequence[Section], default: bool) -> bool:
        """A parameter that is true or false for every tensor."""
        for section in sections:
            if name in section.values:
                value = section.values[name]
                path = (*section.path, name)
                if isinstance(value, list | dict):
                    message = f"gradients and filters are not taken for {name}; give true or false"
                    self.fail(path, message)
                elif value not in (0, 1):
                    self.fail(path, f"found {describe(value)}, expected true or false")
                return bool(value)
        return default

    def _rules(self, path: FieldPath, value: Any) -> list[tuple[str, float | list[float]]]:
        if _is_value(value):
            return [(EVERY_NAME, value)]
        entries = value if isinstance(value, list) and value else [value]
        rules: list[tuple[str, float | list[float]]] = []
        for place, entry in enumerate(entries):
            where = (*path, place) if isinstance(value, list) else path
            if not isinstance(entry, dict) or not _is_value(entry.get("value")):
                expected = "a number, a list of numbers, or {filter: ..., value: ...}"
                self.fail(where, f"found {describe(entry)}, expected {expected}")
                continue
            self.mapping(where, entry, ("filter", "value"))
            pattern = glob_of(entry.get("filter"))
            rules.append((pattern, entry["value"]))
            if pattern == EVERY_NAME:
                break  # mergekit takes the first that fits, so what follows is never reached
        return rules


def _is_value(value: Any) -> bool:
    numbers = value if isinstance(value, list) and value else [value]
    return all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)


def glob_of(text: Any) -> str:
    """The glob pattern of a filter; mergekit's fits every name that contains it."""
    if text is None or text == EVERY_NAME:
        return EVERY_NAME
    literal = re.sub(r"([*?[])", r"[\1]", str(text))
    return f"*{literal}*"
