"""Options of a merge method from the parameters of a mergekit file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nan_merge.mergekit_inputs import Inputs
from nan_merge.mergekit_parameters import MergekitMethod, Setting, Source
from nan_merge.methods import METHODS
from nan_merge.yaml_text import FieldPath


@dataclass
class Options:
    """What a recipe's `method` and `coefficients` will say.

    Attributes:
        values: Options of the method but its name.
        places: Option -> where its value was found.
        lambda_: Factor on the coefficients; 1 if the method has an option for it.
        divide_weights: Whether the weights must be divided by their sum.
    """

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    places: dict[str, FieldPath] = field(default_factory=dict[str, FieldPath])
    lambda_: float = 1.0
    divide_weights: bool = False


def read_options(source: Source, method: MergekitMethod, inputs: Inputs) -> Options:
    """The options of ``method``; what is wrong with them is noted in ``source``."""
    options = Options()
    fields = METHODS[method.name].options.model_fields
    if "dialect" in fields:
        options.values["dialect"] = "mergekit"
    source.flag("int8_mask", inputs.shared, False)  # saves memory there, changes no result
    for name in ("lambda", "normalize", "select_topk", "rescale"):
        options.places[name] = _place(inputs, name)
    _per_model(source, method, inputs, options)
    _flags(source, method, inputs, options)
    _normalize(source, method, inputs, options)
    for name, default in method.numbers.items():
        value = source.number(name, inputs.shared, default)
        if name == "select_topk":
            _set(options, "density", value, inputs, name)
        elif "lambda_" in fields:
            _set(options, "lambda", value, inputs, name)
        else:
            options.lambda_ = value
    return options


def _place(inputs: Inputs, name: str) -> FieldPath:
    sections = [*inputs.shared, *(model.parameters for model in inputs.models)]
    found = [(*section.path, name) for section in sections if name in section.values]
    return found[0] if found else ("merge_method",)


def _set(options: Options, option: str, value: Any, inputs: Inputs, name: str) -> None:
    options.values[option] = value
    options.places[option] = _place(inputs, name)


def _per_model(source: Source, method: MergekitMethod, inputs: Inputs, options: Options) -> None:
    for name, default in method.per_model.items():
        found = [
            _entry(source.setting(name, inputs.sections_of(model.reference)), default)
            for model in inputs.finetuned
        ]
        same = all(entry == found[0] for entry in found)
        _set(options, name, _for_all((found or [default])[0]) if same else found, inputs, name)


def _entry(setting: Setting | None, default: float) -> Any:
    """One model's number, gradient or rules; where no rule fits, mergekit's default holds."""
    return default if setting is None else setting.completed_by(default).as_weight()


def _for_all(entry: Any) -> Any:
    """The value of an option that is the same for every model."""
    is_gradient = isinstance(entry, list) and not any(isinstance(each, dict) for each in entry)
    return [{"value": entry}] if is_gradient else entry


def _flags(source: Source, method: MergekitMethod, inputs: Inputs, options: Options) -> None:
    flags = {
        name: source.flag(name, inputs.shared, default) for name, default in method.flags.items()
    }
    if "nuslerp_flatten" in flags:
        kind = "column" if flags["nuslerp_row_wise"] else "row"
        vectors = "tensor" if flags["nuslerp_flatten"] else kind
        _set(options, "vectors", vectors, inputs, "nuslerp_flatten")
    if "filter_wise" in flags:
        vectors = "row" if flags["filter_wise"] else "tensor"
        _set(options, "vectors", vectors, inputs, "filter_wise")
    if "rescale" in flags and method.per_model:  # nothing is dropped otherwise
        if "rescale" in METHODS[method.name].options.model_fields:
            _set(options, "rescale", flags["rescale"], inputs, "rescale")
        elif flags["rescale"] != method.flags["rescale"]:
            wanted, usual = str(flags["rescale"]).lower(), str(method.flags["rescale"]).lower()
            message = f"{wanted} is not supported for this method; set it to {usual} or remove it"
            source.fail(options.places["rescale"], message)


def _normalize(source: Source, method: MergekitMethod, inputs: Inputs, options: Options) -> None:
    if method.normalize is None:
        return
    normalize = source.flag("normalize", inputs.shared, method.normalize)
    if "disjoint" in METHODS[method.name].options.model_fields:
        joined = "weighted_mean" if normalize else "sum"
        _set(options, "disjoint", joined, inputs, "normalize")
    elif method.name != "average":
        options.divide_weights = normalize
    elif not normalize and not _sum_to_one(source, inputs):
        message = "false is supported only for plain weights that sum to 1; scale them, or use "
        source.fail(options.places["normalize"], message + "merge_method: task_arithmetic")


def _sum_to_one(source: Source, inputs: Inputs) -> bool:
    settings = [
        source.setting("weight", inputs.sections_of(model.reference))
        for model in inputs.all_models()
    ]
    numbers = [setting.number if setting else None for setting in settings]
    return None not in numbers and abs(sum(n for n in numbers if n is not None) - 1) < 1e-6
