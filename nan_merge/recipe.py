"""The recipe: which models, which method, which coefficients. Users keep these keys for years.

Short forms are accepted wherever the long one has defaults: ``method: ties`` means
``method: {name: ties}``, a model may be its path alone, ``coefficients`` may be a source's name
or a list of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from nan_merge.device import Device
from nan_merge.methods import METHODS, MethodOptions
from nan_merge.schema import StrictModel
from nan_merge.shares import SHARES
from nan_merge.tensor_options import THRESHOLD_OF_ALL, check_entries, refuse_by_tensor
from nan_merge.weights import Weight, check_weight

OutputDtype = Literal["float32", "bfloat16", "float16"]
MissingPolicy = Literal["error", "base", "drop"]
CoefficientSource = Literal[
    "nan", "rms", "variance", "metagpt", "uniform", "matched", "fixed", "table"
]
LONG_SOURCES = ("fixed", "table")  # which say nothing without a second field
SHORT_SOURCES = [source for source in get_args(CoefficientSource) if source not in LONG_SOURCES]
Scale = Literal["paper", "norm", "count"] | Annotated[float, Field(gt=0)]


def _or_short(*short_forms: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Let the JSON schema, from which editors complete and check, accept short forms too."""

    def extend(schema: dict[str, Any]) -> None:
        about = {key: schema.pop(key) for key in ("title", "description") if key in schema}
        long_form = dict(schema)
        schema.clear()
        schema.update(about, anyOf=[*short_forms, long_form])

    return extend


class ModelReference(StrictModel):
    """One fine-tuned model."""

    model_config = ConfigDict(json_schema_extra=_or_short({"type": "string"}))

    path: str
    """Folder of a checkpoint, or a hub id such as `org/model` or `org/model@revision`."""
    name: str = Field(default="", min_length=1)
    """What tables and coefficient files call it; the last part of `path` if absent."""
    weight: Weight = 1.0
    """Factor on this model's coefficient: a number; a list of numbers, interpolated from the first
    layer to the last; or rules `{filter: PATTERN, value: number or list}`, of which the first that
    fits a tensor's name counts. A rule without `filter` fits all; where none fits, the weight is 0
    and the base is kept."""

    statistics: str | None = None
    """Folder of statistics that data gave of this model, for methods that read them: `fisher` and
    `regmean`. `nan-merge run` gathers them where they are absent."""

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_path(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("path"), str):
            value = {
                **value,
                "name": PurePosixPath(value["path"].rstrip("/")).name or value["path"],
            }
        return value

    @field_validator("weight")
    @classmethod
    def _weight_means_something(cls, weight: Weight) -> Weight:
        check_weight(weight)
        return weight


def refuse_words(names: Iterable[str]) -> None:
    """Refuse names of models that recipes have another meaning for.

    Raises:
        ValueError: Names the first.
    """
    meanings = {BASE: "the base model", MERGED: "that a part is merged"}
    for name in names:
        if name in meanings:
            raise ValueError(
                f"a model is called `{name}`, which under `modules` means {meanings[name]}; "
                "give it another `name`"
            )


class ModulePlace(StrictModel):
    """A module's tensors that lie in a model which is not merged."""

    path: str
    """Folder or hub id; such as CLIP's, for a vision tower that LLaVA's own format leaves out."""


class ConfigPlace(StrictModel):
    """A config, processor and tokenizer that lie beside a model which is not merged."""

    path: str = Field(min_length=1)
    """Folder or hub id of a LLaVA in the hub's layout; its weights need not be there."""


ModuleSource = str | ModulePlace
ConfigSource = str | ConfigPlace
BASE, MERGED = "base", "merge"
"""Words of `modules`; beside it, and in a run, no model may be called so."""

# Fields of `CoefficientSpec` that say how norms become shares.
NORM_KNOBS = ("target", "scope", "include", "exclude", "power", "zero_norm")


