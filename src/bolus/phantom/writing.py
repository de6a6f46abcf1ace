"""The tables of a synthetic cohort: what a hospital would have, the truth beside it, and cohort.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml


def write_tables(folder: Path, table: pd.DataFrame, truth: pd.DataFrame, roles: Mapping[str, str], **keys: Any) -> Path:
    """Write table.csv, truth.csv and cohort.yaml; the path of the table.

    Args:
        folder: that is there.
        table: of the cohort.
        truth: a row for each of its rows.
        roles: role -> column.
        keys: of cohort.yaml, beside table, roles, units and split.
    """
    table.to_csv(folder / "table.csv", index=False, lineterminator="\n")
    truth.to_csv(folder / "truth.csv", index=False, float_format="%.5f", lineterminator="\n")
    split = {"seed": 0, "val": 0.1, "test": 0.3}
    cohort = {"table": "table.csv", "roles": dict(roles), "units": {"time": "days"}, **keys, "split": split}
    (folder / "cohort.yaml").write_text(yaml.safe_dump(cohort, sort_keys=False), encoding="utf-8")
    return folder / "table.csv"
