"""Readers of one's own: functions from a path to an `Image`, named in cohort.yaml under `readers`, by suffix.

    readers: {.mha: "mine:read"}

A reader wins over what bolus would do with such a file. It gets the path, reads the whole file, and is called from
several threads. What it is called and the source of its module are part of the cache's key, so that images are decoded
anew where it changed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from bolus.data.pixels.image import Image, own_range, take_frame
from bolus.data.pixels.square import find_aspect, oblong_notes
from bolus.errors import CohortError, ImageError, RecipeError
from bolus.recipes.own import find_own, own_names

GROUP = "bolus.readers"
ANY: Final = "*"  # in place of a suffix: every file that no other reader is for
RULES = ("container", "bits_stored", "cohort", "window", "unit")  # of the range of an Image


@dataclass(frozen=True)
class OwnReader:
    """A reader of one's own.

    Args:
        name: as cohort.yaml has it.
        function: path -> Image.
        identity: the name with a hash of its module's source.
    """

    name: str
    function: Callable[[Path], Image]
    identity: str

    def read(self, path: Path, *, window: bool = True) -> Image:
        """The image in a file: float32, `[C, H, W]` of a single frame, with the aspect that its spacing says.

        Args:
            path: the file.
            window: whether a window that the reader found is used; if not, the range is that of the cohort.

        Raises:
            ImageError: something else than an `Image` whose array is `[C, H, W]` or `[C, T, H, W]` numbers, with C 1 or
                3, whose range has one of `RULES`. Whatever the function itself raises is passed on.
        """
        given: Any = self.function(path)
        if not isinstance(given, Image):
            raise ImageError(f"{self.name}: expected a bolus.data.pixels.image.Image, found {type(given).__name__}")
        image: Image = given
        array = np.asarray(image.array)
        if array.dtype.kind not in "fiub" or array.ndim not in (3, 4) or array.shape[0] not in (1, 3) or not array.size:
            raise ImageError(
                f"{self.name}: expected numbers [C, H, W] or [C, T, H, W] with C 1 or 3, found {array.dtype} "
                f"{list(array.shape)}"
            )
        if image.range.rule not in RULES:
            raise ImageError(f"{self.name}: expected a range of one of {', '.join(RULES)}, found {image.range.rule!r}")
        if image.spacing is not None and len(image.spacing) != array.ndim - 1:
            distances = "row, column" if array.ndim == 3 else "slice, row, column"
            raise ImageError(f"{self.name}: expected the spacing ({distances}), found {len(image.spacing)} numbers")
        if image.padding is not None and image.padding.shape != array.shape[1:]:
            shape, found = list(array.shape[1:]), list(image.padding.shape)
            raise ImageError(f"{self.name}: expected padding {shape}, found {found}")
        image = replace(image, array=array.astype(np.float32, copy=False))
        if array.ndim == 4 and array.shape[1] == 1:
            image = take_frame(image, 0)
        if image.aspect == 1 and image.spacing is not None:
            aspect = find_aspect(*image.spacing[-2:])
            image = replace(image, aspect=aspect, notes=(*image.notes, *oblong_notes(aspect)))
        if image.range.rule == "window" and not window:
            image = replace(image, range=own_range(image.counted))
        return image


Readers: TypeAlias = Mapping[str, OwnReader]
"""Suffix, in small letters and with its point, or `*` -> the reader of such files."""

NONE: Final[Readers] = {}


def open_readers(names: Mapping[str, str]) -> Readers:
    """The readers that a cohort names, imported.

    Args:
        names: suffix -> import path or entry point of the group `bolus.readers`, as `CohortSpec.readers`.

    Raises:
        CohortError: a name that is neither, or that cannot be imported.

    >>> open_readers({".mha": "nowhere"})
    Traceback (most recent call last):
    bolus.errors.CohortError: readers..mha: expected package.module:name or a registered name, found 'nowhere'; ...
    """
    opened = {}
    for suffix, name in names.items():
        try:
            function = find_own(name, GROUP)
        except RecipeError as error:
            raise CohortError(f"readers.{suffix}: {error}") from error
        if function is None:
            registered = f"registered: {', '.join(own_names(GROUP)) or 'none'}"
            expected = "expected package.module:name or a registered name"
            raise CohortError(f"readers.{suffix}: {expected}, found {name!r}; {registered}")
        if not callable(function):
            raise CohortError(f"readers.{suffix}: {name}: expected a function, found {type(function).__name__}")
        opened[suffix] = OwnReader(name, function, f"{name} {_source(function)}")
    return opened


def suffix_of(name: str, readers: Mapping[str, Any]) -> str | None:
    """The longest suffix of a file's name for which there is a reader, or `*`; None where there is none.

    >>> suffix_of("A.nii.GZ", {".gz": 1, ".nii.gz": 2}), suffix_of("a.png", {".gz": 1}), suffix_of("a", {"*": 1})
    ('.nii.gz', None, '*')
    """
    lower = name.lower()
    return max((each for each in readers if each == ANY or lower.endswith(each)), key=len, default=None)


def group_by_reader(
    names: Sequence[Any] | npt.NDArray[Any], readers: Readers
) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """The identity of each reader, empty for bolus's own, and the places of the files that it is for; at least one.

    >>> group_by_reader(["a.png", "b.mha"], {".mha": OwnReader("m:r", print, "m:r 0")})
    [('', array([0])), ('m:r 0', array([1]))]
    """
    if not readers or not len(names):
        return [("", np.arange(len(names)))]
    suffixes = [suffix_of(str(name), readers) for name in names]
    found = np.array(["" if each is None else readers[each].identity for each in suffixes])
    return [(str(each), np.flatnonzero(found == each)) for each in np.unique(found)]


def _source(function: Any) -> str:
    """A hash of the source of the module that a function is defined in; empty where there is no file."""
    file = getattr(sys.modules.get(getattr(function, "__module__", "")), "__file__", None)
    if file is None or not Path(file).is_file():
        return ""
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest()
