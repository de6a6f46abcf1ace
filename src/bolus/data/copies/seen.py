"""Images that an encoder was trained on, remembered in bits that tell near copies of them and show nothing.

A signature is multiplied by random signs that a key decides, shifted, and cut into bands of which every other one is
a 1 (P. Boufounos and S. Rane, Secure binary embeddings for privacy preserving nearest neighbors, 2011). Of two images
that are alike few bits differ; of any others half, however unlike they are. Without the key the bits tell which of the
training images are near copies of each other, and how many there are. With it whoever has an image can ask whether it
is among them: that is their purpose. Key and bits stay in the house, as the hashes of patients do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, shake_256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bolus.checksums import FACTS, find_damage, with_checksums
from bolus.data.copies.near import find_near_copies
from bolus.data.copies.signatures import FINE, MIRRORED, WHOLE, WIDENED, Signer, plain_signer
from bolus.data.copies.thumbnails import FloatArray
from bolus.errors import EncoderError
from bolus.files import replacing, save_tensors

FILE = "seen_images.safetensors"
FORMAT = 1
BITS = 1_024
ENOUGH = 100  # patients from which on what their images have in common may be written down
DIFFER = 0.36  # share of the bits that differ in a copy at the most; of two images at the threshold .35 do
VIEWS = (WHOLE, *MIRRORED, *WIDENED)
BLOCK = 256  # images that are asked for at a time

Bits = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SeenImages:
    """Bits of training images, and what is needed, beside the key, to make those of others.

    Args:
        bits: uint64 `[n, 16]`, in an order that says nothing.
        threshold: likeness from which on an image is a copy, as the training images taught.
        signer: of their kind; plain where they are of fewer than 100 patients.
    """

    bits: Bits
    threshold: float
    signer: Signer

    @property
    def digest(self) -> str:
        """A hash of everything that answers depend on but the key."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "bits": self.bits,
            "mean": self.signer.mean,
            "whitening": self.signer.whitening,
        }
        return str(with_checksums({"threshold": self.threshold, "reach": self.signer.reach}, arrays)[FACTS])

    def recognise(self, thumbnails: FloatArray, key: str) -> npt.NDArray[np.bool_]:
        """Which images show what a training image shows, bool `[n]`; as they are, mirrored, or as crops of it.

        Args:
            thumbnails: float32 `[n, 32, 32]`, of `thumbnail_of`; one that is NaN is not recognised.
            key: that they were remembered with; of another one every answer is false.
        """
        known = np.zeros(len(thumbnails), bool)
        asked = np.flatnonzero(np.isfinite(thumbnails).all(axis=(1, 2)))
        for start in range(0, len(asked) if len(self.bits) else 0, BLOCK):
            here = asked[start : start + BLOCK]
            for view in VIEWS:
                new = here[~known[here]]
                mine = _bits(self.signer.sign(thumbnails[new], view), key, self.threshold)
                known[new] = [self._has(each) for each in mine]
        return known

    def _has(self, bits: Bits) -> bool:
        """Whether few enough bits differ from those of some image; a quarter of them says of most that too many do."""
        first = BITS // 64 // 4
        some = np.bitwise_count(self.bits[:, :first] ^ bits[:first]).sum(axis=1, dtype=np.int64)
        near = np.flatnonzero(some <= (DIFFER + 0.1) * BITS / 4)
        differ = np.bitwise_count(self.bits[near] ^ bits).sum(axis=1, dtype=np.int64)
        return bool((differ <= DIFFER * BITS).any())


def remember_images(thumbnails: FloatArray, patients: npt.ArrayLike, key: str) -> SeenImages:
    """What is kept of the images that an encoder was trained on.

    Args:
        thumbnails: float32 `[n, 32, 32]`, of `thumbnail_of`; those that are NaN are not kept.
        patients: int `[n]`.
        key: decides the bits; whoever has it can ask whether an image is among them.

    Example:
        >>> images = np.random.default_rng(0).normal(size=(40, 32, 32)).astype(np.float32)
        >>> seen = remember_images(images[:30], np.arange(30), "key")
        >>> seen.recognise(images[[0, 30]][..., ::-1], "key"), seen.recognise(images[:1], "another")
        (array([ True, False]), array([False]))
    """
    few = len(np.unique(np.asarray(patients))) < ENOUGH
    found = find_near_copies(thumbnails, patients, signer=plain_signer(FINE) if few else None)
    visible = thumbnails[np.isfinite(thumbnails).all(axis=(1, 2))]
    bits = _bits(found.signer.sign(visible), key, found.threshold)
    return SeenImages(bits[np.lexsort(bits.T)], found.threshold, found.signer)


