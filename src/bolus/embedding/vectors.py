"""Pooled features of samples, computed or remembered."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Preprocessing, Store
from bolus.data.images.clips import pick_frames
from bolus.data.views.samples import count_views, one_ahead, whole_views
from bolus.device import Precision, check_precision
from bolus.embedding.remembering import FOLDER, embedder_key, remember_in_pieces
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, parts_of
from bolus.errors import EncoderError, UsageError, name_rows
from bolus.progress import Meter
from bolus.provenance import digest_of

ON_CPU = 96 * 96
"""Pixels of a view from which on fewer are embedded at a time on a CPU, where that is as fast and takes less memory."""


def embed_samples(
    encoder: Encoder | ModalityEncoders,
    store: Store,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    *,
    batch_size: int = 256,
    precision: Precision = "fp32",
    keep: bool = False,
    meter: Meter | None = None,
) -> npt.NDArray[np.float32]:
    """Pooled features of whole images or clips, without augmentation, in evaluation mode; the mode is put back.

    Those of a volume are the mean over the windows that cover it.

    Args:
        encoder: whose features; it stays on its device.
        store: the pixels of `samples.cohort`; its preprocessing says how many frames of a clip are seen, which are
            those in the middle of as many equal parts of its readable ones.
        samples: images, slices, clips if the store's preprocessing has frames, or volumes if it has their box.
        positions: int64 `[n]`, which samples; each has a readable row.
        batch_size: images, frames, or so much of windows of volumes, at a time; on a CPU fewer of large ones.
        precision: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.
        keep: look for them in the cache beside the pixels, and write there what was not found (`remembering`).
        meter: told how many samples are done.

    Returns:
        float32 `[n, D]`, in the order of the positions.

    Raises:
        EncoderError: a modality for which there is no encoder, where each has its own; features that are not finite.
        UsageError: another precision, or fp16 on a CPU, where it is emulated.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "keep": keep, "meter": meter}
    with closing(embed_in_pieces(encoder, store, samples, positions, [len(positions)], **options)) as pieces:
        return next(pieces)


def embed_in_pieces(
    encoder: Encoder | ModalityEncoders,
    store: Store,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    stops: Sequence[int],
    *,
    batch_size: int = 256,
    precision: Precision = "fp32",
    keep: bool = False,
    meter: Meter | None = None,
) -> Generator[npt.NDArray[np.float32]]:
    """What `embed_samples` gives, piece by piece, in the memory of one: batches do not end where pieces do.

    Args:
        encoder: as of `embed_samples`, and so are the others.
        store: the pixels.
        samples: images, slices, clips or volumes.
        positions: int64 `[n]`.
        stops: where pieces end, rising; the last is n.
        batch_size: images, or frames, at a time.
        precision: of computing.
        keep: also what was computed before an interruption is found again.
        meter: told how many samples are done.

    Yields:
        float32 `[m, D]` for each stop, from the one before to it.

    Raises:
        EncoderError, UsageError: as `embed_samples`.
    """
    check_precision(precision)
    frames = store.preprocessing.frames
    assert (frames is not None) == (samples.unit == "clip"), f"{frames} frames of unit {samples.unit}"
    assert (store.preprocessing.volume is not None) == (samples.unit == "volume"), f"a box of unit {samples.unit}"
    was_training = encoder.training
    encoder.eval()
    modality = samples.cohort.modality[samples.first_row[positions]]
    begun = 0 if meter is None else meter.done
    parts = []
    for part, contract, places in parts_of(encoder, store.preprocessing, modality):
        asked, ends = positions[places], np.searchsorted(places, stops)

        def compute(
            some: npt.NDArray[np.int64], part: Encoder = part, contract: Preprocessing = contract,
            asked: npt.NDArray[np.int64] = asked,
        ) -> Iterator[npt.NDArray[np.float32]]:  # fmt: skip
            return _embed_alike(part, contract, store, samples, asked[some], batch_size, precision, meter)

        if keep:
            folder = store.folder / FOLDER / _key_of(part, contract, precision)
            keys = keys_of(contract, store, samples, asked)
            parts.append((places, ends, remember_in_pieces(folder, keys, encoder.shape.dim, compute, ends.tolist())))
        else:
            parts.append((places, ends, _cut(compute(np.arange(len(asked))), encoder.shape.dim, ends.tolist())))
    try:
        for number, (start, stop) in enumerate(zip([0, *stops], stops, strict=False)):
            vectors = np.zeros((stop - start, encoder.shape.dim), np.float32)
            for places, ends, pieces in parts:
                here = places[ends[number - 1] if number else 0 : ends[number]]
                vectors[here - start] = next(pieces)
            if meter is not None:
                meter.update(begun + stop)
            store.let_go()
            yield vectors
    finally:
        for _, _, pieces in parts:
            pieces.close()
        encoder.train(was_training)


