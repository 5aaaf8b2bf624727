"""What evaluating many image towers costs beside one, and beside a bare open_clip loop.

    python benchmarks/vision_speed.py
    python benchmarks/vision_speed.py --model nan-merge-mini --images 2000

Weights are random, and pictures are drawn: JPEG files of 500 x 375 pixels, in class folders of
EuroSAT. One process, without Ray. What is measured:

- decoding the pictures once into the mapped file of the cache;
- one tower over that file, and then --towers of them in one pass;
- the same tower in a loop of nothing but open_clip's own calls over the same batches, with pixels
  that are normalised before the clock starts. Both sides take turns, and the fastest turn counts:
  anything slower was something else on the machine;
- with --compile, the same tower through torch.compile, and how long compiling takes.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evaluators.backends.clip import (
    Clip,
    ImageTower,
    build_clip,
    classify_all,
    place_tower,
    zero_shot_head,
)
from evaluators.clip_sets import CLIP_SETS
from evaluators.clip_sets.layouts import list_images
from evaluators.clip_sets.prepare import (
    decode_part,
    finish_preparation,
    parts_of,
    start_preparation,
)
from evaluators.image_sets import ImageSet, load_image_set

SET = CLIP_SETS["EuroSAT"]


def draw_pictures(root: Path, count: int) -> None:
    """Photograph-like JPEG files: smooth shapes with some noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folders = [root / "test" / name for name in SET.class_names]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        (folders[number % len(folders)] / f"{number}.jpg").write_bytes(file.getvalue())


def prepare(root: Path, staging: Path, size: int) -> ImageSet:
    """Decode the pictures into the mapped file."""
    listing = list_images(SET, root)
    staging.mkdir()
    start_preparation(staging, len(listing.places), size)
    for start, stop in parts_of(len(listing.places)):
        assert not decode_part(SET, root, "test", size, staging, start, stop)
    finish_preparation(SET, listing, "test", staging)
    return load_image_set(staging)


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes."""
    started = clock()
    call()
    return clock() - started


def bare_loop(clip: Clip, head: Tensor, batches: list[Tensor]) -> Callable[[], Tensor]:
    """The loop that everybody writes: encode, normalise, compare, take the largest."""

    @torch.inference_mode()
    def call() -> Tensor:
        found = []
        for batch in batches:
            features = functional.normalize(clip.model.encode_image(batch), dim=-1)
            found.append((features @ head.T).argmax(dim=1))
        return torch.cat(found)

    return call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--towers", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU seconds: for a machine that is shared"
    )
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clip = build_clip(asked.model, seed=0)
    head = zero_shot_head(clip, SET.class_names, SET.templates)
    others = [build_clip(asked.model, seed=seed).tower for seed in range(1, asked.towers)]
    towers = [place_tower(tower, "cpu", asked.dtype) for tower in (clip.tower, *others)]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        draw_pictures(root / "set", asked.images)
        size = towers[0].image_size
        clock = time.process_time if asked.cpu_time else time.perf_counter
        decode = seconds(lambda: prepare(root / "set", root / "done", size), clock)
        images = load_image_set(root / "done").images
        report(asked, clip, towers, head, images, decode)


def report(
    asked: argparse.Namespace,
    clip: Clip,
    towers: list,
    head: Tensor,
    images: np.ndarray,
    decode: float,
) -> None:
    """Time what is left, and print all numbers."""
    from evaluators.backends.clip import normalise_pixels

    clock = time.process_time if asked.cpu_time else time.perf_counter

    def classify(count: int) -> np.ndarray:
        heads = [head] * count
        return classify_all(towers[:count], heads, images, asked.batch_size)[0][0]

    batches = [
        normalise_pixels(
            torch.from_numpy(images[at : at + asked.batch_size].copy()).permute(0, 3, 1, 2),
            towers[0],
        )
        for at in range(0, len(images), asked.batch_size)
    ]
    batches = [batch.to(next(towers[0].visual.parameters()).dtype) for batch in batches]
    bare = bare_loop(clip, head, batches)
    if asked.dtype == "float32":
        assert np.array_equal(bare().numpy(), classify(1))  # the same answers; and both are warm
        ours, theirs = [], []
        for _ in range(asked.turns):
            ours.append(seconds(lambda: classify(1), clock))
            theirs.append(seconds(bare, clock))
        ratio = min(ours) / min(theirs)
        print(f"one tower {min(ours):.2f} s, bare open_clip {min(theirs):.2f} s, ratio {ratio:.3f}")
        one = min(ours)
    else:
        one = min(seconds(lambda: classify(1), clock) for _ in range(asked.turns))
        print(f"one tower {one:.2f} s")
    if asked.compile:
        report_compiled(asked, towers[0], head, images)
    turns = range(max(1, asked.turns - 2))
    many = min(seconds(lambda: classify(asked.towers), clock) for _ in turns)
    each = 1e3 / len(images)
    print(f"decoding {decode:.2f} s ({decode * each:.2f} ms an image), a tower {one * each:.2f} ms")
    print(
        f"{asked.towers} towers with one decoding {decode + many:.2f} s, one with it "
        f"{decode + one:.2f} s: {(decode + many) / (decode + one):.2f} times; each with its own "
        f"decoding they would take {asked.towers * (decode + one):.2f} s"
    )


def report_compiled(
    asked: argparse.Namespace, tower: ImageTower, head: Tensor, images: np.ndarray
) -> None:
    """Time the first batch through torch.compile, then both ways in turn."""
    clock = time.process_time if asked.cpu_time else time.perf_counter
    compiled = replace(tower, visual=torch.compile(tower.visual))

    def classify(which: ImageTower, count: int) -> np.ndarray:
        return classify_all([which], [head], images[:count], asked.batch_size)[0][0]

    first = seconds(lambda: classify(compiled, asked.batch_size), time.perf_counter)
    ours, plain = [], []
    for _ in range(asked.turns):
        ours.append(seconds(lambda: classify(compiled, len(images)), clock))
        plain.append(seconds(lambda: classify(tower, len(images)), clock))
    saved = (min(plain) - min(ours)) / len(images)
    pays = f"pays after {first / saved:,.0f} images" if saved > 0 else "never pays"
    print(
        f"compiled {min(ours):.2f} s, as it is {min(plain):.2f} s, ratio "
        f"{min(ours) / min(plain):.3f}; compiling took {first:.1f} s and {pays}"
    )


if __name__ == "__main__":
    main()
