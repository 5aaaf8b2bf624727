"""One view of what a run is doing: a bar per stage in a terminal, a line per stage in a log."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunProgress:
    """Bars of a run. Where output is no terminal, each finished stage is one line instead."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def say(self, text: str) -> None:
        """Print a line above the bars, exactly as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Generator[StageProgress]:
        """Show a bar while the block runs; say how long it took when it ends."""
        started = time.monotonic()
        if not self.console.is_terminal:
            self.say(f"{name} ...")
        with self._bars:
            bar = self._bars.add_task(name, total=total, detail="")
            try:
                yield StageProgress(self._bars, bar)
            finally:
                self._bars.remove_task(bar)
        self.say(f"{name}: done in {time.monotonic() - started:.1f} s")


class StageProgress:
    """One bar."""

    def __init__(self, bars: Progress, bar: TaskID) -> None:
        self._bars, self._bar = bars, bar

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Move on by ``steps``; ``detail`` says what is running."""
        self._bars.update(self._bar, advance=steps, detail=detail)
