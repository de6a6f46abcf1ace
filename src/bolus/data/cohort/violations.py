"""What is wrong with a table and its roles, all of it at once."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bolus.data.cohort.roles import BIN, is_number_role, is_role, known_roles
from bolus.data.cohort.values import Values
from bolus.data.text.dates import read_times
from bolus.data.text.spelling import missing_option, shape_of
from bolus.errors import name_rows, suggest

_WITH_COMMA = r"[+-]?\d{1,3}(?:[., ']\d{3})*(?:[.,]\d+)?|[+-]?\d+,\d+"  # of what is no number as it is


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
        if not is_role(role) and is_role(column) and role in table.table.columns
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
        if column not in table.table.columns and role not in swapped:
            found.append(f"role {role!r}: no column {column!r}; {suggest(column, map(str, table.table.columns))}")
    found += [
        f"no column has the role {role!r}; name it with --role {role}=COLUMN"
        for role in ("image", "patient")
        if role not in table.roles
    ]
    for key in table.spec.missing:
        if key != "*" and key not in table.table.columns and key not in table.roles:
            found.append(f"missing: no column or role {key!r}; {suggest(key, map(str, table.table.columns))}")
    if not found and "modality" in table.roles and len(table.table):
        known = sorted(set(table.modality.tolist()))
        for name in sorted(set(table.spec.ranges) - set(known)):
            found.append(f"ranges: no image of modality {name!r}; {suggest(name, known)}")
    if found:
        return found
    if not len(table.table):
        return ["the table has no rows"]
    for role in ("image", "patient"):
        absent = table.values(role).isna().to_numpy()
        if absent.any():
            found.append(f"{name_rows(np.flatnonzero(absent))}: no {role} (column {table.roles[role]!r})")
    for role in table.roles:
        series, why = table.values(role), ""
        if role == "time":
            times = read_times(series, table.spec.units.get("time"))
            bad, why = times.bad, times.why
        elif is_number_role(role):
            bad = (pd.to_numeric(series, errors="coerce").isna() & series.notna()).to_numpy()
        else:
            continue
        if bad.any():
            values = set(series[bad].astype(str))
            example = shape_of(str(series[bad].iloc[0]))
            # Only a value that several patients share is quoted: another one may name its patient.
            hint = ""
            if len(values) == 1 and len(set(table.values("patient")[bad])) > 1:
                example = values.pop()
                hint = f"; if it means missing, declare it with {missing_option(table.roles[role], example)}"
            if role in table.inferred:
                hint += f"; if it is something else, give it another role, such as attribute:{table.roles[role]}"
            expected = "number of days or a date like 2024-01-31" if role == "time" else "number"
            column = f"{role} (column {table.roles[role]!r})"
            if role != "time" and series[bad].str.fullmatch(_WITH_COMMA).all():
                why = "with a decimal comma or thousands apart; write such numbers as 1234.5"
            why = f" ({why})" if why else ""
            found.append(
                f"{name_rows(np.flatnonzero(bad))}: {column} is not a {expected}, found {example!r}{why}{hint}"
            )
    shared = table.shared_file
    if shared.any():
        if "order" not in table.roles:
            rows = np.flatnonzero(shared)
            found.append(f"{name_rows(rows)}: one image file on several rows, and no column has the role order")
        else:
            order = pd.to_numeric(table.values("order"), errors="coerce")
            whole = (order % 1 == 0) & (order >= 0)
            if not whole[shared].all():
                rows = np.flatnonzero(shared & ~whole)
                found.append(f"{name_rows(rows)}: one file on several rows needs a frame number 0, 1, ... in order")
            twice = pd.DataFrame({"image": table.table[table.roles["image"]], "order": order}).duplicated().to_numpy()
            if twice.any():
                found.append(f"{name_rows(np.flatnonzero(twice))}: the same image and frame as an earlier row")
    return found
