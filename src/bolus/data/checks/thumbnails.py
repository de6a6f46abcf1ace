"""A sheet of small pictures for each modality, as the encoder will see them, from the darkest to the brightest."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd
import PIL.Image
from PIL import ImageDraw

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shrinking import shrink, to_unit
from bolus.data.pixels.greys import Ranges, reading_of
from bolus.data.readers.frames import all_frames, read_as
from bolus.data.readers.own import Readers, open_readers
from bolus.errors import BolusError, UsageError

SHOWN = 48  # pictures of a modality
COLUMNS = 8
SIDE = 120  # of a picture, in pixels
CAPTION = 14  # pixels below a picture, for the number of its row


def write_thumbnails(cohort: Cohort, seen: pd.DataFrame, found: Ranges, folder: Path) -> list[Path]:
    """Write `MODALITY.png` for each modality: up to 48 images, from the darkest to the brightest, with row numbers.

    Of a clip file the frame in the middle is shown. Pixels are those that the cache would hold at this size; no name of
    a file or patient is written.

    Args:
        cohort: whose images.
        seen: one line an image, with `row`, `quantiles` and `channels`; see `bolus.data.checks.pixels`.
        found: black and white of these images.
        folder: is made.

    Returns:
        The files written.

    Raises:
        UsageError: a file stands where the folder should be.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"thumbnails: expected a folder, found the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    medians = np.stack(seen["quantiles"].tolist())[:, seen["quantiles"].iloc[0].size // 2]
    brightness = (medians - found.low) / (found.high - found.low)
    written, readers = [], open_readers(cohort.spec.readers)
    for name in np.unique(found.names).tolist():
        here = np.flatnonzero(found.names == name)
        ranked = here[np.argsort(brightness[here], kind="stable")]
        chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, SHOWN).round().astype(int))]
        pictures = [(int(seen["row"].iloc[at]), _picture(cohort, seen, found, at, readers)) for at in chosen.tolist()]
        path = folder / f"{quote(name, safe=' +=')}.png"
        _sheet([(row, picture) for row, picture in pictures if picture is not None]).save(path)
        written.append(path)
    return written


def _picture(
    cohort: Cohort, seen: pd.DataFrame, found: Ranges, at: int, readers: Readers
) -> npt.NDArray[np.uint8] | None:
    """One image as `[S, S, 3]`; None where it cannot be read any more."""
    row, contract = int(seen["row"].iloc[at]), Preprocessing(round(SIDE / 1.25), 3)
    path, frame = cohort.image_path(row), cohort.frame(row)
    if frame is None:
        frames = all_frames(path, readers)
        frame = frames[len(frames) // 2]
    image = next(iter(read_as(path, [frame], reading_of(str(cohort.modality[row]), cohort.spec.ranges), readers)))
    try:
        if isinstance(image, BolusError):
            return None
        unit = to_unit(shrink(image, contract), float(found.low[at]), float(found.high[at]))
    except BolusError:
        return None
    return (unit.transpose(1, 2, 0) * 255).round().astype(np.uint8)


def _sheet(pictures: list[tuple[int, npt.NDArray[np.uint8]]]) -> PIL.Image.Image:
    """The pictures in rows, each with its number below."""
    columns = min(COLUMNS, max(1, len(pictures)))
    lines = -(-len(pictures) // columns)
    sheet = PIL.Image.new("RGB", (columns * (SIDE + 2), max(1, lines) * (SIDE + CAPTION)), (64, 64, 64))
    draw = ImageDraw.Draw(sheet)
    for place, (row, picture) in enumerate(pictures):
        x, y = place % columns * (SIDE + 2), place // columns * (SIDE + CAPTION)
        sheet.paste(PIL.Image.fromarray(picture), (x, y))
        draw.text((x + 2, y + SIDE), f"row {row + 1}", fill=(255, 255, 255))
    return sheet
