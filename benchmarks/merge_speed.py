"""Time merging against mergekit and against `cat`, both sides in one run on the same files.

    python benchmarks/synthetic_llama.py /data/llama --size 1.24b
    python benchmarks/merge_speed.py /data/llama --mergekit /path/to/mergekit-yaml

mergekit has pins of its own: install `mergekit==0.1.5` into another environment and give the path
of its `mergekit-yaml`; without it only our side and `cat` are measured. Each figure is of whole
processes, imports included, files warm, sides in turn; medians are printed, with the smallest and
the largest. Memory is the private kind (RssAnon), summed over the process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# name -> (our recipe's method and coefficients, mergekit's method and parameters)
CASES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "linear": (
        {"method": "average"},
        {"merge_method": "linear", "parameters": {"weight": 1.0}},
    ),
    "task arithmetic": (
        {"method": "task_arithmetic", "coefficients": {"lambda": 0.3}},
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.3}},
    ),
    "DARE-TIES": (
        {
            "method": {"name": "dare_ties", "density": 0.5, "dialect": "mergekit"},
            "coefficients": {"lambda": 0.5},
        },
        {"merge_method": "dare_ties", "parameters": {"weight": 0.5, "density": 0.5}},
    ),
    "TIES": (
        # Both divide by the sum of the weights, so equal weights of any size are the same.
        {"method": {"name": "ties", "density": 0.2, "dialect": "mergekit"}},
        {"merge_method": "ties", "parameters": {"weight": 0.5, "density": 0.2}},
    ),
    "TIES + NAN": (
        {
            "method": {"name": "ties", "density": 0.2, "dialect": "mergekit"},
            "coefficients": {"source": "nan", "target": "task_vector"},
        },
        {},
    ),
    "TIES + NAN, threshold over the model": (
        {
            "method": {"name": "ties", "density": 0.2},
            "coefficients": {"source": "nan", "target": "task_vector"},
        },
        {},
    ),
}


@dataclass
class Measured:
    """Seconds and megabytes of the runs of one side."""

    seconds: list[float]
    megabytes: list[float]

    def __str__(self) -> str:
        low, middle, high = min(self.seconds), statistics.median(self.seconds), max(self.seconds)
        return f"{middle:7.1f} s ({low:.1f} to {high:.1f}), {max(self.megabytes):6,.0f} MB"


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and peak private megabytes of a command."""
    started = time.perf_counter()
    with Path("/dev/null").open("w") as nowhere:
        process = subprocess.Popen(
            command, env=environment, stdout=nowhere, stderr=subprocess.PIPE, text=True
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, private_megabytes(process.pid))
            time.sleep(0.05)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr.read()[-2000:]}")  # type: ignore[union-attr]
    return seconds, peak


def private_megabytes(pid: int) -> float:
    """RssAnon of a process and everything below it."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1]) / 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += private_megabytes(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended while we looked
    return total


def our_command(folder: Path, work: Path, case: str) -> list[str]:
    """`nan-merge merge` with a recipe for the case."""
    models = sorted(str(path) for path in folder.glob("expert*"))
    recipe = {"base": str(folder / "base"), "models": models, **CASES[case][0]}
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    script = "from pipelines.cli import main; main()"
    return [sys.executable, "-c", script, "merge", str(path), str(work / "ours")]


def mergekit_command(mergekit: str, folder: Path, work: Path, case: str) -> list[str]:
    """`mergekit-yaml` with a configuration for the case."""
    content = dict(CASES[case][1])
    parameters = content.pop("parameters")
    models = [{"model": str(path)} for path in sorted(folder.glob("expert*"))]
    content |= {
        "models": [{**model, "parameters": parameters} for model in models],
        "dtype": "bfloat16",
    }
    if content["merge_method"] != "linear":
        content["base_model"] = str(folder / "base")
    path = work / "mergekit.yaml"
    path.write_text(json.dumps(content))
    return [mergekit, str(path), str(work / "theirs"), "--no-copy-tokenizer"]


def cat_commands(folder: Path, work: Path) -> dict[str, list[str]]:
    """Reading every input and writing one output, by `cat` alone."""
    files = " ".join(str(path) for path in sorted(folder.glob("*/model.safetensors")))
    one = folder / "base" / "model.safetensors"
    return {
        "cat, reading all inputs": ["sh", "-c", f"cat {files} > /dev/null"],
        "cat, writing one output": ["sh", "-c", f"cat {one} > {work / 'cat.bin'}"],
    }


def measure(sides: dict[str, Callable[[], list[str]]], work: Path, runs: int) -> None:
    """Run all sides in turn and print their figures."""
    found = {name: Measured([], []) for name in sides}
    environment = os.environ | {
        "NAN_MERGE_CACHE": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    for number in range(runs + 1):  # the first warms files and caches up and is not counted
        for name, command in sides.items():
            for output in ("ours", "theirs", ".ours.partial", "cache"):
                shutil.rmtree(work / output, ignore_errors=True)
            seconds, megabytes = run(command(), environment)
            if number:
                found[name].seconds.append(seconds)
                found[name].megabytes.append(megabytes)
    for name, measured in found.items():
        print(f"  {name:28} {measured}", flush=True)
    if {"nan-merge", "mergekit"} <= found.keys():
        pairs = zip(found["mergekit"].seconds, found["nan-merge"].seconds, strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        print(f"  mergekit takes {statistics.median(ratios):.1f} times as long", flush=True)


def main() -> None:
    """Read the arguments and measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what synthetic_llama.py wrote")
    parser.add_argument("--mergekit", help="path of mergekit-yaml")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", action="append", choices=CASES, help="all if not given")
    arguments = parser.parse_args()
    work = arguments.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    print(f"{arguments.folder}: medians of {arguments.runs} runs, {os.cpu_count()} cores")
    for case in arguments.case or CASES:
        print(case)
        sides: dict[str, Callable[[], list[str]]] = {
            "nan-merge": lambda case=case: our_command(arguments.folder, work, case)
        }
        if arguments.mergekit and CASES[case][1]:
            sides["mergekit"] = lambda case=case: mergekit_command(
                arguments.mergekit, arguments.folder, work, case
            )
        if case == "task arithmetic":
            for name, command in cat_commands(arguments.folder, work).items():
                sides[name] = lambda command=command: command
        measure(sides, work, arguments.runs)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
