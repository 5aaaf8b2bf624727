"""Sections of a run file about images: sets of one's own, and image towers trained here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field, field_validator

from evaluators.clip_sets import CLIP_SETS, ClipSet, plain
from evaluators.quickstart_images import QUICKSTART_TASKS
from evaluators.training.finetune import FinetuneRecipe
from evaluators.training.multitask import MultitaskRecipe
from evaluators.training.pretrain import PretrainRecipe
from evaluators.training.text_tower import TextRecipe
from nan_merge.config_messages import did_you_mean
from nan_merge.schema import StrictModel
from pipelines.language_benchmarks import language_benchmark_names


class OwnImageSet(StrictModel):
    """A set of images of one's own: `train` and `test` in a folder of its name, within `data`."""

    classes: tuple[str, ...] | dict[str, str] = Field(min_length=2)
    """Its classes, as their folders are called; or those names -> what prompts call them."""
    templates: tuple[str, ...] = Field(default=("a photo of a {}.",), min_length=1)
    """CLIP prompts with `{}` where the class goes."""

    @field_validator("classes")
    @classmethod
    def _classes_differ(
        cls, classes: tuple[str, ...] | dict[str, str]
    ) -> tuple[str, ...] | dict[str, str]:
        pairs = classes.items() if isinstance(classes, dict) else ((each, each) for each in classes)
        seen: dict[str, int] = {}
        for place, pair in enumerate(pairs):
            for name in pair:
                if seen.setdefault(plain(name), place) != place:
                    raise ValueError(
                        f"two classes are both called {name}; case, blanks and punctuation do not "
                        "tell them apart"
                    )
        return classes

    @field_validator("templates")
    @classmethod
    def _templates_name_the_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"{template!r} has no {{}} where the name of the class goes")
        return templates

    def clip_set(self, name: str) -> ClipSet:
        """The set under the name that the run file gives it."""
        pairs = self.classes if isinstance(self.classes, dict) else {n: n for n in self.classes}
        classes = tuple((called, folder) for folder, called in pairs.items())
        return ClipSet(name, 0, self.templates, "", classes=classes)


class Experts(StrictModel):
    """Models that the run trains itself, once: a fine-tune per task of the run's `clip`, or of a
    small CLIP that is pretrained before.
    """

    backbone: str = "nan-merge-mini"
    """Without `clip`: the open_clip model to pretrain, a name that it knows, or one of
    evaluators/open_clip_configs."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Image tasks; one fine-tuned model each, called as the task."""
    text: TextRecipe = TextRecipe()
    """How the text tower is trained, before it is frozen."""
    pretrain: PretrainRecipe = PretrainRecipe()
    """How the image tower is trained on all tasks together: the base model."""
    finetune: FinetuneRecipe = FinetuneRecipe()
    """How each fine-tuned model is trained from the base model on its task."""
    multitask: MultitaskRecipe | None = None
    """How one more model is trained on all tasks together, to compare merges with; the row
    `Traditional MTL` of the table. None is trained if absent."""
    save_seconds: float = Field(default=60, ge=0)
    """Keep the state of a training so often; one that is killed goes on from there."""

    def refuse_unfit(
        self, clip: str | None, base: str | None, benchmarks: Iterable[str], own: Iterable[str]
    ) -> None:
        """Refuse what cannot be trained from where the run starts.

        Args:
            clip: The run's `clip`.
            base: The run's `base`.
            benchmarks: What its models are evaluated on.
            own: Names of image sets of its own.

        Raises:
            ValueError: If tasks are unknown, named twice or of another kind than the benchmarks,
                or a section is of no use.
        """
        known_once(self.tasks, "task", own)
        if len({task in QUICKSTART_TASKS for task in (*self.tasks, *benchmarks)}) > 1:
            raise ValueError(f"{MIXED_KINDS}; train on the kind that is under `evaluate`")
        if base is not None:
            raise ValueError("`experts` start from the image tower of the CLIP; leave `base` out")
        if clip is not None:
            if given := sorted({"backbone", "text", "pretrain"} & self.model_fields_set):
                raise ValueError(
                    f"`experts` are fine-tuned from `clip`, which is trained already: leave "
                    f"{', '.join(given)} out, or leave `clip` out to train a small one here"
                )
        elif self.tasks[0] not in QUICKSTART_TASKS:
            raise ValueError(
                f"{self.tasks[0]} is a set of real images, on which no CLIP is pretrained here: "
                "name a pretrained one, e.g. `clip: open_clip://ViT-B-32-quickgelu/openai`"
            )
        elif len(self.tasks) < 2:
            raise ValueError("a small CLIP is pretrained on two tasks or more; name them")


MIXED_KINDS = (
    f"{', '.join(CLIP_SETS)} and those of `image_sets` are sets of real images, and the others "
    "small tasks that are made here"
)


def known_once(names: Sequence[str], kind: str, own: Iterable[str] = ()) -> None:
    """Refuse names that are not of image tasks, or that come twice.

    Raises:
        ValueError: With what there is, and what may have been meant.
    """
    known = {*QUICKSTART_TASKS, *CLIP_SETS, *own}
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            have = f"{', '.join(QUICKSTART_TASKS)}; {', '.join((*CLIP_SETS, *own))}"
            if kind == "benchmark":
                near = did_you_mean(name, [*known, *language_benchmark_names()])
                have += f"; for language models {', '.join(language_benchmark_names())}"
            raise ValueError(f"no {kind} is called {name!r}, have {have}{near}")
    if twice := repeated(names):
        raise ValueError(f"{', '.join(twice)} is named twice; name every {kind} once")


def repeated(names: Sequence[str]) -> list[str]:
    """Those names that come more than once, in order."""
    return sorted({name for name in names if names.count(name) > 1})
