"""Settings of judging, written flat as on the command line, as the functions inside take them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from bolus.evaluation.probing.options import Probing
from bolus.evaluation.settings import Judging, Origin

GROUPS = {"probing": Probing, "judging": Judging, "origin": Origin}


def settings(**flat: Any) -> dict[str, Any]:
    """Keywords of `probe` and its like: `seed` and `draws` go into `judging`, and so on."""
    found: dict[str, Any] = {}
    for name, kind in GROUPS.items():
        own = {each.name: flat.pop(each.name) for each in fields(kind) if each.name in flat}
        if own:
            found[name] = kind(**own)
    return {**flat, **found}