class CoefficientSpec(StrictModel):
    """Where the coefficients come from: `c_i = lambda * scale * alpha_i * weight_i`."""

    source: CoefficientSource = "uniform"
    """`nan`: inverse norms (arXiv 2505.16148, Eq. 10); `rms`: inverse root mean squares, every
    tensor counting the same; `variance`: inverse variances about the mean; `metagpt`: squared
    norms of task vectors (arXiv 2406.11385); `uniform`: the same for every model; `matched`:
    uniform with NAN's sum, for ablations; `fixed`: `values`; `table`: a file of them."""
    values: tuple[float, ...] | None = None
    """One number per model, for `source: fixed` only."""
    table: str | None = None
    """For `source: table` only: a JSON file of coefficients per model, layer or tensor, as
    AdaMerging writes it; a `merge_manifest.json` is one, too."""
    target: Literal["weights", "task_vector"] = "weights"
    """Whose norm NAN takes: the fine-tuned weights (the paper), or fine-tuned minus base."""
    scope: Literal["model", "layer", "tensor"] = "model"
    """One alpha per model, per layer (a name's prefix through its first number), or per tensor."""
    include: tuple[str, ...] = ("*",)
    """Glob patterns of tensor names whose norms count."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of tensor names whose norms do not count."""
    power: float = Field(default=1.0, gt=0)
    """Exponent of the source's norms: 1 in the papers; 2 with `nan` is the squared norm that its
    paper argues against."""
    scale: Scale | None = None
    """Global factor: `paper` is m/2, `count` is m, `norm` makes the merged update as long as the
    mean task vector, or a number. Default: `paper` for nan, rms, variance and matched, `count` for
    uniform (then every coefficient is lambda), 1 for the others and where weights sum to 1."""
    lambda_: float = Field(default=1.0, alias="lambda")
    """A further factor on every coefficient."""
    zero_norm: Literal["error", "exclude"] = "error"
    """What to do with a model whose norm is zero: refuse it, or give it coefficient 0."""

    @model_validator(mode="before")
    @classmethod
    def _target_of_the_source(cls, value: Any) -> Any:
        """Write out the target of a source that is about one alone, for whoever reads it later."""
        source = value.get("source") if isinstance(value, dict) else None
        target = SHARES[source].target if isinstance(source, str) and source in SHARES else None
        return {"target": target, **value} if target else value

    @model_validator(mode="after")
    def _values_belong_to_fixed(self) -> CoefficientSpec:
        if (self.source == "fixed") != (self.values is not None):
            raise ValueError("`values` goes with `source: fixed`, and only with it")
        if (self.source == "table") != (self.table is not None):
            raise ValueError("`table: FILE` goes with `source: table`, and only with it")
        fields = CoefficientSpec.model_fields
        idle = [f"`{name}`" for name in NORM_KNOBS if getattr(self, name) != fields[name].default]
        if self.source in ("uniform", *LONG_SOURCES) and idle:
            raise ValueError(
                f"{', '.join(idle)} would do nothing: `source: {self.source}` takes no norms. "
                "Set `source: nan`, or remove them"
            )
        fixed_target = SHARES[self.source].target if self.source in SHARES else None
        if fixed_target and self.target != fixed_target:
            raise ValueError(f"`source: {self.source}` is about `target: {fixed_target}` alone")
        return self


def _expand_coefficients(value: Any) -> Any:
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, list | tuple):
        return {"source": "fixed", "values": value}
    return value


