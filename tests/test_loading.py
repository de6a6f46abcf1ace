"""Batches are read ahead, in order, and not further than is said."""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import Any

import numpy as np
import pytest

from bolus.data.batches.loading import AHEAD, Fetched, Loader


class Recorded(Loader):
    """A loader that reads nothing, and notes what it was asked for."""

    def __init__(self, fails: int | None = None) -> None:
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.fails = fails

    def fetch(self, number: int) -> Fetched:
        self.asked.append(number)
        self.threads.add(threading.get_ident())
        if number == self.fails:
            raise OSError(f"batch {number}")
        nothing: dict[str, Any] = {}
        return Fetched(number, np.zeros(0, np.int64), np.zeros(0, np.int64), nothing, nothing)


def wait_for(loader: Recorded, count: int) -> None:
    until = time.monotonic() + 2
    while len(loader.asked) < count and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.02)  # whatever more would be read would be read now


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (5, 9), (3, 4), (0, AHEAD), (4, 4), (6, 2)])
def test_batches_come_once_and_in_order(start: int, stop: int) -> None:
    loader = Recorded()
    assert [fetched.number for fetched in loader.iterate(start, stop)] == list(range(start, stop))
    assert loader.asked == list(range(start, stop))


def test_no_more_are_read_than_are_said_and_by_another_thread() -> None:
    loader = Recorded()
    batches = loader.iterate(0, 100)
    for used in range(1, 4):
        next(batches)
        wait_for(loader, used - 1 + AHEAD)
        assert len(loader.asked) == used - 1 + AHEAD
    assert threading.get_ident() not in loader.threads
    del batches
    time.sleep(0.05)
    assert len(loader.asked) <= 3 + AHEAD, "nothing is read after the end"


def test_an_error_comes_where_its_batch_would() -> None:
    loader = Recorded(fails=2)
    batches = loader.iterate(0, 9)
    assert [fetched.number for fetched in islice(batches, 2)] == [0, 1]
    with pytest.raises(OSError, match="batch 2"):
        next(batches)
