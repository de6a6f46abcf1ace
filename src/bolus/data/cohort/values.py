"""What a table says of its rows, role by role: each value in one spelling, as codes, or as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cleaning import as_stated, clean_values
from bolus.data.cohort.coding import Coded, Column, Columns, Held, narrow, take
from bolus.data.cohort.roles import DEFAULT_MODALITY, PATHS, binned_role, infer_roles, is_number_role, is_role
from bolus.data.cohort.spec import CohortSpec
from bolus.data.text.dates import Times, read_times
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

    def __init__(self, table: pd.DataFrame | Columns, spec: CohortSpec) -> None:
        columns = Columns.of(table) if isinstance(table, pd.DataFrame) else table
        inferred = infer_roles(columns, set(spec.roles.values()))
        self.inferred = set(inferred) - set(spec.roles)  # roles that a column has for its name
        self.roles = {**inferred, **spec.roles}
        self.columns = columns.stripped(set(self.roles.values()))
        self.spec = spec.model_copy(update={"roles": self.roles})
        self._made: frozenset[str] = frozenset()  # roles whose columns `expand` made: no code there means missing
        self._spelled: dict[str, Column] = {}
        self._encoded: dict[str, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def table(self) -> pd.DataFrame:
        """Every column with a value in each row; it is made anew each time, so that changing it changes nothing."""
        return self.columns.frame()

    def has(self, role: str) -> bool:
        """Whether a recipe can ask for the role: a column has it, order gives it (slice_position), or bins cut it."""
        cut = binned_role(role)
        if cut is not None:
            return is_role(role) and self.has(cut)
        return role in self.roles or (role == "slice_position" and "order" in self.roles)

    def spelled(self, role: str) -> Column:
        """The role's column with each value in one spelling, and missing where it means so: `data.cohort.cleaning`.

        What means missing in every column, such as `n/a`, is missing, and so is every declared code. Sides are `left`
        or `right`, and missing where they are neither.

        Returns:
            Text as codes, in the order of the values; numbers and times as codes where the table holds them as text,
            else in a series; paths as the table holds them.

        Raises:
            CohortError: no column has this role.
        """
        if role not in self.roles:
            raise CohortError(f"no column has the role {role!r}; {suggest(role, self.roles)}")
        column = self.roles[role]
        if role in self._made:
            return self.columns[column]
        if role not in self._spelled:
            self._spelled[role] = _spell(self.columns[column], role, self._missing_codes(role))
        return self._spelled[role]

    def stated(self, role: str) -> pd.Series[Any]:
        """What the column of a role says, as text, before sides, classes or numbers are made of it."""
        return as_stated(self.columns.plain(self.roles[role]), self._missing_codes(role))

    def _missing_codes(self, role: str) -> list[Any]:
        return [code for key in ("*", role, self.roles[role]) for code in self.spec.missing.get(key, [])]

    def values(self, role: str) -> pd.Series[Any]:
        """What `spelled` gives, with a value in each row; it is made anew each time.

        Raises:
            CohortError: no column has this role.
        """
        found = self.spelled(role)
        return found.plain() if isinstance(found, Coded) else found

    def coded(self, role: str) -> Coded:
        """What `spelled` gives, as codes.

        Raises:
            CohortError: no column has this role.
        """
        found = self.spelled(role)
        return found if isinstance(found, Coded) else Coded.of(found)

    def take_spelled(self, rows: npt.NDArray[np.int64]) -> dict[str, Column]:
        """Role -> its values at these rows, spelled as in the whole table, not as a part of it would be."""
        return {role: take(self.spelled(role), rows) for role in self.roles}

    def absent(self, role: str) -> npt.NDArray[np.bool_]:
        """Rows without a value, `[rows]`.

        Raises:
            CohortError: no column has this role.
        """
        found = self.spelled(role)
        return found.absent if isinstance(found, Coded) else found.isna().to_numpy()

    def encoded(self, role: str) -> npt.NDArray[Any]:
        """The role as int64 codes (-1 missing, categories sorted) or float64 numbers (NaN missing), `[rows]`.

        Times given as dates become days since the earliest one. An attribute is numeric where all its values are.

        Raises:
            CohortError: no column has this role.
        """
        if role in self._encoded:
            return self._encoded[role]
        found = self.spelled(role)
        if isinstance(found, Coded):
            numbers = self.numbers_of(role)
            return found.codes.astype(np.int64) if numbers is None else found.spread(numbers, np.nan)
        numbers = self.numbers_of(role)
        self._encoded[role] = _sorted_codes(found) if numbers is None else numbers
        return self._encoded[role]

    def numbers_of(self, role: str) -> npt.NDArray[np.float64] | None:
        """The numbers of a role, one for each value where `spelled` codes them; None where it holds categories.

        Raises:
            CohortError: no column has this role.
        """
        found = self.spelled(role)
        values = found.values if isinstance(found, Coded) else found
        if role == "time":
            return self.times.days
        if is_number_role(role) or (role.startswith("attribute:") and pd.api.types.is_numeric_dtype(values)):
            return pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        return None

    def kinds(self, role: str) -> npt.NDArray[np.int64]:
        """A number from 0 for each value of a role, in the order of `encoded`, int64 `[rows]`; missing is a value too.

        Raises:
            CohortError: no column has this role.
        """
        found = self.spelled(role)
        if not isinstance(found, Coded):
            return np.unique(self.encoded(role), return_inverse=True)[1].astype(np.int64)
        numbers = self.numbers_of(role)
        if numbers is None:
            return found.codes.astype(np.int64) + 1
        ranks = np.unique(np.append(numbers, np.nan), return_inverse=True)[1].astype(np.int64)
        return np.asarray(ranks[found.codes])

    def encoded_at(self, role: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """What `encoded` gives, at these rows `[n]`.

        Raises:
            CohortError: no column has this role.
        """
        found = self.spelled(role) if role in self.roles and role not in self._encoded else None
        if not isinstance(found, Coded):
            return self.encoded(role)[rows]
        numbers, codes = self.numbers_of(role), found.codes[rows]
        return codes.astype(np.int64) if numbers is None else Coded(codes, found.values).spread(numbers, np.nan)

    def held(self, role: str) -> Held | npt.NDArray[np.float64]:
        """What `encoded` gives, in little room where there is such.

        Raises:
            CohortError: no column has this role.
        """
        found = self.spelled(role) if role in self.roles and role not in self._encoded else None
        if not isinstance(found, Coded):
            return self.encoded(role)
        numbers = self.numbers_of(role)
        if numbers is None:
            return Held(found.codes, np.append(np.arange(len(found.values)), -1))
        kinds, places = np.unique(np.append(numbers, np.nan), return_inverse=True)  # of dates, two may be of one day
        if len(kinds) > len(numbers):
            return Held(found.codes, np.append(numbers, np.nan))
        places[places == len(kinds) - 1] = -1
        return Held(narrow(places, len(kinds) - 1)[found.codes], kinds)

    @cached_property
    def times(self) -> Times:
        """The role time as `data.text.dates` reads it: of each of its values where `spelled` codes them, else each row.

        Raises:
            CohortError: no column has this role.
        """
        found, unit = self.spelled("time"), self.spec.units.get("time")
        if isinstance(found, Coded):
            return read_times(found.values, unit, weights=found.counts())
        return read_times(found, unit)

    def labels(self, name: str, at: npt.NDArray[np.int64] | slice = slice(None)) -> Labels:
        """The classes of `label:name`, at these rows; several on one row are joined by `|`.

        Raises:
            CohortError: no such label column, or not one labelled row.
        """
        found = self.coded(f"label:{name}")
        if not len(found.values):
            raise CohortError(f"label:{name}: every row is missing")
        parts = [[part.strip() for part in str(value).split("|") if part.strip()] for value in found.values]
        classes = sorted({part for value in parts for part in value})
        position = {name: index for index, name in enumerate(classes)}
        rows = np.zeros((len(parts) + 1, len(classes)), np.float32)
        rows[-1] = np.nan
        for index, value in enumerate(parts):
            rows[index, [position[part] for part in value]] = 1
        return Labels(tuple(classes), rows[found.codes[at]], all(len(value) == 1 for value in parts))

    @property
    def coded_patients(self) -> Coded:
        """Patient identifiers in the cohort's namespace, as codes; for hashing, never for printing."""
        found, prefix = self.coded("patient"), f"{self.spec.namespace}/" if self.spec.namespace else ""
        return Coded(found.codes, prefix + found.values) if prefix else found

    @property
    def patients(self) -> pd.Series[Any]:
        """Patient identifiers, one a row, in the cohort's namespace; for hashing, never for printing."""
        return self.coded_patients.plain()

    @cached_property
    def num_patients(self) -> int:
        """How many patients the table holds."""
        return len(self.coded("patient").values)

    @cached_property
    def modality(self) -> npt.NDArray[np.str_]:
        """Modality of each row; one name for all where no column has the role."""
        if "modality" not in self.roles:
            return np.broadcast_to(np.array(DEFAULT_MODALITY), len(self))
        found = self.coded("modality")
        names = np.array([*(str(name) for name in found.values), DEFAULT_MODALITY])
        return np.asarray(names[found.codes])

    @cached_property
    def modalities(self) -> list[str]:
        """The modalities that there are, sorted."""
        if "modality" not in self.roles:
            return [DEFAULT_MODALITY]
        found = self.coded("modality")
        return sorted({*(str(name) for name in found.values), *([DEFAULT_MODALITY] if found.absent.any() else [])})

    def modality_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
        """The modality of these rows `[n]`; one name in the room of one where no column has the role."""
        if "modality" not in self.roles:
            return np.broadcast_to(np.array(DEFAULT_MODALITY), len(rows))
        return self.modality[rows]

    @property
    def files(self) -> npt.NDArray[np.int64]:
        """A number for the file of each row, from 0, as the table names it; -1 where it names none."""
        return self.columns.coded(self.roles["image"]).codes.astype(np.int64)

    @cached_property
    def shared_file(self) -> npt.NDArray[np.bool_]:
        """Whether the row's file stands on other rows too, `[rows]`: then each has a frame of it."""
        files = self.columns[self.roles["image"]]
        if isinstance(files, Coded):
            return np.asarray(files.spread(files.counts() > 1, files.absent.sum() > 1))
        return files.duplicated(keep=False).to_numpy()

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
        return side_of(self.stated("laterality"), rows=self.origin)


def _spell(column: Column, role: str, codes: Iterable[Any]) -> Column:
    """A column as its role reads it; text, but for paths, as codes."""
    if isinstance(column, pd.Series) and role not in PATHS:
        column = _code_text(column)
    if isinstance(column, Coded):
        found: Column = column.change(lambda values: clean_values(values, role, codes))
    else:
        found = clean_values(column, role, codes)
    if role in PATHS:
        return found
    found = _code_text(found) if isinstance(found, pd.Series) else found
    return found.ranked() if isinstance(found, Coded) and isinstance(found.values.dtype, pd.StringDtype) else found


def _code_text(series: pd.Series[Any]) -> Column:
    return Coded.of(series) if isinstance(series.dtype, pd.StringDtype) else series


def _sorted_codes(series: pd.Series[Any]) -> npt.NDArray[np.int64]:
    return pd.factorize(series, sort=True)[0].astype(np.int64)
