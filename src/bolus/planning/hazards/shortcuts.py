"""Columns that say how an image was made or give a label away, and labels that follow them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Samples
from bolus.planning.hazards.association import (
    CHANCE,
    ENOUGH,
    MIN_KNOWN,
    STRONG,
    IntArray,
    associate,
    on_both_sides,
    separate,
)
from bolus.planning.hazards.hazard import Hazard
from bolus.planning.hazards.supervision import PLACES, Column, TargetCodes, says_how_made

ALL_BUT = 0.8
"""Cramer's V from which a column all but gives a label."""
ALL_BUT_AREA = 0.95
"""AUROC from which a number does."""


def find_shortcut(column: Column, others: Iterable[Column], drawn: IntArray) -> list[Hazard]:
    """The hazard of a column that says how the image was made, or all but gives a label or an ordinal score.

    Args:
        column: that may be one.
        others: of which it may give the answer.
        drawn: a sample of each patient.
    """
    role = column.role
    if not (role in PLACES or role.startswith("attribute:")):
        return []
    given = []
    for other in others:
        if other.source == column.source:
            continue
        for name, answer in other.answers.items():
            how = _gives(column, answer, drawn)
            if how is not None:
                given.append((how[0], f"{name} ({how[1]})"))
    made = f"{role} says {'where' if role == 'site' else 'how'} an image was made, not what it shows"
    instead = f"audit by it instead (bolus evaluate classify --audit --by {role.partition(':')[2] or role})"
    if role == "site":
        instead += ", and leave a site out (--split leave_out_site=NAME)"
    if not given:
        return [Hazard(role, "shortcut", f"{made}: {instead}", True)] if says_how_made(role) else []
    more = f" and {len(given) - 3} more" if len(given) > 3 else ""
    names = ", ".join(name for _, name in sorted(given, reverse=True)[:3]) + more
    why = made if says_how_made(role) else "it gives the answer away"
    return [Hazard(role, "shortcut", f"{role} all but gives {names}: {why}; {instead}", True)]


def _gives(column: Column, answer: TargetCodes, drawn: IntArray) -> tuple[float, str] | None:
    """How far a column gives an answer, in 0..1 and in words, where it all but does.

    It is asked of what is commonest in each patient, and of one sample drawn of each: a column may give what differs
    between the samples of a patient, such as the sick one of two eyes.
    """
    for codes, numbers, asked in (
        (column.patient_codes, column.patient_numbers, answer.patient_codes),
        (_take(column.codes, drawn), _take(column.numbers, drawn), answer.codes[drawn]),
    ):
        if answer.binary and not on_both_sides(asked):
            continue
        if codes is not None:
            found = associate(codes, asked)
            if found.gives_second >= ALL_BUT and found.p < CHANCE and found.num >= ENOUGH:
                return found.gives_second, f"Cramer's V {found.gives_second:.2f}"
        if answer.binary and numbers is not None:
            area, p = separate(numbers, asked)
            if max(area, 1 - area) >= ALL_BUT_AREA and p < CHANCE:
                return abs(2 * area - 1), f"AUROC {max(area, 1 - area):.2f}"
    return None


def _take(values: NDArray[Any] | None, rows: IntArray) -> NDArray[Any] | None:
    return None if values is None else values[rows]


def find_followers(column: Column, made: Iterable[Column], samples: Samples) -> list[Hazard]:
    """Where a label follows how or where the image was made: a hazard for each such column, on the strongest class.

    Args:
        column: of whatever role; only a label has any.
        made: columns that say how or where.
        samples: for the values in words.
    """
    found = []
    for place in made if column.role.startswith("label:") else ():
        told: list[tuple[float, str]] = []
        for name, answer in column.answers.items():
            asked = answer.patient_codes
            if place.source == column.source or not answer.binary or not on_both_sides(asked):
                continue
            if place.patient_codes is not None:
                tie = associate(place.patient_codes, asked)
                if tie.cramers_v >= STRONG and tie.p < CHANCE and tie.num >= ENOUGH:
                    how = f"{_shares(place, asked, samples)} (Cramer's V {tie.cramers_v:.2f})"
                    told.append((tie.cramers_v, f"{name} follows {place.role}: {how}"))
            elif place.patient_numbers is not None:
                area, p = separate(place.patient_numbers, asked)
                if abs(2 * area - 1) >= STRONG and p < CHANCE:
                    told.append((abs(2 * area - 1), f"{name} follows {place.role} (AUROC {max(area, 1 - area):.2f})"))
        if told:
            more = f"; so do {len(told) - 1} more of its classes" if len(told) > 1 else ""
            sentence = (
                f"{max(told)[1]}{more}. An encoder that reads {place.role} off the image will seem to know it; judge "
                f"within groups (bolus evaluate classify --audit --by {place.role.partition(':')[2] or place.role})"
            )
            found.append(Hazard(column.role, "shortcut", sentence, False))
    return found


def _shares(place: Column, answer: IntArray, samples: Samples) -> str:
    """The highest and the lowest share of patients with the class, among values that `MIN_KNOWN` patients have."""
    assert place.patient_codes is not None
    assert place.codes is not None
    known = (place.patient_codes >= 0) & (answer >= 0)
    sizes = np.bincount(place.patient_codes[known])
    positive = np.bincount(place.patient_codes[known], weights=answer[known])
    codes = np.flatnonzero(sizes >= MIN_KNOWN)
    if len(codes) < 2:
        return f"{len(np.flatnonzero(sizes))} values with few patients each"
    ranked = codes[np.argsort(-positive[codes] / sizes[codes], kind="stable")]
    texts = samples.cohort.coded(place.role)
    rows = [samples.first_row[np.argmax(place.codes == code)] for code in (ranked[0], ranked[-1])]
    high, low = (f"{positive[code] / sizes[code]:.0%} of" for code in (ranked[0], ranked[-1]))
    return f"{high} the patients of {texts.value(rows[0])}, {low} those of {texts.value(rows[1])}"
