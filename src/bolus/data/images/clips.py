"""Clips from a table: which of their frames are seen, and the frames of clip files as rows.

A clip is a series of rows, or a file with several frames: then the table is expanded, in memory only, to a row a
frame, so that cache, quarantine and batches know rows and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.series import place_of_slices
from bolus.data.images.sources import in_threads
from bolus.data.readers.frames import all_frames
from bolus.data.readers.own import open_readers
from bolus.errors import CohortError, name_rows

Draw = Callable[[int], np.random.Generator]


def segment_frames(count: int, frames: int, *, rng: np.random.Generator | None = None) -> npt.NDArray[np.int64]:
    """Which frames of a clip are seen: one from each of so many equal parts of it.

    Segment sampling of TSN (Wang et al., arXiv:1608.00859, sec. 3.1). Part t is frames floor(t * count / T) to
    floor((t + 1) * count / T) - 1, so all frames are different. A clip with fewer than T frames gives all of them in
    order, and then its last one again.

    Args:
        count: frames that the clip has, at least 1.
        frames: T, at least 1.
        rng: draws a place within each part; None takes the middle, the later of two.

    Returns:
        int64 `[T]` positions among the clip's frames, in order.

    Example:
        >>> segment_frames(10, 4).tolist(), segment_frames(2, 4).tolist()
        ([1, 3, 6, 8], [0, 1, 1, 1])
    """
    assert count >= 1, "a clip without frames is no sample"
    assert frames >= 1
    if count < frames:
        return np.minimum(np.arange(frames), count - 1)
    ends = np.arange(frames + 1) * count // frames
    if rng is None:
        return (ends[:-1] + ends[1:]) // 2
    return rng.integers(ends[:-1], ends[1:])


def frame_mask(count: int, frames: int) -> npt.NDArray[np.bool_]:
    """Which of the frames that `segment_frames` gives are real, bool `[T]`; the others repeat the last one.

    >>> frame_mask(2, 4).tolist()
    [True, True, False, False]
    """
    return np.arange(frames) < count


def pick_frames(
    samples: Samples,
    positions: npt.NDArray[np.int64],
    readable: npt.NDArray[np.bool_],
    frames: int,
    *,
    draw: Draw | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The rows whose pixels make up clips; rows that cannot be read are as if they were not there.

    Args:
        samples: clips.
        positions: int64 `[n]`, which of them; each has a readable row.
        readable: bool, one for each row of the cohort.
        frames: T.
        draw: position -> the generator that draws its frames; None takes the middle of each part.

    Returns:
        int64 `[n, T]` rows and bool `[n, T]`, true at real frames.
    """
    rows = np.empty((len(positions), frames), np.int64)
    mask = np.empty((len(positions), frames), np.bool_)
    for place, position in enumerate(positions.tolist()):
        clip = samples.rows_of(position)
        clip = clip[readable[clip]]
        rng = None if draw is None else draw(position)
        rows[place] = clip[segment_frames(len(clip), frames, rng=rng)]
        mask[place] = frame_mask(len(clip), frames)
    return rows, mask


def open_samples(cohort: Cohort, unit: str) -> Samples:
    """The cohort as images, slices, clips or volumes; every row is a clip file, or a volume, where `rows_are_files`.

    Clip files are multi-frame DICOM, TIFF of several pages, NIfTI volumes (axial slices) and videos. Their frames are
    counted from headers, no pixel is decoded; then the samples' cohort is `cohort.expand(...)`, a row a frame, whose
    `origin` leads back to the table as given. A file whose frames cannot be counted stays one row, and is quarantined
    when it is decoded. The expanded cohort is made once and kept with the cohort.

    Args:
        cohort: a validated table.
        unit: `image`, `slice`, `clip` or `volume`.

    Raises:
        CohortError: as `take_samples`; or one file on several rows without a series, which is neither a clip a row
            nor rows of one clip; or a reader that cannot be imported.
        UsageError: an unknown unit.
    """
    if unit == "volume" and rows_are_files(cohort) and ("series" in cohort.roles or not place_of_slices(cohort)):
        starts = np.arange(len(cohort) + 1)
        return Samples(unit, cohort, starts[:-1], starts)
    if unit != "clip" or ("series" in cohort.roles and not rows_are_files(cohort)):
        return cohort.samples(unit)
    if cohort.expanded is None:
        if not rows_are_files(cohort):
            raise CohortError(
                f"{name_rows(np.flatnonzero(cohort.shared_file))}: frames of one file on several rows; give the column "
                "that says which clip a row belongs to the role series, or each file one row"
            )
        paths, readers = [cohort.image_path(row) for row in range(len(cohort))], open_readers(cohort.spec.readers)
        counts = np.fromiter(in_threads(lambda path: len(all_frames(path, readers)), paths), np.int64, len(paths))
        cohort.expanded = cohort.expand(counts)
    return cohort.expanded.samples("clip")


def rows_are_files(cohort: Cohort) -> bool:
    """Whether each row stands for a file of its own, which is then a clip, be it of a single frame.

    So it is without the role `series`; and where each row has another series, as the instance UIDs of multi-frame files
    do. Frames of one file on several rows are not.

    >>> import pandas as pd
    >>> from bolus.data.cohort.spec import CohortSpec
    >>> frame = pd.DataFrame({"image": ["a", "b", "c"], "patient": ["p", "p", "q"], "series": ["s", "s", "t"]})
    >>> [rows_are_files(Cohort(frame[first:], CohortSpec(table="t.csv"))) for first in (0, 1)]
    [False, True]
    """
    if cohort.shared_file.any():
        return False
    if "series" not in cohort.roles:
        return True
    series = cohort.encoded("series")
    return bool((series >= 0).all()) and len(np.unique(series)) == len(series)
