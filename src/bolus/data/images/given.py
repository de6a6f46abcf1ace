"""Images that are given by path or array and stand in no table: made as the cache makes them, and kept in memory only.

What a person calls the image at hand takes the place of the columns of a table: modality, series, side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.volumes import series_codes
from bolus.data.images.cache import ImageStore
from bolus.data.images.called import Called, resolve_given, stated_contract, table_of
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shrinking import Shrunk, shrink
from bolus.data.images.sources import in_threads
from bolus.data.pixels.greys import GREY, reading_of
from bolus.data.pixels.image import Image, Range, own_range, take_frame
from bolus.data.readers.frames import all_frames, read_as, reason_without_name
from bolus.data.readers.own import Readers, open_readers
from bolus.data.text.laterality import SIDES
from bolus.errors import BolusError, ImageError, UsageError

Given: TypeAlias = "str | Path | tuple[str | Path, int] | npt.NDArray[Any] | Image"
"""A file, a frame of a file (counted from 0), an array in the unit of its modality, or an Image."""


@dataclass(frozen=True)
class _Part:
    """One image, or one frame of a clip: where it is read from, or the image itself."""

    sample: int
    path: Path | None = None
    frame: int | None = None
    image: Image | None = None


def listed(images: Any) -> list[Any]:
    """Several images as they are, a single one as a list of it.

    >>> listed("a.png"), listed(("a.nii", 3)), listed(["a.png", "b.png"])
    (['a.png'], [('a.nii', 3)], ['a.png', 'b.png'])
    """
    alone = isinstance(images, (str, Path, np.ndarray, Image)) or _is_frame(images)
    return [images] if alone else list(images)


def read_given(
    images: Sequence[Any], preprocessing: Preprocessing, called: Called | None = None
) -> tuple[ImageStore, Samples]:
    """The images as an encoder's contract wants them, and the samples that they are; nothing is written.

    Args:
        images: `Given` each. Where the contract has frames each is a clip: a file with all of its frames, an array
            `[C, T, H, W]`, or a sequence of `Given` in order. Arrays are `[H, W]` or `[C, H, W]` with C 1 or 3; 8 and
            16 unsigned bits count as those of a PNG file, other numbers as those of a NIfTI file.
        preprocessing: the contract, whose ranges and rules hold.
        called: what is known of them.

    Returns:
        A store of the contract with the ranges used, and images or clips `[n]` in the order given.

    Raises:
        ImageError: one cannot be read; which, counted from 1, and why, without its path.
        EncoderError: values whose range is the cohort's, of a modality for which the contract has none.
        UsageError: no image, something that is none, facts for another number of images, or no side where the contract
            mirrors one.

    Example:
        >>> store, samples = read_given([np.full((8, 8), 255, np.uint8)], Preprocessing(8))
        >>> store.gather(samples.first_row).unit().shape, samples.unit
        (torch.Size([1, 1, 10, 10]), 'image')
    """
    called = called or Called()
    if not len(images):
        raise UsageError("expected at least one image, found none")
    preprocessing = stated_contract(preprocessing, called)
    readers = open_readers(called.readers or {})
    clips = preprocessing.frames is not None
    parts = [part for place, given in enumerate(images) for part in _parts(place, given, readers, clips=clips)]
    table = table_of(np.array([part.sample for part in parts]), len(images), called, clips=clips)
    shrunk = _shrink_all(parts, table, preprocessing, readers, len(images))
    rows = np.arange(len(parts), dtype=np.int64)
    starts = np.searchsorted([part.sample for part in parts], np.arange(len(images) + 1)).astype(np.int64)
    samples = Samples("clip" if clips else "image", table, rows, starts)
    return _store(parts, table, shrunk, preprocessing), samples


def _is_frame(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], (int, np.integer))


def _parts(place: int, given: Any, readers: Readers, *, clips: bool) -> list[_Part]:
    """What one sample is made of: one part, or the frames of a clip."""
    if isinstance(given, (str, Path)):
        frames = all_frames(Path(given), readers) if clips else [None]
        return [_Part(place, Path(given), frame) for frame in frames]
    if _is_frame(given):
        return [_Part(place, Path(given[0]), int(given[1]))]
    if isinstance(given, (np.ndarray, Image)):
        image = _as_image(given, place)
        if clips and image.array.ndim == 4:
            return [_Part(place, image=take_frame(image, frame)) for frame in range(image.array.shape[1])]
        return [_Part(place, image=image)]
    if clips and isinstance(given, Sequence) and len(given):
        return [part for each in given for part in _parts(place, each, readers, clips=True)]
    kinds = "a path, (path, frame), an array or an Image"
    raise UsageError(f"image {place + 1}: expected {kinds}, found {type(given).__name__}")


def _as_image(given: npt.NDArray[Any] | Image, place: int) -> Image:
    """An array with the range that a file of such numbers has."""
    if isinstance(given, Image):
        return given
    array = given[None] if given.ndim == 2 else given
    if array.dtype.kind not in "fiub" or array.ndim not in (3, 4) or array.shape[0] not in (1, 3) or not array.size:
        raise UsageError(
            f"image {place + 1}: expected numbers [H, W], [C, H, W] or [C, T, H, W] with C 1 or 3, found "
            f"{given.dtype} {list(given.shape)}"
        )
    values = array.astype(np.float32)
    if array.dtype.kind == "b" or array.dtype in (np.uint8, np.uint16):
        bits = 1 if array.dtype.kind == "b" else 8 * array.dtype.itemsize
        return Image(values, None, Range(0.0, float(2**bits - 1), "container"), bits, False)
    try:
        return Image(values, None, own_range(values), 8 * array.dtype.itemsize, False)
    except ImageError as error:
        raise ImageError(f"image {place + 1}: {error}") from error


def _shrink_all(
    parts: list[_Part], table: Cohort, preprocessing: Preprocessing, readers: Readers, number: int
) -> list[Shrunk]:
    """Every part as the cache would store it, a file read once."""
    files: dict[tuple[int, str, Path | int], list[int]] = {}
    groups = preprocessing.groups(table.modality)
    for group, (_, places) in enumerate(groups):
        for row in places.tolist():
            reading = reading_of(str(table.modality[row]), preprocessing.stated)
            files.setdefault((group, reading, parts[row].path or -1 - row), []).append(row)

    def read(key: tuple[int, str, Path | int]) -> list[Shrunk | BolusError]:
        group, reading, path = key
        rows = files[key]
        if isinstance(path, Path):
            found = list(read_as(path, [parts[row].frame for row in rows], reading, readers))
        else:
            given = parts[rows[0]].image
            assert given is not None
            found = [_without_window(given, reading)]
        return [_shrink(each, groups[group][0], path) for each in found]

    made: dict[int, Shrunk] = {}
    for key, found in zip(files, in_threads(read, list(files)), strict=True):
        for row, each in zip(files[key], found, strict=True):
            if isinstance(each, BolusError):
                raise type(each)(f"image {parts[row].sample + 1} of {number}: {each}") from each
            made[row] = each
    return [made[row] for row in range(len(parts))]


def _without_window(image: Image, reading: str) -> Image:
    """A given image whose own window a reading leaves out."""
    unwanted = image.range.rule == "window" and (reading == "values" or image.modality in reading.split()[1:])
    return replace(image, range=own_range(image.counted)) if unwanted else image


def _shrink(image: Image | BolusError, contract: Preprocessing, path: Path | int) -> Shrunk | BolusError:
    """The image as it is stored, or why there is none, without the names of files and folders."""
    try:
        if isinstance(image, BolusError):
            raise image
        if image.array.ndim != 3:
            raise ImageError(f"expected one frame, found {image.array.shape[1]}; give (path, frame) for one of them")
        return shrink(image, contract)
    except BolusError as error:
        return ImageError(reason_without_name(error, path) if isinstance(path, Path) else str(error))


def _store(parts: list[_Part], table: Cohort, shrunk: list[Shrunk], preprocessing: Preprocessing) -> ImageStore:
    """Resolve the range of every image, as opening a cache does."""
    grey = np.array([each.grey for each in shrunk], GREY)
    quantiles = np.stack([each.quantiles for each in shrunk])
    # A file is a series of its own where nothing says more; an array given is like a file of its own.
    files = pd.factorize(np.array([str(part.path or row) for row, part in enumerate(parts)], object))[0]
    rows = np.arange(len(parts), dtype=np.int64)
    codes = series_codes(table, rows, grey["series"], files.astype(np.uint64))
    resolved = resolve_given(grey, quantiles, table, codes, preprocessing, [part.sample for part in parts])
    gain, bias = resolved.lines(
        np.array([each.gain for each in shrunk]), np.array([each.bias for each in shrunk]), grey["inverted"]
    )
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for row, each in enumerate(shrunk):
        kinds.setdefault((each.array.shape, each.array.dtype.str), []).append(row)
    shard, offset = np.zeros(len(parts), np.int64), np.zeros(len(parts), np.int64)
    for number, alike in enumerate(kinds.values()):
        shard[alike], offset[alike] = number, np.arange(len(alike))
    store = ImageStore(
        preprocessing=replace(preprocessing, ranges=resolved.ranges, rules=resolved.rules),
        quarantined=[],
        out_of_range=sorted({parts[row].sample for row in np.flatnonzero(resolved.beyond).tolist()}),
        _shards=[np.stack([shrunk[row].array for row in alike]) for alike in kinds.values()],
        _shard=shard,
        _offset=offset,
        _gain=gain,
        _bias=bias,
    )
    if preprocessing.mirror is not None and table.sides is not None:
        store.mirrored = table.sides == SIDES.index(preprocessing.mirror)
    return store
