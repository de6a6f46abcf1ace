"""Signals that ask a run to end: the step is finished first, and a checkpoint written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
"""Those of systems that have them: SIGUSR1 is what a scheduler can send some time before the limit of a job."""


@contextmanager
def awaiting() -> Iterator[list[signal.Signals]]:
    """A list of the signals that came; a signal that comes a second time does what it always does.

    Signals that are ignored, as SIGHUP under nohup, stay so. Outside the main thread, which alone may take them, the
    list stays empty.

    >>> import os
    >>> with awaiting() as came:
    ...     os.kill(os.getpid(), signal.SIGTERM)
    ...     [each.name for each in came]
    ['SIGTERM']
    """
    came: list[signal.Signals] = []
    before: dict[int, Any] = {}

    def take(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, take)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
