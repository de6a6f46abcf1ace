"""Single images as what is learnt from and judged: masks in the encoder's squares, and volumes slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.readers.masks import to_square
from bolus.encoders.backbone import Encoder
from bolus.evaluation.preparation import Prepared
from bolus.evaluation.segmentation.annotation import Annotations
from bolus.evaluation.segmentation.notes import cropped_off
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.segmentation.overlays import draw_middle
from bolus.evaluation.segmentation.segmenter import Segmenter, fit_segmenter
from bolus.evaluation.segmentation.stacks import Volume, find_volumes
from bolus.evaluation.segmentation.volume_scores import predict_volume
from bolus.evaluation.statistics.metrics import IntArray


class Slices:
    """Images in the cache beside their masks, made when they are first asked for.

    Args:
        annotations: of the cohort's rows.
        prepared: of an encoder of images.
        spec: how a segmenter is trained.
    """

    unit = "image"
    tolerance: float | None = None  # surfaces are not compared

    def __init__(self, annotations: Annotations, prepared: Prepared[Any], spec: SegmentSpec) -> None:
        self.annotations, self.store, self.samples, self.spec = annotations, prepared.store, prepared.samples, spec
        self.squares: dict[int, NDArray[Any]] = {}

    def find(self) -> tuple[list[Volume], list[str]]:
        """The test volumes, and notes; see `find_volumes`."""
        return find_volumes(self.samples.cohort, self.annotations, self.store.readable)

    def fit(
        self, encoder: Encoder, rows: IntArray, *, seed: int, on_step: Callable[[int], None] | None = None
    ) -> Segmenter:
        """As `fit_segmenter`, of the images of these rows."""
        fit, size = self.store.preprocessing.fit, self.store.preprocessing.cached_size
        for row in set(rows.tolist()) - set(self.squares):
            codes, aspect = self.annotations.codes[row], self.annotations.aspect.get(row, 1.0)
            self.squares[row] = to_square(codes, fit=fit, size=size, aspect=aspect).astype(codes.dtype)
        return fit_segmenter(
            encoder, self.store, self.samples, self.squares, rows,
            num_classes=self.annotations.num_classes, spec=self.spec, seed=seed, on_step=on_step,
        )  # fmt: skip

    def predict(self, segmenter: Segmenter, volume: Volume) -> IntArray:
        """As `predict_volume`."""
        return predict_volume(segmenter, volume)

    def draw(self, volume: Volume, predicted: NDArray[Any]) -> NDArray[np.uint8]:
        """As `draw_middle`."""
        return draw_middle(self.store, volume, predicted)

    @property
    def batch(self) -> str:
        """What a step sees."""
        return f"{self.spec.batch_size} slices"

    def notes(self, volumes: Sequence[Volume]) -> list[str]:
        """What the encoder does not see of the volumes, in sentences."""
        return cropped_off(volumes, self.store.preprocessing.fit)
