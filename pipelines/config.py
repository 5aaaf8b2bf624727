"""The run file: one YAML that tells a whole run, composed from the sections of each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from evaluators.training.finetune import FinetuneRecipe
from evaluators.training.pretrain import PretrainRecipe
from evaluators.training.text_tower import TextRecipe
from nan_merge.recipe import (
    Coefficients,
    CoefficientSpec,
    MergeRecipe,
    Method,
    ModelReference,
    OutputDtype,
)
from nan_merge.schema import StrictModel


class Experts(StrictModel):
    """Models that the run trains itself, once: a pretrained CLIP and a fine-tune per task."""

    backbone: str = "nan-merge-mini"
    """open_clip model: a name that it knows, or one of evaluators/open_clip_configs."""
    tasks: tuple[str, ...] = Field(min_length=2)
    """Image tasks; one fine-tuned model each, called as the task."""
    text: TextRecipe = TextRecipe()
    """How the text tower is trained, before it is frozen."""
    pretrain: PretrainRecipe = PretrainRecipe()
    """How the image tower is trained on all tasks together: the base model."""
    finetune: FinetuneRecipe = FinetuneRecipe()
    """How each fine-tuned model is trained from the base model on its task."""


class MergeEntry(StrictModel):
    """One merge of the run: a recipe whose base and models are the run's."""

    name: str = Field(min_length=1)
    """Row of the table and, made safe for a file system, the checkpoint's folder."""
    method: Method
    """As in a recipe."""
    coefficients: Coefficients = CoefficientSpec()
    """As in a recipe."""
    dtype: OutputDtype | None = None
    """As in a recipe."""

    def recipe(
        self, base: str | None, models: tuple[ModelReference, ...], seed: int
    ) -> MergeRecipe:
        """The full recipe of this merge over the run's models."""
        return MergeRecipe(
            base=base,
            models=models,
            method=self.method,
            coefficients=self.coefficients,
            dtype=self.dtype,
            seed=seed,
        )


class Evaluate(StrictModel):
    """Which benchmarks every model runs, and how."""

    benchmarks: tuple[str, ...] = Field(min_length=1)
    """Names of benchmarks."""
    batch_size: int = Field(default=250, ge=1)
    """Samples that go through a model at once."""


class Track(StrictModel):
    """Where the run is recorded."""

    mlflow: bool = True
    """Record in MLflow."""
    uri: str | None = None
    """Tracking URI; SQLite in the run folder if absent."""
    experiment: str | None = None
    """MLflow experiment; the run's name if absent."""


class Cluster(StrictModel):
    """Where Ray runs."""

    address: str = "local"
    """`local` starts Ray here and stops it at the end; `auto` joins the cluster this stands on."""
    num_workers: int | None = Field(default=None, ge=1)
    """Most workers at once; one per core if absent."""


class RunConfig(StrictModel):
    """A whole run: models, merges, benchmarks, tracking."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and, by default, of its folder."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything that draws at random."""
    run_folder: Path | None = None
    """Where results go; `runs/NAME` if absent."""
    cache: Path = Path("runs/cache")
    """Where trained models and prepared data are kept between runs."""
    experts: Experts | None = None
    """Train the models here, instead of naming them under `base` and `models`."""
    base: str | None = None
    """The base model; folder or hub id."""
    models: tuple[ModelReference, ...] = ()
    """The fine-tuned models."""
    clip: str | None = None
    """For image towers: folder of the whole pretrained CLIP, whose text tower makes the heads."""
    merges: tuple[MergeEntry, ...] = ()
    """The merges to make and compare."""
    evaluate: Evaluate
    """What to measure."""
    track: Track = Track()
    """Where to record it."""
    cluster: Cluster = Cluster()
    """Where to run it."""

    @model_validator(mode="before")
    @classmethod
    def _null_sections_mean_defaults(cls, value: Any) -> Any:
        # `track:` with nothing under it parses as null; people write that.
        if isinstance(value, dict):
            value = {
                key: item
                for key, item in value.items()
                if item is not None or key in ("base", "clip")
            }
        return value

    @model_validator(mode="after")
    def _models_come_from_one_place(self) -> RunConfig:
        if (self.experts is None) == (not self.models):
            raise ValueError(
                "give either `experts` (models trained here) or `models`, not both and not neither"
            )
        names = [entry.name for entry in self.merges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two merges are both called {', '.join(twice)}")
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_folder if self.run_folder is not None else Path("runs") / self.name


RunStage = Literal["models", "merge", "evaluate", "track", "report"]
