"""Reading every image of a cohort once, each to a few numbers; all frames of a clip file to those of one image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.series import IF_FILES
from bolus.data.copies.thumbnails import thumbnail_of
from bolus.data.images.clips import rows_are_files
from bolus.data.images.file_names import exists
from bolus.data.images.shrinking import ONE_FRAME
from bolus.data.images.sources import in_threads
from bolus.data.pixels.greys import GREY, measure, reading_of, sketch_of
from bolus.data.pixels.image import Image
from bolus.data.pixels.quantiles import LEVELS, pooled
from bolus.data.readers.frames import all_frames, read_as, reason_without_name
from bolus.data.readers.own import Readers, open_readers
from bolus.errors import BolusError, ImageError

Look = dict[str, Any]


def look_at_pixels(
    cohort: Cohort, *, workers: int | None = None, on_progress: Callable[[int, int], None] | None = None
) -> list[Look]:
    """One record a row, in order.

    Each thread reads one file at a time, as the cache does: a file that stands on several rows is decoded once for all
    of them, and where `rows_are_files` all frames of a clip file are looked at, a video's one after another.

    Args:
        cohort: whose images; where it states a range, files are read without their windows.
        workers: threads, no more than cores; 16 at most where None.
        on_progress: called with (rows done, rows) after each file.

    Returns:
        `row`; `reason`, why it cannot be used, else empty; `frames`, how many the row stands for, or its file has where
        they are too many; `lost`, why some of them cannot be read, else empty; and, where there is no reason, `height`,
        `width` (of the first frame) and what `_measure` says.

    Raises:
        CohortError: a reader of one's own that cannot be imported.
    """
    modality, stated, clips = cohort.modality, cohort.spec.ranges, rows_are_files(cohort)
    readers = open_readers(cohort.spec.readers)
    files: dict[int, list[int]] = {}
    for row, file in enumerate(cohort.files.tolist()):
        files.setdefault(file, []).append(row)

    def look(rows: list[int]) -> list[Look]:
        path, reading = cohort.image_path(rows[0]), reading_of(str(modality[rows[0]]), stated)
        if not exists(path):
            found = [_unusable("missing")] * len(rows)
        elif len(rows) == 1:
            found = [_look_at_file(path, reading, readers, clips, "series" in cohort.roles)]
        else:
            images = read_as(path, [cohort.frame(row) for row in rows], reading, readers)
            found = [_look_at_frame(path, image) for image in images]
        return [{"row": row, **each} for row, each in zip(rows, found, strict=True)]

    looks: list[Look] = []
    for found in in_threads(look, list(files.values()), workers=workers or 16):
        looks += found
        if on_progress is not None:
            on_progress(len(looks), len(cohort))
    return sorted(looks, key=lambda each: int(each["row"]))


def _look_at_file(path: Path, reading: str, readers: Readers, clips: bool, in_series: bool) -> Look:
    """A file on one row: an image, or a clip where rows are files."""
    frames = all_frames(path, readers)
    if len(frames) > 1 and not clips:
        advice = f"{ONE_FRAME}; {IF_FILES}" if in_series else ONE_FRAME
        return {**_unusable(f"expected one frame, found {len(frames)}: {advice}"), "frames": len(frames)}
    seen: list[Look] = []
    reasons: Counter[str] = Counter()
    for image in read_as(path, frames, reading, readers):
        each = _look_at_frame(path, image)
        if each["reason"]:
            reasons[each["reason"]] += 1
        else:
            seen.append(each)
    reason = reasons.most_common(1)[0][0] if reasons else ""
    if not seen:
        return _unusable(reason)
    lost = f"{reasons.total()} of {len(frames)} frames: {reason}" if reason else ""
    return {**_join(seen), "frames": len(frames), "lost": lost}


def _look_at_frame(path: Path, image: Image | BolusError) -> Look:
    try:
        if isinstance(image, BolusError):
            raise image
        if image.array.ndim != 3:
            raise ImageError(f"expected one frame, found {image.array.shape[1]}: {ONE_FRAME}")
        height, width = image.array.shape[-2:]
        return {"reason": "", "frames": 1, "lost": "", "height": height, "width": width, **_measure(image)}
    except BolusError as error:
        return _unusable(reason_without_name(error, path))


def _unusable(reason: str) -> Look:
    return {"reason": reason, "frames": 0, "lost": ""}


def _measure(image: Image) -> Look:
    """What the image says of its numbers, how they are distributed, its channels, a hash of its pixels, a thumbnail."""
    array = image.array
    equal = array.shape[0] == 3 and bool((array[0] == array[1]).all() and (array[0] == array[2]).all())
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return {
        "grey": measure(image),
        "quantiles": sketch_of(image),
        "channels": array.shape[0],
        "equal": equal,
        "digest": digest.digest(),
        "thumbnail": thumbnail_of(array).astype(np.float16),
        "notes": image.notes,
    }


def _join(looks: list[Look]) -> Look:
    """What `_measure` says of frames, said of all of them as if they were one image."""
    first = looks[0]
    if len(looks) == 1:
        return first
    grey = np.array([look["grey"] for look in looks], GREY)
    joined = grey[:1].copy()
    for name, join in (("low", np.min), ("high", np.max), ("shown_low", np.min), ("shown_high", np.max)):
        joined[name] = join(grey[name])
    joined["bits"], joined["pixels"] = grey["bits"].max(), grey["pixels"].sum()
    one, together = np.zeros(len(looks), np.int64), np.stack([look["quantiles"] for look in looks])
    digest = hashlib.blake2b(b"".join(look["digest"] for look in looks), digest_size=16)
    return {
        **first,
        "grey": joined[0].item(),
        "quantiles": pooled(together, np.maximum(grey["pixels"], 1), one, LEVELS)[0].astype(np.float32),
        "channels": max(look["channels"] for look in looks),
        "equal": all(look["equal"] for look in looks),
        "digest": digest.digest(),
        "thumbnail": looks[len(looks) // 2]["thumbnail"],
        "notes": tuple(dict.fromkeys(note for look in looks for note in look["notes"])),
    }
