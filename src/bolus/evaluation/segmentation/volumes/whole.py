"""Whole volumes as what is learnt from and judged: masks at the files' own voxels, windows at the cached ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Samples
from bolus.data.volumes.cache.store import VolumeStore
from bolus.data.volumes.fit import Box, in_words
from bolus.data.volumes.volume import SHEAR, slant_of
from bolus.encoders.backbone import Encoder
from bolus.errors import EvaluationError, ImageError, name_rows
from bolus.evaluation.preparation import Prepared
from bolus.evaluation.segmentation.annotation import Annotations, why_without
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.overlays import draw_overlay
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.evaluation.segmentation.stacks import Volume
from bolus.evaluation.segmentation.volumes.place import Grid, from_stored, seen_part, to_stored
from bolus.evaluation.segmentation.volumes.sliding import fit_windows, slide, stored_grid, volume_as_cached
from bolus.evaluation.segmentation.volumes.windows import SHARE
from bolus.evaluation.statistics.metrics import IntArray

TOLERANCE = 2.0  # mm, or voxels, where nobody says


class Whole:
    """Volumes in the cache beside their masks; what `bolus.evaluation.segmentation.slices.Slices` is of images.

    Args:
        annotations: of the samples, at the first rows of volumes.
        prepared: of an encoder of volumes.
        spec: how a segmenter is trained.
    """

    unit = "volume"

    def __init__(self, annotations: Annotations, prepared: Prepared[Any], spec: SegmentSpec) -> None:
        store, samples = prepared.store, prepared.samples
        assert isinstance(store, VolumeStore)
        self.annotations, self.store, self.samples, self.spec = annotations, store, samples, spec
        self.contract = store.preprocessing.seen_by(samples.cohort.modality)
        self.tolerance = TOLERANCE if spec.tolerance is None else spec.tolerance
        self.grids: dict[int, Grid] = {}
        self.labels: dict[int, NDArray[Any]] = {}

    @property
    def box(self) -> Box:
        """Voxels that the encoder sees."""
        assert self.contract.volume is not None
        return self.contract.volume.size

    def find(self) -> tuple[list[Volume], list[str]]:
        """The test volumes, and notes; see `find_whole`."""
        return find_whole(self.samples, self.annotations, self.store.readable)

    def fit(
        self, encoder: Encoder, rows: IntArray, *, seed: int, on_step: Callable[[int], None] | None = None
    ) -> Segmenter:
        """As `fit_windows`, of the volumes that begin in these rows."""
        for row in set(rows.tolist()) - set(self.labels):
            self.labels[row] = to_stored(self.annotations.codes[row], self.grid(row))
        return fit_windows(
            encoder, self.store, self.samples, self.labels, rows, box=self.box,
            num_classes=self.annotations.num_classes, spec=self.spec, seed=seed, on_step=on_step,
        )  # fmt: skip

    def predict(self, segmenter: Segmenter, volume: Volume) -> IntArray:
        """The predicted classes of a volume at its files' own voxels, int64 `[D, H, W]`."""
        row = int(volume.rows[0])
        return from_stored(slide(segmenter, row, box=self.box), self.grid(row))

    def draw(self, volume: Volume, predicted: NDArray[Any]) -> NDArray[np.uint8]:
        """`draw_overlay` of the cached slice with most of the truth; anterior at the top, right on the left."""
        row = int(volume.rows[0])
        truth, guess = (to_stored(each, self.grid(row)) for each in (volume.truth, predicted))
        number = int((truth > 0).sum(axis=(1, 2)).argmax())
        image = self.store.gather(np.array([row], np.int64)).unit()[0, :, number].numpy()
        turned = slice(None, None, -1) if self.annotations.places[row].affine is not None else slice(None)
        return draw_overlay(image[:, turned, turned], truth[number, turned, turned], guess[number, turned, turned])

    def grid(self, row: int) -> Grid:
        """Of the volume that begins in a row."""
        if row not in self.grids:
            position = int(np.flatnonzero(self.samples.first_row == row)[0])
            read = partial(volume_as_cached, self.samples, self.store, position)
            try:
                self.grids[row] = stored_grid(self.samples, self.store, row, self.annotations.places[row], read)
            except ImageError as error:
                raise EvaluationError(f"{name_rows([self.samples.cohort.origin[row]])}: {error}") from error
        return self.grids[row]

    @property
    def batch(self) -> str:
        """What a step sees."""
        share = SHARE if self.spec.foreground is None else self.spec.foreground
        windows = f"{self.spec.batch_size} windows of {in_words(self.box, 'voxels')}"
        return f"{windows}, {share:.0%} of them about a labelled voxel"

    def notes(self, volumes: Sequence[Volume]) -> list[str]:
        """What holds of how volumes are predicted and scored, in sentences."""
        where = "mm" if all(volume.spacing is not None for volume in volumes) else "voxels"
        windows = f"windows of {in_words(self.box, 'voxels')} that overlap by half"
        averaged = "their probabilities averaged by a Gaussian about each middle"
        said = [
            f"a test volume is seen in {windows}, {averaged}; it is scored at the voxels of its own files",
            f"surface_dice is the share of both surfaces that lies within {self.tolerance:g} {where} of the other",
        ]
        total = outside = 0
        for volume in volumes:
            foreground = volume.truth > 0
            total += int(foreground.sum())
            outside += int((foreground & ~seen_part(self.grid(int(volume.rows[0])))).sum())
        if outside:
            share = f"{outside / total:.1%} of the foreground of the test volumes"
            said.append(f"{share} is outside what the encoder is shown of them: never found")
        affines = [self.annotations.places[int(volume.rows[0])].affine for volume in volumes]
        slanted = sum(affine is not None and slant_of(affine) >= SHEAR for affine in affines)
        if slanted:
            where = f"in {slanted} of {len(volumes)} test volumes (a tilted gantry)"
            said.append(f"axes of voxels are not at right angles {where}: distances are measured as if they were")
        return said


def find_whole(
    samples: Samples, annotations: Annotations, readable: NDArray[np.bool_] | None = None
) -> tuple[list[Volume], list[str]]:
    """The test volumes with a mask and voxels that can be read, in the order of the samples.

    Args:
        samples: of unit `volume`.
        annotations: of these.
        readable: bool `[rows]`, volumes that are there; None: all.

    Returns:
        The volumes, and what a reader must know, in sentences.

    Raises:
        EvaluationError: no test volume.
    """
    cohort, found = samples.cohort, list[Volume]()
    patients, lost = cohort.encoded("patient"), list[int]()
    for row in samples.first_row[samples.on_side("test")].tolist():
        if row in annotations.codes and (readable is None or readable[row]):
            spacing = annotations.spacing.get(row)
            why = "" if spacing else "whose files do not state the spacing of voxels"
            found.append(Volume(np.array([row]), int(patients[row]), annotations.codes[row], spacing, why))
        else:
            lost.append(row)
    if not found:
        raise EvaluationError(f"no test volume has a mask: {why_without(samples, 'test', ())}")
    notes = ["a volume is one sample of the encoder, and each row of the tables of results its first row"]
    if lost:
        which = f"{len(lost)} test volume{' is' if len(lost) == 1 else 's are'} left out"
        begin = name_rows(cohort.origin[lost])
        notes.append(f"{which}: without a mask on every slice, or with voxels that cannot be read (begin in {begin})")
    return found, notes
