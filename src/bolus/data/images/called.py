"""What is known of images or volumes that are given, in place of the columns of a table, and their black and white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.pixels.greys import Ranges, resolve_ranges
from bolus.errors import EncoderError, UsageError


@dataclass(frozen=True)
class Called:
    """What is known of given images, as the columns of a table would say it; None where nothing is.

    Args:
        modality: a name for all, or one for each image, as the contract spells it.
        series: a name for each image; images of one series share its range. None: as DICOM says, else a file is one.
        laterality: a side for all, or one for each image, None where it has neither.
        ranges: modality -> the values that become 0 and 1, stated now; they win over files and contract.
        readers: suffix -> a reader of one's own, as cohort.yaml has them.
    """

    modality: str | Sequence[str] | None = None
    series: Sequence[Any] | None = None
    laterality: str | Sequence[str | None] | None = None
    ranges: Mapping[str, tuple[float, float]] | None = None
    readers: Mapping[str, str] | None = None


def stated_contract(preprocessing: Preprocessing, called: Called) -> Preprocessing:
    """The contract with the ranges that are stated now.

    Raises:
        UsageError: it mirrors a side, and none is given.
    """
    stated = {name: (float(low), float(high)) for name, (low, high) in (called.ranges or {}).items()}
    preprocessing = replace(
        preprocessing,
        ranges={**preprocessing.ranges, **stated},
        stated=tuple({*preprocessing.stated, *stated}),
    )
    if preprocessing.mirror is not None and called.laterality is None:
        raise UsageError(
            f"this encoder expects images of the {preprocessing.mirror} mirrored: give laterality, left or right for "
            "each image, or None where it has neither side"
        )
    return preprocessing


def table_of(sample: npt.NDArray[np.int64], number: int, called: Called, *, clips: bool) -> Cohort:
    """The facts as a cohort of one patient, a row a part; where clips have no series, each is one.

    Args:
        sample: int64 `[rows]`, which of the samples given each part is of.
        number: of samples.
        called: what is known of them.
        clips: whether they are clips.
    """
    columns: dict[str, Any] = {"image": [str(row) for row in range(len(sample))], "patient": "1"}
    series = [f"clip {place}" for place in range(number)] if clips and called.series is None else called.series
    for name, given in (("modality", called.modality), ("series", series), ("laterality", called.laterality)):
        if given is None:
            continue
        values = [given] * number if isinstance(given, str) else list(given)
        if len(values) != number:
            raise UsageError(f"{name}: expected {number}, one for each image, found {len(values)}")
        columns[name] = np.array(values, object)[sample]
    return Cohort(pd.DataFrame(columns), CohortSpec(table="images"))


def resolve_given(
    grey: npt.NDArray[Any],
    quantiles: npt.NDArray[np.float32],
    table: Cohort,
    codes: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    sample: Sequence[int],
) -> Ranges:
    """Black and white of given images or volumes by the contract alone, whose only range is lent where one is lacking.

    Args:
        grey: `[n]` of dtype `GREY`.
        quantiles: of their values, `[n, len(LEVELS)]`.
        table: what is known of them, a row each.
        codes: int64 `[n]`, which are of one series.
        preprocessing: the contract.
        sample: which of the samples given each is of, for the message.

    Raises:
        EncoderError: values whose range is the cohort's, of a modality for which the contract has none.
    """
    known, ranges = set(preprocessing.ranges), dict(preprocessing.ranges)
    for _ in range(2):  # a second time where the contract lends its only range
        resolved = resolve_ranges(
            grey, lambda at: quantiles[at], table.modality, codes,
            ranges=ranges, stated=preprocessing.stated, rules=preprocessing.rules,
        )  # fmt: skip
        unknown = set(resolved.ranges) - set(ranges)
        ranges |= preprocessing.lend(unknown, table.modality)
        if not unknown:
            break
    if unknown:
        have = f"it has ranges for {', '.join(sorted(known))}" if known else "it has no ranges"
        wanting = resolved.names == min(unknown)
        first = sample[int(np.flatnonzero(wanting & (resolved.by == "cohort"))[0])]
        raise EncoderError(
            f"image {first + 1}: its values have no range of their own, and the encoder's contract has none for the "
            f"modality {min(unknown)!r} ({have}); give modality as the contract spells it, or "
            f"ranges={{{min(unknown)!r}: (black, white)}}"
        )
    return resolved
