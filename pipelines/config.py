"""The run file: one YAML that tells a whole run, composed from the sections of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from evaluators.quickstart_images import QUICKSTART_TASKS
from evaluators.training.finetune import FinetuneRecipe
from evaluators.training.pretrain import PretrainRecipe
from evaluators.training.text_tower import TextRecipe
from nan_merge.config_messages import did_you_mean
from nan_merge.recipe import (
    Coefficients,
    CoefficientSpec,
    MergeRecipe,
    Method,
    ModelReference,
    OutputDtype,
)
from nan_merge.schema import StrictModel
from pipelines.cluster_config import Cluster
from pipelines.masking import hide_passwords

PRETRAINED, INDIVIDUAL = "Pretrained", "Individual"
"""Rows of the table that every run has; no merge and no model may be called so."""


def _known_once(names: Sequence[str], kind: str) -> None:
    """Refuse names that are not of the quickstart's image tasks, or that come twice."""
    for name in names:
        if name not in QUICKSTART_TASKS:
            near = did_you_mean(name, QUICKSTART_TASKS)
            have = ", ".join(QUICKSTART_TASKS)
            raise ValueError(f"no {kind} is called {name!r}, have {have}{near}")
    if twice := _repeated(names):
        raise ValueError(f"{', '.join(twice)} is named twice; name every {kind} once")


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


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

    @field_validator("tasks")
    @classmethod
    def _tasks_are_known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        _known_once(tasks, "task")
        return tasks


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

    @field_validator("benchmarks")
    @classmethod
    def _benchmarks_are_known(cls, benchmarks: tuple[str, ...]) -> tuple[str, ...]:
        _known_once(benchmarks, "benchmark")
        return benchmarks


class Track(StrictModel):
    """Where the run is recorded."""

    mlflow: bool = True
    """Record in MLflow."""
    uri: str | None = None
    """Tracking URI; SQLite in the run folder if absent."""
    experiment: str | None = None
    """MLflow experiment; the run's name if absent."""


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
        return self

    @model_validator(mode="after")
    def _rows_have_names_of_their_own(self) -> RunConfig:
        merges = [entry.name for entry in self.merges]
        models = [model.name for model in self.models]
        if self.experts is not None:
            models += self.experts.tasks
        if twice := _repeated(merges):
            raise ValueError(f"two merges are both called {', '.join(twice)}")
        if twice := _repeated(models):
            raise ValueError(
                f"two models are both called {', '.join(twice)}; give one of them a `name`"
            )
        for name in (PRETRAINED, INDIVIDUAL):
            if name in (*merges, *models):
                raise ValueError(
                    f"a merge or model is called {name}, which is a row of every table; rename it"
                )
        if taken := sorted(set(merges) & set(models)):
            raise ValueError(
                f"a merge and a fine-tuned model are both called {', '.join(taken)}; rename one"
            )
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_folder if self.run_folder is not None else Path("runs") / self.name

    def text(self) -> str:
        """The run file with its overrides, as YAML, to keep and to show; without passwords."""
        content = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return hide_passwords(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
