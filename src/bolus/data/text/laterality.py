"""Left, right or neither: what a column of sides says, and which images are mirrored so that both sides look alike."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.text.spelling import shape_of
from bolus.errors import CohortError, name_rows

Side: TypeAlias = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")  # their places are the codes

# In lower case, without a full stop at the end. U and B are DICOM's unpaired and both; OU is both eyes.
NAMES = {
    **dict.fromkeys(("l", "left", "lt", "os", "sin", "sinister", "sinistra", "sinistrum"), 0),
    **dict.fromkeys(("r", "right", "rt", "od", "dex", "dexter", "dextra", "dextrum"), 1),
    **dict.fromkeys(("", "u", "unpaired", "b", "both", "bilateral", "ou"), -1),
}


def _side(value: object) -> int | None:
    return NAMES.get(str(value).strip().lower().removesuffix("."))


def side_of(
    values: npt.NDArray[Any] | pd.Series[Any], *, rows: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """The side that each value names, in any case, as people, DICOM (L, R, U, B) and eye clinics (OS, OD, OU) write it.

    Args:
        values: `[rows]`; NaN, None and blank text are missing.
        rows: int64 `[rows]`, the rows of the table as given, from 0, for the message; their places where None.

    Returns:
        int64 `[rows]`: 0 left, 1 right, -1 neither (missing, unpaired, both).

    Raises:
        CohortError: a value that names no side, with its rows.

    Example:
        >>> side_of(np.array(["OS", "right", "B", None], dtype=object)).tolist()
        [0, 1, -1, -1]
    """
    kinds, found = pd.factorize(pd.Series(np.asarray(values, dtype=object)))
    sides = [_side(value) for value in found]
    odd = np.append([side is None for side in sides], False)[kinds].astype(bool)  # -1, missing, is the last entry
    if odd.any():
        unknown = sorted({str(value) for value, side in zip(found, sides, strict=True) if side is None})
        if len(unknown) > 3:  # no column of sides, perhaps one of identifiers, which are not shown
            unknown = sorted({shape_of(value) for value in unknown})
        wrong = np.flatnonzero(odd)
        raise CohortError(
            f"{name_rows(np.unique(wrong if rows is None else rows[wrong]))}: expected left or right (L, R, OS, OD), "
            f"unpaired (U) or both (B, OU) in the column with the role laterality, found "
            f"{', '.join(map(repr, unknown[:5]))}{' and others' if len(unknown) > 5 else ''}; "
            "declare what means missing with --missing laterality=VALUE"
        )
    return np.array([*(side for side in sides if side is not None), -1], dtype=np.int64)[kinds]


def names_no_side(values: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    """Where a value is neither a side nor one of `NAMES` for neither, bool `[rows]`.

    >>> names_no_side(pd.Series(["OS", "macula", None, "B"])).tolist()
    [False, True, False, False]
    """
    kinds, found = pd.factorize(values)
    return np.array([*(_side(value) is None for value in found), False], np.bool_)[kinds]


def spell_sides(values: pd.Series[Any]) -> pd.Series[Any]:
    """The column with each side in one spelling, `left` or `right`, and what is neither missing.

    As it is where no value names a side: some other vocabulary.

    Example:
        >>> spell_sides(pd.Series(["OS", "R", "B", "macula"])).tolist(), spell_sides(pd.Series(["upper"])).tolist()
        (['left', 'right', nan, nan], ['upper'])
    """
    odd = names_no_side(values)
    sides = side_of(values.mask(odd))
    if odd.any() and not (sides >= 0).any():
        return values
    return pd.Series(np.array(["left", "right", None], dtype=object)[sides], index=values.index, name=values.name)
