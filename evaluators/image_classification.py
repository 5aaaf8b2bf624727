"""Score an image tower on labelled images: zero-shot heads, predictions, accuracy.

The protocol is CLIP's (arXiv 2103.00020, section 3.1.4) as the merging papers use it: the heads
come from the frozen text tower of the pretrained model and are shared by every model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from evaluators.backends.clip import ImageTower, classify, zero_shot_head
from evaluators.backends.clip_checkpoints import load_clip, load_image_tower, save_tensors
from evaluators.image_sets import load_image_set
from evaluators.predictions import Prediction, write_predictions
from evaluators.scores import Score, score_accuracy


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
class ImageScoring:
    """One model's work on one benchmark.

    Attributes:
        benchmark: What to score on.
        predictions_path: Where the predictions go.
        key: What the predictions are known by.
        batch_size: Images that go through the tower at once.
    """

    benchmark: ImageBenchmark
    predictions_path: str
    key: str
    batch_size: int


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


def open_image_tower(folder: str) -> ImageTower:
    """Load a checkpoint of an image tower onto one thread of this process."""
    import torch

    torch.set_num_threads(1)  # one worker per core: more threads would only wait for each other
    return load_image_tower(Path(folder))


def score_image_tower(tower: ImageTower, scoring: ImageScoring) -> Score:
    """Classify a benchmark's images, keep the predictions, and score them."""
    image_set = load_image_set(Path(scoring.benchmark.data_path))
    head = load_file(scoring.benchmark.heads_path)[scoring.benchmark.name]
    predicted, log_probabilities = classify(tower, head, image_set.images, scoring.batch_size)
    predictions = [
        Prediction(
            sample_id=sample_id,
            cluster_id=scoring.benchmark.cluster_of(sample_id),
            target=image_set.class_names[label],
            answer=image_set.class_names[answer],
            log_probability=round(float(row[answer]), 6),
        )
        for sample_id, label, answer, row in zip(
            image_set.sample_ids, image_set.labels, predicted, log_probabilities, strict=True
        )
    ]
    write_predictions(Path(scoring.predictions_path), scoring.key, predictions)
    return score_accuracy(image_set.name, predictions)