def _cut(
    batches: Iterator[npt.NDArray[np.float32]], dim: int, stops: Sequence[int]
) -> Generator[npt.NDArray[np.float32]]:
    """Rows of batches `[b, D]`, cut at other places."""
    waiting, begun = np.zeros((0, dim), np.float32), 0
    for stop in stops:
        taken = [waiting]
        while sum(map(len, taken)) < stop - begun:
            taken.append(next(batches))
        whole = np.concatenate(taken)
        waiting = whole[stop - begun :]
        yield whole[: stop - begun]
        begun = stop


def _embed_alike(
    encoder: Encoder,
    contract: Preprocessing,
    store: Store,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    batch_size: int,
    precision: Precision,
    meter: Meter | None,
) -> Iterator[npt.NDArray[np.float32]]:
    """Pooled features `[b, D]` of samples that one encoder sees at one size, in evaluation mode, batch by batch."""
    counts = count_views(contract, store, samples, positions)
    asked = np.repeat(positions, counts)
    views = _embed_views(encoder, contract, store, samples, positions, asked, batch_size, precision)
    for found in views if len(asked) == len(positions) else _averaged(views, counts):
        if meter is not None:
            meter.update(meter.done + len(found))
        yield found


def _averaged(
    batches: Iterator[npt.NDArray[np.float32]], counts: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.float32]]:
    """The mean of each so many rows of batches `[b, D]`, as soon as all of these are there.

    >>> rows = np.arange(6, dtype=np.float32)[:, None]
    >>> [each.ravel().tolist() for each in _averaged(iter([rows[:3], rows[3:]]), np.array([2, 3, 1]))]
    [[0.5], [3.0, 5.0]]
    """
    ends, begun, done, waiting = np.cumsum(counts), 0, 0, list[npt.NDArray[np.float32]]()
    for batch in batches:
        waiting.append(batch)
        whole = int(np.searchsorted(ends, begun + sum(map(len, waiting)), side="right"))
        if whole > done:
            rows = np.concatenate(waiting)
            taken = int(ends[whole - 1]) - begun
            starts = ends[done:whole] - counts[done:whole] - begun
            sums = np.add.reduceat(rows[:taken].astype(np.float64), starts, axis=0)
            yield (sums / counts[done:whole, None]).astype(np.float32)
            begun, done, waiting = begun + taken, whole, [rows[taken:]]


def _embed_views(
    encoder: Encoder,
    contract: Preprocessing,
    store: Store,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    batch_size: int,
    precision: Precision,
) -> Iterator[npt.NDArray[np.float32]]:
    """Pooled features `[b, D]` of views of the samples `asked`; the next batch is read while one is embedded."""
    place, pixels = next(encoder.parameters()).device, contract.sides[-1] * contract.sides[-2]
    together = batch_size if place.type != "cpu" else min(batch_size, batch_size * ON_CPU // pixels)
    step = max(1, together // contract.images_per_view)
    if precision == "fp16" and place.type == "cpu":
        raise UsageError("precision fp16 is emulated on a CPU and slow there: take fp32 or bf16, or an accelerator")
    lower = torch.bfloat16 if precision == "bf16" else torch.float16
    views = whole_views(contract, store, samples, positions, step=step, device=place)
    with closing(one_ahead(views)) as batches:
        for number, (images, mask) in enumerate(batches):
            with torch.inference_mode(), torch.autocast(place.type, lower, enabled=precision != "fp32"):
                found = encoder(images, frame_mask=mask).pooled.float().cpu().numpy()
            some = asked[number * step : number * step + len(found)]
            lost = np.unique(some[~np.isfinite(found).all(axis=1)])
            if len(lost):
                rows = name_rows(np.unique(samples.cohort.origin[samples.first_row[lost]]))
                why = (
                    "its weights are damaged" if precision == "fp32" else f"{precision} is too narrow for it; take fp32"
                )
                what = f"values that are not finite for {len(lost)} of {len(np.unique(some))} samples ({rows})"
                raise EncoderError(f"the encoder gives {what}: {why}")
            yield found


def keys_of(
    contract: Preprocessing, store: Store, samples: Samples, positions: npt.NDArray[np.int64]
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
    seen: dict[str, Any] = {
        "size": contract.size,
        "channels": contract.channels,
        "frames": contract.frames,
        "precision": precision,
    }
    if contract.volume is not None:
        seen["volume"] = [*contract.volume.size, contract.fit]
    config.pop("_name_or_path", None)
    spec = encoder.spec.model_dump(mode="json", exclude={"backbone", "pretrained", "unfrozen"})
    return embedder_key(digest_of({"encoder": encoder}), [spec, config, seen, next(encoder.parameters()).device.type])
