"""The cohort: a table of images with the role of each column, validated all at once; one row is one image or frame.

Opening a cohort touches the table only, never an image, so that a million rows open in seconds. Every value that a
relation, an objective or an evaluation sees comes from `Cohort.values`, where missing codes have become missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bolus.data.roles import CONVENTIONAL_NAMES, is_number_role, is_role, known_roles
from bolus.data.split import identifier_text, split_digest, split_patients
from bolus.errors import CohortError, UsageError, name_rows, suggest

NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>"]
DEFAULT_MODALITY = "image"


class SplitSpec(BaseModel):
    """Shares of the patients in validation and test; a patient's side is a hash of (seed, patient)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    val: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)


class CohortSpec(BaseModel):
    """cohort.yaml: the table, what its columns are, and how missing values are written.

    `ranges` maps a modality to the values shown as black and white; `bolus check` fills it for images deeper than
    eight bits. Patients of two cohorts with one `namespace` and one identifier are the same person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    table: str
    root: str | None = None  # folder that image paths are relative to; the table's folder where absent
    roles: dict[str, str] = {}
    units: dict[str, str] = {}
    missing: dict[str, list[Any]] = {}  # column -> values that mean missing; "*" holds for every column
    split: SplitSpec = SplitSpec()
    ranges: dict[str, tuple[float, float]] = {}
    namespace: str = ""


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


@dataclass(frozen=True)
class Samples:
    """The elements that batches, embeddings and evaluations index, with the way back to rows.

    Args:
        unit: `image`, `slice` or `clip`.
        first_row: int64 `[n]`, the row that speaks for a sample's columns.
        rows_of: sample position -> its rows, ordered.
    """

    unit: str
    cohort: Cohort = field(repr=False)
    first_row: npt.NDArray[np.int64] = field(repr=False)
    rows_of: Callable[[int], npt.NDArray[np.int64]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.first_row)

    def columns(self, roles: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """Role -> `[n]`: int64 codes with -1 missing, or float64 with NaN missing; always with `sample`."""
        found: dict[str, npt.NDArray[Any]] = {"sample": np.arange(len(self), dtype=np.int64)}
        for role in roles:
            if role != "sample":
                found[role] = self.cohort.encoded(role)[self.first_row]
        return found


class Cohort:
    """A validated table of images.

    Args:
        table: every column of the source, as strings or as a Parquet file stored them; the index is 0..n-1. Strings in
            columns with a role are stripped, and blank ones are missing.
        spec: roles, missing codes, split.
        folder: what a relative `root` is relative to.

    Raises:
        CohortError: a role without its column, rows without image or patient, numbers that do not parse, patients on
            both sides of a fixed split; every violation is listed with its rows, all at once.

    Example:
        >>> frame = pd.DataFrame({"image": ["a.png", "b.png"], "patient": ["p", "q"], "age": ["61", "?"]})
        >>> cohort = Cohort(frame, CohortSpec(table="t.csv", roles={"score:age": "age"}, missing={"age": ["?"]}))
        >>> cohort.encoded("score:age")
        array([61., nan])
    """

    def __init__(self, table: pd.DataFrame, spec: CohortSpec, folder: Path = Path()) -> None:
        inferred = infer_roles(table.columns, set(spec.roles.values()))
        self._inferred = set(inferred) - set(spec.roles)
        self.roles = {**inferred, **spec.roles}
        self.table = _strip(table.reset_index(drop=True), set(self.roles.values()))
        self.spec = spec.model_copy(update={"roles": self.roles})
        self.folder = folder
        self._encoded: dict[str, npt.NDArray[Any]] = {}
        violations = self._violations()
        if violations:
            raise CohortError(f"{spec.table}: {len(violations)} problem(s) in the cohort", violations)

    @classmethod
    def open(
        cls,
        source: str | Path | Cohort,
        *,
        roles: Mapping[str, str] | None = None,
        missing: Mapping[str, list[Any]] | None = None,
        **overrides: Any,
    ) -> Cohort:
        """Open a cohort.yaml, or a bare CSV, TSV or Parquet table with `roles` (role -> column).

        Raises:
            CohortError: as the class says; also a file that is absent or does not parse.
            UsageError: an unknown keyword.
        """
        if isinstance(source, Cohort):
            return source
        path = Path(source)
        if not path.is_file():
            raise CohortError(f"no such cohort or table: {path}")
        data: dict[str, Any] = {"table": path.name}
        if path.suffix.lower() in {".yaml", ".yml"}:
            try:
                data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise CohortError(f"{path.name}: not YAML: {error}") from error
            if not isinstance(data, dict):
                raise CohortError(f"{path.name}: expected a mapping of cohort keys, found {type(data).__name__}")
        unknown = set(overrides) - set(CohortSpec.model_fields)
        if unknown:
            raise UsageError(
                f"unknown cohort key {sorted(unknown)[0]!r}; {suggest(min(unknown), CohortSpec.model_fields)}"
            )
        data.update({key: value for key, value in overrides.items() if value is not None})
        for key, given in (("roles", roles), ("missing", missing)):
            stated = data.get(key) or {}
            data[key] = {**stated, **(given or {})} if isinstance(stated, dict) else stated
        try:
            spec = CohortSpec.model_validate(data)
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
                + (
                    f"; {suggest(str(problem['loc'][-1]), CohortSpec.model_fields)}"
                    if "extra" in problem["type"]
                    else ""
                )
                for problem in error.errors()
            ]
            raise CohortError(f"{path.name}: not a cohort", lines) from None
        return cls(read_table(path.parent / spec.table), spec, path.parent)

    def save(self, path: str | Path) -> None:
        """Write cohort.yaml, with table and root so that the file can stand in any folder."""
        path = Path(path)
        table, folder = (self.folder / self.spec.table).resolve(), path.resolve().parent
        data = self.spec.model_dump(mode="json", exclude_defaults=True)
        if folder != self.folder.resolve():
            data["table"] = table.name if folder == table.parent else str(table)
            if self.spec.root is not None:  # without one it is the table's folder, wherever this file stands
                data["root"] = str(self.root.resolve())
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Cohort({self.spec.table}: {len(self)} rows, {self.num_patients} patients)"

    @property
    def root(self) -> Path:
        """The folder that image paths are relative to."""
        table_folder = (self.folder / self.spec.table).parent
        return table_folder if self.spec.root is None else self.folder / self.spec.root

    def values(self, role: str) -> pd.Series[Any]:
        """The role's column with every declared missing code made missing.

        Raises:
            CohortError: no column has this role.
        """
        if role not in self.roles:
            raise CohortError(f"no column has the role {role!r}; {suggest(role, self.roles)}")
        column = self.roles[role]
        series: pd.Series[Any] = self.table[column]
        codes = {str(code) for key in ("*", role, column) for code in self.spec.missing.get(key, [])}
        if not codes:
            return series
        missing = series.astype(str).isin(codes)
        numbers = {number for number in map(_number, codes) if number is not None}
        if numbers:
            missing |= pd.to_numeric(series, errors="coerce").isin(numbers)
        return series.mask(missing)

    def encoded(self, role: str) -> npt.NDArray[Any]:
        """The role as int64 codes (-1 missing, categories sorted) or float64 numbers (NaN missing), `[rows]`.

        Times given as dates become days since the earliest one. An attribute is numeric where all its values are.
        """
        if role not in self._encoded:
            series = self.values(role)
            if role == "time":
                self._encoded[role] = _days(series)[0]
            elif is_number_role(role) or (role.startswith("attribute:") and _is_numeric(series)):
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
        return prefix + self.values("patient").astype(object).map(identifier_text)

    @cached_property
    def num_patients(self) -> int:
        """How many patients the table holds."""
        return int(self.encoded("patient").max(initial=-1)) + 1

    @cached_property
    def split(self) -> npt.NDArray[np.str_]:
        """`train`, `val` or `test` for each row, disjoint in patients: the fixed column, else a hash."""
        spec = self.spec.split
        fixed = self.values("split") if "split" in self.roles else None
        return split_patients(self.patients, seed=spec.seed, val=spec.val, test=spec.test, fixed=fixed)

    @cached_property
    def split_hash(self) -> str:
        """12 hexadecimal digits that name who is on which side."""
        return split_digest(self.split, self.patients)

    @cached_property
    def modality(self) -> npt.NDArray[np.str_]:
        """Modality of each row; one name for all where no column has the role."""
        if "modality" not in self.roles:
            return np.full(len(self), DEFAULT_MODALITY)
        return self.values("modality").astype("string").fillna(DEFAULT_MODALITY).to_numpy(dtype=str)

    def image_path(self, row: int) -> Path:
        """Where the row's image lies; a relative path is relative to the root."""
        return self.root / str(self.table[self.roles["image"]].iloc[row])

    def frame(self, row: int) -> int | None:
        """Frame or slice number within the row's file; None where a file stands on one row only."""
        if not self._shared_file[row]:
            return None
        return int(self.encoded("order")[row])

    @cached_property
    def _shared_file(self) -> npt.NDArray[np.bool_]:
        return self.table[self.roles["image"]].duplicated(keep=False).to_numpy()

    def samples(self, unit: str) -> Samples:
        """The cohort as images, slices or clips.

        Raises:
            CohortError: clips or slices without the roles they need, or a column that varies within a series (rows
                are named).
            UsageError: an unknown unit.
        """
        everything = np.arange(len(self), dtype=np.int64)
        if unit in {"image", "slice"}:
            if unit == "slice" and not {"order", "slice_position"} & set(self.roles):
                raise CohortError("unit 'slice' needs a column with the role order or slice_position")
            return Samples(unit, self, everything, lambda position: everything[position : position + 1])
        if unit != "clip":
            raise UsageError(f"unknown unit {unit!r}; known: clip, image, slice")
        lacking = [role for role in ("series", "order") if role not in self.roles]
        if lacking:
            raise CohortError(
                f"unit 'clip' needs columns with the roles series and order; missing: {', '.join(lacking)}"
            )
        series, order = self.encoded("series"), self.encoded("order")
        problems = [f"{name_rows(np.flatnonzero(series < 0))}: no series"] if (series < 0).any() else []
        varying = {"image", "mask", "order", "slice_position", "time"}
        for role in sorted(set(self.roles) - varying):
            codes = pd.factorize(self.values(role), use_na_sentinel=False)[0]
            first = pd.Series(codes).groupby(series).transform("first").to_numpy()
            if (codes != first).any():
                rows = np.flatnonzero(codes != first)
                problems.append(
                    f"{name_rows(rows)}: {role} ({self.roles[role]!r}) differs from the start of its series"
                )
        if problems:
            raise CohortError("a column must be constant within a series", problems)
        ranked = np.lexsort((order, series))
        starts = np.flatnonzero(np.r_[True, np.diff(series[ranked]) != 0])
        ends = np.r_[starts[1:], len(ranked)]
        return Samples(unit, self, ranked[starts], lambda position: ranked[starts[position] : ends[position]])

    def _violations(self) -> list[str]:
        found = []
        for role in self.roles:
            if not is_role(role):
                name = role.partition(":")[2] or "NAME"
                near = [known.replace("NAME", name) for known in known_roles()]
                found.append(f"role {role!r}: unknown; {suggest(role, near)}")
        for role, column in self.roles.items():
            if column not in self.table.columns:
                found.append(f"role {role!r}: no column {column!r}; {suggest(column, map(str, self.table.columns))}")
        found += [
            f"no column has the role {role!r}; name it with --role {role}=COLUMN"
            for role in ("image", "patient")
            if role not in self.roles
        ]
        for key in self.spec.missing:
            if key != "*" and key not in self.table.columns and key not in self.roles:
                found.append(f"missing: no column or role {key!r}; {suggest(key, map(str, self.table.columns))}")
        if found:
            return found
        if not len(self.table):
            return ["the table has no rows"]
        for role in ("image", "patient"):
            absent = self.values(role).isna().to_numpy()
            if absent.any():
                found.append(f"{name_rows(np.flatnonzero(absent))}: no {role} (column {self.roles[role]!r})")
        for role in self.roles:
            series = self.values(role)
            if role == "time":
                bad = _days(series)[1]
            elif is_number_role(role):
                bad = (pd.to_numeric(series, errors="coerce").isna() & series.notna()).to_numpy()
            else:
                continue
            if bad.any():
                example = str(series[bad].iloc[0])
                hint = f"; declare it with --missing {self.roles[role]}={example}" if len(set(series[bad])) == 1 else ""
                if role in self._inferred:
                    hint += f"; if it is something else, give it another role, such as attribute:{self.roles[role]}"
                expected = "number of days or a date like 2024-01-31" if role == "time" else "number"
                column = f"{role} (column {self.roles[role]!r})"
                found.append(f"{name_rows(np.flatnonzero(bad))}: {column} is not a {expected}, found {example!r}{hint}")
        shared = self._shared_file
        if shared.any():
            if "order" not in self.roles:
                rows = np.flatnonzero(shared)
                found.append(f"{name_rows(rows)}: one image file on several rows, and no column has the role order")
            else:
                keys = pd.DataFrame({"image": self.table[self.roles["image"]], "order": self.values("order")})
                twice = (keys.duplicated(keep="first") | (keys["order"].isna() & shared)).to_numpy()
                if twice.any():
                    found.append(f"{name_rows(np.flatnonzero(twice))}: the same image and frame as an earlier row")
        if not found and "split" in self.roles:
            try:
                _ = self.split
            except CohortError as error:
                found += error.violations or (str(error),)
        return found


