"""Pictures of rows, as the encoder sees them, small and within the page; made only where they are asked for."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from bolus.data.volumes.cache.store import VolumeStore
from bolus.embedding.opening import open_encoder, open_store, samples_of
from bolus.reporting.evidence import Evidence

SIDE = 96  # of a picture, in pixels


class Pictured:
    """Makes pictures of rows.

    Args:
        cache: cache folder; the user's where None. Images that are not cached yet are decoded, all of the table.
    """

    def __init__(self, cache: Path | None) -> None:
        self.cache = cache

    def __call__(self, evidence: Evidence, rows: Sequence[int]) -> dict[int, str]:
        """Rows (from 1) -> data URIs; absent are rows that cannot be read, and all where the table is gone.

        Of a clip its first frame is shown, of a volume its middle slice; if the files say how it lies, then with the
        front at the top and the patient's right on the left.

        Raises:
            EncoderError: the run has not ended.
            CohortError: images that cannot be cached.
        """
        if evidence.cohort is None:
            return {}
        judged = open_encoder(evidence.run.folder)
        samples = samples_of(judged, evidence.cohort)
        store = open_store(judged, samples.cohort, cache=self.cache)
        first = {row: at for at, row in reversed(list(enumerate((samples.cohort.origin + 1).tolist())))}
        known = [row for row in dict.fromkeys(rows) if row in first and store.readable[first[row]]]
        if not known:
            return {}
        places = np.array([first[row] for row in known], np.int64)
        pictures = list(store.pictures(places))
        if isinstance(store, VolumeStore):
            laid = np.asarray(np.isfinite(store.spacing[places]).all(axis=1))
            pictures = [each[:, ::-1, ::-1] if lies else each for each, lies in zip(pictures, laid, strict=True)]
        return {row: _encode(picture) for row, picture in zip(known, pictures, strict=True)}


def _encode(picture: npt.NDArray[np.float32]) -> str:
    """A grey or coloured picture `[C, S, S]` in [0, 1] as a data URI."""
    channels = picture[:3] if picture.shape[0] >= 3 else picture[:1].repeat(3, axis=0)
    pixels = (channels.transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)
    image = PIL.Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"
