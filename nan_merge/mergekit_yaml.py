"""A merge written for mergekit, as one of our recipes that does the same.

`translate` changes words, never numbers: the recipe says `dialect: mergekit` wherever methods have
dialects, and every default that differs is written out. Facts from mergekit 0.1.5: config.py,
plan.py (base model, layer ranges), merge_methods/registry.py (defaults).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nan_merge.config_messages import describe, did_you_mean
from nan_merge.errors import ConfigError
from nan_merge.mergekit_inputs import Inputs, read_inputs, reference
from nan_merge.mergekit_options import Options, read_options
from nan_merge.mergekit_parameters import METHODS_OF_MERGEKIT, MergekitMethod, Source
from nan_merge.methods import METHODS
from nan_merge.yaml_config import reading_order
from nan_merge.yaml_text import Document, FieldPath

_KEYS = (
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
_NOT_SUPPORTED = {
    "modules": "models of several modules are not supported; merge each with `models`",
    "chat_template": "is not supported: the result takes over the base's (else the first model's) "
    "chat template; remove the key, and edit the template in the result",
}


def is_mergekit(document: Document) -> bool:
    """Whether a file is written for mergekit: it has a `merge_method`, as ours have a `method`."""
    return isinstance(document.value, dict) and "merge_method" in document.value


def translate(document: Document) -> Document:
    """The same merge as a recipe.

    Args:
        document: A mergekit file.

    Returns:
        A document whose value follows the schema of `MergeRecipe`, unless a value is out of range
        there, and whose places are those of the mergekit file.

    Raises:
        ConfigError: If something is misspelt or not supported; a line for every problem.
    """
    source = Source(document)
    top = _top(source)
    method = _method(source, top)
    if method is not None:
        globals_ = source.section(("parameters",), top.get("parameters"))
        inputs = read_inputs(source, top, globals_)
        recipe = _Recipe(source, method, inputs)
        recipe.write_models()
        recipe.write_method(read_options(source, method, inputs))
        recipe.write_files(top)
        if not source.problems:
            return recipe.document
    raise ConfigError("\n".join(sorted(source.problems, key=reading_order)))


def _top(source: Source) -> dict[str, Any]:
    top = source.document.value
    refused = {key: why for key, why in _NOT_SUPPORTED.items() if top.get(key) is not None}
    for key, why in refused.items():
        source.fail((key,), why)
    known = {key: value for key, value in top.items() if key not in refused}
    return source.mapping((), known, _KEYS)


def _method(source: Source, top: dict[str, Any]) -> MergekitMethod | None:
    name = top.get("merge_method")
    method = METHODS_OF_MERGEKIT.get(name) if isinstance(name, str) else None
    if method is None:
        known = ", ".join(METHODS_OF_MERGEKIT)
        near = did_you_mean(str(name), METHODS_OF_MERGEKIT)
        message = f"{describe(name)} is not supported; the methods are {known}{near}"
        source.fail(("merge_method",), message)
    return method


@dataclass
class _Model:
    reference: str
    path: FieldPath
    weight: Any = 1.0


class _Recipe:
    """The recipe as it is written, with the place that every part comes from."""

    def __init__(self, source: Source, method: MergekitMethod, inputs: Inputs) -> None:
        self.source, self.method, self.inputs = source, method, inputs
        self.document = Document(source.document.name, {}, {(): source.document.place(())})

    def put(self, key: str, value: Any, origin: FieldPath, *below: str | int) -> None:
        self.document.value.setdefault(key, value)
        self.document.places[(key, *below)] = self.source.document.place(origin)

    def write_models(self) -> None:
        """`base` and `models`, each with its weight."""
        inputs, kind = self.inputs, self.method.name
        # These merge the base as one model of several; the others its differences to the rest.
        merges_base = kind in ("average", "passthrough", "slerp")
        listed = inputs.all_models() if merges_base else inputs.finetuned
        models = [_Model(each.reference, each.path) for each in listed]
        if kind == "slerp":
            self._weigh_by_t(models)
        elif self.method.weight is not None:
            self._weigh(models)
        self._write_base(models)
        names = _names([model.reference for model in models])
        written = [
            {"path": model.reference, "name": name}
            | ({} if model.weight == 1 else {"weight": model.weight})
            for model, name in zip(models, names, strict=True)
        ]
        self.put("models", written, inputs.path)
        for place, model in enumerate(models):
            self.put("models", written, model.path, place)
        if inputs.num_layers is not None:
            self.put("num_layers", inputs.num_layers, inputs.path)

    def _write_base(self, models: Sequence[_Model]) -> None:
        base, kind = self.inputs.base, self.method.name
        if base is None:
            if METHODS[kind].needs_base or kind == "slerp":
                self.source.fail(("merge_method",), "this method needs a `base_model`")
            return
        # An average and its like need no base, but the result takes over its config and
        # tokenizer; without a base, those of the first model.
        if (
            METHODS[kind].needs_base
            or kind == "nuslerp"
            or (models and models[0].reference != base)
        ):
            self.put("base", base, self.inputs.base_path)

    def _weigh(self, models: Sequence[_Model]) -> None:
        name = self.method.weight or "weight"
        for model in models:
            setting = self.source.setting(name, self.inputs.sections_of(model.reference))
            if setting is not None:
                model.weight = setting.as_weight()
            elif name == "weight" and model.path == self.inputs.base_path:
                message = "is merged too, so list it with its weight; or remove the key"
                self.source.fail(model.path, message)
            elif name == "weight":
                self.source.fail(model.path, "lacks a `weight`; add parameters: {weight: 1.0}")

    def _weigh_by_t(self, models: list[_Model]) -> None:
        """The base at t = 0, the other model at t = 1: weights 1 - t and t."""
        base = self.inputs.base
        models.sort(key=lambda model: model.reference != base)
        setting = self.source.setting("t", self.inputs.shared)
        if len(models) != 2:
            message = f"slerp merges the base model and one more, found {len(models)} models"
            self.source.fail(self.inputs.path, message)
        elif setting is None:
            self.source.fail(("merge_method",), "slerp needs parameters: {t: ...}")
        elif not setting.is_complete:
            message = "tensors that no filter fits have no `t`; add a last rule `- value: ...`"
            self.source.fail(setting.path, message)
        else:
            models[0].weight = setting.complement().as_weight()
            models[1].weight = setting.as_weight()

    def write_method(self, options: Options) -> None:
        """`method` and `coefficients`."""
        method = {"name": self.method.name, **options.values}
        self.put("method", method, ("merge_method",))
        for key in method:
            origin = options.places.get(key, ("merge_method",))
            self.put("method", method, origin, key)
        if options.lambda_ != 1:
            coefficients = {"source": "uniform", "lambda": options.lambda_}
            self.put("coefficients", coefficients, options.places["lambda"])
        if options.divide_weights:
            self._divide_weights(options)

    def _divide_weights(self, options: Options) -> None:
        """`normalize` of a plain weighted sum of task vectors: weights over their sum."""
        models = self.document.value["models"]
        weights = [model.get("weight", 1.0) for model in models]
        if any(isinstance(weight, list) for weight in weights):
            message = "normalize: true takes plain weights here, no gradients and filters; give "
            self.source.fail(options.places["normalize"], message + "weights that sum to 1")
            return
        total = sum(weights)
        if abs(total) >= 1e-8:  # mergekit does not divide by less
            for model, weight in zip(models, weights, strict=True):
                model["weight"] = weight / total

    def write_files(self, top: dict[str, Any]) -> None:
        """Data type and tokenizer."""
        for key in ("out_dtype", "dtype"):
            if top.get(key) is not None:
                self.put("dtype", str(top[key]).removeprefix("torch."), (key,))
                break
        wanted, origin = top.get("tokenizer_source"), ("tokenizer_source",)
        if top.get("tokenizer") is not None:
            wanted, origin = self._tokenizer(top["tokenizer"]), ("tokenizer",)
        if wanted is None or wanted == "base":
            return
        wanted = wanted if wanted == "union" else reference(self.source, origin, wanted)
        models = self.document.value["models"]
        default = self.document.value.get("base") or (models[0]["path"] if models else None)
        if wanted != default:  # the default is what a recipe without the key does
            names = {model["path"]: model["name"] for model in models}
            self.put("tokenizer", names.get(wanted, wanted), origin)

    def _tokenizer(self, section: Any) -> Any:
        known = ("source", "tokens", "pad_to_multiple_of")
        values = self.source.mapping(("tokenizer",), section, known)
        for key in ("tokens", "pad_to_multiple_of"):
            if values.get(key):
                message = "is not supported: rows are matched by token, a missing one comes from "
                self.source.fail(("tokenizer", key), message + "the models that have it; remove")
        return values.get("source", "union")


def _names(references: Sequence[str]) -> list[str]:
    """The last part of each path, or all of it where two models would be called the same."""
    short = [PurePosixPath(path.rstrip("/")).name or path for path in references]
    return [
        path if short.count(name) > 1 else name
        for path, name in zip(references, short, strict=True)
    ]
