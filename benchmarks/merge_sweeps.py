"""Twelve merges of the same models in one reading, against twelve merges and against `cat`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from processes import ours, run

# Merges that are given as JSON, [[recipe, folder], ...]; prints the seconds without imports.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
from nan_merge.merge import merge_checkpoints
from nan_merge.recipe import MergeRecipe
import nan_merge.kernels.combine
jobs = [(MergeRecipe.model_validate(r), Path(p)) for r, p in json.loads(sys.argv[1])]
started = time.perf_counter()
merge_checkpoints(jobs, workers=os.cpu_count())
print(time.perf_counter() - started)
"""
ALONE = [sys.executable, "-c", SCRIPT]

Sides = dict[str, Callable[[], Any]]


def recipes(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Twelve recipes over the folder's models: λ and density of TIES + NAN, or λ of TA."""
    models = sorted(str(path) for path in folder.glob("expert*"))
    common = {"base": str(folder / "base"), "models": models}
    nan = {"source": "nan", "target": "task_vector"}
    if kind == "ties":
        return [
            common
            | {
                "method": {"name": "ties", "density": density},
                "coefficients": nan | {"lambda": scale},
            }
            for density, scale in product((0.1, 0.2, 0.3, 0.5), (0.5, 1.0, 1.5))
        ]
    factors = [0.1 * step for step in range(1, 13)]
    return [
        common | {"method": "task_arithmetic", "coefficients": {"lambda": factor}}
        for factor in factors
    ]


def sweep_sides(folder: Path, work: Path) -> Iterator[tuple[str, Sides, str, str, float]]:
    """Title, sides, the two that are compared, and what their ratio should stay under."""

    def clear() -> None:
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def together(kind: str) -> tuple[float, float]:
        clear()
        jobs = [[r, str(work / f"ours{i}")] for i, r in enumerate(recipes(folder, kind))]
        return run([*ALONE, json.dumps(jobs)], work / "cache")[:2]

    def one_by_one() -> tuple[float, float]:
        total, peak = 0.0, 0.0
        for recipe in recipes(folder, "ties"):
            clear()
            (work / "recipe.yaml").write_text(json.dumps(recipe))
            command = ours("merge", str(work / "recipe.yaml"), str(work / "ours"))
            seconds, megabytes, _ = run(command, work / "cache")
            total, peak = total + seconds, max(peak, megabytes)
        return total, peak

    def cat() -> float:
        clear()
        files = " ".join(str(path) for path in sorted(folder.glob("*/model.safetensors")))
        one = folder / "base" / "model.safetensors"
        writes = "; ".join(f"cat {one} > {work / f'cat{i}.bin'}" for i in range(12))
        return run(["sh", "-c", f"cat {files} > /dev/null; {writes}"], work / "cache")[0]

    yield (
        "12 TIES + NAN settings (density x λ)",
        {"in one reading": lambda: together("ties"), "twelve merges": one_by_one},
        "in one reading",
        "twelve merges",
        0.4,
    )
    yield (
        "12 Task Arithmetic settings",
        {"in one reading": lambda: together("ta"), "cat": cat},
        "in one reading",
        "cat",
        1.3,
    )
