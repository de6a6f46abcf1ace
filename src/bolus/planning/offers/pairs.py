"""How often a relation holds among training samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.counting import count_partners
from bolus.data.batches.partners import PartnerIndex
from bolus.data.batches.relation import Relation
from bolus.data.cohort.coding import Held, count_codes

Array: TypeAlias = "npt.NDArray[Any]"


@dataclass(frozen=True)
class PairCounts:
    """Samples that are partners under a relation.

    Args:
        pairs: unordered.
        patients: training patients with a sample that has a partner.
    """

    pairs: int
    patients: int


def count_pairs(relation: Mapping[str, Any] | str, columns: TrainingColumns) -> PairCounts:
    """Count the partners that a relation gives the training samples.

    Raises:
        RecipeError: a relation that does not parse, or a role that no column has.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.cohort import Cohort
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> frame = pd.DataFrame({"image": list("abc"), "patient": list("ppq"), "split": ["train"] * 3})
        >>> count_pairs("patient", TrainingColumns(Cohort(frame, CohortSpec(table="t.csv")).samples("image")))
        PairCounts(pairs=1, patients=1)
    """
    rule = Relation.parse(relation)
    table = {role: columns.held(role) for role in {*rule.roles, "patient"} - {"sample"}}
    if rule.range is None and "sample" not in rule.roles:
        counts = count_partners(rule, {role: _codes(values) for role, values in table.items()})
    else:
        counts = PartnerIndex(rule, {role: values[:] for role, values in table.items()}).counts()
    return PairCounts(int(counts.sum()) // 2, count_codes(_codes(table["patient"])[counts > 0]))


def _codes(values: Held | Array) -> Array:
    """Integers, or floats, that are equal where the values are."""
    return values.comparable if isinstance(values, Held) else values
