"""A table file becomes columns of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from bolus.data.cohort.mistaken import refuse_other_kinds
from bolus.data.text.delimiters import find_layout, find_other_encoding, refuse_other_separator
from bolus.data.text.formulas import unguard, unguard_column
from bolus.data.text.spelling import MISSING
from bolus.errors import CohortError, name_rows


def read_table(path: Path) -> pd.DataFrame:
    """A CSV, TSV or Parquet file as `read_arrow` reads it.

    Raises:
        CohortError: as that says.
    """
    return read_arrow(path).to_pandas(ignore_metadata=True)  # type: ignore[no-any-return]


def read_arrow(path: Path) -> pa.Table:
    """A CSV, TSV or Parquet file; text columns stay text, so that `00012` keeps its zeros.

    A first line such as `sep=;` says what separates the columns: `bolus.data.text.delimiters`. An apostrophe that keeps
    a spreadsheet from running a cell is no part of its value: `bolus.data.text.formulas`.

    Raises:
        CohortError: the file is absent, a folder, an image, not UTF-8, its columns are separated by something else, its
            rows do not have the same number of columns, or two columns have one name. Rows are named, never quoted.
    """
    refuse_other_kinds(path, "a CSV, TSV or Parquet table")
    if path.name == IN_MEMORY:
        raise CohortError("this cohort was a DataFrame, which is not kept: give the DataFrame, or a table on disk")
    if not path.is_file():
        raise CohortError(f"no such table: {path}")
    torn: list[int | None] = []

    def collect(row: Any) -> str:
        torn.append(row.number)
        return "skip"

    layout = None
    try:
        if path.suffix.lower() in {".parquet", ".pq"}:
            table = pa_parquet.ParquetFile(path).read()
        else:
            layout = find_layout(path)
            parse = pa_csv.ParseOptions(
                delimiter=layout.separator, newlines_in_values=_has_quotes(path), invalid_row_handler=collect
            )
            convert = pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in layout.header},
                null_values=MISSING,
                strings_can_be_null=True,
            )
            read = pa_csv.ReadOptions(skip_rows=layout.skipped)
            table = pa_csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)
            if torn:  # rows are numbered by a single thread only
                torn.clear()
                read.use_threads = False
                pa_csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        encoding = find_other_encoding(path) if path.suffix.lower() not in {".parquet", ".pq"} else None
        empty = isinstance(error, pd.errors.EmptyDataError)
        found = "expected a first line with the names of the columns, found an empty file" if empty else error
        raise CohortError(f"{path.name}: not a readable table: {encoding or found}") from error
    if layout is not None and torn:
        if not table.num_rows:
            refuse_other_separator(path, layout)
        above = 2 + layout.skipped  # lines are counted from 1, with the header and what stands above it
        rows = name_rows(number - above for number in torn if number is not None)
        raise CohortError(
            f"{path.name}: expected {table.num_columns} values in each row, found another number in {rows}"
        )
    names = [name for name in table.column_names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CohortError(f"{path.name}: expected a name of its own for each column, found {twice[0]!r} twice")
    table = table.select(names)
    if layout is not None:  # no Parquet file
        columns = [unguard_column(column) for column in table.columns]
        table = pa.Table.from_arrays(columns, names=[unguard(name) for name in names])
    return table


def _has_quotes(path: Path) -> bool:
    """Whether a cell of a CSV file could go on in the next line, for which Arrow looks at every letter once more."""
    with path.open("rb") as file:
        return any(b'"' in part for part in iter(lambda: file.read(2**22), b""))


IN_MEMORY = "(a DataFrame)"
"""Stands for the name of a table that is no file."""


def arrow_of(frame: pd.DataFrame) -> pa.Table:
    """A DataFrame as `read_arrow` gives the file it could have been written to as Parquet; its index is left out.

    Raises:
        CohortError: a column whose name is no text, or whose values are of several kinds; its values are not quoted.
            Bytes of a path that are no text become escapes, so that no file is found there.

    >>> arrow_of(pd.DataFrame({"patient": ["a", None]}, index=[7, 8])).column_names
    ['patient']
    """
    names = [name for name in frame.columns if not isinstance(name, str)]
    if names or frame.columns.has_duplicates:
        raise CohortError("a DataFrame: expected a name of its own for each column, as text")
    for name in frame.columns:
        try:
            pa.Array.from_pandas(frame[name])
        except UnicodeEncodeError:  # bytes of a file's name that are no text
            frame = frame.assign(**{name: frame[name].map(_as_text)})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise CohortError(f"a DataFrame: expected values of one kind in column {name!r}, found several") from error
    return pa.Table.from_pandas(frame, preserve_index=False)


def _as_text(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
