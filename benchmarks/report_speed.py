"""Time reports over 200 runs: one page that compares 200 run folders, and one of a sweep of 200.

    python benchmarks/report_speed.py [FOLDER] [--runs 200]

Writes run folders of one merged model each, with invented answers to the quickstart's seven
benchmarks (500 samples each, in 100 sources), and one folder of a sweep over as many merges, to
FOLDER (a temporary one if absent). Then it times `nan-merge compare RUN... --output` as a user
calls it, and the report that `nan-merge sweep` writes when it is done. Goal: each under 20 s and
under 10 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from evaluators.predictions import Prediction, write_predictions
from pipelines.image_records import ImageRecordInfo, write_image_info
from pipelines.results import MergeSummary, ResultRow, RunResults, SweepPoint, write_results

BENCHMARKS = ("digits", "mnist", "street", "letters", "style", "texture", "photo")
CONFIG = Path(__file__).parent.parent / "configs" / "sweeps" / "quickstart.yaml"
SAMPLES, CLUSTER_SIZE = 500, 5
LAMBDAS = 20  # by as many densities as give the number of runs
MOST_SECONDS, MOST_MEGABYTES = 20.0, 10.0


def main() -> None:
    """Write the runs, make the reports, print seconds and megabytes as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        measure(arguments.folder, arguments.runs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), arguments.runs)


def measure(folder: Path, number: int) -> None:
    """Print how long each report took and how large it is, beside the goal."""
    runs = [write_run(folder / f"run{place}", [f"merge {place}"]) for place in range(number)]
    sweep = write_run(folder / "sweep", [*swept_values(number)], is_sweep=True)
    output = folder / "comparison"
    compared = timed(
        "-m",
        "pipelines.cli",
        "compare",
        *map(str, runs),
        "--output",
        str(output),
        "--resamples",
        "2000",
    )
    drawn = timed(
        "-c",
        "import sys, pathlib; from pipelines.report import write_report\n"
        "from pipelines.results import read_results\n"
        "folder = pathlib.Path(sys.argv[1]); write_report(read_results(folder), folder)",
        str(sweep),
    )  # fmt: skip
    found = {
        f"comparison of {number} runs": (compared, output / "comparison.html"),
        f"report of a sweep of {number} merges": (drawn, sweep / "report.html"),
    }
    told = {
        name: {"seconds": seconds, "megabytes": round(page.stat().st_size / 1e6, 2)}
        for name, (seconds, page) in found.items()
    }
    goal = {"seconds": MOST_SECONDS, "megabytes": MOST_MEGABYTES}
    print(json.dumps({"goal": goal, **told}, indent=1))


def timed(*arguments: str) -> float:
    """Seconds of a Python command, start-up included."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return round(time.perf_counter() - begun, 1)


def write_run(folder: Path, models: list[str], *, is_sweep: bool = False) -> Path:
    """A finished run of merged models that answered everything."""
    rows: list[ResultRow] = []
    files: dict[str, dict[str, str]] = {}
    averages: dict[str, tuple[float, float]] = {}
    for model in models:
        generator = np.random.default_rng([len(model), *model.encode()])
        skill = 0.7 + 0.05 * generator.random()
        for place, name in enumerate(BENCHMARKS):
            right = verdicts(place, skill, generator)
            path = folder / "predictions" / model.replace(" ", "") / f"{name}.jsonl"
            write_answers(path, model, name, right)
            files.setdefault(model, {})[name] = path.relative_to(folder).as_posix()
            rows.append(
                ResultRow(model, "merged", "ties", "uniform", name, "top1", right.mean(), 0.02,
                          SAMPLES)
            )  # fmt: skip
        averages[model] = (float(np.mean([row.value for row in rows[-len(BENCHMARKS) :]])), 0.01)
    reference = averages[models[0]][0]
    results = RunResults(
        name=folder.name,
        seed=0,
        rows=tuple(rows),
        merges=tuple(summary(model) for model in models),
        averages=averages,
        differences={model: (averages[model][0] - reference, 0.01) for model in models[1:]},
        predictions=files,
        config_yaml=CONFIG.read_text(encoding="utf-8") if is_sweep else "",
        sweep=swept(averages) if is_sweep else {},
    )
    write_results(results, folder)
    return folder


def swept_values(number: int) -> dict[str, dict[str, float]]:
    """Merge of the sweep -> what varies in it."""
    found: dict[str, dict[str, float]] = {}
    for place in range(number):
        density, scale = 0.1 + 0.05 * (place // LAMBDAS), 0.05 * (place % LAMBDAS + 1)
        values = {"method.density": round(density, 2), "coefficients.lambda": round(scale, 2)}
        found[f"TIES, density={density:.2f}, lambda={scale:.2f}"] = values
    return found


def swept(averages: dict[str, tuple[float, float]]) -> dict[str, SweepPoint]:
    """What the search knows of each merge; the best is selected."""
    best = max(averages, key=lambda model: averages[model][0])
    return {
        model: SweepPoint("TIES", values, averages[model][0], 0.015, averages[model][0],
                          is_selected=model == best)
        for model, values in swept_values(len(averages)).items()
    }  # fmt: skip


def summary(model: str) -> MergeSummary:
    """What is plotted about a merge of seven models."""
    shares = dict.fromkeys(BENCHMARKS, 1 / len(BENCHMARKS))
    return MergeSummary(model, "ties", {}, "", shares, shares, 1.0, "checkpoints/merge")


def verdicts(place: int, skill: float, generator: np.random.Generator) -> np.ndarray:
    """Right or wrong for every sample; models share what is easy, and differ on a tenth."""
    shared = np.random.default_rng(place).random(SAMPLES) < skill
    return np.where(generator.random(SAMPLES) < 0.9, shared, generator.random(SAMPLES) < skill)


def write_answers(path: Path, model: str, name: str, right: np.ndarray) -> None:
    """A record of predictions of images."""
    predictions = [
        Prediction(
            f"{name}/{i:05}", f"{name}/{i // CLUSTER_SIZE}", "yes", "yes" if ok else "no", -0.5
        )
        for i, ok in enumerate(right)
    ]
    write_image_info(path, ImageRecordInfo("key", model, name, "digest", "heads", {"torch": "2"}))
    write_predictions(path, "key", predictions)


if __name__ == "__main__":
    main()
