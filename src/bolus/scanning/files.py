"""The files of a folder, and the piles of those that are left out."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bolus.data.images.sources import in_threads
from bolus.data.readers.readers import naming
from bolus.errors import BolusError, CohortError

LeftOut = defaultdict[str, list[Path]]
"""A reason, in words -> the files left out for it."""

ABSENT = "links that lead to no file (of git-annex or DataLad: get the files first)"
EMPTY = "empty files"
DAMAGED = "damaged files"
SYSTEM = "files of the operating system"
CLOSED = "folders that cannot be opened"
LINKS = "links to folders, which are not entered"
_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "icon\r"})


def walk(folder: Path) -> list[Path]:
    """All files below a folder, sorted, and among them the folders that are not entered though they may hold images.

    These are links to folders, and folders that cannot be opened; `leave_folders` tells them apart from files. Hidden
    folders such as `.git` are passed over.

    Raises:
        CohortError: the folder itself cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     (Path(name) / ".git").mkdir()
        ...     for each in ("b.png", "a.png", ".git/config"): Path(name, each).touch()
        ...     [path.name for path in walk(Path(name))]
        ['a.png', 'b.png']
    """
    found: list[Path] = []

    def note(error: OSError) -> None:
        if error.filename is None or Path(error.filename) == folder:
            raise CohortError(
                f"expected a folder that can be opened, found one that cannot: {error.strerror}"
            ) from None
        found.append(Path(error.filename))

    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [Path(parent, name) for name in names]
        found += [path for name in folders if (path := Path(parent, name)).is_symlink()]
    return sorted(found)


def leave_folders(paths: Sequence[Path], left_out: LeftOut) -> list[Path]:
    """The files among what `walk` found; the folders are left out.

    >>> left_out = LeftOut(list)
    >>> [path.name for path in leave_folders([Path("a.png"), Path()], left_out)], list(left_out)
    (['a.png'], ['folders that cannot be opened'])
    """
    files = []
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112 - Path takes several times as long
            left_out[LINKS if path.is_symlink() else CLOSED].append(path)
        else:
            files.append(path)
    return files


def is_system(path: Path) -> bool:
    """Whether the operating system or a version control left the file there.

    >>> is_system(Path("a/.DS_Store")), is_system(Path("Thumbs.db")), is_system(Path("a.png"))
    (True, True, False)
    """
    return path.name.startswith(".") or path.name.lower() in _SYSTEM


def kinds_of(paths: Sequence[Path], left_out: LeftOut) -> dict[Path, str]:
    """What each file is by its first bytes: `DICOM`, `NIfTI`, `PNG`, `JPEG`, `TIFF`, `BMP` or `video`.

    Args:
        paths: of files.
        left_out: takes those that are empty, cannot be opened or are none of these.
    """
    found: dict[Path, str] = {}
    for path, (kind, reason) in zip(paths, in_threads(_kind_of, paths), strict=True):
        if reason:
            left_out[reason].append(path)
        else:
            found[path] = kind
    return found


def _kind_of(path: Path) -> tuple[str, str]:
    """The kind of a file, or why it has none."""
    try:
        if not path.is_file():
            return "", ABSENT
        if not path.stat().st_size:
            return "", EMPTY
        with naming(path) as kind:
            return kind, ""
    except OSError as error:
        return "", f"files that cannot be opened: {error.strerror}"
    except BolusError as error:
        damaged = "damaged" in str(error).removeprefix(path.name)
        return "", DAMAGED if damaged else "files that are no image"