def _expand_method(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Method = Annotated[
    MethodOptions,
    BeforeValidator(_expand_method),
    Field(json_schema_extra=_or_short({"type": "string", "enum": sorted(METHODS)})),
]
Coefficients = Annotated[
    CoefficientSpec,
    BeforeValidator(_expand_coefficients),
    Field(
        json_schema_extra=_or_short(
            {
                "type": "string",
                "enum": [s for s in get_args(CoefficientSource) if s not in LONG_SOURCES],
            },
            {"type": "array", "items": {"type": "number"}},
        )
    ),
]


class MergeRecipe(StrictModel):
    """One merge: the content of a recipe file."""

    base: str | None = None
    """The model that all others were fine-tuned from; folder or hub id. Averaging needs none."""
    models: tuple[ModelReference, ...] = Field(min_length=1)
    """The fine-tuned models, summed in this order."""
    method: Method
    """How the models are merged: a name, or `{name: ..., option: ...}`."""
    coefficients: Coefficients = CoefficientSpec()
    """A source's name, a list of numbers, or `{source: ..., ...}`."""
    missing: MissingPolicy | dict[str, MissingPolicy] = "error"
    """Tensors that not all models have: `error`, `base` (exactly the base's tensors; a model that
    lacks one counts as not having changed it), `drop` (left out); or a table of name patterns."""
    modules: dict[str, ModuleSource] = Field(default_factory=dict)
    """Parts of a model -> `merge`, or whose the result shall have: `base`, a model's name, or
    `{path: ...}`. A part is `language_model`, `projector` or `vision_tower` of a vision-language
    model, or a pattern of tensor names; the first that fits a tensor counts, and tensors that none
    fits are merged."""
    config: ConfigSource = "base"
    """Whose config, processor and like files the result has: `base` (the first model's if there is
    no base), a model's name, or `{path: ...}`: those of a LLaVA in the hub's layout that is not
    merged, for models that are all in the format of the original LLaVA code."""
    tokenizer: str | None = "base"
    """Vocabulary of the result: `base`, `union`, or a model's name; rows are matched by token.
    `null` compares nothing. With `config: {path: ...}` it is always that folder's."""
    dtype: OutputDtype | None = None
    """Type of the merged tensors; each tensor keeps the base's own if absent."""
    shard_bytes: int = Field(default=1_000_000_000, ge=1)
    """Most bytes in one file of the result; a tensor is never split, and a model in open_clip's
    layout, which has no shards, is one file."""
    seed: int = Field(default=0, ge=0)
    """Seed of methods that draw at random."""
    device: Device = "auto"
    """Where the arithmetic is done: `cuda`, `cpu`, or `auto` for CUDA where there is one. Results
    of the two may differ by one rounding."""
    num_layers: int | None = Field(default=None, ge=1)
    """How many layers the models must have; refuses others. Nothing is checked if absent."""

    @field_validator("models")
    @classmethod
    def _names_are_unique(cls, models: tuple[ModelReference, ...]) -> tuple[ModelReference, ...]:
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two models are both called {', '.join(twice)}; give one of them a `name`"
            )
        return models

    @model_validator(mode="after")
    def _fits_together(self) -> MergeRecipe:
        problems: list[str] = []
        for check in (
            self._names_are_no_words,
            self._values_are_one_each,
            self._options_fit_the_models,
            self._method_takes_these_models,
            self._method_takes_these_coefficients,
            self._modules_name_models,
        ):
            try:
                check()
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))  # a line each in the message
        return self

    def as_json(self) -> dict[str, Any]:
        """What a file would hold that gives this recipe back."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for key in ("modules", "config"):  # they came later; without them all is as before
            if content[key] == MergeRecipe.model_fields[key].get_default(call_default_factory=True):
                del content[key]
        # The one field whose `null` is not what its absence means.
        return content if self.tokenizer is not None else {**content, "tokenizer": None}

    def _names_are_no_words(self) -> None:
        names = [model.name for model in self.models]
        if self.base is None and names[0] == BASE:
            names = names[1:]  # without a base the word means the first model, which this is
        if self.modules:  # elsewhere no name is taken for a word, and mergekit's files have such
            refuse_words(names)

    def _values_are_one_each(self) -> None:
        values, num_models = self.coefficients.values, len(self.models)
        if values is not None and len(values) != num_models:
            raise ValueError(f"{len(values)} coefficients for {num_models} models; give one each")

    def _options_fit_the_models(self) -> None:
        check_entries(self.method, len(self.models))
        if "magnitude_threshold" in METHODS[self.method.name].for_options(self.method).needs:
            refuse_by_tensor(self.method, THRESHOLD_OF_ALL)

    def _modules_name_models(self) -> None:
        names = [model.name for model in self.models]
        has_base = ["base"] if self.base is not None else []
        for module, source in self.modules.items():
            if isinstance(source, str) and source not in (MERGED, *has_base, *names):
                known = ", ".join([f"`{MERGED}`", *(f"`{name}`" for name in [*has_base, *names])])
                raise ValueError(
                    f"modules: {module}: {source!r} is none of {known}; for a folder or hub id "
                    f"write `{{path: {source}}}`"
                )
        if isinstance(self.config, ConfigPlace):
            if self.tokenizer != "base":
                chosen = "null" if self.tokenizer is None else self.tokenizer
                raise ValueError(
                    f"tokenizer: {chosen} would do nothing: with `config: {{path: ...}}` the "
                    "tokenizer is that folder's. Remove it"
                )
        elif self.config not in ("base", *names):
            raise ValueError(
                f"config: {self.config!r} is neither `base` nor a model of this recipe "
                f"({', '.join(names)}); for a folder or hub id write `{{path: {self.config}}}`"
            )

    def _method_takes_these_models(self) -> None:
        row, num_models = METHODS[self.method.name], len(self.models)
        most = row.most_models or num_models
        if not row.fewest_models <= num_models <= most:
            wanted = {
                (row.fewest_models, None): f"at least {row.fewest_models}",
                (row.fewest_models, row.fewest_models): f"exactly {row.fewest_models}",
            }.get((row.fewest_models, row.most_models), f"at most {row.most_models}")
            noun = "model" if wanted.endswith(" 1") else "models"
            raise ValueError(f"method {self.method.name} merges {wanted} {noun}, not {num_models}")

    def _method_takes_these_coefficients(self) -> None:
        source, row = self.coefficients, METHODS[self.method.name].for_options(self.method)
        if self.base is None and (
            row.needs_base or source.target == "task_vector" or source.scale == "norm"
        ):
            raise ValueError(f"method {self.method.name} with these coefficients needs a `base`")
        if row.weights_sum_to_one and (source.scale is not None or source.lambda_ != 1):
            raise ValueError(
                f"method {self.method.name} divides by the sum of its weights, so `scale` "
                "and `lambda` would cancel; remove them"
            )
        if row.nan_refused and source.source in ("matched", *SHARES):
            raise ValueError(
                f"method {self.method.name} does not take `coefficients: {source.source}`: "
                f"{row.nan_refused}"
            )
