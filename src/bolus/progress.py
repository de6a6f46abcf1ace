"""Progress of a long run: a live line in a terminal, plain lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bolus.terminal import Terminal

PLAIN_SECONDS = 15.0  # between two plain lines


class Meter:
    """Counts up to a total and says how fast; a context manager.

    Args:
        task: what is being done.
        total: how many.
        quiet: say nothing.

    Example:
        >>> with Meter("decoding", 2, quiet=True) as meter:
        ...     meter.update(2)
    """

    def __init__(self, task: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self.task, self.total, self.done, self.quiet = task, total, done, quiet
        self.console = Terminal(stderr=True)
        self._began = self._said = time.monotonic()
        self._first = done
        self._live: Progress | None = None

    def __enter__(self) -> Meter:
        if not self.quiet and self.console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
            )
            self._live.start()
            self._live.add_task(self.task, total=self.total, completed=self.done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total are done, with a remark."""
        self.done = done
        if self.quiet:
            return
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=done, note=note)
            return
        now = time.monotonic()
        if now - self._said >= PLAIN_SECONDS or done == self.total:
            self._said = now
            rate = (done - self._first) / max(now - self._began, 1e-9)
            left = (self.total - done) / rate if rate > 0 else float("inf")
            self.console.print(f"{self.task} {done}/{self.total}, {left:.0f} s left, {note}")

    def follow(self, done: int, total: int) -> None:
        """Say that `done` are done of a total that may grow."""
        self.total = total
        if self._live is not None:
            self._live.update(self._live.task_ids[0], total=total)
        self.update(done)

    def say(self, line: str) -> None:
        """Print a line above the progress."""
        if not self.quiet:
            (self._live.console if self._live is not None else self.console).print(line)
