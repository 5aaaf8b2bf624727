"""Gather statistics of a ViT-B/32 image tower of random weights, and tell seconds and memory.

    python benchmarks/statistics_memory.py FOLDER [--images 256] [--memory-mb 256 2048]

FOLDER gets the models and an image set, about a gigabyte, and is not removed. Memory is the
private kind (RssAnon) of the whole process. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from processes import ROOT, run

sys.path.insert(0, str(ROOT))

BACKBONE = "ViT-B-32-quickgelu"
GATHER = """
import sys
from evaluators.torchvision_repair import repair
repair()
from evaluators.statistics.gather import GatherRecipe
from evaluators.statistics.images import gather_image_statistics
kind, folder, images, memory = sys.argv[1:]
recipe = GatherRecipe(num_examples=int(images), memory_bytes=int(memory) << 20)
paths = [f"{folder}/{name}" for name in ("tower", "clip", "images.npz")]
gather_image_statistics(kind, *paths, recipe, 0, f"{folder}/{kind}")
"""


def prepare(folder: Path, num_images: int) -> None:
    """Write a CLIP of random weights, its image tower, and images of noise."""
    from evaluators.backends.clip import build_clip
    from evaluators.backends.clip_checkpoints import save_clip, save_image_tower
    from evaluators.image_sets import ImageSet, save_image_set

    clip = build_clip(BACKBONE, seed=0)
    save_clip(clip, folder / "clip")
    save_image_tower(clip.tower, folder / "tower")
    noise = np.random.default_rng(0).integers(0, 255, (num_images, 224, 224, 3), dtype=np.uint8)
    labels = np.arange(num_images) % 10
    ids = tuple(map(str, range(num_images)))
    names = tuple(f"class {number}" for number in range(10))
    images = ImageSet("noise", "train", noise, labels, ids, names, ("a photo of {}.",))
    save_image_set(images, folder / "images.npz")


def main() -> None:
    """Measure every kind under every ceiling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--memory-mb", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--kinds", nargs="+", default=["gram", "fisher"])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "images.npz").is_file():
        prepare(options.folder, options.images)
    for kind in options.kinds:
        for megabytes in options.memory_mb:
            shutil.rmtree(options.folder / kind, ignore_errors=True)
            arguments = [kind, str(options.folder), str(options.images), str(megabytes)]
            command = [sys.executable, "-c", GATHER, *arguments]
            seconds, peak, _ = run(command, options.folder / "cache", cores=1)
            files = list((options.folder / kind).glob("*.safetensors"))
            size = sum(file.stat().st_size for file in files) / 1e6
            print(
                f"{kind:6} of {options.images} images, at most {megabytes:5} MB of statistics: "
                f"{seconds:6.1f} s, {peak:6,.0f} MB private, {len(files)} passes, {size:,.0f} MB "
                "written",
                flush=True,
            )


if __name__ == "__main__":
    main()
