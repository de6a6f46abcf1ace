"""What a table says of its rows, role by role: each value in one spelling, as codes, or as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cleaning import clean_values
from bolus.data.cohort.roles import DEFAULT_MODALITY, binned_role, infer_roles, is_number_role, is_role
from bolus.data.cohort.spec import CohortSpec
from bolus.data.cohort.table import strip_text
from bolus.data.text.dates import to_days
from bolus.data.text.laterality import side_of
from bolus.errors import CohortError, suggest


@dataclass(frozen=True)
class Labels:
    """A label column as binary classes.

    Args:
        classes: names, sorted.
        matrix: float32 `[rows, classes]`, 1 where the row has the class, NaN in a row whose label is missing.
        exclusive: every labelled row has exactly one class.
    """

    classes: tuple[str, ...]
    matrix: npt.NDArray[np.float32]
    exclusive: bool


class Values:
    """The columns of a table by their roles; nothing is checked, which `bolus.data.cohort.cohort.Cohort` does.

    Args:
        table: every column of the source, as strings or as a Parquet file stored them; the index is 0..n-1. Strings in
            columns with a role are stripped, and blank ones are missing.
        spec: roles, missing codes, units.
    """

    def __init__(self, table: pd.DataFrame, spec: CohortSpec) -> None:
        inferred = infer_roles(table.columns, set(spec.roles.values()))
        self.inferred = set(inferred) - set(spec.roles)  # roles that a column has for its name
        self.roles = {**inferred, **spec.roles}
        self.table = strip_text(table.reset_index(drop=True), set(self.roles.values()))
        self.spec = spec.model_copy(update={"roles": self.roles})
        self._made: frozenset[str] = frozenset()  # roles whose columns `expand` made: no code there means missing
        self._values: dict[str, pd.Series[Any]] = {}
        self._encoded: dict[str, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.table)

    def has(self, role: str) -> bool:
        """Whether a recipe can ask for the role: a column has it, order gives it (slice_position), or bins cut it."""
        cut = binned_role(role)
        if cut is not None:
            return is_role(role) and self.has(cut)
        return role in self.roles or (role == "slice_position" and "order" in self.roles)

    def values(self, role: str) -> pd.Series[Any]:
        """The role's column with each value in one spelling, and missing where it means so: `data.cohort.cleaning`.

        What means missing in every column, such as `n/a`, is missing, and so is every declared code. Sides are `left`
        or `right`, and missing where they are neither.

        Raises:
            CohortError: no column has this role.
        """
        if role not in self.roles:
            raise CohortError(f"no column has the role {role!r}; {suggest(role, self.roles)}")
        column = self.roles[role]
        if role in self._made:
            return self.table[column]
        if role not in self._values:
            codes = [code for key in ("*", role, column) for code in self.spec.missing.get(key, [])]
            self._values[role] = clean_values(self.table[column], role, codes)
        return self._values[role]

    def take_values(self, rows: npt.NDArray[np.int64]) -> dict[str, pd.Series[Any]]:
        """Role -> its values at these rows, spelled as in the whole table, not as a part of it would be."""
        return {role: self.values(role).iloc[rows].reset_index(drop=True) for role in self.roles}

    def encoded(self, role: str) -> npt.NDArray[Any]:
        """The role as int64 codes (-1 missing, categories sorted) or float64 numbers (NaN missing), `[rows]`.

        Times given as dates become days since the earliest one. An attribute is numeric where all its values are.

        Raises:
            CohortError: no column has this role.
        """
        if role not in self._encoded:
            series = self.values(role)
            counted = role.startswith("attribute:") and pd.api.types.is_numeric_dtype(series)
            if role == "time":
                self._encoded[role] = to_days(series, self.spec.units.get("time"))[0]
            elif is_number_role(role) or counted:
                self._encoded[role] = pd.to_numeric(series, errors="coerce").to_numpy(np.float64, na_value=np.nan)
            else:
                self._encoded[role] = pd.factorize(series, sort=True)[0].astype(np.int64)
        return self._encoded[role]

    def labels(self, name: str) -> Labels:
        """The classes of `label:name`; several on one row are joined by `|`.

        Raises:
            CohortError: no such label column, or not one labelled row.
        """
        series = self.values(f"label:{name}").astype("string")
        known = series.notna().to_numpy()
        if not known.any():
            raise CohortError(f"label:{name}: every row is missing")
        combinations, unique = pd.factorize(series)
        parts = [[part.strip() for part in str(value).split("|") if part.strip()] for value in unique]
        classes = sorted({part for value in parts for part in value})
        position = {name: index for index, name in enumerate(classes)}
        rows = np.zeros((len(unique) + 1, len(classes)), np.float32)
        rows[-1] = np.nan
        for index, value in enumerate(parts):
            rows[index, [position[part] for part in value]] = 1
        return Labels(tuple(classes), rows[combinations], all(len(value) == 1 for value in parts))

    @property
    def patients(self) -> pd.Series[Any]:
        """Patient identifiers, one a row, in the cohort's namespace; for hashing, never for printing."""
        prefix = f"{self.spec.namespace}/" if self.spec.namespace else ""
        return prefix + self.values("patient")

    @cached_property
    def num_patients(self) -> int:
        """How many patients the table holds."""
        return int(self.encoded("patient").max(initial=-1)) + 1

    @cached_property
    def modality(self) -> npt.NDArray[np.str_]:
        """Modality of each row; one name for all where no column has the role."""
        if "modality" not in self.roles:
            return np.full(len(self), DEFAULT_MODALITY)
        return self.values("modality").astype("string").fillna(DEFAULT_MODALITY).to_numpy(dtype=str)

    @cached_property
    def shared_file(self) -> npt.NDArray[np.bool_]:
        """Whether the row's file stands on other rows too, `[rows]`: then each has a frame of it."""
        return self.table[self.roles["image"]].duplicated(keep=False).to_numpy()

    @cached_property
    def origin(self) -> npt.NDArray[np.int64]:
        """The row of the table as given that each row is or came from, `[rows]`: what a person is shown."""
        return np.arange(len(self), dtype=np.int64)

    @cached_property
    def sides(self) -> npt.NDArray[np.int64] | None:
        """The side of each row, int64 `[rows]` as `laterality.side_of` gives it; None where no column has laterality.

        Raises:
            CohortError: a value that names no side, with its rows in the table as given.
        """
        if "laterality" not in self.roles:
            return None
        return side_of(self.values("laterality"), rows=self.origin)
