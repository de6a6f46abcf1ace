"""Reading every image of a cohort once, each to a few numbers; all frames of a clip file to those of one image."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.clips import rows_are_files
from bolus.data.cohort import Cohort
from bolus.data.frames import all_frames, read_frames, reason_without_name
from bolus.data.image import Image
from bolus.data.preprocessing import ONE_FRAME, range_waits
from bolus.data.samples import IF_FILES
from bolus.errors import BolusError, ImageError

CHUNK = 1024  # files handed to the threads at a time

Look = dict[str, Any]
Stated = tuple[float, float] | None


def look_at_pixels(
    cohort: Cohort, *, workers: int | None = None, on_progress: Callable[[int, int], None] | None = None
) -> list[Look]:
    """One record a row, in order.

    Each thread reads one file at a time, as the cache does: a file that stands on several rows is decoded once for all
    of them, and where `rows_are_files` all frames of a clip file are looked at, a video's one after another.

    Args:
        cohort: whose images; ranges that it states are what "dark" and "bright" are measured against.
        workers: threads; the number of cores, 16 at most, where None.
        on_progress: called with (rows done, rows) after each file.

    Returns:
        `row`; `reason`, why it cannot be used, else empty; `frames`, how many the row stands for; `lost`, why some of
        them cannot be read, else empty; and, where there is no reason, `height`, `width` (of the first frame) and what
        `_measure` says.
    """
    modality, ranges, clips = cohort.modality, cohort.spec.ranges, rows_are_files(cohort)
    files: dict[int, list[int]] = {}
    for row, file in enumerate(pd.factorize(cohort.table[cohort.roles["image"]])[0].tolist()):
        files.setdefault(file, []).append(row)

    def look(rows: list[int]) -> list[Look]:
        path, stated = cohort.image_path(rows[0]), [ranges.get(str(modality[row])) for row in rows]
        if not path.exists():
            found = [_unusable("missing")] * len(rows)
        elif len(rows) == 1:
            found = [_look_at_file(path, stated[0], clips, "series" in cohort.roles)]
        else:
            images = read_frames(path, [cohort.frame(row) for row in rows])
            found = [_look_at_frame(path, image, each) for image, each in zip(images, stated, strict=True)]
        return [{"row": row, **each} for row, each in zip(rows, found, strict=True)]

    looks: list[Look] = []
    groups = list(files.values())
    with ThreadPoolExecutor(max_workers=workers or min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(groups), CHUNK):
            for found in pool.map(look, groups[start : start + CHUNK]):
                looks += found
                if on_progress is not None:
                    on_progress(len(looks), len(cohort))
    return sorted(looks, key=lambda each: int(each["row"]))


def _look_at_file(path: Path, stated: Stated, clips: bool, in_series: bool) -> Look:
    """A file on one row: an image, or a clip where rows are files."""
    frames = all_frames(path)
    if len(frames) > 1 and not clips:
        advice = f"{ONE_FRAME}; {IF_FILES}" if in_series else ONE_FRAME
        return _unusable(f"expected one frame, found {len(frames)}: {advice}")
    seen: list[Look] = []
    reasons: Counter[str] = Counter()
    for image in read_frames(path, frames):
        each = _look_at_frame(path, image, stated)
        if each["reason"]:
            reasons[each["reason"]] += 1
        else:
            seen.append(each)
    reason = reasons.most_common(1)[0][0] if reasons else ""
    if not seen:
        return _unusable(reason)
    lost = f"{reasons.total()} of {len(frames)} frames: {reason}" if reason else ""
    return {**_join(seen, stated), "frames": len(frames), "lost": lost}


def _look_at_frame(path: Path, image: Image | BolusError, stated: Stated) -> Look:
    try:
        if isinstance(image, BolusError):
            raise image
        if image.array.ndim != 3:
            raise ImageError(f"expected one frame, found {image.array.shape[1]}: {ONE_FRAME}")
        height, width = image.array.shape[-2:]
        return {"reason": "", "frames": 1, "lost": "", "height": height, "width": width, **_measure(image, stated)}
    except BolusError as error:
        return _unusable(reason_without_name(error, path))


def _unusable(reason: str) -> Look:
    return {"reason": reason, "frames": 0, "lost": ""}


def _measure(image: Image, stated: Stated) -> Look:
    """Extremes, shares of pixels at the ends, spread and hash; all in stored values where the cohort sets the range."""
    array, waits = image.array, range_waits(image)
    minimum, maximum = float(array.min()), float(array.max())
    if not waits:
        shown, low, high = image.unit(), 0.0, 1.0
        mean = float(shown.mean(dtype=np.float64))
    else:
        low, high = stated or (minimum, maximum)
        shown = np.clip(array, low, high)
        mean = float(shown.mean(dtype=np.float64))  # before a turn, which is another one in each frame
        shown = (low + high) - shown if image.inverted else shown
    rounding = 1e-6 * (high - low)
    grey = array.shape[0] == 3 and bool((array[0] == array[1]).all() and (array[0] == array[2]).all())
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return {
        "minimum": minimum,
        "maximum": maximum,
        "waits": waits,
        "inverted": image.inverted,
        "bits": image.bits,
        "rule": image.range.rule,
        "low": image.range.low,
        "high": image.range.high,
        "channels": array.shape[0],
        "grey": grey,
        "at_dark": float((shown <= low + rounding).mean()),
        "at_bright": float((shown >= high - rounding).mean()),
        "pixels": array.size,
        "mean": mean,
        "spread": float(shown.std()),
        "digest": digest.digest(),
        "notes": image.notes,
    }


def _join(looks: list[Look], stated: Stated) -> Look:
    """What `_measure` says of frames, said of all of them as if they were one image."""
    first = looks[0]
    if len(looks) == 1:
        return first
    column = {name: np.array([look[name] for look in looks]) for name in first if name not in ("digest", "notes")}
    minimum, maximum = column["minimum"].min(), column["maximum"].max()
    dark, bright = column["at_dark"], column["at_bright"]
    if first["waits"] and stated is None:  # then each frame was held against its own extremes, which are not the clip's
        rounding = 1e-6 * (maximum - minimum)
        lowest, highest = column["minimum"] <= minimum + rounding, column["maximum"] >= maximum - rounding
        ends = (highest, lowest) if first["inverted"] else (lowest, highest)
        dark, bright = dark * ends[0], bright * ends[1]
    weight = column["pixels"] / column["pixels"].sum()
    mean = (weight * column["mean"]).sum()
    digest = hashlib.blake2b(b"".join(look["digest"] for look in looks), digest_size=16)
    return {
        **first,
        "minimum": float(minimum),
        "maximum": float(maximum),
        "bits": int(column["bits"].max()),
        "low": float(column["low"].min()),
        "high": float(column["high"].max()),
        "channels": int(column["channels"].max()),
        "grey": bool(column["grey"].all()),
        "at_dark": float((weight * dark).sum()),
        "at_bright": float((weight * bright).sum()),
        "pixels": int(column["pixels"].sum()),
        "mean": float(mean),
        "spread": float(np.sqrt((weight * (column["spread"] ** 2 + (column["mean"] - mean) ** 2)).sum())),
        "digest": digest.digest(),
        "notes": tuple(dict.fromkeys(note for look in looks for note in look["notes"])),
    }
