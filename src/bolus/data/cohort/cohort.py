"""The cohort: a table of images with the role of each column, validated all at once; one row is one image or frame.

Opening a cohort touches the table only, never an image, so that a million rows open in seconds. Every value that a
relation, an objective or an evaluation sees comes from `Cohort.values`, where each has one spelling and missing codes
have become missing. Batches, embeddings and evaluations index its `Samples`: images, slices, clips or volumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from pydantic import ValidationError

from bolus.data.cohort.coding import Coded, Columns, Held, release_unused
from bolus.data.cohort.mistaken import near_file, refuse_other_kinds
from bolus.data.cohort.series import Rows, place_of_slices, series_problems, volume_problems
from bolus.data.cohort.spec import CohortSpec, explain
from bolus.data.cohort.split import SPLIT, code_sides, code_site_out, digest_codes, hash_patients, name_sides
from bolus.data.cohort.table import IN_MEMORY, arrow_of, read_arrow
from bolus.data.cohort.values import Values
from bolus.data.cohort.violations import find_violations
from bolus.data.cohort.volumes import slice_positions, volume_codes
from bolus.errors import CohortError, LeakageError, UsageError, name_rows, suggest, yaml_problem
from bolus.files import load_yaml, write_text

CohortLike: TypeAlias = "str | Path | pd.DataFrame | Cohort"
"""What a cohort is opened from: a cohort.yaml, a table or DataFrame with conventional column names, or an open one."""

HASHED = 1_000_000  # rows at a time


class Cohort(Values):
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

    def __init__(self, table: pd.DataFrame | Columns, spec: CohortSpec, folder: Path = Path()) -> None:
        super().__init__(table, spec)
        self.folder = folder
        self.expanded: Cohort | None = (
            None  # with a row a frame, once `bolus.data.images.clips.open_samples` has made it
        )
        violations, way_out = find_violations(self), ""
        if not violations and ("split" in self.roles or spec.split.leave_out_site is not None):
            try:
                _ = self.split_codes
            except CohortError as error:
                violations = list(error.violations or (str(error),))
                if isinstance(error, LeakageError):
                    way_out = "; give all rows of a patient one side, or the column another role, as attribute:split"
        if violations:
            raise CohortError(f"{spec.table}: {len(violations)} problem(s) in the cohort{way_out}", violations)

    @classmethod
    def open(
        cls,
        source: CohortLike,
        *,
        roles: Mapping[str, str] | None = None,
        missing: Mapping[str, list[Any]] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        **overrides: Any,
    ) -> Cohort:
        """Open a cohort.yaml, or a CSV, TSV or Parquet table or a DataFrame with `roles` (role -> column).

        Image paths of a DataFrame are relative to `root`, or to the working folder. `roles`, `missing`, `ranges` and
        `split` are added to what the file says, key by key; other keywords replace it.

        Raises:
            CohortError: as the class says; also a file that is absent or does not parse, and a folder or an image.
            UsageError: an unknown keyword, or one of another kind.
        """
        if isinstance(source, Cohort):
            if roles or missing or ranges or any(value is not None for value in overrides.values()):
                raise UsageError("an open cohort takes no roles, missing codes or other keys; open its table with them")
            return source
        kept: object = source
        if not isinstance(kept, str | Path | pd.DataFrame):
            kind = type(kept).__name__
            raise UsageError(f"expected a cohort.yaml, a table, a DataFrame or an open Cohort, found {kind}")
        frame = source if isinstance(source, pd.DataFrame) else None
        path = Path(IN_MEMORY) if isinstance(source, pd.DataFrame) else Path(source)
        if frame is None:
            refuse_other_kinds(path)
            if not path.is_file():
                raise CohortError(f"no such cohort or table: {path}{near_file(path)}")
        data: dict[str, Any] = {"table": path.name}
        if path.suffix.lower() in {".yaml", ".yml"}:
            try:
                data = load_yaml(path.read_text(encoding="utf-8")) or {}
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise CohortError(f"{path.name}: not YAML: {yaml_problem(error)}") from error
            if not isinstance(data, dict):
                raise CohortError(f"{path.name}: expected a mapping of cohort keys, found {type(data).__name__}")
            if "objectives" in data and "table" not in data:
                raise CohortError(f"{path.name}: expected a cohort, found a recipe; give that with --recipe")
        unknown = set(overrides) - set(CohortSpec.model_fields)
        if unknown:
            raise UsageError(
                f"unknown cohort key {sorted(unknown)[0]!r}; {suggest(min(unknown), CohortSpec.model_fields)}"
            )
        merged = {"roles": roles, "missing": missing, "ranges": ranges, "split": overrides.pop("split", None)}
        data.update({key: value for key, value in overrides.items() if value is not None})
        for key, given in merged.items():
            if given is not None and not isinstance(given, Mapping):
                raise UsageError(f"{key}: expected a mapping, found {type(given).__name__}")
            stated = data.get(key) or {}
            data[key] = {**stated, **(given or {})} if isinstance(stated, dict) else stated
        try:
            spec = CohortSpec.model_validate(data)
        except ValidationError as error:
            raise CohortError(f"{path.name}: not a cohort", [explain(each) for each in error.errors()]) from None
        if frame is None and spec.table != path.name and not (path.parent / spec.table).exists():
            raise CohortError(f"{path.name}: no such table: {spec.table}; its key table says where the table lies")
        columns = Columns.of_arrow(read_arrow(path.parent / spec.table) if frame is None else arrow_of(frame))
        release_unused()
        return cls(columns, spec, path.parent)

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
        write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))

    def refuse_to_overwrite(self, path: Path) -> None:
        """Raise UsageError where a file that is to be written is the table itself."""
        if path.resolve() == (self.folder / self.spec.table).resolve():
            raise UsageError(f"{path.name} is the table, which is never written over; choose another file name")

    def __repr__(self) -> str:
        return f"Cohort({self.spec.table}: {len(self)} rows, {self.num_patients} patients)"

    @property
    def root(self) -> Path:
        """The folder that image paths are relative to."""
        table_folder = (self.folder / self.spec.table).parent
        return table_folder if self.spec.root is None else self.folder / self.spec.root

    def encoded(self, role: str) -> npt.NDArray[Any]:
        """As of `Values`; where no column has slice_position, a row's place by order in its volume.

        See `bolus.data.cohort.volumes`.
        """
        if role == "slice_position" and role not in self.roles and role not in self._encoded and self.has(role):
            self._encoded[role] = slice_positions(volume_codes(self)[0], self.encoded("order"))
        return self._encoded[role] if role in self._encoded else super().encoded(role)

    @cached_property
    def split(self) -> npt.NDArray[np.str_]:
        """`train`, `val` or `test` for each row, disjoint in patients: a site left out, the fixed column, or a hash."""
        return name_sides(self.split_codes)

    @cached_property
    def split_codes(self) -> npt.NDArray[np.int8]:
        """What `split` says, as places in `data.cohort.split.SPLIT`, int8 `[rows]`."""
        spec = self.spec.split
        if spec.leave_out_site is not None:
            if "site" not in self.roles:
                raise CohortError(f"split.leave_out_site is {spec.leave_out_site!r}, but no column has the role site")
            if "split" in self.roles:
                raise CohortError(
                    f"split.leave_out_site and the fixed split of column {self.roles['split']!r} exclude each other; "
                    "leave out the site, or give the column another role, such as attribute:split"
                )
            return code_site_out(
                self.coded_patients, self.coded("site"), site=spec.leave_out_site, seed=spec.seed, val=spec.val
            )
        fixed = self.coded("split") if "split" in self.roles else None
        return code_sides(self.coded_patients, seed=spec.seed, val=spec.val, test=spec.test, fixed=fixed)

    @cached_property
    def split_hash(self) -> str:
        """12 hexadecimal digits that name who is on which side."""
        return digest_codes(self.split_codes, SPLIT, self.coded_patients)

    @cached_property
    def rows_hash(self) -> str:
        """16 hexadecimal digits that name which image of whom stands on which row of the table as given."""
        digest, first = hashlib.blake2b(digest_size=8), np.unique(self.origin, return_index=True)[1]
        for start in range(0, len(first), HASHED):  # names of some rows at a time are text
            some = first[start : start + HASHED]
            named = self.columns.frame([self.roles["image"], self.roles["patient"]], some).astype("string")
            digest.update(pd.util.hash_pandas_object(named, index=False).to_numpy().tobytes())
        return digest.hexdigest()

    def hash_trained(self) -> dict[str, Any]:
        """Keyed hashes of the training patients, as `data.cohort.split.hash_patients` makes them."""
        return hash_patients(self.coded_patients.take(np.flatnonzero(self.on_side("train"))))

    def on_side(self, side: str) -> npt.NDArray[np.bool_]:
        """Rows of patients on one side of the split, bool `[rows]`."""
        return np.asarray(self.split_codes == SPLIT.index(side))

    def image_name(self, row: int) -> str:
        """The row's image as the table names it."""
        names = self.columns[self.roles["image"]]
        return str(names.value(row) if isinstance(names, Coded) else names.iloc[row])

    def image_path(self, row: int) -> Path:
        """Where the row's image lies; a relative path is relative to the root."""
        return self.root / self.image_name(row)

    def frame(self, row: int) -> int | None:
        """Frame or slice number within the row's file; None where a file stands on one row only."""
        if not self.shared_file[row]:
            return None
        return int(self.encoded_at("order", np.array([row]))[0])

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
        names = {role: f"{role} of the clip" for role in ("series", "order")}
        while set(names.values()) & set(map(str, self.columns)):
            names = {role: f"{name}'" for role, name in names.items()}
        made = {names["series"]: pd.Series(here), names["order"]: pd.Series(numbers)}
        clips = copy(self)
        of_rows = "split", "split_codes", "origin", "modality", "shared_file", "sides", "_row_starts"
        for stale in (*of_rows, "split_hash", "modalities", "times"):
            clips.__dict__.pop(stale, None)
        clips.columns, clips.roles = self.columns.take(here).with_columns(made), {**self.roles, **names}
        clips._spelled, clips._encoded, clips.expanded = self.take_spelled(here), {}, None
        clips._made = frozenset(names)
        clips.split_codes, clips.split_hash = self.split_codes[here], self.split_hash
        clips.origin = self.origin[here]
        return clips

    @cached_property
    def _row_starts(self) -> Rows:
        """Of samples that are a row each, kept since several may be open at a time."""
        return np.arange(len(self) + 1)

    def samples(self, unit: str) -> Samples:
        """The cohort as images, slices, clips or volumes.

        An image or slice is one row. A clip is the rows of one `series`, in their `order`; its first row speaks for
        its columns. So every column with a role must have one value within the series, or none, except for image,
        mask, order and slice_position, and for times less than a day apart. Numbers are compared as numbers: 1 is 1.0.
        `bolus.data.images.clips.open_samples` takes clip files as well.

        A volume is the rows of one volume as `bolus.data.cohort.volumes.volume_codes` tells them apart, in their
        `order` (or `slice_position`), under the same rule; or a single row, be it a file with a whole volume.

        Args:
            unit: `image`, `slice`, `clip` or `volume`.

        Raises:
            CohortError: slices without order or slice_position; as clips or volumes, whatever `series_problems` or
                `volume_problems` finds, all of it, with column and rows.
            UsageError: an unknown unit.
        """
        if unit in {"image", "slice"}:
            if unit == "slice" and not {"order", "slice_position"} & set(self.roles):
                raise CohortError(
                    "unit 'slice' needs a column with the role order or slice_position; "
                    "name it with --role order=COLUMN"
                )
            starts = self._row_starts
            return Samples(unit, self, starts[:-1], starts)
        if unit not in {"clip", "volume"}:
            raise UsageError(f"unknown unit {unit!r}; known: clip, image, slice, volume")
        if unit == "clip":
            _refuse("a clip is a series of rows", series_problems(self))
            codes, role = self.encoded("series"), "order"
        else:
            codes, role = volume_codes(self)[0], place_of_slices(self)
        ranked = np.lexsort([*([self.encoded(role)] if role else []), codes]).astype(np.int64)
        if unit == "volume":
            _refuse("a volume is slices", volume_problems(self, codes, ranked))
        starts = np.flatnonzero(np.r_[True, np.diff(codes[ranked]) != 0])
        return Samples(unit, self, ranked, np.r_[starts, len(ranked)].astype(np.int64))


