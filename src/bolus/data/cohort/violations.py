"""What is wrong with a table and its roles, all of it at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.coding import Coded
from bolus.data.cohort.roles import BIN, is_number_role, is_role, known_roles
from bolus.data.cohort.values import Values
from bolus.data.text.spelling import missing_option, shape_of
from bolus.errors import name_rows, suggest

_WITH_COMMA = r"[+-]?\d{1,3}(?:[., ']\d{3})*(?:[.,]\d+)?|[+-]?\d+,\d+"  # of what is no number as it is

DENSE = 16  # frames for each row up to which a table of all files and frames is kept


def find_violations(table: Values) -> list[str]:
    """Everything that keeps a table with roles from being a cohort, with rows and columns; none where all is well.

    Where a role has no column, or the table no row, nothing further is looked at. `Cohort` calls this when it is made,
    and then looks at the split.

    >>> from bolus.data.cohort.cohort import Cohort
    >>> from bolus.data.cohort.spec import CohortSpec
    >>> Cohort(pd.DataFrame({"image": ["a.png", None], "patient": ["p", "q"]}), CohortSpec(table="t.csv"))
    Traceback (most recent call last):
    bolus.errors.CohortError: t.csv: 1 problem(s) in the cohort
      - row 2: no image (column 'image')
    """
    found = []
    swapped = {
        role: column
        for role, column in table.roles.items()
        if not is_role(role) and is_role(column) and role in table.columns
    }
    found += [
        f"role {role!r}: a column stands where the role should; write {column}={role}"
        for role, column in swapped.items()
    ]
    for role in table.roles:
        if role not in swapped and (
            not is_role(role) or role.startswith(BIN)
        ):  # bins are the recipe's, no column has such a role
            name = role.partition(":")[2] or "NAME"
            near = [known.replace("NAME", name) for known in known_roles()]
            found.append(f"role {role!r}: unknown; {suggest(role, near)}")
    for role, column in table.roles.items():
        if column not in table.columns and role not in swapped:
            found.append(f"role {role!r}: no column {column!r}; {suggest(column, map(str, table.columns))}")
    found += [
        f"no column has the role {role!r}; name it with --role {role}=COLUMN"
        for role in ("image", "patient")
        if role not in table.roles
    ]
    for key in table.spec.missing:
        if key != "*" and key not in table.columns and key not in table.roles:
            found.append(f"missing: no column or role {key!r}; {suggest(key, map(str, table.columns))}")
    if not found and "modality" in table.roles and len(table):
        known = table.modalities
        for name in sorted(set(table.spec.ranges) - set(known)):
            found.append(f"ranges: no image of modality {name!r}; {suggest(name, known)}")
    if found:
        return found
    if not len(table):
        return ["the table has no rows"]
    for role in ("image", "patient"):
        absent = table.absent(role)
        if absent.any():
            found.append(f"{name_rows(np.flatnonzero(absent))}: no {role} (column {table.roles[role]!r})")
    return [*found, *filter(None, (_unread(table, role) for role in table.roles)), *_frames(table)]


def _unread(table: Values, role: str) -> str | None:
    """What is wrong with the numbers or times of a role; None where nothing is, or it has neither."""
    if role != "time" and not is_number_role(role):
        return None
    column, why = table.spelled(role), ""
    series = column.values if isinstance(column, Coded) else column
    if role == "time":
        wrong, why = table.times.bad, table.times.why
    else:
        wrong = (pd.to_numeric(series, errors="coerce").isna() & series.notna()).to_numpy()
    if not wrong.any():
        return None
    bad = np.asarray(column.spread(wrong, missing=False)) if isinstance(column, Coded) else wrong
    values, texts = set(series[wrong].astype(str)), table.values(role)[bad]
    example, hint = shape_of(str(texts.iloc[0])), ""
    # Only a value that several patients share is quoted: another one may name its patient.
    if len(values) == 1 and len(set(table.values("patient")[bad])) > 1:
        example = values.pop()
        hint = f"; if it means missing, declare it with {missing_option(table.roles[role], example)}"
    if role in table.inferred:
        hint += f"; if it is something else, give it another role, such as attribute:{table.roles[role]}"
    expected = "number of days or a date like 2024-01-31" if role == "time" else "number"
    if role != "time" and series[wrong].str.fullmatch(_WITH_COMMA).all():
        why = "with a decimal comma or thousands apart; write such numbers as 1234.5"
    why, named = f" ({why})" if why else "", f"{role} (column {table.roles[role]!r})"
    return f"{name_rows(np.flatnonzero(bad))}: {named} is not a {expected}, found {example!r}{why}{hint}"


def _frames(table: Values) -> list[str]:
    """What is wrong with files that stand on several rows."""
    shared = table.shared_file
    if not shared.any():
        return []
    if "order" not in table.roles:
        return [
            f"{name_rows(np.flatnonzero(shared))}: one image file on several rows, and no column has the role order"
        ]
    found, order = [], table.encoded("order")
    whole = (order % 1 == 0) & (order >= 0)
    if not whole[shared].all():
        rows = np.flatnonzero(shared & ~whole)
        found.append(f"{name_rows(rows)}: one file on several rows needs a frame number 0, 1, ... in order")
    twice = again(table.files, order)
    if twice.any():
        found.append(f"{name_rows(np.flatnonzero(twice))}: the same image and frame as an earlier row")
    return found


def again(files: npt.NDArray[Any], order: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Rows with the file and the frame of an earlier row, `[rows]`; what is missing is like what is missing.

    >>> again(np.array([0, 0, 1, 0]), np.array([1.0, 2.0, 1.0, 1.0])).tolist()
    [False, False, False, True]
    """
    wide = int(files.max(initial=-1)) + 2, int(np.nanmax(order, initial=0)) + 1
    if wide[0] * wide[1] <= DENSE * len(files) and (order % 1 == 0).all() and (order >= 0).all():
        taken = np.zeros(wide[0] * wide[1], np.bool_)  # a bit for each frame: most tables have none twice
        taken[(files.astype(np.int64) + 1) * wide[1] + order.astype(np.int64)] = True
        if np.count_nonzero(taken) == len(files):
            return np.zeros(len(files), np.bool_)
    return pd.DataFrame({"file": files, "order": order}).duplicated().to_numpy()
