"""Where encoders run, and in which precision: an accelerator where there is one, unless a person says otherwise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, get_args

from bolus.errors import UsageError

if TYPE_CHECKING:
    import torch

VARIABLE = "ACCELERATE_TORCH_DEVICE"
"""Of the environment, which `accelerate` reads for trainings: its name is accelerate's own."""

Precision = Literal["fp32", "bf16", "fp16"]
"""Of an encoder that is applied: `bf16` and `fp16` compute under autocast."""


def check_precision(name: str) -> None:
    """Raise UsageError for another precision.

    >>> check_precision("int8")
    Traceback (most recent call last):
    bolus.errors.UsageError: precision: expected fp32, bf16 or fp16, found 'int8'
    """
    if name not in get_args(Precision):
        raise UsageError(f"precision: expected fp32, bf16 or fp16, found {name!r}")


def device() -> torch.device:
    """Where an encoder is applied: what `VARIABLE` names, else the first CUDA device, else the CPU.

    >>> device().type in ("cpu", "cuda", "mps")
    True
    """
    import torch

    return torch.device(os.environ.get(VARIABLE) or ("cuda" if torch.cuda.is_available() else "cpu"))


def is_shared_out(tensor: torch.Tensor) -> bool:
    """Whether this process holds only a part of a tensor, as FSDP2 leaves it.

    >>> import torch
    >>> is_shared_out(torch.zeros(2))
    False
    """
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module takes seconds to import


def choose(name: str) -> None:
    """Take this device in this process, for trainings and for embedding.

    Args:
        name: `cpu`, `cuda`, `mps`, or `cuda:N` for one of several.

    Raises:
        UsageError: another name, or a device that is not here.

    >>> choose("cuda:banana")
    Traceback (most recent call last):
    bolus.errors.UsageError: --device: expected cpu, cuda, cuda:N or mps, found 'cuda:banana'
    """
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"--device: expected cpu, cuda, cuda:N or mps, found {name!r}")
    import torch  # after what a person may have mistyped

    count = torch.cuda.device_count() if kind == "cuda" else int(kind == "cpu" or torch.backends.mps.is_available())
    if count <= int(number or 0):
        there = ["cpu", *(f"cuda:{each}" for each in range(torch.cuda.device_count()))]
        there += ["mps"] * torch.backends.mps.is_available()
        raise UsageError(f"--device: there is no {name} here; found {', '.join(there)}")
    if number:
        torch.cuda.set_device(int(number))
    os.environ[VARIABLE] = name
