"""Calls in processes of their own, for decoders that keep Python's lock: in threads they would wait for each other.

Each thread of a pool (`bolus.data.images.sources.in_threads`) has a process, which starts once the pool has decoded
some images itself. It imports numpy and pydicom and nothing large, and ends with the pool, or with the program. What a
process fails at is done again by its thread, so errors are the same; a decoder that brings its process down has damaged
no other.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from bolus.errors import ImageError

Result = TypeVar("Result")

ALONE = 16
"""Calls of a pool that its threads make themselves, before processes are worth their start."""
_SERVE = "from bolus.data.pixels.apart import serve; serve()"
_here = threading.local()  # of a thread: its pool's processes, and its own one


class Apart:
    """The processes of a pool of threads, which `enter` it; none of them outlives the context."""

    def __init__(self) -> None:
        self._lock, self._calls = threading.Lock(), 0
        self._opened: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in self._opened:
            end(each)

    def enter(self) -> None:
        """Let the thread that calls have a process."""
        _here.pool, _here.process = self, None

    def process(self) -> subprocess.Popen[bytes] | None:
        """That of this thread; None before there were enough calls."""
        with self._lock:
            self._calls += 1
            if self._calls <= ALONE:
                return None
        mine: subprocess.Popen[bytes] | None = _here.process
        if mine is None or mine.poll() is not None:
            path = os.pathsep.join(each for each in sys.path if each)
            mine = _here.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
            with self._lock:
                self._opened.append(mine)
        return mine


def call_apart(function: Callable[..., Result], *args: Any) -> Result:
    """What a function gives, called in the process of this thread, or here where the thread has none.

    Args:
        function: of a module; it and all that it takes and gives can be pickled.
        *args: what it takes.

    Raises:
        ImageError: the process ended without an answer. What else the function raises.

    Example:
        >>> call_apart(divmod, 7, 2)
        (3, 1)
    """
    pool: Apart | None = getattr(_here, "pool", None)
    process = pool.process() if pool is not None else None
    if process is not None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((function, args), process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answered, result = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            end(process)
            raise ImageError("damaged pixels: the decoder came to a sudden end") from error
        if answered:
            return result  # type: ignore[no-any-return]
    return function(*args)


def end(process: subprocess.Popen[bytes]) -> None:
    """Have a process end, whatever it is at."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what was not sent any more
                stream.close()
    process.wait()


def serve() -> None:
    """What such a process does: call what it is told to, until nobody tells it anything any more."""
    import logging
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that started it says when it is over
    warnings.simplefilter("ignore")
    logging.disable()
    told, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what decoders print is no answer
    while True:
        try:
            function, args = pickle.load(told)
        except EOFError:
            return
        answer: tuple[bool, Any] = False, None
        with contextlib.suppress(Exception):
            answer = True, function(*args)
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
