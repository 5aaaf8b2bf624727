"""A sweep of 24 merges of the quickstart's models, against 24 runs of one merge each.

    python benchmarks/sweep_speed.py [--cache runs/cache] [--separate 24]

Prints seconds from the first stage of a run, when Ray has started, to its end. That worker
processes start and import torch is within them: once in a sweep, once in every separate run.
Separate runs score the pretrained and the individual models each time, as `nan-merge run` does;
`--shared` gives them those predictions, so that each merges and scores one model and nothing else.
Where fewer than 24 separate runs are measured, they are spread over the sweep's merges, their mean
is taken 24 times, and that is said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from io import StringIO
from pathlib import Path
from statistics import fmean

from rich.console import Console

from nan_merge.yaml_config import load_config
from pipelines.config import RunConfig
from pipelines.events import EVENTS_NAME, read_events
from pipelines.run import run_config
from pipelines.sweep_points import PointMaker, grid_points

CONFIG = Path(__file__).parent.parent / "configs" / "sweeps" / "quickstart.yaml"
TARGET = 0.5


def seconds_of(config: RunConfig) -> float:
    """Run it, and return the seconds from the first stage's beginning to the end of the run."""
    run_config(config, console=Console(file=StringIO()))
    events = list(read_events(config.folder / EVENTS_NAME))
    begun = next(event["time"] for event in events if event["event"] == "stage begun")
    return events[-1]["time"] - begun


def separate_runs(config: RunConfig, folder: Path, number: int, shared: Path | None) -> list[float]:
    """Seconds of so many merges of the sweep, each as a run of its own."""
    assert config.sweep is not None
    points = grid_points(PointMaker(config, config.sweep))
    found: list[float] = []
    # Merges of one method take alike, so fewer than all are taken from all over the sweep.
    chosen = points[:: max(1, len(points) // max(number, 1))][:number]
    for place, point in enumerate(chosen):
        own = folder / f"run{place}"
        if shared is not None:
            copy_predictions(shared, own, config)
        changes = {"sweep": None, "merges": (point.entry,), "run_folder": own}
        found.append(seconds_of(config.model_copy(update=changes)))
        shutil.rmtree(own)
        kind = "shared" if shared is not None else "separate"
        print(f"{kind} run {place + 1} of {number}: {found[-1]:.1f} s", flush=True)
    return found


def copy_predictions(of: Path, to: Path, config: RunConfig) -> None:
    """Predictions of the models that are not merged."""
    for name in ["pretrained", *config.model_names()]:
        shutil.copytree(of / "predictions" / name, to / "predictions" / name)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--separate", type=int, default=24, help="how many runs to measure")
    parser.add_argument("--shared", type=int, default=0, help="how many with shared predictions")
    arguments = parser.parse_args()
    config = load_config(CONFIG, RunConfig, [f"cache={arguments.cache}", "track.mlflow=false"])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["NAN_MERGE_CACHE"] = str(work / "hashes")
        # Models are trained, and their images drawn, before anything is timed.
        warm = {"sweep": None, "merges": (), "run_folder": work / "warm"}
        run_config(config.model_copy(update=warm), console=Console(file=StringIO()))
        swept = seconds_of(config.model_copy(update={"run_folder": work / "sweep"}))
        print(f"sweep of 24: {swept:.1f} s", flush=True)
        alone = separate_runs(config, work, arguments.separate, None)
        shared = separate_runs(config, work, arguments.shared, work / "sweep")
    report("24 separate runs", alone, swept, TARGET)
    report("24 runs that share the other models' predictions", shared, swept, None)


def report(what: str, seconds: list[float], swept: float, target: float | None) -> None:
    """Print a ratio, and how it was come by."""
    if not seconds:
        return
    total = 24 * fmean(seconds)
    how = "" if len(seconds) == 24 else f" (24 times the mean of {len(seconds)})"
    wanted = "" if target is None else f"; wanted: under {target}"
    print(f"{what}: {total:.0f} s{how}; the sweep took {swept / total:.2f} of it{wanted}")


if __name__ == "__main__":
    main()
