"""The cohort: a table of images with the role of each column, validated all at once; one row is one image or frame.

Opening a cohort touches the table only, never an image, so that a million rows open in seconds. Every value that a
relation, an objective or an evaluation sees comes from `Cohort.values`, where each has one spelling and missing codes
have become missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bolus.data.cleaning import clean_values
from bolus.data.dates import to_days
from bolus.data.identifiers import identifier_text
from bolus.data.roles import DEFAULT_MODALITY, binned_role, infer_roles, is_number_role, is_role
from bolus.data.samples import Samples, take_samples
from bolus.data.split import leave_site_out, split_digest, split_patients
from bolus.data.table import read_table, strip_text
from bolus.data.violations import find_violations
from bolus.data.volumes import slice_positions, volume_codes
from bolus.errors import CohortError, UsageError, suggest


class SplitSpec(BaseModel):
    """Shares of the patients in validation and test; a patient's side is a hash of (seed, patient).

    With `leave_out_site`, all patients of that site are the test, whole, and `test` is not looked at; of the others
    the share `val` is in validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    val: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    leave_out_site: str | None = None

    @field_validator("leave_out_site", mode="before")
    @classmethod
    def _site_as_text(cls, site: Any) -> Any:
        number = isinstance(site, (int, float)) and not isinstance(site, bool)
        return identifier_text(site) if number else site  # YAML reads the site 3 as a number

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> SplitSpec:
        if self.leave_out_site is None and self.val + self.test >= 1:
            raise ValueError(f"val {self.val:g} and test {self.test:g} leave no patient to train on")
        return self


