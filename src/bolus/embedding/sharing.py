"""Embedding by several processes, as torchrun and accelerate launch start them.

Each decodes and embeds an equal share, and what it finds lies in the cache, which all of them see. Nothing else is
exchanged: they wait for each other, and then find all of it there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from bolus.device import device
from bolus.errors import CohortError

PATIENCE = timedelta(days=7)  # of processes that wait for the slowest


def count_processes() -> int:
    """Processes that were launched together; 1 where none were.

    >>> count_processes()
    1
    """
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks.

    >>> is_first()
    True
    """
    return count_processes() == 1 or os.environ["RANK"] == "0"


def share_of(items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """This process's part of what all do together, in order.

    >>> share_of(np.arange(3)).tolist()
    [0, 1, 2]
    """
    everyone = count_processes()
    return items if everyone == 1 else np.array_split(items, everyone)[int(os.environ["RANK"])]


def do_share(items: npt.NDArray[np.int64], work: Callable[[npt.NDArray[np.int64]], object]) -> None:
    """Do this process's share and wait for the others; nothing where there are none.

    A share that is refused, such as one of which most images cannot be read, says nothing of the whole, which all look
    at afterwards.

    Args:
        items: of all processes.
        work: is given those of this one.
    """
    if count_processes() == 1:
        return
    _join()
    share = share_of(items)
    if len(share):
        with suppress(CohortError):
            work(share)
    import torch.distributed as dist

    dist.barrier()


def leave_unless_first() -> None:
    """End every process but the first, which goes on with what all of them did.

    >>> leave_unless_first()
    """
    if is_first():
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    raise SystemExit(0)


def _join() -> None:
    """Meet the other processes, each with an accelerator of its own where there are several."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    if device().type == "cuda" and device().index is None:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=PATIENCE)
