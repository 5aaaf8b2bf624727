"""How the time and the private memory of a merge grow: with size, with models, with cores.

    python benchmarks/growth.py FOLDER

writes synthetic Llamas into FOLDER/SIZE (4.3 GB by default; what is there is used), merges them by
Task Arithmetic and by TIES, prints tables in Markdown and draws docs/growth.png. Figures are of
whole processes, imports included, files warm, settings in turn; a first round warms up and is not
counted. Memory is the private kind (RssAnon), summed over a process and its children. Run it on a
machine that does nothing else, with FOLDER in memory (`/dev/shm`) unless a disk is what you want
to measure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from growth_plot import Axis, Point, draw
from processes import ROOT, Measured, in_turn, ours, run
from synthetic_llama import SIZES, shapes, write_family

from nan_merge.cost import memory_ceiling
from nan_merge.methods import METHODS
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe

GOAL_MB = 700
GROWING: dict[str, dict[str, Any]] = {
    "Task Arithmetic": {"method": "task_arithmetic", "coefficients": {"lambda": 0.3}},
    "TIES": {"method": {"name": "ties", "density": 0.2}, "coefficients": {"lambda": 0.3}},
}
# For the table of memory: options beside a method's name, with which it takes elements or rows.
# Fisher merging reads statistics too, which these models do not have.
SMALL_UNITS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name, row in METHODS.items() if row.unit != "matrix" and name != "fisher"),
    ("ties", {"dialect": "mergekit"}),
    ("dare_ties", {"dialect": "mergekit"}),
    ("model_stock", {"vectors": "row"}),
    ("nuslerp", {"vectors": "row"}),
    ("breadcrumbs", {"rows": True}),
    ("breadcrumbs_ties", {"rows": True}),
]


def parameters(size: str) -> float:
    """Parameters of a synthetic Llama, in billions."""
    return sum(math.prod(shape) for shape in shapes(size).values()) / 1e9


def recipe_of(folder: Path, size: str, num_models: int, content: dict[str, Any]) -> dict[str, Any]:
    """A recipe over the base and the first fine-tunes of a family."""
    models = [str(folder / size / f"expert{number}") for number in range(num_models)]
    return {"base": str(folder / size / "base"), "models": models, **content}


def merge_once(folder: Path, recipe: dict[str, Any], cores: int) -> tuple[float, float]:
    """Seconds and peak private megabytes of `nan-merge merge`; the result is not kept."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "recipe.json").write_text(json.dumps(recipe))
    command = ours("merge", str(work / "recipe.json"), str(work / "merged"))
    seconds, megabytes, _ = run(command, work / "cache", cores)
    shutil.rmtree(work)
    return seconds, megabytes


def axes_of(sizes: list[str], many: str, cores: int) -> list[Axis]:
    """What is varied: one number each, the others being 2 models and all cores."""
    for_cores = sizes[-1]
    powers = [2**power for power in range(cores.bit_length()) if 2**power <= cores]
    return [
        Axis(
            "parameters (2 models)",
            [Point(parameters(size), size, size, 2, cores) for size in sizes],
        ),
        Axis(
            f"fine-tuned models ({many})",
            [Point(number, str(number), many, number, cores) for number in (2, 4, 8)],
        ),
        Axis(
            f"cores ({for_cores}, 2 models)",
            [Point(number, str(number), for_cores, 2, number) for number in powers],
        ),
    ]


def measure(folder: Path, axes: list[Axis], runs: int) -> dict[tuple[Point, str], Measured]:
    """Every point by every method; what two axes share is measured once."""
    points = [point for axis in axes for point in axis.points]
    names = {
        (point, method): f"{method}, {point.size}, {point.num_models} models, {point.cores} cores"
        for point in points
        for method in GROWING
    }

    def side(point: Point, method: str) -> Callable[[], tuple[float, float]]:
        recipe = recipe_of(folder, point.size, point.num_models, GROWING[method])
        return lambda: merge_once(folder, recipe, point.cores)

    found = in_turn({name: side(*key) for key, name in names.items()}, runs)
    return {key: found[name] for key, name in names.items()}


def print_axes(axes: list[Axis], found: dict[tuple[Point, str], Measured]) -> None:
    """A table for each axis."""
    for axis in axes:
        print(f"\n| {axis.title} | " + " | ".join(GROWING) + " |")
        print("|---:|" + "---:|" * len(GROWING))
        for point in axis.points:
            cells = [" ".join(str(found[point, method]).split()) for method in GROWING]
            print(f"| {point.label} | " + " | ".join(cells) + " |", flush=True)


def print_memory(folder: Path, size: str, cores: int) -> None:
    """Peak private memory of every method that takes elements or rows, once each."""
    print(f"\n| {size}, {cores} cores | unit | models | peak, MB | ceiling, MB | seconds |")
    print("|---|---|---:|---:|---:|---:|")
    worst = 0.0
    for name, options in SMALL_UNITS:
        row = METHODS[name]
        content = {"method": {"name": name, **options}}
        recipe = recipe_of(folder, size, row.most_models or 8, content)
        plan = plan_merge(MergeRecipe.model_validate(recipe))
        unit = row.for_options(plan.recipe.method).unit
        assert unit != "matrix", f"{name} takes whole tensors"
        seconds, megabytes = merge_once(folder, recipe, cores)
        worst = max(worst, megabytes)
        shown = ", ".join([name, *(f"`{key}: {value}`" for key, value in options.items())])
        ceiling = memory_ceiling(plan, cores) / (1 << 20)
        print(
            f"| {shown} | {unit} | {len(recipe['models'])} | {megabytes:,.0f} | {ceiling:,.0f} | "
            f"{seconds:.1f} |",
            flush=True,
        )
    print(f"\nThe highest is {worst:,.0f} MB; goal: under {GOAL_MB}.")


def main() -> None:
    """Read the arguments, write the models, measure, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the synthetic models are or go")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["10m", "0.1b", "0.3b"])
    parser.add_argument("--many", choices=SIZES, help="the size of which 8 are merged; --sizes[1]")
    parser.add_argument("--runs", type=int, default=3, help="rounds that count")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs", help="folder of growth.png")
    arguments = parser.parse_args()
    folder, sizes = arguments.folder, sorted(arguments.sizes, key=parameters)
    many = arguments.many or sizes[min(1, len(sizes) - 1)]
    # Not the user's own: what is remembered of these files is of no use to anyone.
    os.environ["NAN_MERGE_CACHE"] = str(folder / "hashes")
    for size in {*sizes, many}:
        write_family(folder / size, size, 8 if size == many else 2)
    cores = len(os.sched_getaffinity(0))
    print(f"Medians of {arguments.runs} rounds (least to most), {cores} cores", flush=True)
    axes = axes_of(sizes, many, cores)
    found = measure(folder, axes, arguments.runs)
    print_axes(axes, found)
    draw(axes, found, list(GROWING), arguments.plots / "growth.png")
    print_memory(folder, many, cores)


if __name__ == "__main__":
    main()
