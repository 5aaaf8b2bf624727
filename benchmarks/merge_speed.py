"""The table of docs/performance.md: merging against mergekit and against `cat`.

    python benchmarks/synthetic_llama.py /data/llama --size 1.24b
    python benchmarks/synthetic_llama.py /data/small --size 0.3b
    python benchmarks/merge_speed.py /data/llama --small /data/small --mergekit MERGEKIT_YAML

mergekit has pins of its own: install `mergekit==0.1.5` into another environment and give the path
of its `mergekit-yaml` command; without it only our side and `cat` are measured. Figures are of
whole processes, imports included, files warm, sides in turn on the same files; a first round
warms up and is not counted. Memory is the private kind (RssAnon), summed over a process and its
children.
Where the folder is on a disk, our side waits until its result is on it, and the others do not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merge_sweeps import ALONE, sweep_sides
from processes import Measured, in_turn, ours, ratios, run

# What is compared: goal of the ratio, our recipes by name, mergekit's method and parameters.
Case = tuple[float, dict[str, dict[str, Any]], dict[str, Any]]
TIES = {"name": "ties", "density": 0.2, "dialect": "mergekit"}
NAN = {"source": "nan", "target": "task_vector"}
CASES: dict[str, Case] = {
    "linear": (6, {"linear": {"method": "average"}}, {"merge_method": "linear", "weight": 1.0}),
    "task arithmetic": (
        6,
        {
            "Task Arithmetic": {
                "method": "task_arithmetic",
                "coefficients": {"lambda": 0.3},
            }
        },
        {"merge_method": "task_arithmetic", "weight": 0.3},
    ),
    "DARE-TIES": (
        10,
        {
            "DARE-TIES": {
                "method": {"name": "dare_ties", "density": 0.5, "dialect": "mergekit"},
                "coefficients": {"lambda": 0.5},
            }
        },
        {"merge_method": "dare_ties", "weight": 0.5, "density": 0.5},
    ),
    "TIES": (
        # mergekit has no NAN: its side is plain TIES for all of ours. It divides by the sum of the
        # weights, so equal weights of any size are the same.
        15,
        {
            "TIES": {"method": TIES},
            "TIES + NAN": {"method": TIES, "coefficients": NAN},
            "TIES + NAN, exact threshold over the model": {
                "method": {"name": "ties", "density": 0.2},
                "coefficients": NAN,
            },
        },
        {"merge_method": "ties", "weight": 0.5, "density": 0.2},
    ),
}

# Name -> our recipe's method and coefficients.
RECIPES = {
    name: options for _, ours_by_name, _ in CASES.values() for name, options in ours_by_name.items()
}


def our_side(
    folder: Path, work: Path, options: dict[str, Any]
) -> Callable[[], tuple[float, float]]:
    """`nan-merge merge` with a recipe of these options."""
    models = sorted(str(path) for path in folder.glob("expert*"))
    recipe = {"base": str(folder / "base"), "models": models, **options}
    path = work / "recipe.yaml"

    def once() -> tuple[float, float]:
        path.write_text(json.dumps(recipe))
        clear(work)
        return run(ours("merge", str(path), str(work / "ours")), work / "cache")[:2]

    return once


def mergekit_side(
    mergekit: str, folder: Path, work: Path, case: str
) -> Callable[[], tuple[float, float]]:
    """`mergekit-yaml` with a configuration for the case."""
    parameters = dict(CASES[case][2])
    content: dict[str, Any] = {"merge_method": parameters.pop("merge_method"), "dtype": "bfloat16"}
    models = [{"model": str(path)} for path in sorted(folder.glob("expert*"))]
    content["models"] = [{**model, "parameters": parameters} for model in models]
    if content["merge_method"] != "linear":
        content["base_model"] = str(folder / "base")
    path = work / "mergekit.yaml"

    def once() -> tuple[float, float]:
        path.write_text(json.dumps(content))
        clear(work)
        command = [mergekit, str(path), str(work / "theirs"), "--no-copy-tokenizer"]
        return run(command, work / "cache")[:2]

    return once


def clear(work: Path) -> None:
    """Remove what earlier runs wrote and remembered."""
    for output in ("ours", "theirs", ".ours.partial", "cache", "cat.bin"):
        path = work / output
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def cat_side(folder: Path, work: Path) -> Callable[[], float]:
    """Reading every input and writing one output, by `cat` alone."""
    files = " ".join(str(path) for path in sorted(folder.glob("*/model.safetensors")))
    one = folder / "base" / "model.safetensors"

    def once() -> float:
        clear(work)
        script = f"cat {files} > /dev/null; cat {one} > {work / 'cat.bin'}"
        return run(["sh", "-c", script], work / "cache")[0]

    return once


def merge_alone_side(folder: Path, work: Path) -> Callable[[], float]:
    """Task Arithmetic in a process that has imported all it needs: what it says it took."""
    models = sorted(str(path) for path in folder.glob("expert*"))
    recipe = {
        "base": str(folder / "base"),
        "models": models,
        **CASES["task arithmetic"][1]["Task Arithmetic"],
    }

    def once() -> float:
        clear(work)
        job = json.dumps([[recipe, str(work / "ours")]])
        return float(run([*ALONE, job], work / "cache")[2])

    return once


def print_sides(found: dict[str, Measured]) -> None:
    """A line per side."""
    for name, measured in found.items():
        print(f"  {name:44} {measured}", flush=True)


def print_ratio(text: str, values: list[float], goal: str) -> None:
    """Median and spread of a ratio, and what it should be."""
    middle = statistics.median(values)
    print(f"  {text}: {middle:.2f} ({values[0]:.2f} to {values[-1]:.2f}); goal: {goal}", flush=True)


def main() -> None:
    """Read the arguments and measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what synthetic_llama.py wrote")
    parser.add_argument("--small", type=Path, help="the same at --size 0.3b, for the sweeps")
    parser.add_argument("--mergekit", help="path of mergekit-yaml")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--case", action="append", choices=[*CASES, "cat", "sweeps"])
    arguments = parser.parse_args()
    cases = arguments.case or [*CASES, "cat", "sweeps"]
    work = arguments.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    print(f"{arguments.folder}: medians of {arguments.runs} rounds, {os.cpu_count()} cores")
    for case in [case for case in CASES if case in cases]:
        print(case)
        goal, ours_by_name, _ = CASES[case]
        sides: dict[str, Callable[[], Any]] = {
            name: our_side(arguments.folder, work, options)
            for name, options in ours_by_name.items()
        }
        if arguments.mergekit:
            sides["mergekit"] = mergekit_side(arguments.mergekit, arguments.folder, work, case)
        found = in_turn(sides, arguments.runs, arguments.warm_ups)
        print_sides(found)
        for name in ours_by_name if "mergekit" in found else ():
            faster = ratios(found["mergekit"], found[name])
            print_ratio(f"mergekit over {name}", faster, f"at least {goal}")
    if "cat" in cases:
        print("task arithmetic, imports apart, against `cat` of all inputs and one output")
        sides = {
            "nan-merge, merge alone": merge_alone_side(arguments.folder, work),
            "cat": cat_side(arguments.folder, work),
        }
        found = in_turn(sides, arguments.runs, arguments.warm_ups)
        print_sides(found)
        alone = ratios(found["nan-merge, merge alone"], found["cat"])
        print_ratio("ours over cat", alone, "at most 1.5")
    if "sweeps" in cases and arguments.small:
        for title, sides, one, two, goal in sweep_sides(arguments.small, work):
            print(title)
            found = in_turn(sides, arguments.runs, arguments.warm_ups)
            print_sides(found)
            print_ratio(f"{one} over {two}", ratios(found[one], found[two]), f"at most {goal}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
