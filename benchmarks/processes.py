"""Run commands as whole processes, in turn, and tell their seconds and private memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass
class Measured:
    """Seconds and peak private megabytes (RssAnon, summed over the process tree) of some runs."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return f"{self.median:7.1f} s ({low:.1f} to {high:.1f}), {max(self.megabytes):6,.0f} MB"


def ours(*arguments: str) -> list[str]:
    """The command line `nan-merge`, from this checkout."""
    return [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments]


def run(command: Sequence[str], cache: Path, cores: int | None = None) -> tuple[float, float, str]:
    """Seconds, peak private megabytes and standard output of a command.

    Args:
        command: What to run.
        cache: Folder for what nan-merge remembers of its inputs; empty, so that it reads them.
        cores: How many cores it may use; all that this process may use if None.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    environment = os.environ | {
        "NAN_MERGE_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    # Installed packages bring their bytecode; ours, in a checkout, would be compiled every time.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    output, errors = cache.parent / "stdout", cache.parent / "stderr"
    started = time.perf_counter()
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        os.sched_setaffinity(process.pid, allowed)  # long before it asks how many there are
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, private_megabytes(process.pid))
            time.sleep(0.05)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.read_text()[-2000:]}")
    return seconds, peak, output.read_text()


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


def in_turn(
    sides: Mapping[str, Callable[[], float | tuple[float, float]]], runs: int, warm_ups: int = 1
) -> dict[str, Measured]:
    """Run all sides one after the other, again and again.

    Args:
        sides: Name -> runs it once and gives its seconds, or seconds and megabytes.
        runs: Rounds that count.
        warm_ups: Rounds before them that do not: they warm files and compiled kernels up.
    """
    found = {name: Measured() for name in sides}
    for number in range(warm_ups + runs):
        for name, side in sides.items():
            outcome = side()
            seconds, megabytes = outcome if isinstance(outcome, tuple) else (outcome, 0.0)
            if number >= warm_ups:
                found[name].seconds.append(seconds)
                found[name].megabytes.append(megabytes)
    return found


def ratios(one: Measured, two: Measured) -> list[float]:
    """Seconds of one over those of two, pair by pair, sorted."""
    return sorted(a / b for a, b in zip(one.seconds, two.seconds, strict=True))
