"""Single images as the slices of a volume, in the order given: nothing says where they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from bolus.data.pixels.image import Image, take_frame
from bolus.data.readers.frames import read_as
from bolus.data.readers.own import Readers
from bolus.data.readers.room import Claim
from bolus.data.volumes.joining import join_slices
from bolus.data.volumes.volume import Volume
from bolus.errors import BolusError, ImageError

_UNKNOWN = float("nan")


def read_stack(
    paths: Sequence[Path], frames: Sequence[int | None], reading: str, readers: Readers, claim: Claim
) -> Volume:
    """Images that say nothing of space, one behind the other; `bolus.data.volumes.reading.read_volume` has the rest.

    Rows and columns stay as they are in the images, and the sides of the body are not known. The spacing is what a
    reader of one's own says, else NaN.

    Args:
        paths: PNG, JPEG, TIFF or BMP files, or those of readers of one's own.
        frames: of each, from 0; None is all of the file.
        reading: as of `bolus.data.pixels.greys.reading_of`.
        readers: of one's own.
        claim: room in memory.
    """
    images, along = list[Image](), _UNKNOWN
    for path, asked in by_file(paths, frames):
        for found in read_as(path, asked, reading, readers):
            if isinstance(found, BolusError):
                raise found
            if not images:
                number = 1 if found.array.ndim == 4 else len(paths)
                claim(2 * number * found.array.nbytes, "a stack of images")
            if found.array.ndim == 4 and found.spacing is not None:
                along = found.spacing[0]
            images += _frames_of(found)
    notes = []
    spacings = {each.spacing for each in images}
    if len(spacings) > 1:
        raise ImageError(f"expected slices of one spacing, found {len(spacings)}")
    aspect = images[0].aspect
    if aspect != 1 and images[0].spacing is None:
        notes.append(f"pixels are not square (height/width {aspect:.3g}): kept as they are, their size is not known")
    joined = join_slices(iter(images), np.arange(len(images)))
    down, across = images[0].spacing or (_UNKNOWN, _UNKNOWN)
    unknown = "spacing and sides" if math.isnan(along + down) else "sides"
    notes.append(f"the images do not say where they lie: stacked in the order given, {unknown} unknown")
    return Volume(
        joined.array, (along, down, across), None, joined.range, joined.bits, joined.inverted,
        (*joined.notes, *notes), joined.modality, joined.series, joined.padding,
    )  # fmt: skip


def by_file(paths: Sequence[Path], frames: Sequence[int | None]) -> list[tuple[Path, list[int | None]]]:
    """Each file with the frames that are asked of it one after another.

    >>> a, b = Path("a"), Path("b")
    >>> [(path.name, frames) for path, frames in by_file([a, a, b], [1, 0, None])]
    [('a', [1, 0]), ('b', [None])]
    """
    pairs = zip(paths, frames, strict=True)
    return [(path, [frame for _, frame in group]) for path, group in groupby(pairs, key=lambda pair: pair[0])]


def _frames_of(image: Image) -> Iterator[Image]:
    if image.array.ndim == 3:
        yield image
        return
    for number in range(image.array.shape[1]):
        yield take_frame(image, number)
