"""Classify labelled images with an image tower: zero-shot heads, shards, predictions.

The protocol is CLIP's (arXiv 2103.00020, section 3.1.4) as the merging papers use it: the heads
come from the frozen text tower of the pretrained model and are shared by every model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import safe_open
from torch import Tensor

from evaluators.backends.clip import ImageTower, classify_all, place_tower, zero_shot_head
from evaluators.backends.clip_architecture import describe_tower
from evaluators.backends.clip_checkpoints import load_clip, load_image_tower, save_tensors
from evaluators.image_sets import ImageSet, load_image_set
from evaluators.predictions import Prediction
from evaluators.shards import pack_shards
from nan_merge.errors import EvaluationError

BACKBONE = "backbone"
"""In the metadata of a file of heads: what image towers it is for."""
# About so many images go to a worker at a time: enough to outweigh handing them out, few enough to
# share a benchmark and to lose little.
IMAGES_PER_SHARD = 250


def own_cluster(sample_id: str) -> str:
    """The cluster of a sample that shares its source with no other sample."""
    return sample_id


@dataclass(frozen=True)
class ImageBenchmark:
    """One image set, ready to be scored.

    Attributes:
        name: The benchmark's name.
        data_path: The image set's ``.npz`` file, or the folder of its prepared images.
        digest: The image set's digest.
        heads_path: File of its head, as `write_heads` makes it.
        cluster_of: Names the source of a sample by its id; see `Prediction.cluster_id`.
    """

    name: str
    data_path: str
    digest: str
    heads_path: str
    cluster_of: Callable[[str], str] = own_cluster


@dataclass(frozen=True)
class ImageShard:
    """Some of a benchmark's images; the unit of work of one model.

    Attributes:
        benchmark: Whose images.
        number: Which of the benchmark's shards.
        places: Of the images in the image set.
        batch_size: Images that go through the tower at once.
    """

    benchmark: ImageBenchmark
    number: int
    places: tuple[int, ...]
    batch_size: int

    def __str__(self) -> str:
        return f"{self.benchmark.name}, shard {self.number}"

    @property
    def num_samples(self) -> int:
        """How many images it has."""
        return len(self.places)


def image_shards(benchmark: ImageBenchmark, num_images: int, batch_size: int) -> list[ImageShard]:
    """Cut a benchmark into shards of whole batches.

    Sums of floats depend on what shares a batch, so the batches are those of the benchmark in one
    piece. Images have no prompt prefix to share.
    """
    num_batches = max(1, IMAGES_PER_SHARD // batch_size)
    shards = pack_shards([None] * num_images, num_batches * batch_size)
    return [
        ImageShard(benchmark, number, tuple(places), batch_size)
        for number, places in enumerate(shards)
    ]


@dataclass(frozen=True)
class HeadSpec:
    """What a zero-shot head is made from, beside the text tower.

    Attributes:
        benchmark: The benchmark's name.
        class_names: In the order of the labels.
        templates: CLIP prompts with ``{}`` where the class name goes.
        output: safetensors file to write: the benchmark's name -> float32 (num_classes, embed_dim).
    """

    benchmark: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    output: str


def write_heads(clip_folder: str, specs: list[HeadSpec]) -> None:
    """Make zero-shot heads with a CLIP's text tower.

    Args:
        clip_folder: The whole pretrained CLIP.
        specs: One a benchmark.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    clip = load_clip(Path(clip_folder))
    about = {BACKBONE: describe_tower(clip.tower.model_config)}
    for spec in specs:
        head = zero_shot_head(clip, spec.class_names, spec.templates)
        save_tensors({spec.benchmark: head}, Path(spec.output), about)


def read_head(path: str, benchmark: str, tower: ImageTower) -> Tensor:
    """Read a benchmark's head: float32 (num_classes, embed_dim).

    Raises:
        EvaluationError: If it was made for image towers that are built otherwise than this one.
    """
    with safe_open(path, "pt") as file:
        made_for = (file.metadata() or {}).get(BACKBONE)
        head = file.get_tensor(benchmark)
    built = describe_tower(tower.model_config)
    if made_for != built:
        raise EvaluationError(
            f"The head of {benchmark} at {path} is for a {made_for}, but the model is a {built}. "
            "Make it with the text tower of the model's own CLIP."
        )
    return head


def head_digest(heads_path: str, benchmark: str) -> str:
    """sha256 of one benchmark's head in its file, in hexadecimal."""
    with safe_open(heads_path, "pt") as file:
        return hashlib.sha256(file.get_tensor(benchmark).numpy().tobytes()).hexdigest()


def open_image_towers(folders: Sequence[str], dtype: str = "float32") -> list[ImageTower]:
    """Load checkpoints of image towers: onto this process' GPU, or onto one thread of it.

    Args:
        folders: The checkpoints.
        dtype: What they compute in: ``float32``, ``bfloat16`` or ``auto``.
    """
    import torch

    torch.set_num_threads(1)  # one worker per core: more threads would only wait for each other
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [place_tower(load_image_tower(Path(folder)), device, dtype) for folder in folders]


def classify_shard(towers: Sequence[ImageTower], shard: ImageShard) -> list[list[Prediction]]:
    """Classify the images of a shard with each tower; the images are read and normalised once.

    Raises:
        EvaluationError: If the head was made for other towers, or a result is not finite.
    """
    benchmark = shard.benchmark
    image_set = _load_once(benchmark.data_path)
    heads = [read_head(benchmark.heads_path, benchmark.name, tower) for tower in towers]
    places = np.array(shard.places)
    found = classify_all(towers, heads, image_set.images[places], shard.batch_size)
    return [
        [
            Prediction(
                sample_id=image_set.sample_ids[place],
                cluster_id=benchmark.cluster_of(image_set.sample_ids[place]),
                target=image_set.class_names[image_set.labels[place]],
                answer=image_set.class_names[answer],
                log_probability=round(float(row[answer]), 6),
            )
            for place, answer, row in zip(places, predicted, log_probabilities, strict=True)
        ]
        for predicted, log_probabilities in found
    ]


@lru_cache(maxsize=1)  # an actor works through one benchmark after another
def _load_once(path: str) -> ImageSet:
    return load_image_set(Path(path))
