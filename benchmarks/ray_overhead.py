"""What Ray costs: the same merge by the single-process engine and by Ray, on the same cores.

    python benchmarks/synthetic_llama.py DIR --size 1.24b
    python benchmarks/ray_overhead.py DIR --pairs 5

The engine forks one worker per core inside each task; Ray has one worker per core and gives each
its tasks. Both sides run in turn, files warm, on the same recipe; Ray is started, and its workers
have imported what they need, before anything is timed, and the time of that is printed apart. The
ratio is that of each pair's two times, and the median of the pairs is printed. Both results are
compared byte for byte.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.merge_speed import RECIPES
from nan_merge.errors import NanMergeError
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import Task

GOAL = 1.10


def recipe_of(folder: Path, case: str, shard_bytes: int) -> MergeRecipe:
    """A case of `merge_speed` over the folder's models."""
    models = [str(path) for path in sorted(folder.glob("expert*"))]
    content = {"base": str(folder / "base"), "models": models, "shard_bytes": shard_bytes}
    return MergeRecipe.model_validate({**content, **RECIPES[case]})


def import_engine(seconds: float) -> None:
    """Import what a merge needs, and stay long enough that every worker gets such a task."""
    import nan_merge.merge  # noqa: F401

    time.sleep(seconds)


def timed(merge: Callable[[Path], object], output: Path) -> float:
    """Seconds of a merge into a folder that is not there yet."""
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    merge(output)
    return time.perf_counter() - started


def same_weights(first: Path, second: Path) -> bool:
    """Whether two merges wrote the same weight files."""
    names = sorted(path.name for path in first.glob("*.safetensors"))
    others = sorted(path.name for path in second.glob("*.safetensors"))
    return names == others and all(
        filecmp.cmp(first / name, second / name, shallow=False) for name in names
    )


def measure(folder: Path, case: str, pairs: int, workers: int, shard_bytes: int) -> float:
    """Print both sides' times; the median ratio of Ray to the engine alone."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from cluster.session import ray_session

    recipe = recipe_of(folder, case, shard_bytes)
    alone, on_ray = folder / "work-alone", folder / "work-ray"
    times: list[tuple[float, float]] = []
    started = time.perf_counter()
    with ray_session("local", workers):
        from cluster.tasks import run_tasks

        run_tasks([Task("import", import_engine, (1.0,), 0)] * workers)
        print(f"  Ray and its workers started in {time.perf_counter() - started:.1f} s")
        sides: tuple[Callable[[Path], object], ...] = (
            lambda output: merge_checkpoint(recipe, output, workers=workers),
            lambda output: merge_checkpoint(recipe, output, run_tasks),
        )
        for number in range(pairs + 1):  # the first warms files up and is not counted
            # Whichever side is first may find the disk still busy with the other's writing.
            order = (0, 1) if number % 2 else (1, 0)
            found = {side: timed(sides[side], (alone, on_ray)[side]) for side in order}
            if number:
                times.append((found[0], found[1]))
                print(f"  pair {number}: alone {found[0]:.2f} s, Ray {found[1]:.2f} s", flush=True)
    if not same_weights(alone, on_ray):
        raise SystemExit(f"{alone} and {on_ray} differ: the result depends on who computed it")
    ratio = statistics.median(theirs / ours for ours, theirs in times)
    medians = [statistics.median(side) for side in zip(*times, strict=True)]
    print(
        f"  medians: alone {medians[0]:.2f} s, Ray {medians[1]:.2f} s; Ray takes {ratio:.3f} times "
        f"as long (median of {pairs} pairs; goal: under {GOAL:.2f}); same bytes"
    )
    for path in (alone, on_ray):
        shutil.rmtree(path)
    return ratio


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what synthetic_llama.py wrote")
    parser.add_argument("--case", action="append", choices=RECIPES, help="Task Arithmetic and TIES")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shard-bytes", type=int, default=1_000_000_000)
    arguments = parser.parse_args()
    # Not the user's own; Ray's workers inherit it.
    os.environ["NAN_MERGE_CACHE"] = str(arguments.folder / "work-hashes")
    cases = arguments.case or ["Task Arithmetic", "TIES + NAN, exact threshold over the model"]
    try:
        for case in cases:
            print(f"{case}, {arguments.workers} workers, {arguments.folder}")
            numbers = (arguments.pairs, arguments.workers, arguments.shard_bytes)
            measure(arguments.folder, case, *numbers)
    except NanMergeError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
