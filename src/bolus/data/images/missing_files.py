"""Why image files are not there: what a table's paths have wrong and how to mend it, without naming one of them.

A path is looked for under the spellings and folders that tables often get wrong; whatever finds it is a mend. A folder
for --root is named, unless it may be called after a patient.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bolus.data.images.file_names import EXTENSIONS, Folders, Mend, exists
from bolus.data.text.spelling import shape_of

LOOKED_AT = 200  # missing files at most
QUOTES = Mend("without quotation marks around them", "take the quotation marks out of the table")
BACKSLASHES = Mend("with / in place of the backslashes of Windows", "write / in the paths of the table")
CURRENT = Mend("from the current folder", 'add --root "$PWD"')
ONE_BELOW = Mend("in one subfolder", "give the full path of that subfolder with --root")
BELOW = Mend("in subfolders that the paths lack", "write the subfolder into each path of the table")
_QUOTED = re.compile(r"""(["'])(?P<plain>.+)\1|[“„](?P<curly>.+)[“”]""")
_DRIVE = re.compile(r"[A-Za-z]:/?|//[^/]+/[^/]+/?")  # C:/ or a network share, backslashes already turned


class _Plain(NamedTuple):
    """A path as it should have been written: what was mended for that, its parts, and `drive`, `/` or nothing."""

    mends: tuple[Mend, ...]
    parts: tuple[str, ...]
    start: str


def likely_cause(
    paths: Sequence[Path], root: Path, patients: npt.ArrayLike | None = None, *, suffixes: Iterable[str] = ()
) -> str:
    """What most of the missing files are found with and what to do, in one sentence that names no file.

    Of folders that --root takes, those above the root are named, and one below it where it holds files of two patients
    or more: another one may be called after its patient.

    Args:
        paths: of image files; those that exist after all are left aside.
        root: the folder that the table's paths are relative to.
        patients: `[paths]`, whose each is, as any codes; None where that is not known.
        suffixes: of files for which there are readers of one's own.

    Returns:
        The sentence, without a capital letter and a full stop; empty where no cause is seen.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "a.PNG").touch()
    ...     likely_cause([Path(folder) / "a.png"], Path(folder))
    'it is found with the extension .PNG in place of .png: write the extension as the files have it'
    """
    whose = dict(zip(paths, np.zeros(len(paths)) if patients is None else np.asarray(patients), strict=True))
    distinct = list(whose)
    sample = distinct[:: -(-len(distinct) // LOOKED_AT)] if distinct else []
    absent = [path for path in sample if not exists(path)]
    texts = [_as_written(path, root) for path in absent]
    if not texts:
        return ""
    if not root.is_dir():
        return "the folder that the paths are relative to does not exist: give one that does with --root"
    sampled, plain = len(sample) < len(distinct), [_plain(text) for text in texts]
    found = _find_each(plain, root.resolve(), [whose[path] for path in absent], suffixes)
    if not found:
        return _by_look(plain, sampled)
    mends, number = Counter(found).most_common(1)[0]
    ways = dict.fromkeys(mend.way_out for mend in mends)
    how, ways_out = _joined(mend.found for mend in mends), _joined(ways)
    return f"{_share(number, len(texts), sampled)} {'is' if number == 1 else 'are'} found {how}: {ways_out}"


def where_sought(text: str, root: Path) -> str:
    """Where a file of the table was looked for: the folder, and the shape of the path in it, which may name a patient.

    Args:
        text: the path as the table has it.
        root: the folder that the table's paths are relative to.

    >>> where_sought("P017/ct_1.png", Path("/data"))
    '/data/a999/aa_9.aaa (a for letters, 9 for digits)'
    """
    shape = shape_of(text)
    tried = shape if Path(text).is_absolute() else f"{root.resolve()}/{shape}"
    return f"{tried}{'...' if len(text) > len(shape) else ''} (a for letters, 9 for digits)"


def _find_each(
    paths: Sequence[_Plain], root: Path, patients: Sequence[object], suffixes: Iterable[str]
) -> list[tuple[Mend, ...]]:
    """The mends of each path that is found with any."""
    own = sorted((each for each in suffixes if each.startswith(".")), key=len, reverse=True)
    folders = Folders((*own, *EXTENSIONS))
    found: list[tuple[Mend, ...]] = []
    homes: list[tuple[Path, tuple[Mend, ...], object]] = []
    for path, patient in zip(paths, patients, strict=True):
        mends = _find(path, folders, root)
        if mends:
            found.append(mends)
        elif mends is None and path.parts and not path.start:
            home = folders.home_of(root, path.parts)
            homes += [(home, path.mends, patient)] if home is not None else []
    if homes:
        most, number = Counter(home for home, _, _ in homes).most_common(1)[0]
        one = number > len(homes) / 2
        several = len({patient for home, _, patient in homes if home == most}) > 1
        below = ONE_BELOW._replace(way_out=_add_root(most)) if several else ONE_BELOW
        found += [(*mends, below if one and home == most else BELOW) for home, mends, _ in homes]
    return found


def _add_root(folder: Path) -> str:
    return f"add --root {shlex.quote(str(folder))}"


def _find(path: _Plain, folders: Folders, root: Path) -> tuple[Mend, ...] | None:
    """What one path is found with; None where it is not."""
    mends, parts, start = path
    if start == "/" and exists(Path("/", *parts)):
        return mends
    if not start:
        found = folders.find(root, parts)
        if found is not None:
            return (*mends, *found)
        if exists(Path.cwd().joinpath(*parts)):
            return (*mends, CURRENT)
        for folder, where in ((root.parent, "the folder above"), (root.parent.parent, "the folder two above")):
            if exists(folder.joinpath(*parts)):
                return (*mends, Mend(f"from {where}", _add_root(folder)))
    for number in range(0 if start else 1, len(parts)):
        found = folders.find(root, parts[number:])
        if found is not None:
            return (*mends, _without(start, number), *found)
    return None


def _without(start: str, number: int) -> Mend:
    """Found relative to the root once the drive and the first folders are left out."""
    what = {"drive": ["the drive"], "/": ["the leading /"], "": []}[start]
    what += [] if not number else ["the first folder" if number == 1 else f"the first {number} folders"]
    text = " and ".join(what)
    return Mend(f"without {text} of the paths", f"leave {text} out in the table")


def _by_look(paths: Sequence[_Plain], sampled: bool) -> str:
    """What can be said of paths that are found in no way: nothing, but for those of another computer."""
    elsewhere = "not on this computer: write the paths relative to one folder here, and name it with --root"
    with_slash = "and not there with / either: write / in the table, and name the folder that is theirs with --root"
    looks: list[tuple[Callable[[_Plain], bool], str]] = [
        (lambda path: path.start == "drive", f"on a drive or network share of Windows, {elsewhere}"),
        (lambda path: path.start == "/" and not _has_folder(path), f"at a full path whose folder is {elsewhere}"),
        (lambda path: BACKSLASHES in path.mends, f"written with the backslashes of Windows, {with_slash}"),
    ]
    for shows, what in looks:
        number = sum(map(shows, paths))
        if number >= len(paths) / 2:
            return f"{_share(number, len(paths), sampled)} {'is' if number == 1 else 'are'} {what}"
    return ""


def _has_folder(path: _Plain) -> bool:
    return exists(Path("/", *path.parts).parent)


def _share(number: int, total: int, sampled: bool) -> str:
    """So many of the missing files, or of those that were looked at."""
    looked_at = " that were looked at" if sampled else ""
    if number < total:
        return f"{number} of {total}{looked_at}"
    return f"all {total}{looked_at}" if sampled else "it" if total == 1 else "all"


def _joined(words: Iterable[str]) -> str:
    """Words with commas, and the last one with `and`."""
    *first, last = words
    return f"{', '.join(first)}, and {last}" if first else last


def _plain(text: str) -> _Plain:
    mends = []
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        text = (quoted["plain"] or quoted["curly"]).strip()
        mends.append(QUOTES)
    if "\\" in text:
        text = text.replace("\\", "/")
        mends.append(BACKSLASHES)
    drive, start = _DRIVE.match(text), "/" if text.startswith("/") else ""
    if drive is not None:
        text, start = text[drive.end() :], "drive"
    return _Plain(tuple(mends), tuple(part for part in PurePosixPath(text).parts if part != "/"), start)


def _as_written(path: Path, root: Path) -> str:
    """The path as the table has it: relative to the root where it begins there."""
    for folder in (root, root.resolve()):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.as_posix()
