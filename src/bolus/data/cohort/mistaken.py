"""What is given in place of a table: a folder, a DICOMDIR or an image; its first bytes say which."""

from __future__ import annotations

import gzip
import os
import zlib
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from bolus.errors import CohortError

TABLES = (".csv", ".tsv", ".parquet", ".pq")
ENTRIES = 10_000  # of a folder that are looked at
NAMED = 3  # tables of a folder that are named, where there are no more
WAY_OUT = (
    "make a table: one row an image, a column image with the path of its file, a column patient, and a column for "
    "whatever else is known, such as visit, date or a label"
)
_DIRECTORY = b"1.2.840.10008.1.3.10"  # the SOP class of a DICOMDIR
_STARTS = {
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"NRRD": "an NRRD image",
    b"ObjectType": "a MetaImage",
    b"\x02\0": "a DICOM file",  # the two last ones without the preamble
    b"\x08\0": "a DICOM file",
}


def refuse_other_kinds(path: Path, expected: str = "a CSV, TSV or Parquet table or a cohort.yaml") -> None:
    """Nothing where the path may be a table; a CohortError where it is a folder, a DICOMDIR or an image.

    Args:
        path: of a folder or file, which need not exist; it is not named, since images and their folders are often
            called after their patient.
        expected: what it should have been.

    Raises:
        CohortError: what was expected, what was found, and how a table is made.

    Example:
        >>> refuse_other_kinds(Path("/"))
        Traceback (most recent call last):
        bolus.errors.CohortError: expected a CSV, TSV or Parquet table or a cohort.yaml, found a folder; ...
    """
    if path.is_dir():
        tables = _tables_in(path)
        held = ""
        if 0 < len(tables) <= NAMED:
            names = " and ".join(filter(None, (", ".join(tables[:-1]), tables[-1])))
            held = f"it holds {names}: give {'that file' if len(tables) == 1 else 'one of these files'}, or "
        raise CohortError(f"expected {expected}, found a folder; {held}{WAY_OUT}")
    found = _kind_of(path) if path.is_file() else None
    if found is not None:
        raise CohortError(f"expected {expected}, found {found}; {WAY_OUT}")


def near_file(path: Path) -> str:
    """A did-you-mean clause that names a table or cohort of nearly this name in the same folder; else nothing.

    Images are not named, since they are often called after their patient.
    """
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, ENTRIES)]
    except OSError:
        return ""
    near = get_close_matches(
        path.name, [name for name in names if name.lower().endswith((*TABLES, ".yaml", ".yml"))], 1
    )
    return f"; did you mean {near[0]!r}?" if near else ""


def _tables_in(folder: Path) -> list[str]:
    """Names of tables and cohorts that lie in the folder itself."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, ENTRIES)]
    except OSError:
        return []
    return sorted(name for name in names if name.lower() == "cohort.yaml" or name.lower().endswith(TABLES))


def _kind_of(path: Path) -> str | None:
    """A DICOMDIR or an image; None where the file is neither."""
    with path.open("rb") as file:
        head = file.read(1024)
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as packed:
                head = packed.read(352)
        except (OSError, EOFError, zlib.error):  # whoever reads the table says what is wrong with it
            return None
        return "a NIfTI image" if _is_nifti(head) else None
    if head[128:132] == b"DICM":
        return "a DICOMDIR, the index of a folder of DICOM files" if _DIRECTORY in head else "a DICOM file"
    if _is_nifti(head):
        return "a NIfTI image"
    return next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)


def _is_nifti(head: bytes) -> bool:
    return head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")