def read_table(path: Path) -> pd.DataFrame:
    """A CSV, TSV or Parquet file; text columns stay text, so that `00012` keeps its zeros.

    Raises:
        CohortError: the file is absent, not UTF-8, its rows do not have the same number of columns, or two columns have
            one name. Rows are named, never quoted.
    """
    if not path.is_file():
        raise CohortError(f"no such table: {path}")
    torn: list[int | None] = []

    def collect(row: Any) -> str:
        torn.append(row.number)
        return "skip"

    parse = pa_csv.ParseOptions(
        delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True, invalid_row_handler=collect
    )
    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            table = pa_parquet.ParquetFile(path).read()
        else:
            with path.open(encoding="utf-8-sig") as file:
                header = pd.read_csv(file, nrows=0, sep=parse.delimiter).columns
            convert = pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in header}, null_values=NULLS, strings_can_be_null=True
            )
            table = pa_csv.read_csv(path, parse_options=parse, convert_options=convert)
            if torn:  # rows are numbered by a single thread only
                torn.clear()
                alone = pa_csv.ReadOptions(use_threads=False)
                pa_csv.read_csv(path, read_options=alone, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CohortError(f"{path.name}: not a readable table: {error}") from error
    if torn:
        rows = name_rows(number - 2 for number in torn if number is not None)  # counted from 1, header included
        raise CohortError(
            f"{path.name}: expected {table.num_columns} values in each row, found another number in {rows}"
        )
    names = [name for name in table.column_names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CohortError(f"{path.name}: expected a name of its own for each column, found {twice[0]!r} twice")
    return table.select(names).to_pandas(ignore_metadata=True)  # type: ignore[no-any-return]


def infer_roles(columns: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Roles from conventional column names; a column that was given a role by hand is left alone.

    >>> infer_roles(["Image Index", "patient_id", "view", "shoe size"], set())
    {'image': 'Image Index', 'patient': 'patient_id', 'view_position': 'view'}
    """
    plain = {"".join(c for c in str(column).lower() if c.isalnum()): str(column) for column in columns}
    found = {}
    for role, names in CONVENTIONAL_NAMES.items():
        for name in names:
            if name in plain and plain[name] not in taken:
                found[role] = plain[name]
                break
    return found


def _strip(table: pd.DataFrame, columns: set[str]) -> pd.DataFrame:
    for name in columns & set(table.columns):
        if pd.api.types.is_string_dtype(table[name]):
            stripped = table[name].str.strip()
            table[name] = stripped.mask(stripped == "")
    return table


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_numeric(series: pd.Series[Any]) -> bool:
    known = series.dropna()
    return len(known) > 0 and bool(pd.to_numeric(known, errors="coerce").notna().all())


def _days(series: pd.Series[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Days, and which rows hold neither a number nor a date."""
    if not pd.api.types.is_datetime64_any_dtype(series):
        numbers = pd.to_numeric(series, errors="coerce")
        odd = (numbers.isna() & series.notna()).to_numpy(np.bool_)
        known = numbers.dropna()
        if len(known) == series.notna().sum() and len(known) and known.between(19000101, 21001231).all():
            series = numbers.astype("Int64")  # 20240131, a date as DICOM writes it, not fifty thousand years of days
        elif odd.sum() <= len(known):
            return numbers.to_numpy(np.float64, na_value=np.nan), odd
    dates = _dates(series.astype("string"))
    days = ((dates - dates.min()).dt.total_seconds() / 86400).to_numpy(np.float64)
    return np.asarray(days, np.float64), (dates.isna() & series.notna()).to_numpy(np.bool_)


def _dates(texts: pd.Series[Any]) -> pd.Series[Any]:
    """Dates; 01/02/2024 is one only if a single order of day and month fits all rows: never guessed row by row."""
    dates = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)
    known = texts.notna()
    if dates[known].notna().all():
        return dates
    orders = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y")
    tried = [pd.to_datetime(texts, errors="coerce", format=order, utc=True) for order in orders]
    fitting = [each for each in tried if each[known].notna().all()]
    if len(fitting) == 1:
        return fitting[0]
    month, day = (pd.to_datetime(texts, errors="coerce", format="mixed", utc=True, dayfirst=d) for d in (False, True))
    return month.where(month == day)
