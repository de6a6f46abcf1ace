"""What separates the columns of a text table, and what is said where a file is no such table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bolus.errors import CohortError

TAB = "\t"
SEPARATORS = (",", ";", TAB, "|")
AS_UTF8 = "save it as UTF-8 (in Excel: CSV UTF-8), or convert it with iconv -f {encoding} -t UTF-8"
# First bytes of what is no UTF-8 text: what it is, and the way out.
OTHER_FILES = (
    (b"PK\x03\x04", "an Excel workbook or another zip file", "save its sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save its sheet as CSV UTF-8"),
    (b"PAR1", "a Parquet file", "rename it to end in .parquet"),
    (b"\x1f\x8b", "a file packed by gzip", "unpack it with gunzip"),
    (b"\xff\xfe", "UTF-16", AS_UTF8.format(encoding="UTF-16")),
    (b"\xfe\xff", "UTF-16", AS_UTF8.format(encoding="UTF-16")),
)
_STATED = re.compile(r'"?sep=([^\w\s"]|\t)"?\1*', re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """How a text table is written.

    Args:
        separator: the character between two columns.
        skipped: lines above the header, 0 or 1.
        header: names of the columns.
    """

    separator: str
    skipped: int
    header: tuple[str, ...]


def find_layout(path: Path) -> Layout:
    r"""Tabs in a .tsv and commas in any other, unless a first line such as `sep=;`, as Excel reads it, says what.

    The separator is never guessed: a header that another one would cut is an error.

    Raises:
        CohortError: a file of another kind, or one whose header is a single column that holds another separator.
        UnicodeDecodeError: a header that is not UTF-8.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "t.csv"
    ...     _ = path.write_text("sep=;\nimage;patient\na.png;p\n")
    ...     find_layout(path)
    Layout(separator=';', skipped=1, header=('image', 'patient'))
    """
    with path.open("rb") as raw:
        start = raw.read(1024)
    for first, what, way_out in OTHER_FILES:
        if start.startswith(first):
            raise CohortError(f"{path.name}: not a readable table: expected UTF-8 text, found {what}; {way_out}")
    if b"\0" in start:
        way_out = AS_UTF8.format(encoding="UTF-16BE" if start.startswith(b"\0") else "UTF-16LE")
        raise CohortError(
            f"{path.name}: not a readable table: expected UTF-8 text, found zero bytes, as of UTF-16; {way_out}"
        )
    separator, skipped = TAB if path.suffix.lower() == ".tsv" else ",", 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        stated = _STATED.fullmatch(file.readline(1024).rstrip("\r\n"))
        if stated is not None and stated[1].isascii():
            separator, skipped = stated[1], 1
        file.seek(0)
        header = tuple(map(str, pd.read_csv(file, nrows=0, sep=separator, skiprows=skipped).columns))
    layout = Layout(separator, skipped, header)
    if len(header) == 1:
        refuse_other_separator(path, layout)
    return layout


def refuse_other_separator(path: Path, layout: Layout) -> None:
    """A CohortError where another separator cuts the header into more columns; it says what to do.

    >>> refuse_other_separator(Path("t.csv"), Layout(",", 0, ("image;patient",)))
    Traceback (most recent call last):
    bolus.errors.CohortError: t.csv: the columns are separated by ';', expected ','; save the table with ',' between its
    columns, or write the line sep=; above its header
    """
    text = layout.separator.join(layout.header)
    found = max((each for each in SEPARATORS if each != layout.separator), key=text.count)
    if text.count(found) < len(layout.header):
        return
    expected = _name(layout.separator)
    if layout.skipped:
        way_out = f"its first line must be sep={' and a tab' if found == TAB else found}"
    else:
        way_out = f"save the table with {expected} between its columns, or "
        ending = {",": ".csv", TAB: ".tsv"}.get(found)
        way_out += f"rename it to end in {ending}" if ending else f"write the line sep={found} above its header"
    raise CohortError(f"{path.name}: the columns are separated by {_name(found)}, expected {expected}; {way_out}")


def find_other_encoding(path: Path) -> str | None:
    r"""What is said of a file that is not UTF-8, with the first line that is not; None where all of it is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "t.csv"
    ...     _ = path.write_text("image,patient\na.png,M\xfcller\n", encoding="latin-1")
    ...     find_other_encoding(path).partition(";")[0]
    'expected UTF-8 text, found another encoding, first on line 2 of the file'
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                found = f"expected UTF-8 text, found another encoding, first on line {number} of the file"
                return f"{found}; {AS_UTF8.format(encoding='WINDOWS-1252')}"
    return None


def _name(separator: str) -> str:
    return "tabs" if separator == TAB else f"'{separator}'"
