"""A trained segmenter as a folder: its encoder, its decoder, and what its classes are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from bolus.checksums import find_damage, with_checksums
from bolus.data.cohort.split import Labels, hash_patients, seen_rows
from bolus.data.copies.seen import SeenImages
from bolus.embedding.opening import Judged, open_encoder
from bolus.encoders.families.unet import MaskDecoder
from bolus.encoders.folders.folder import save_encoder
from bolus.encoders.modalities import one_encoder
from bolus.errors import EvaluationError
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.files import replacing, save_tensors, tensors_of

DECODER = "decoder.safetensors"


@dataclass(frozen=True, eq=False)
class SavedSegmenter:
    """A segmenter that was read back, in evaluation mode.

    Args:
        judged: its encoder with its preprocessing, and whom both were trained on.
        decoder: on its features.
        labels: of the foreground classes 1..K-1, the numbers that masks have.
        names: of these classes.
        salt: of
        patients: keys of the patients whose masks it was trained on.
        key: fingerprint of the site's key that they are under; empty in older files.
    """

    judged: Judged
    decoder: MaskDecoder
    labels: tuple[int, ...]
    names: tuple[str, ...]
    salt: str
    patients: tuple[str, ...]
    key: str = ""

    @property
    def num_classes(self) -> int:
        """K, with the background."""
        return len(self.labels) + 1

    def knows(self, patients: Labels) -> NDArray[np.bool_] | None:
        """Rows of patients whose masks it was trained on: bool `[rows]`; None where hashed under another key."""
        return seen_rows({"keys": self.patients, "salt": self.salt, "key": self.key}, patients)


def save_segmenter(
    segmenter: Segmenter,
    folder: Path,
    *,
    labels: Mapping[int, str],
    patients: Labels,
    lineage: Sequence[Mapping[str, Any]],
    seen: Mapping[str, SeenImages] | None = None,
) -> None:
    """Write an encoder folder with `decoder.safetensors` in it, which comes last.

    Args:
        segmenter: what `fit_segmenter` made.
        folder: made where it is missing.
        labels: of the foreground classes, in their order: the number that masks have -> its name.
        patients: whose masks it was trained on, one or more rows each; only keyed hashes are kept.
        lineage: as `save_encoder`.
        seen: likewise.
    """
    (folder / DECODER).unlink(missing_ok=True)
    contract = segmenter.store.preprocessing.to_json()
    save_encoder(segmenter.encoder, folder, preprocessing=contract, lineage=lineage, seen=seen)
    about = {"labels": list(labels), "names": list(labels.values()), **hash_patients(patients)}
    state = tensors_of(segmenter.decoder.state_dict())
    with replacing(folder / DECODER) as temporary:
        save_tensors(temporary, state, {"bolus_segmenter": json.dumps(with_checksums(about, state))})


def load_segmenter(folder: str | Path) -> SavedSegmenter:
    """Read what `save_segmenter` wrote.

    Raises:
        EvaluationError: no such folder, or a decoder that is damaged or of another encoder.
        EncoderError: its encoder cannot be opened.
    """
    path = Path(folder) / DECODER
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["bolus_segmenter"])
        weights = load_file(path)
        if found := find_damage(about, weights):
            raise EvaluationError(f"{path} is damaged: its checksum differs ({', '.join(found)})")
        judged = open_encoder(path.parent)
        decoder = MaskDecoder(one_encoder(judged.encoder, wanted_by="segmentation").shape, len(about["labels"]) + 1)
        decoder.load_state_dict(weights)
        names, salt, keys = tuple(map(str, about["names"])), str(about["salt"]), tuple(about["keys"])
        key = str(about.get("key", ""))
    except (OSError, SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise EvaluationError(f"{path} is not the decoder of a segmenter beside it: {type(error).__name__}") from error
    return SavedSegmenter(judged, decoder.eval(), tuple(map(int, about["labels"])), names, salt, keys, key)
