"""A recipe small enough for tests and attacks: a tenth of a second a step."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "name": "small",
    "encoder": {"backbone": "r18w32", "stem_pool": False, "context": True},
    "images": {"size": 24, "views": 2},
    "sampling": {"batch_size": 8},
    "objectives": {
        "global": {"kind": "varcov", "source": "pooled", "width": 32},
        "levels": {"kind": "varcov", "source": "levels", "width": 32, "level_channels": 8, "grid": 2},
    },
    "optimizer": {"kind": "lars", "lr": 0.02},  # ten times as much goes anywhere, or nowhere, by the last bits
    "training": {"epochs": 2, "log_steps": 1},
}
