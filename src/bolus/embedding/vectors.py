"""Pooled features of samples, computed or remembered."""

from __future__ import annotations

import json
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch

from bolus.data.batches.views import whole_views
from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import ImageStore, Preprocessing
from bolus.data.images.clips import pick_frames
from bolus.device import Precision, check_precision
from bolus.embedding.remembering import FOLDER, embedder_key, remember
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, parts_of
from bolus.errors import EncoderError, UsageError, name_rows
from bolus.progress import Meter
from bolus.provenance import digest_of


def embed_samples(
    encoder: Encoder | ModalityEncoders,
    store: ImageStore,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    *,
    batch_size: int = 256,
    precision: Precision = "fp32",
    keep: bool = False,
    meter: Meter | None = None,
) -> npt.NDArray[np.float32]:
    """Pooled features of whole images or clips, without augmentation, in evaluation mode; the mode is put back.

    Args:
        encoder: whose features; it stays on its device.
        store: the pixels of `samples.cohort`; its preprocessing says how many frames of a clip are seen, which are
            those in the middle of as many equal parts of its readable ones.
        samples: images, slices, or clips if the store's preprocessing has frames.
        positions: int64 `[n]`, which samples; each has a readable row.
        batch_size: images, or frames, at a time.
        precision: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.
        keep: look for them in the cache beside the pixels, and write there what was not found (`remembering`).
        meter: told how many samples are done.

    Returns:
        float32 `[n, D]`, in the order of the positions.

    Raises:
        EncoderError: a modality for which there is no encoder, where each has its own; features that are not finite.
        UsageError: another precision, or fp16 on a CPU, where it is emulated.
    """
    check_precision(precision)
    frames = store.preprocessing.frames
    assert (frames is not None) == (samples.unit == "clip"), f"{frames} frames of unit {samples.unit}"
    was_training = encoder.training
    encoder.eval()
    vectors = np.zeros((len(positions), encoder.shape.dim), np.float32)
    modality = samples.cohort.modality[samples.first_row[positions]]
    begun = 0 if meter is None else meter.done
    for part, contract, places in parts_of(encoder, store.preprocessing, modality):
        asked = positions[places]

        def compute(
            some: npt.NDArray[np.int64], part: Encoder = part, contract: Preprocessing = contract,
            asked: npt.NDArray[np.int64] = asked,
        ) -> npt.NDArray[np.float32]:  # fmt: skip
            return _embed_alike(part, contract, store, samples, asked[some], batch_size, precision, meter)

        if keep:
            folder = store.folder / FOLDER / _key_of(part, contract, precision)
            keys = keys_of(contract, store, samples, asked)
            vectors[places] = remember(folder, keys, encoder.shape.dim, compute)
        else:
            vectors[places] = compute(np.arange(len(asked)))
    if meter is not None:
        meter.update(begun + len(positions))
    encoder.train(was_training)
    return vectors


def _embed_alike(
    encoder: Encoder,
    contract: Preprocessing,
    store: ImageStore,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    batch_size: int,
    precision: Precision,
    meter: Meter | None,
) -> npt.NDArray[np.float32]:
    """Pooled features `[n, D]` of samples that one encoder sees at one size, in evaluation mode."""
    place, step = next(encoder.parameters()).device, max(1, batch_size // (contract.frames or 1))
    if precision == "fp16" and place.type == "cpu":
        raise UsageError("precision fp16 is emulated on a CPU and slow there: take fp32 or bf16, or an accelerator")
    autocast = torch.autocast(place.type, torch.bfloat16 if precision == "bf16" else torch.float16,
                              enabled=precision != "fp32")  # fmt: skip
    parts = []
    with torch.inference_mode(), autocast:
        for images, mask in whole_views(contract, store, samples, positions, step=step, device=place):
            parts.append(encoder(images, frame_mask=mask).pooled.float().cpu().numpy())
            if meter is not None:
                meter.update(meter.done + len(images))
    found = np.concatenate(parts) if parts else np.zeros((0, encoder.shape.dim), np.float32)
    lost = positions[~np.isfinite(found).all(axis=1)]
    if len(lost):
        rows = name_rows(np.unique(samples.cohort.origin[samples.first_row[lost]]))
        why = "its weights are damaged" if precision == "fp32" else f"{precision} is too narrow for it; take fp32"
        what = f"values that are not finite for {len(lost)} of {len(positions)} samples ({rows})"
        raise EncoderError(f"the encoder gives {what}: {why}")
    return found


def keys_of(
    contract: Preprocessing, store: ImageStore, samples: Samples, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """128 bits of what an encoder sees of each sample, uint64 `[n, 2]`: of a clip, its frames and which are real."""
    if contract.frames is None:
        return store.keys(samples.first_row[positions])
    rows, real = pick_frames(samples, positions, store.readable, contract.frames)
    each = store.keys(rows.ravel()).reshape(len(positions), -1)
    both = (keys.tobytes() + mask.tobytes() for keys, mask in zip(each, real, strict=True))
    found = [blake2b(bits, digest_size=16).digest() for bits in both]
    return np.frombuffer(b"".join(found), np.uint64).reshape(-1, 2)


def _key_of(encoder: Encoder, contract: Preprocessing, precision: str) -> str:
    """A name for an encoder and how it is fed."""
    config = json.loads(encoder.config.to_json_string(use_diff=False))
    seen = {"size": contract.size, "channels": contract.channels, "frames": contract.frames, "precision": precision}
    config.pop("_name_or_path", None)
    spec = encoder.spec.model_dump(mode="json", exclude={"backbone", "pretrained", "unfrozen"})
    return embedder_key(digest_of({"encoder": encoder}), [spec, config, seen, next(encoder.parameters()).device.type])
