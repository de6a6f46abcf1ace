"""Which software and machine made a file: what every run and every result carries."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("bolus", "torch", "transformers", "kornia", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide numbers; a package that is not installed is left out.

    >>> "torch" in versions()
    True
    """
    found = {"python": platform.python_version()}
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
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
