"""A table file becomes a frame of text, and its text becomes numbers and days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from bolus.errors import CohortError, name_rows

NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>"]


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


def strip_text(table: pd.DataFrame, columns: set[str]) -> pd.DataFrame:
    """These columns without space around their text; blank text is missing."""
    for name in columns & set(table.columns):
        if pd.api.types.is_string_dtype(table[name]):
            stripped = table[name].str.strip()
            table[name] = stripped.mask(stripped == "")
    return table


def shape_of(text: str) -> str:
    """A value's shape, which can be shown where the value itself may name a patient.

    >>> shape_of("sub-p017_ses-1")
    'aaa-a999_aaa-9'
    """
    return "".join("9" if c.isdigit() else "a" if c.isalpha() else c for c in text[:40])


def as_number(text: str) -> float | None:
    """The number that a text is, or None.

    >>> as_number("-99"), as_number("todo")
    (-99.0, None)
    """
    try:
        return float(text)
    except ValueError:
        return None


def is_numeric(series: pd.Series[Any]) -> bool:
    """Whether there are values and all of them are numbers.

    >>> is_numeric(pd.Series(["61", None])), is_numeric(pd.Series(["61", "old"])), is_numeric(pd.Series([None]))
    (True, False, False)
    """
    known = series.dropna()
    return len(known) > 0 and bool(pd.to_numeric(known, errors="coerce").notna().all())


def to_days(series: pd.Series[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
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
