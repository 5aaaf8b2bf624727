"""Classify labelled images with an image tower: zero-shot heads, shards, predictions.

The protocol is CLIP's (arXiv 2103.00020, section 3.1.4) as the merging papers use it: the heads
come from the frozen text tower of the pretrained model and are shared by every model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from evaluators.backends.clip import ImageTower, classify, zero_shot_head
from evaluators.backends.clip_checkpoints import load_clip, load_image_tower, save_tensors
from evaluators.image_sets import ImageSet, load_image_set
from evaluators.predictions import Prediction
from evaluators.shards import pack_shards

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
        data_path: The image set's ``.npz`` file.
        digest: The image set's digest.
        heads_path: File of heads, as `write_heads` makes it.
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


def write_heads(clip_folder: str, image_sets: dict[str, str], output: str) -> None:
    """Make the zero-shot head of each image set with a CLIP's text tower.

    Args:
        clip_folder: The whole pretrained CLIP.
        image_sets: Name -> ``.npz`` file.
        output: safetensors file to write: name -> float32 (num_classes, embed_dim).

    Raises:
        OutputError: If the disk is full or not writable.
    """
    clip = load_clip(Path(clip_folder))
    heads = {}
    for name, data_path in image_sets.items():
        image_set = load_image_set(Path(data_path))
        heads[name] = zero_shot_head(clip, image_set.class_names, image_set.templates)
    save_tensors(heads, Path(output))


def head_digest(heads_path: str, benchmark: str) -> str:
    """sha256 of one benchmark's head in a file of heads, in hexadecimal."""
    head = load_file(heads_path)[benchmark].numpy()
    return hashlib.sha256(head.tobytes()).hexdigest()


def open_image_tower(folder: str) -> ImageTower:
    """Load a checkpoint of an image tower onto one thread of this process."""
    import torch

    torch.set_num_threads(1)  # one worker per core: more threads would only wait for each other
    return load_image_tower(Path(folder))


def classify_shard(tower: ImageTower, shard: ImageShard) -> list[Prediction]:
    """Classify the images of a shard."""
    benchmark = shard.benchmark
    image_set = _load_once(benchmark.data_path)
    head = load_file(benchmark.heads_path)[benchmark.name]
    places = np.array(shard.places)
    predicted, log_probabilities = classify(tower, head, image_set.images[places], shard.batch_size)
    return [
        Prediction(
            sample_id=image_set.sample_ids[place],
            cluster_id=benchmark.cluster_of(image_set.sample_ids[place]),
            target=image_set.class_names[image_set.labels[place]],
            answer=image_set.class_names[answer],
            log_probability=round(float(row[answer]), 6),
        )
        for place, answer, row in zip(places, predicted, log_probabilities, strict=True)
    ]


@lru_cache(maxsize=1)  # an actor works through one benchmark after another
def _load_once(path: str) -> ImageSet:
    return load_image_set(Path(path))