class CohortSpec(BaseModel):
    """cohort.yaml: the table, what its columns are, and how missing values are written.

    `ranges` maps a modality to the values shown as black and white, and wins over everything that a file says.
    `cohort_ranges` is what `bolus check` found to cover the images whose range is the cohort's, so that it stays as it
    is when images are added. Patients of two cohorts with one `namespace` and one identifier are the same person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    table: str
    root: str | None = None  # folder that image paths are relative to; the table's folder where absent
    roles: dict[str, str] = {}
    units: dict[str, str] = {}  # role -> unit of its numbers; that of time may be days, weeks, months, years ...
    missing: dict[str, list[Any]] = {}  # column -> values that mean missing; "*" holds for every column
    split: SplitSpec = SplitSpec()
    ranges: dict[str, tuple[float, float]] = {}
    cohort_ranges: dict[str, tuple[float, float]] = {}
    namespace: str = ""

    @field_validator("ranges", "cohort_ranges")
    @classmethod
    def _black_below_white(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{name}: expected finite values for black and white, black below white, found "
                                 f"{low:g} and {high:g}")  # fmt: skip
        return ranges


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
        self.inferred = set(inferred) - set(spec.roles)  # roles that a column has for its name
        self.roles = {**inferred, **spec.roles}
        self.table = strip_text(table.reset_index(drop=True), set(self.roles.values()))
        self.spec = spec.model_copy(update={"roles": self.roles})
        self.folder = folder
        self._made: frozenset[str] = frozenset()  # roles whose columns `expand` made: no code there means missing
        self._values: dict[str, pd.Series[Any]] = {}
        self._encoded: dict[str, npt.NDArray[Any]] = {}
        self.expanded: Cohort | None = None  # with a row a frame, once `bolus.data.clips.open_samples` has made it
        violations = find_violations(self)
        if violations:
            raise CohortError(f"{spec.table}: {len(violations)} problem(s) in the cohort", violations)

    @classmethod
    def open(
        cls,
        source: str | Path | Cohort,
        *,
        roles: Mapping[str, str] | None = None,
        missing: Mapping[str, list[Any]] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        **overrides: Any,
    ) -> Cohort:
        """Open a cohort.yaml, or a bare CSV, TSV or Parquet table with `roles` (role -> column).

        `roles`, `missing`, `ranges` and `split` are added to what the file says, key by key; other keywords replace it.

        Raises:
            CohortError: as the class says; also a file that is absent or does not parse.
            UsageError: an unknown keyword.
        """
        if isinstance(source, Cohort):
            if roles or missing or ranges or any(value is not None for value in overrides.values()):
                raise UsageError("an open cohort takes no roles, missing codes or other keys; open its table with them")
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
        merged = {"roles": roles, "missing": missing, "ranges": ranges, "split": overrides.pop("split", None)}
        data.update({key: value for key, value in overrides.items() if value is not None})
        for key, given in merged.items():
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

    def has(self, role: str) -> bool:
        """Whether a recipe can ask for the role: a column has it, order gives it (slice_position), or bins cut it."""
        cut = binned_role(role)
        if cut is not None:
            return is_role(role) and self.has(cut)
        return role in self.roles or (role == "slice_position" and "order" in self.roles)

    def values(self, role: str) -> pd.Series[Any]:
        """The role's column with each value in one spelling, and missing where it means so: `bolus.data.cleaning`.

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

        Times given as dates become days since the earliest one. An attribute is numeric where all its values are. Where
        no column has slice_position, it is a row's place by order in its volume: `bolus.data.volumes`.
        """
        if role not in self._encoded and role not in self.roles and role == "slice_position" and self.has(role):
            self._encoded[role] = slice_positions(volume_codes(self)[0], self.encoded("order"))
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
    def split(self) -> npt.NDArray[np.str_]:
        """`train`, `val` or `test` for each row, disjoint in patients: a site left out, the fixed column, or a hash."""
        spec = self.spec.split
        if spec.leave_out_site is not None:
            if "site" not in self.roles:
                raise CohortError(f"split.leave_out_site is {spec.leave_out_site!r}, but no column has the role site")
            if "split" in self.roles:
                raise CohortError(
                    f"split.leave_out_site and the fixed split of column {self.roles['split']!r} exclude each other; "
                    "leave out the site, or give the column another role, such as attribute:split"
                )
            return leave_site_out(
                self.patients, self.values("site"), site=spec.leave_out_site, seed=spec.seed, val=spec.val
            )
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
        if not self.shared_file[row]:
            return None
        return int(self.encoded("order")[row])

    @cached_property
    def shared_file(self) -> npt.NDArray[np.bool_]:
        """Whether the row's file stands on other rows too, `[rows]`: then each has a frame of it."""
        return self.table[self.roles["image"]].duplicated(keep=False).to_numpy()

    @cached_property
    def origin(self) -> npt.NDArray[np.int64]:
        """The row of the table as given that each row is or came from, `[rows]`: what a person is shown."""
        return np.arange(len(self), dtype=np.int64)

    def expand(self, counts: npt.NDArray[np.int64]) -> Cohort:
        """Files with several frames as clips: a row a frame, the row's columns repeated, nothing written.

        The rows of a file are a `series` and its frames 0, 1, ... their `order`, in place of columns that had these
        roles and whatever codes mean missing elsewhere; split, patients and `spec` are those
        of this cohort, and `origin` leads back to it. A file with one frame stands on one row.

        Args:
            counts: int64 `[rows]`, how many frames each row's file has, at least 1.

        Example:
            >>> frame = pd.DataFrame({"image": ["a.mp4", "b.mp4"], "patient": ["p", "q"]})
            >>> clips = Cohort(frame, CohortSpec(table="t.csv")).expand(np.array([2, 1]))
            >>> clips.origin.tolist(), [clips.frame(row) for row in range(3)]
            ([0, 0, 1], [0, 1, None])
        """
        assert len(counts) == len(self)
        assert (counts >= 1).all()
        here = np.repeat(np.arange(len(self), dtype=np.int64), counts)
        numbers = np.arange(len(here)) - np.repeat(np.cumsum(counts) - counts, counts)
        table = self.table.iloc[here].reset_index(drop=True)
        names = {role: f"{role} of the clip" for role in ("series", "order")}
        while set(names.values()) & set(map(str, table.columns)):
            names = {role: f"{name}'" for role, name in names.items()}
        table[names["series"]], table[names["order"]] = here, numbers
        clips = copy(self)
        for stale in ("split", "split_hash", "origin", "modality", "shared_file"):
            clips.__dict__.pop(stale, None)
        clips.table, clips.roles, clips.expanded = table, {**self.roles, **names}, None
        clips._values, clips._encoded = self.take_values(here), {}
        clips._made = frozenset(names)
        clips.split, clips.split_hash, clips.origin = self.split[here], self.split_hash, self.origin[here]
        return clips

    def samples(self, unit: str) -> Samples:
        """The cohort as images, slices or clips: see `bolus.data.samples.take_samples`, which says what it raises."""
        return take_samples(self, unit)