def _refuse(what: str, problems: list[tuple[Rows, str]]) -> None:
    """A CohortError that lists the problems of rows, where there are some."""
    if problems:
        named = [f"{name_rows(rows)}: {problem}" if len(rows) else problem for rows, problem in problems]
        raise CohortError(f"{what} in order, whose columns are the same throughout", named)


@dataclass(frozen=True)
class Samples:
    """The elements that batches, embeddings and evaluations index, with the way back to rows.

    Args:
        unit: `image`, `slice`, `clip` or `volume`.
        cohort: the table whose rows these are; for clip files, the one with a row a frame.
        rows: int64 `[rows]`, those of sample 0 in order, then those of sample 1, and so on.
        starts: int64 `[n + 1]`, where in `rows` a sample begins, and the end; every sample has a row.
    """

    unit: str
    cohort: Cohort = field(repr=False)
    rows: Rows = field(repr=False)
    starts: Rows = field(repr=False)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def first_row(self) -> Rows:
        """The row that speaks for a sample's columns, int64 `[n]`."""
        alone = len(self) == len(self.rows)  # a row each, as of images: then nothing is copied
        return self.rows if alone else self.rows[self.starts[:-1]]

    def take(self, positions: Rows) -> Samples:
        """These samples.

        Args:
            positions: int64 `[m]`.
        """
        if self._each_row:
            return Samples(self.unit, self.cohort, positions, np.arange(len(positions) + 1))
        starts = np.append(0, np.cumsum(self.num_rows[positions]))
        onwards = np.arange(starts[-1]) + np.repeat(self.starts[positions] - starts[:-1], np.diff(starts))
        return Samples(self.unit, self.cohort, self.rows[onwards], starts)

    def first_of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What holds for each row `[rows]`, of the row that speaks for each sample: `[n]`, maybe the same array."""
        return values if self._each_row else np.asarray(values[self.first_row])

    @cached_property
    def _each_row(self) -> bool:
        """Whether the samples are the rows of the cohort, in order."""
        return len(self) == len(self.cohort) and bool((self.first_row == np.arange(len(self))).all())

    def on_side(self, side: str) -> npt.NDArray[np.bool_]:
        """Samples of patients on one side of the split, bool `[n]`."""
        return self.first_of(self.cohort.on_side(side))

    @property
    def num_rows(self) -> Rows:
        """How many rows each sample has, int64 `[n]`."""
        return np.diff(self.starts)

    def rows_of(self, position: int) -> Rows:
        """The rows of one sample, in order."""
        return self.rows[self.starts[position] : self.starts[position + 1]]

    def readable(self, rows_readable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Samples with at least one row that can be read, bool `[n]`.

        Args:
            rows_readable: bool, one for each row of the cohort.
        """
        if not len(self):
            return np.zeros(0, np.bool_)
        if self._each_row:
            return rows_readable.copy()
        return np.logical_or.reduceat(rows_readable[self.rows], self.starts[:-1])

    def held(self, role: str) -> Held | npt.NDArray[Any]:
        """A role, in little room where there is such; a clip has its first row's value.

        Raises:
            CohortError: no column has this role.
        """
        found = self.cohort.held(role)
        if not isinstance(found, Held):
            return self.first_of(found)
        return found if self._each_row else found.at(self.first_row)

    def columns(self, roles: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """Role -> `[n]`: int64 codes with -1 missing, or float64 with NaN missing; always with `sample`.

        A clip has its first row's values.
        """
        found: dict[str, npt.NDArray[Any]] = {"sample": np.arange(len(self), dtype=np.int64)}
        for role in roles:
            if role != "sample":
                found[role] = self.cohort.encoded_at(role, self.first_row)
        return found
