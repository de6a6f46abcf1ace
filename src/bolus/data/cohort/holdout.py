"""A cohort without its test patients, so that choices can be made while nobody looks at the test."""

from __future__ import annotations

from copy import copy

import numpy as np
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import SPLIT, name_sides
from bolus.errors import UsageError


def validation_cohort(cohort: Cohort) -> Cohort:
    """The cohort without its test patients, in which the validation patients are the test.

    Whatever is chosen by it (an arm of an ablation, a weight, a preset) leaves the test as it was. There is no
    validation side then: what needs one takes a part of the training patients.

    The table of the cohort as given is not touched. Roles, missing codes, ranges and namespace are the same, and
    `origin` leads back to the rows as given; of a fixed split the role goes to a column of the new sides.

    Args:
        cohort: with a split, however it came about.

    Raises:
        UsageError: no validation patients.

    Example:
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> frame = pd.DataFrame({"image": list("abc"), "patient": list("pqr"), "split": ["train", "val", "test"]})
        >>> held = validation_cohort(Cohort(frame, CohortSpec(table="t.csv")))
        >>> held.split.tolist(), held.origin.tolist(), held.values("split").tolist()
        (['train', 'test'], [0, 1], ['train', 'test'])
    """
    kept = np.flatnonzero(~cohort.on_side("test"))
    side = np.where(cohort.on_side("val")[kept], SPLIT.index("test"), SPLIT.index("train")).astype(np.int8)
    if not side.any():
        raise UsageError(
            "there are no validation patients to judge on: give some with --split val=0.1 (or name them in the column "
            "with the role split), or judge on the test"
        )
    held = copy(cohort)
    for stale in ("split", "_row_starts", "split_hash", "modality", "modalities", "num_patients", "sides", "times"):
        held.__dict__.pop(stale, None)
    held.columns = cohort.columns.take(kept)
    held._spelled, held._encoded, held.expanded = cohort.take_spelled(kept), {}, None
    held.split_codes, held.origin, held.shared_file = side, cohort.origin[kept], cohort.shared_file[kept]
    if "split" in cohort.roles:
        name = "split without test"
        while name in held.columns:
            name += "'"
        held.columns = held.columns.with_columns({name: pd.Series(name_sides(side))})
        del held._spelled["split"]
        held.roles = {**cohort.roles, "split": name}
    return held
