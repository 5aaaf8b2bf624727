"""One view of what a run is doing: a bar per stage in a terminal, some lines per stage in a log."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from pipelines.events import EventLog

LOG_SECONDS = 30.0
"""How often a log, which has no bars, hears of a stage that goes on."""


class RunProgress:
    """Bars of a run. Where output is no terminal, each stage writes a few lines instead."""

    def __init__(self, console: Console, events: EventLog | None = None) -> None:
        self.console, self.events = console, events or EventLog()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def say(self, text: str) -> None:
        """Print a line above the bars, exactly as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(
        self, name: str, total: int, unit: str = "", num_bytes: int = 0
    ) -> Generator[StageProgress]:
        """Show a bar while the block runs; say how long it took when it ends.

        Args:
            name: What is done, for people.
            total: Steps that it takes.
            unit: What a step is, in the plural: "samples"; the rate is shown in it.
            num_bytes: Bytes that all steps together read; if given, the bar and the rate show
                bytes.
        """
        started = time.monotonic()
        if not self.console.is_terminal:
            self.say(f"{name} ...")
        with self.events.stage(name, total, unit), self._bars:
            bar = self._bars.add_task(name, total=num_bytes or total or None, facts="", detail="")
            shown = StageProgress(self, bar, _State(name, total, unit, num_bytes))
            try:
                yield shown
            finally:
                self._bars.remove_task(bar)
        self.say(f"{name}: done in {time.monotonic() - started:.1f} s{shown.final_rate()}")

    def show(self, bar: TaskID, completed: float, facts: str, detail: str) -> None:
        """Move a bar."""
        self._bars.update(bar, completed=completed, facts=facts, detail=detail)


@dataclass
class _State:
    """Where a stage stands."""

    name: str
    total: int
    unit: str
    total_bytes: int
    steps: int = 0
    num_bytes: int = 0
    num_workers: int | None = None
    worker: str = "worker"
    detail: str = ""


class StageProgress:
    """What one stage has done, what it does, and how long it will take."""

    def __init__(self, progress: RunProgress, bar: TaskID, state: _State) -> None:
        self._progress, self._bar, self._state = progress, bar, state
        self._started = self._logged = time.monotonic()

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Move on by ``steps``; ``detail`` says what is running."""
        self._state.steps += steps
        self._state.detail = detail
        self._show()

    def work(self, num_bytes: int, num_workers: int) -> None:
        """Say how many bytes are done by now, and how many workers are busy."""
        self._state.num_bytes, self._state.num_workers = num_bytes, num_workers
        self._show()

    def staff(self, num_workers: int, worker: str = "worker") -> None:
        """Say how many workers there are, and what one is called."""
        self._state.num_workers, self._state.worker = num_workers, worker
        self._show()

    def final_rate(self) -> str:
        """The rate over the whole stage, as the end of a sentence."""
        rate = self._rate(self._state.total_bytes or self._state.steps)
        return f", {rate}" if rate else ""

    def _show(self) -> None:
        state = self._state
        completed = state.num_bytes if state.total_bytes else state.steps
        self._progress.show(self._bar, completed, self.facts(), state.detail)
        now = time.monotonic()
        if not self._progress.console.is_terminal and now - self._logged > LOG_SECONDS:
            self._logged = now
            self._progress.say(f"{state.name}: {self.facts()}")

    def facts(self) -> str:
        """Steps, bytes, workers, rate and time left, as far as they are known."""
        state = self._state
        done, total = state.steps, state.total
        parts = [f"{done}/{total}"]
        if state.unit:
            parts[0] += f" {state.unit}"
        if state.total_bytes:
            done, total = state.num_bytes, state.total_bytes
            parts.append(f"{decimal(done)} of {decimal(total)}")
        if rate := self._rate(done):
            parts.append(rate)
        if state.num_workers is not None:
            parts.append(f"{state.num_workers} {state.worker}{'s' * (state.num_workers != 1)}")
        if 0 < done < total:
            left = (time.monotonic() - self._started) * (total - done) / done
            parts.append(f"{_duration(left)} left")
        return ", ".join(parts)

    def _rate(self, done: int) -> str:
        seconds = time.monotonic() - self._started
        if done <= 0 or seconds < 1:
            return ""
        if self._state.total_bytes:
            return f"{decimal(int(done / seconds))}/s"
        return f"{done / seconds:.3g} {self._state.unit}/s" if self._state.unit else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
