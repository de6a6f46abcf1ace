"""Which software, machine and weights made a file: what every run and every result carries."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from bolus import __version__
from bolus.apart import count_cores

if TYPE_CHECKING:
    from torch import nn

PACKAGES = ("torch", "transformers", "kornia", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python, bolus and the packages that decide numbers; a package that is not installed is left out.

    That of bolus is the source's own, which need not be installed to be imported.

    >>> "torch" in versions()
    True
    """
    found = {"python": platform.python_version(), "bolus": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int]:
    """The processor, its cores and the accelerator, for benchmark records; no host name.

    >>> sorted(machine())
    ['accelerator', 'cores', 'platform', 'processor']
    """
    import torch

    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": count_cores(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def digest_of(modules: Mapping[str, nn.Module]) -> str:
    """A hash of every parameter and buffer: equal if and only if the weights are equal bit for bit."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, module in sorted(modules.items()):
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{name}/{key}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
