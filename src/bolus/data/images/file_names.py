"""Files that are spelled a little differently than they are asked for: case, extension, composed letters, subfolder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".dicom", ".ima", ".nii.gz", ".nii"),
    *(".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg"),
)
ENTRIES = 500_000  # names that are listed at most, in all folders together
SUBFOLDERS = 500  # folders below a root that are searched


class Mend(NamedTuple):
    """What files are found with, and what a person does for that; neither names a file or folder."""

    found: str
    way_out: str


LETTERS = Mend("with other capital and small letters", "spell the paths in the table as the files are spelled")


class Folders:
    """Folders that are listed once each, however many files are looked for in them.

    Args:
        extensions: in small letters, with their point, the longer before those that they end with.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "Scans").mkdir()
        ...     (Path(folder) / "Scans" / "a.tif").touch()
        ...     found = Folders().find(Path(folder), ["scans", "a"])
        >>> [mend.found for mend in found]
        ['with other capital and small letters', 'with the extension .tif added']
    """

    def __init__(self, extensions: Sequence[str] = EXTENSIONS) -> None:
        self.extensions = tuple(extensions)
        self._names: dict[Path, dict[str, bool]] = {}  # of a folder: name -> whether it is a folder
        self._alike: dict[Path, dict[str, str]] = {}  # of a folder: spelling without case -> name
        self._stems: dict[Path, dict[str, str]] = {}  # likewise of images, without extension
        self._below: dict[Path, list[Path]] = {}
        self._left = ENTRIES

    def find(self, folder: Path, parts: Sequence[str]) -> tuple[Mend, ...] | None:
        """What a file is found with, nothing where it is spelled rightly; None where it is not there.

        Args:
            folder: where the path begins.
            parts: of the path.
        """
        mends: list[Mend] = []
        for place, part in enumerate(parts):
            names = self._list(folder)
            name: str | None = part
            if part not in names and part not in (".", "..") and not exists(folder / part):
                name = self._spelled(folder, part, last=place == len(parts) - 1)
                if name is None:
                    return None
                mends += [mend for mend in _compare(part, name, self.extensions) if mend not in mends]
            folder = folder / str(name)
        return tuple(mends) if parts else None

    def home_of(self, root: Path, parts: Sequence[str]) -> Path | None:
        """The only folder below the root from which the path is there as it is spelled; None for none or several."""
        if root not in self._below:
            self._below[root] = self._search(root)
        homes = [folder for folder in self._below[root] if parts[0] in self._list(folder)]
        homes = [folder for folder in homes if len(parts) == 1 or exists(folder.joinpath(*parts))]
        return homes[0] if len(homes) == 1 else None

    def _search(self, root: Path) -> list[Path]:
        """Folders below the root, the upper ones first."""
        found: list[Path] = []
        waiting = [root]
        while waiting and len(found) < SUBFOLDERS:
            folder = waiting.pop(0)
            inner = sorted(folder / name for name, is_folder in self._list(folder).items() if is_folder)
            found += inner
            waiting += inner
        return found[:SUBFOLDERS]

    def _list(self, folder: Path) -> dict[str, bool]:
        if folder not in self._names:
            names: dict[str, bool] = {}
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if self._left <= 0:
                            break
                        self._left -= 1
                        names[entry.name] = entry.is_dir()
            except (OSError, ValueError):  # no folder, or one that may not be read
                names = {}
            self._names[folder] = names
        return self._names[folder]

    def _spelled(self, folder: Path, part: str, *, last: bool) -> str | None:
        """The name in the folder that differs from a part in case, in how letters are composed, or in extension."""
        if folder not in self._alike:
            names = self._list(folder)
            self._alike[folder] = {_key(name): name for name in names}
            self._stems[folder] = {
                _key(_split(name, self.extensions)[0]): name for name, is_folder in names.items() if not is_folder
            }
        name = self._alike[folder].get(_key(part))
        return self._stems[folder].get(_key(_split(part, self.extensions)[0])) if name is None and last else name


def exists(path: Path) -> bool:
    """Whether there is a file or folder; a name that no file can have is none.

    >>> exists(Path("a" * 5000)), exists(Path("/"))
    (False, True)
    """
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _compare(asked: str, there: str, extensions: Sequence[str]) -> list[Mend]:
    """What is different between two spellings."""
    (stem, extension), (true_stem, true_extension) = _split(asked, extensions), _split(there, extensions)
    composed = [unicodedata.normalize("NFC", each) for each in (stem, true_stem)]
    mends = []
    if composed[0] != composed[1]:
        mends.append(LETTERS)
    elif stem != true_stem:
        form = "NFD" if unicodedata.is_normalized("NFD", there) else "NFC"
        way_out = f'write them so in the table, in Python with unicodedata.normalize("{form}", path)'
        mends.append(Mend(f"with letters composed otherwise (Unicode {form})", way_out))
    if extension != true_extension:
        if not extension:
            mends.append(
                Mend(f"with the extension {true_extension} added", "add the extension to the paths of the table")
            )
        elif not true_extension:
            mends.append(Mend(f"without the extension {extension}", "leave the extension out in the table"))
        else:
            found = f"with the extension {true_extension} in place of {extension}"
            mends.append(Mend(found, "write the extension as the files have it"))
    return mends


def _split(name: str, extensions: Sequence[str] = EXTENSIONS) -> tuple[str, str]:
    """A name without the extension of an image, and that extension.

    >>> _split("brain.nii.gz"), _split("1.2.840"), _split("a.PNG")
    (('brain', '.nii.gz'), ('1.2.840', ''), ('a', '.PNG'))
    """
    extension = next((each for each in extensions if name.lower().endswith(each)), "")
    return name[: len(name) - len(extension)], name[len(name) - len(extension) :]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
