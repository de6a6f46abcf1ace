"""Cells that a spreadsheet would run as formulas: guarded by an apostrophe where tables are written, and read without.

As OWASP describes CSV injection (https://owasp.org/www-community/attacks/CSV_Injection): a cell that begins with =, +,
-, @, a tab or the end of a line is a formula to a spreadsheet, whether it stands in quotes or not. Numbers stay.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_STARTS = "[=+\\-@\t\r\n\x00\uff1d\uff0b\uff0d\uff20]"  # and the wide forms, which some spreadsheets take for the same
_FORMULA = re.compile(f"'*{_STARTS}")
_GUARDED = f"^'+{_STARTS}"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def guard(text: str) -> str:
    """The text, with an apostrophe before what a spreadsheet would run, or what would lose one when it is read.

    >>> [guard(each) for each in ("=1+1", "-x", "-1.5", "+3e5", "a=b", "'=1", "'tis")]
    ["'=1+1", "'-x", '-1.5', '+3e5', 'a=b', "''=1", "'tis"]
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def unguard(text: str) -> str:
    """The text that `guard` was given.

    >>> [unguard(guard(each)) for each in ("=1+1", "-1.5", "'=1", "'tis")]
    ['=1+1', '-1.5', "'=1", "'tis"]
    """
    return text[1:] if re.match(_GUARDED, text) else text


def unguard_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same of every text of a column, fast where nothing is guarded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    guarded = pc.starts_with(column, "'")
    if not pc.any(guarded).as_py():
        return column
    return pa.chunked_array([[None if each is None else unguard(each) for each in column.to_pylist()]], column.type)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a table that a spreadsheet may open: no cell and no name of a column is a formula; no index.

    Where a text holds a semicolon or a tab, which separate cells in some countries, or a return, all texts stand in
    quotes.
    """
    frame = frame.rename(columns=lambda name: guard(str(name)))
    torn = any(_torn(name) for name in frame.columns)
    for place, name in enumerate(frame.columns):
        if _is_text(frame.iloc[:, place]):
            texts = frame.iloc[:, place].map(lambda each: guard(each) if isinstance(each, str) else each)
            torn = torn or any(_torn(each) for each in texts.dropna().unique())
            frame = frame.assign(**{name: texts})
    frame.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC if torn else csv.QUOTE_MINIMAL)


def _is_text(column: pd.Series[Any]) -> bool:
    from pandas.api.types import is_object_dtype, is_string_dtype

    return is_object_dtype(column) or is_string_dtype(column) or column.dtype == "category"


def _torn(value: object) -> bool:
    return isinstance(value, str) and any(separator in value for separator in ";\t\r")
