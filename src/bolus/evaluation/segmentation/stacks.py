"""The test volumes of a segmentation: slices of one volume in their order, with what is known of their distances."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.volumes import volume_codes
from bolus.data.images.mask_rows import Spacing
from bolus.errors import CohortError, EvaluationError, name_rows
from bolus.evaluation.segmentation.annotation import Annotations, refuse_wrong, why_without
from bolus.evaluation.statistics.metrics import IntArray


@dataclass(frozen=True, eq=False)
class Volume:
    """The slices of one volume, in order, with what is true of them.

    Args:
        rows: int64 `[T]`, of the cohort; one row alone of a volume that is a single sample.
        patient: its code.
        truth: classes `[T, H, W]`.
        spacing: mm (slice, row, column); None where they are not known. Of one slice the first is 1. Where each n-th
            slice of a file was taken it is n times the file's.
        why: why the spacing is not known, else empty.
        aspect: `Image.aspect` of each slice; empty where all of their pixels are square.
    """

    rows: IntArray
    patient: int
    truth: NDArray[Any]
    spacing: Spacing | None
    why: str = ""
    aspect: tuple[float, ...] = ()

    def aspect_of(self, slice_number: int) -> float:
        """Height over width of a pixel of one slice."""
        return self.aspect[slice_number] if self.aspect else 1.0


def true_sizes(volumes: Sequence[Volume], num_classes: int) -> dict[str, NDArray[Any]]:
    """How large the truth of each volume is, class by class.

    Args:
        volumes: N of them, whose truth has classes 0..K-1.
        num_classes: K, with the background.

    Returns:
        `true_voxels`, int64 `[N, K - 1]`, 0 where the truth lacks the class; and `true_ml`, millilitres, float64 `[N,
        K - 1]`, NaN of a volume whose spacing is not known and of a single slice, which has no volume.

    >>> labels = np.array([[[1, 1], [0, 2]], [[1, 0], [0, 0]]])
    >>> found = true_sizes([Volume(np.arange(2), 0, labels, (10.0, 5.0, 2.0))], 3)
    >>> found["true_voxels"].tolist(), found["true_ml"].round(3).tolist()
    ([[3, 1]], [[0.3, 0.1]])
    """
    voxels = np.stack([np.bincount(each.truth.ravel(), minlength=num_classes)[1:] for each in volumes])
    one_ml = [
        np.nan if each.spacing is None or len(each.truth) < 2 else math.prod(each.spacing) / 1000 for each in volumes
    ]
    return {"true_voxels": voxels.astype(np.int64), "true_ml": voxels * np.array(one_ml)[:, None]}


def find_volumes(
    cohort: Cohort, annotations: Annotations, readable: NDArray[np.bool_] | None = None
) -> tuple[list[Volume], list[str]]:
    """The test volumes of which every slice has a mask and an image.

    Rows are put together as `bolus.data.cohort.volumes.volume_codes` says; where no column tells series, order or slice
    position, each row is a volume of its own. Slices are in the order of `order`, else of `slice_position`, else of the
    table, which is noted.

    Args:
        cohort: whose rows.
        annotations: of these rows.
        readable: bool `[rows]`, images that are there; None: all.

    Returns:
        The volumes, in the order of their first rows in the table, and what a reader must know, in sentences.

    Raises:
        EvaluationError: no test volume.
        CohortError: slices of one volume that differ in size, have one place, or of which one has none.
    """
    seen = np.isin(np.arange(len(cohort)), list(annotations.codes))
    masked = seen | np.isin(np.arange(len(cohort)), list(annotations.unread))
    seen &= np.ones(len(cohort), np.bool_) if readable is None else readable
    test = np.flatnonzero(cohort.split == "test")
    told = next((role for role in ("order", "slice_position") if role in cohort.roles), None)
    if told or "series" in cohort.roles:
        codes, roles = volume_codes(cohort)
        notes = [f"a volume is the test images of one {' and '.join(roles)}"]
    else:
        codes = np.arange(len(cohort), dtype=np.int64)
        notes = ["no column has the role series, order or slice_position: each image is a volume of its own"]
    order = cohort.encoded(told) if told else np.zeros(len(cohort))
    stacks = [test[codes[test] == code] for code in dict.fromkeys(codes[test].tolist())]
    stacks = [rows[np.argsort(order[rows], kind="stable")] for rows in stacks]
    if told:
        _refuse_places(cohort, stacks, order, told)
    elif any(len(rows) > 1 for rows in stacks):
        notes.append("no column has the role order or slice_position: slices of a volume lie as the table lists them")
    patients, volumes, lost, wrong = cohort.encoded("patient"), [], [], {}
    for rows in stacks:
        if not seen[rows].all():
            lost.append(rows)
            continue
        shapes = {annotations.codes[row].shape for row in rows.tolist()}
        if len(shapes) > 1:
            wrong[int(rows.min())] = f"slices of one volume have sizes {sorted(shapes)}"
            continue
        truth = np.stack([annotations.codes[row] for row in rows.tolist()])
        spacing = _spacing_of(cohort, annotations, rows, order)
        known, why = (None, spacing) if isinstance(spacing, str) else (spacing, "")
        aspect = tuple(annotations.aspect.get(row, 1.0) for row in rows.tolist())
        volumes.append(Volume(rows, int(patients[rows[0]]), truth, known, why, aspect))
    refuse_wrong(cohort, wrong, "volumes are no stack of slices")
    if not volumes:
        why = why_without(cohort, "test", np.flatnonzero(seen))
        raise EvaluationError(f"no test volume{' has a mask and an image on every slice' if lost else ''}: {why}")
    if lost:
        among = np.concatenate(lost)
        without, unreadable = int((~masked[among]).sum()), int((masked[among] & ~seen[among]).sum())
        why = f"{without} of their {len(among)} slices have no mask, {unreadable} have an image that cannot be read"
        first = cohort.origin[[rows[0] for rows in lost]]
        which = f"{len(lost)} test volume{' is' if len(lost) == 1 else 's are'} left out"
        notes.append(f"{which} ({why}; begin in {name_rows(first)})")
    single = sum(len(volume.rows) == 1 for volume in volumes)
    if single:
        which = f"{single} of {len(volumes)} test volumes {'is' if single == 1 else 'are'} one slice"
        notes.append(f"{which}: the numbers are those of one image")
    return volumes, notes


def why_in_voxels(volumes: Sequence[Volume]) -> str:
    """Why distances are not in mm, or nothing where the spacing of every volume is known."""
    reasons = Counter(volume.why for volume in volumes if volume.spacing is None)
    if not reasons:
        return ""
    shown = "; ".join(f"{number} {why}" for why, number in reasons.most_common())
    return f"hd95 is in voxels, as not every test volume has a known spacing: of {len(volumes)} there are {shown}"


def _refuse_places(cohort: Cohort, stacks: Sequence[IntArray], order: NDArray[Any], role: str) -> None:
    """A CohortError where slices of a volume do not have a place each."""
    shared: list[int] = []
    without: list[int] = []
    for rows in stacks:
        if len(rows) > 1:
            places, counts = np.unique(order[rows], return_counts=True)
            shared += rows[np.isin(order[rows], places[counts > 1])].tolist()
            without += rows[np.isnan(order[rows])].tolist()
    wrong = []
    if shared:
        several = name_rows(sorted(cohort.origin[shared]))
        wrong.append(f"{several}: slices of one volume have the same {role} (column {cohort.roles[role]!r})")
    if without:
        wrong.append(f"{name_rows(sorted(cohort.origin[without]))}: no {role} (column {cohort.roles[role]!r})")
    if wrong:
        how = (
            "where they are slices of several volumes, give the column that tells these apart the role series or phase"
        )
        raise CohortError(f"the slices of a test volume need a place each; {how}", wrong)


def _spacing_of(cohort: Cohort, annotations: Annotations, rows: IntArray, order: NDArray[Any]) -> Spacing | str:
    """The spacing of a volume, or why it is not known."""
    stated = [annotations.spacing.get(row) for row in rows.tolist()]
    given = [each for each in stated if each is not None]
    if len(given) < len(stated):
        return "whose files do not state the spacing of rows and columns"
    slices, height, width = np.array(given, np.float64).T
    if np.ptp(height) > 0 or np.ptp(width) > 0:
        return "whose slices differ in their spacing"
    if len(rows) == 1:
        return (1.0, float(height[0]), float(width[0]))
    if len(np.unique(cohort.files[rows])) > 1:
        return "of one file a slice, where the distance of slices is not known"
    if not np.isfinite(slices[0]) or slices[0] <= 0:
        return "whose file does not state the spacing of slices"
    steps = np.diff(order[rows])
    if np.ptp(steps) > 0:
        return "of which slices are skipped, not each n-th one taken"
    return (float(steps[0] * slices[0]), float(height[0]), float(width[0]))
