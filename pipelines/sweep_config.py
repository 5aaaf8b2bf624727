"""The section `sweep:` of a run file: which merges, what of them varies, how it is searched."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nan_merge.recipe import (
    Coefficients,
    ConfigSource,
    Method,
    MissingPolicy,
    ModuleSource,
    OutputDtype,
)
from nan_merge.schema import StrictModel

SEARCHED = ("method", "coefficients", "models", "dtype", "tokenizer")
"""Keys of a merge that may vary, themselves or what is below them."""
DIGITS = 12
MAX_STEPS = 100_000


class Range(StrictModel):
    """Numbers from one to another, both included."""

    from_: float = Field(alias="from")
    """The first number."""
    to: float
    """The last number."""
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """How many numbers, at equal distances; a grid needs this or `step`."""
    step: float | None = Field(default=None, gt=0)
    """Distance of one number to the next."""
    log: bool = False
    """Equal ratios instead of equal distances."""

    @model_validator(mode="after")
    def _goes_upwards(self) -> Range:
        if self.to < self.from_:
            raise ValueError(f"goes from {self.from_:g} down to {self.to:g}; exchange the two")
        if self.steps is not None and self.step is not None:
            raise ValueError("has both `steps` and `step`; keep one of them")
        if self.log and self.from_ <= 0:
            raise ValueError(f"is logarithmic, so `from` must be above 0, not {self.from_:g}")
        if self.log and self.step is not None:
            raise ValueError("is logarithmic, where `step` means nothing; give `steps`")
        if self.step is not None and (self.to - self.from_) / self.step > MAX_STEPS:
            raise ValueError(f"has more than {MAX_STEPS:,} numbers; make `step` larger")
        return self

    @property
    def is_continuous(self) -> bool:
        """Whether any number between the two may be drawn."""
        return self.steps is None and self.step is None

    def __len__(self) -> int:
        if self.step is not None:
            return math.floor((self.to - self.from_) / self.step + 1e-9) + 1
        return self.steps or 0

    def values(self) -> list[float | int]:
        """The numbers, rounded to twelve digits so that 0.1 + 0.2 is 0.3."""
        if self.step is not None:
            return [tidy(self.from_ + place * self.step) for place in range(len(self))]
        shares = [place / max(len(self) - 1, 1) for place in range(len(self))]
        return [self.at(share) for share in shares]

    def at(self, share: float, digits: int = DIGITS) -> float | int:
        """The number that lies so far along the way from `from` to `to`."""
        if not self.log:
            return tidy(self.from_ + share * (self.to - self.from_), digits)
        low, high = math.log(self.from_), math.log(self.to)
        return tidy(math.exp(low + share * (high - low)), digits)


def tidy(number: float, digits: int = DIGITS) -> float | int:
    """A number with so many significant digits; a whole one as an integer."""
    rounded = float(f"{number:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


class SweepMerge(StrictModel):
    """Merges that share what is written here and differ in what is under `vary`."""

    name: str = Field(default="", min_length=1)
    """What their names begin with; the method's name if absent."""
    method: Method | None = None
    """As in a recipe; may be absent if it varies."""
    coefficients: Coefficients | None = None
    """As in a recipe."""
    models: tuple[str, ...] | None = None
    """Names of the run's models to merge; all if absent."""
    dtype: OutputDtype | None = None
    """As in a recipe."""
    tokenizer: str | None = "base"
    """As in a recipe."""
    modules: dict[str, ModuleSource] = Field(default_factory=dict)
    """As in a recipe."""
    missing: MissingPolicy | dict[str, MissingPolicy] = "error"
    """As in a recipe."""
    config: ConfigSource = "base"
    """As in a recipe."""
    vary: dict[str, tuple[Any, ...] | Range] = Field(default_factory=dict)
    """Key -> its values: a list, or `{from: ..., to: ..., steps: ...}`. Keys are dotted, as in
    `coefficients.lambda` or `method.density`."""

    @model_validator(mode="after")
    def _varies_what_can_vary(self) -> SweepMerge:
        for key, values in self.vary.items():
            if key.partition(".")[0] not in SEARCHED:
                known = ", ".join(f"`{name}`" for name in SEARCHED)
                raise ValueError(f"`vary` has {key!r}, expected a key that begins with {known}")
            if isinstance(values, tuple) and not values:
                raise ValueError(f"`vary` has no values for {key}, so there is nothing to merge")
        if self.method is None and "method" not in self.vary:
            raise ValueError("has no `method`, neither here nor under `vary`")
        return self

    @property
    def label(self) -> str:
        """What names of its merges begin with."""
        return self.name or (self.method.name if self.method else "merge")

    def template(self) -> dict[str, Any]:
        """What all of its merges share, as it was written."""
        content = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return {key: value for key, value in content.items() if key not in ("name", "vary")}

    def size(self) -> int | None:
        """How many merges its grid has; None if a range has no steps."""
        sizes = [len(values) for values in self.vary.values()]
        return math.prod(sizes) if all(sizes) else None

    def endless(self) -> Iterator[str]:
        """Keys whose range has no steps."""
        for key, values in self.vary.items():
            if isinstance(values, Range) and values.is_continuous:
                yield key


def _expand_search(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class SearchSpec(StrictModel):
    """How merges are picked."""

    name: Literal["grid", "random", "optuna"] = "grid"
    """`grid`: every combination; `random`: drawn with the run's seed; `optuna`: each batch is
    proposed by Optuna's TPE sampler from the dev scores of those before."""
    points: int | None = Field(default=None, ge=1)
    """How many merges, for `random` and `optuna`."""
    batch: int = Field(default=4, ge=1)
    """For `optuna`: how many are proposed, merged and scored together."""

    @model_validator(mode="after")
    def _points_belong_to_samplers(self) -> SearchSpec:
        if (self.name == "grid") != (self.points is None):
            raise ValueError(
                "`points` goes with `name: random` or `name: optuna`, which need it, and not with "
                "`name: grid`, which takes every combination"
            )
        return self


class Sweep(StrictModel):
    """Many merges, of which the best is chosen on a dev split and shown on the other samples."""

    merges: tuple[SweepMerge, ...] = Field(min_length=1)
    """What to merge; the best of each entry is chosen."""
    search: Annotated[SearchSpec, BeforeValidator(_expand_search)] = SearchSpec()
    """How merges are picked: `grid`, or `{name: random, points: 24}`."""
    keep: Literal["all", "best", "none"] = "best"
    """Which checkpoints stay: all, the chosen one of each entry, or none."""
    dev_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the sources of samples, by a hash of their cluster, that the search may see."""
    objective: str = "average"
    """What is maximised on the dev split: `average` over benchmarks, or one benchmark."""
    skip_invalid: bool = False
    """Leave out combinations that no recipe may have, instead of refusing the sweep."""
    max_points: int = Field(default=1000, ge=1, le=MAX_STEPS)
    """Refuse a sweep of more merges than this."""