def name_of(salt: str) -> str:
    """Under which the images of a training are written; the salt is not to be had from it.

    >>> len(name_of("salt"))
    16
    """
    return blake2b(salt.encode(), digest_size=8, person=b"bolus.images").hexdigest()


def save_seen(seen: Mapping[str, SeenImages], folder: Path) -> None:
    """Write the images of trainings, by `name_of` their salts, into an encoder folder; of none, remove the file."""
    path = Path(folder) / FILE
    if not seen:
        path.unlink(missing_ok=True)
        return
    arrays: dict[str, npt.NDArray[np.float32] | Bits] = {}
    about: dict[str, Any] = {"format": FORMAT, "trainings": {}}
    for name, each in seen.items():
        about["trainings"][name] = {"threshold": each.threshold, "reach": each.signer.reach}
        arrays[f"{name}.bits"] = each.bits
        if not _is_plain(each.signer):
            arrays[f"{name}.mean"], arrays[f"{name}.whitening"] = each.signer.mean, each.signer.whitening
    with replacing(path) as temporary:
        save_tensors(temporary, arrays, {"bolus_seen": json.dumps(with_checksums(about, arrays))})


def load_seen(folder: Path) -> dict[str, SeenImages]:
    """What `save_seen` wrote; nothing of an encoder folder that has none, as those of earlier versions.

    Raises:
        EncoderError: damaged, or of a later format.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()["bolus_seen"])
            if about["format"] != FORMAT:
                raise EncoderError(f"{path}: expected format {FORMAT}, found {about['format']}")
            names, found = set(file.keys()), {}
            if find_damage(about, {name: file.get_tensor(name) for name in names}):
                raise ValueError("checksums differ")
            for name, each in about["trainings"].items():
                signer = plain_signer(int(each["reach"]))
                if f"{name}.mean" in names:
                    mean, whitening = file.get_tensor(f"{name}.mean"), file.get_tensor(f"{name}.whitening")
                    if (mean.shape, whitening.shape) != (signer.mean.shape, signer.whitening.shape):
                        raise ValueError("other shapes")
                    signer = Signer(signer.reach, mean, whitening)
                bits = file.get_tensor(f"{name}.bits")
                if bits.dtype != np.uint64 or bits.ndim != 2 or bits.shape[1] != BITS // 64:
                    raise ValueError("other bits")
                found[name] = SeenImages(bits, float(each["threshold"]), signer)
    except (OSError, SafetensorError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise EncoderError(f"{path}: damaged ({type(error).__name__}): remove it to do without") from error
    return found


def _is_plain(signer: Signer) -> bool:
    plain = plain_signer(signer.reach)
    return np.array_equal(signer.mean, plain.mean) and np.array_equal(signer.whitening, plain.whitening)


def _bits(signatures: FloatArray, key: str, threshold: float) -> Bits:
    """Uint64 `[n, 16]`, with bands so wide that of two images at the threshold .35 of the bits differ."""
    dim = signatures.shape[1]
    stream = shake_256(b"bolus.images/" + key.encode()).digest(8 * BITS + dim * BITS // 8)  # alike on every machine
    shift = np.frombuffer(stream[: 8 * BITS], "<u8") / 2.0**63
    signs = np.unpackbits(np.frombuffer(stream[8 * BITS :], np.uint8)).reshape(dim, BITS)
    axes = (2.0 * signs - 1).astype(np.float32)
    width = np.pi * np.sqrt(2 - 2 * threshold) / np.sqrt(2)
    bands = np.floor(signatures @ axes / width + shift).astype(np.int64) & 1
    packed: Bits = np.packbits(bands.astype(bool), axis=1).view(np.uint64).reshape(len(signatures), BITS // 64)
    return packed
