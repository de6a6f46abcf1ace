"""Files of predicted masks: NIfTI in the geometry of NIfTI images and DICOM series, SEG, or PNG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from bolus.data.readers.nifti import write_label_stack, write_labels_like
from bolus.data.volumes.dicom import find_slices
from bolus.data.volumes.placing import lay
from bolus.errors import ImageError

Masks = Mapping[int, NDArray[np.int64]]
"""Row -> `[H, W]` of the image's own pixels."""


@dataclass(frozen=True)
class Group:
    """Rows whose masks go into one file.

    Args:
        kind: of their image files, such as `NIfTI`.
        rows: of the cohort.
        paths: of the image of each row.
        frames: within its file, from 0; None where the row is the file.
    """

    kind: str
    rows: tuple[int, ...]
    paths: tuple[Path, ...]
    frames: tuple[int | None, ...]

    @property
    def files(self) -> list[Path]:
        """Of the images, each once."""
        return list(dict.fromkeys(self.paths))

    def among(self, rows: Mapping[int, object]) -> Group:
        """Those of its rows that are among others."""
        places = [place for place, row in enumerate(self.rows) if row in rows]
        return replace(
            self,
            rows=tuple(self.rows[place] for place in places),
            paths=tuple(self.paths[place] for place in places),
            frames=tuple(self.frames[place] for place in places),
        )


def write_masks(group: Group, labels: Masks, name: Callable[[int, str], Path]) -> dict[int, Path]:
    """Write the masks of a group, NIfTI where its images say where they lie, else a PNG each.

    Args:
        group: with at least one row.
        labels: whole numbers from 0 below 65,536, for each of its rows.
        name: row and suffix -> the file to write.

    Returns:
        Row -> the file that its mask is in.
    """
    first = group.rows[0]
    if group.kind == "NIfTI":
        places = zip(group.rows, group.frames, strict=True)
        slices = {frame or 0: labels[row] for row, frame in places}
        write_labels_like(group.paths[0], slices, out := name(first, ".nii.gz"))
        return dict.fromkeys(group.rows, out)
    if group.kind == "DICOM" and group.frames == (None,) * len(group.rows):
        try:
            grid = lay([each.plane for path in group.paths for each in find_slices(path, [None])])
        except ImageError:  # slices that are no stack
            grid = None
        if grid is not None and grid.affine is not None and len(grid.order) == len(group.rows):
            stack = np.stack([labels[group.rows[place]] for place in grid.order.tolist()])
            write_label_stack(stack, grid.affine, out := name(first, ".nii.gz"))
            return dict.fromkeys(group.rows, out)
        if len(group.rows) > 1:  # each lies by itself
            alone = [write_masks(group.among({row: None}), labels, name) for row in group.rows]
            return {row: out for each in alone for row, out in each.items()}
    found = {row: name(row, ".png") for row in group.rows}
    for row, out in found.items():
        kind = np.uint8 if labels[row].max(initial=0) < 256 else np.uint16
        PIL.Image.fromarray(labels[row].astype(kind)).save(out)
    return found
