"""Calls in processes of their own, for work that keeps Python's lock: in threads it would wait for itself.

Such a process is a command, so that no caller needs to guard its main module. It imports what it is told to call and
nothing else, and ends with the program that started it. Whatever it fails at is done again by whoever asked, so that
errors are the same, and where no process can be started all is done without.
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
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

ALONE = 8
"""Calls of a pool that its threads make themselves, before processes are worth their start."""
_FAULTS = {-getattr(signal, name, 0) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")} - {0}
_here = threading.local()  # of a thread: its pool's processes, and its own one


def count_cores() -> int:
    """Cores that the program may run on, of which a cluster's queue may have given it few; at least 1.

    >>> 1 <= count_cores() <= (os.cpu_count() or 1)
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LostError(Exception):
    """A process cannot be started, or ended without an answer."""


class CrashError(RuntimeError):
    """What was called brought its process down."""


class Apart:
    """A process that makes calls.

    Attributes:
        answers: how many it gave.

    Raises:
        LostError: the system does not start one.

    Example:
        >>> process = Apart()
        >>> process.call(divmod, 7, 2), process.call(divmod, 7, 0)
        ((3, 1), None)
        >>> process.end()
    """

    def __init__(self) -> None:
        path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)  # as here, and nothing before it (-P)
        command = [sys.executable, "-P", "-c", "from bolus.apart import serve; serve()"]
        self.answers, environment = 0, {**os.environ, "PYTHONPATH": path}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        except OSError as error:
            raise LostError(str(error)) from error

    def call(self, function: Callable[..., Result], *args: Any) -> Result | None:
        """What a function gives; None where it raises.

        Args:
            function: of a module; it and all that it takes can be pickled.
            *args: what it takes.

        Raises:
            CrashError: a fault brought the process down that had answered before.
            LostError: it ended otherwise, as where the answer cannot be pickled.
        """
        told, answers = self._process.stdin, self._process.stdout
        assert told is not None
        assert answers is not None
        try:
            pickle.dump((function, args), told, protocol=pickle.HIGHEST_PROTOCOL)
            told.flush()
            result: Result | None = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.end()
            if self.answers and self._process.returncode in _FAULTS:
                raise CrashError(f"{function.__name__} crashed") from error
            raise LostError(str(error)) from error
        except BaseException:  # half an answer would be taken for the next one's beginning
            self.end()
            raise
        self.answers += 1
        return result

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Have it end, whatever it is at."""
        self._process.kill()  # which leaves one that is going down already what it goes down by
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not sent any more
                    stream.close()
        self._process.wait()


class ApartPool:
    """The processes of a pool of threads, one for each that has to `enter`; none of them outlives the context.

    Args:
        alone: calls that the threads make themselves; None: `ALONE`.
    """

    def __init__(self, *, alone: int | None = None) -> None:
        self._alone = ALONE if alone is None else alone
        self._lock, self._calls, self._opened, self._none = threading.Lock(), 0, list[Apart](), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in self._opened:
            each.end()

    def enter(self) -> None:
        """Let the thread that calls have a process."""
        _here.pool, _here.process = self, None

    def process(self) -> Apart | None:
        """That of this thread; None before there were enough calls, and where the system gives none."""
        with self._lock:
            self._calls += 1
            if self._calls <= self._alone or self._none:
                return None
        mine: Apart | None = _here.process
        if mine is None or mine.ended:
            try:
                mine = _here.process = Apart()
            except LostError:
                self.forgo()
                return None
            with self._lock:
                self._opened.append(mine)
        return mine

    def forgo(self) -> None:
        """Start no process any more."""
        self._none = True


def call_apart(function: Callable[..., Result], *args: Any) -> Result:
    """What a function gives, called in the process of this thread, or here where the thread has none.

    Args:
        function: of a module; it and all that it takes can be pickled. It does not give None.
        *args: what it takes.

    Raises:
        CrashError: it brought its process down. What else the function raises.

    Example:
        >>> call_apart(divmod, 7, 2)
        (3, 1)
    """
    pool: ApartPool | None = getattr(_here, "pool", None)
    process = pool.process() if pool is not None else None
    if pool is not None and process is not None:
        try:
            result = process.call(function, *args)
        except LostError:
            result = None
            if not process.answers:
                pool.forgo()
        if result is not None:
            return result
    return function(*args)


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
        answer = None
        with contextlib.suppress(Exception):
            answer = function(*args)
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()
        del function, args, answer  # nothing is held while it waits
