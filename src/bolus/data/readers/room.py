"""Room in memory for decoded images: how much one of them may take, and all together that are read at the same time.

A few bytes of a packed file can stand for any number of pixels. So each reader says, from the header alone, what
decoding would hold in memory, before it decodes. How much may be is a matter of the machine and not of a cohort: the
environment variable BOLUS_IMAGE_GIB, 2 where it is not set. Threads that read other images wait for each other.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Self, TypeAlias

from bolus.errors import TooLargeError, UsageError

VARIABLE = "BOLUS_IMAGE_GIB"
DEFAULT = 2.0
GIB = 2**30

Claim: TypeAlias = Callable[[int, str], None]
"""What a reader calls before it decodes: bytes, and of what; it raises TooLargeError, or comes back once there is room.
"""

_changed = threading.Condition()
_held: dict[int, int] = {}  # thread -> bytes that it has claimed


def limit() -> int:
    """Bytes that decoding one image may take, and that decoding all images at the same time is kept to.

    Raises:
        UsageError: BOLUS_IMAGE_GIB is no positive number.
    """
    text = os.environ.get(VARIABLE, "") or str(DEFAULT)
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        raise UsageError(f"{VARIABLE}: expected a positive number of GiB, found {text!r}")
    return int(size * GIB)


def check_size(size: int, what: str) -> None:
    """Raise TooLargeError where decoding would take more than `limit`.

    Args:
        size: bytes that decoding holds at most.
        what: is decoded, such as `3000 x 2000 pixels`.

    >>> check_size(4 * GIB, "30000 x 30000 pixels")
    Traceback (most recent call last):
    bolus.errors.TooLargeError: expected at most 2 GiB of memory to decode an image, found 4 for 30000 x 30000 pixels;
    if the file is right and memory allows, set the environment variable BOLUS_IMAGE_GIB=4
    """
    allowed = limit()
    if size > allowed:
        needed = f"{math.ceil(10 * size / GIB) / 10:.10g}"
        raise TooLargeError(
            f"expected at most {allowed / GIB:.3g} GiB of memory to decode an image, found {needed} for {what}; "
            f"if the file is right and memory allows, set the environment variable {VARIABLE}={needed}"
        )


class Room:
    """What this thread claims for one image, given back when the context ends.

    A thread that has claimed something already never waits, so that no two wait for each other.

    >>> with Room() as room:
    ...     room.claim(10**6, "1000 x 1000 pixels")
    ...     sum(_held.values())
    1000000
    >>> sum(_held.values())
    0
    """

    def __enter__(self) -> Self:
        self._thread, self._size = threading.get_ident(), 0
        return self

    def __exit__(self, *_: object) -> None:
        with _changed:
            _held[self._thread] = _held.get(self._thread, 0) - self._size
            if not _held[self._thread]:
                del _held[self._thread]
            _changed.notify_all()

    def claim(self, size: int, what: str) -> None:
        """A `Claim`: wait until so many bytes fit beside what other threads hold.

        Raises:
            TooLargeError: as `check_size`.
        """
        check_size(size, what)
        with _changed:
            while self._thread not in _held and sum(_held.values()) + size > limit() and _held:
                _changed.wait()
            _held[self._thread] = _held.get(self._thread, 0) + size
            self._size += size
