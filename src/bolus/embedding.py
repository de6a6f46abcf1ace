"""An encoder and a cohort become embeddings, joined to the table they came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bolus.data.batches.views import whole_views
from bolus.data.cohort.cohort import Cohort, CohortLike, Samples
from bolus.data.images.cache import ImageStore, Preprocessing, build_store
from bolus.data.images.clips import open_samples, pick_frames
from bolus.data.pixels.range_rules import describe_rule
from bolus.device import device
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import external_encoder
from bolus.encoders.folders.folder import lineage_of, load_encoder
from bolus.encoders.folders.modality_folder import is_modality_folder, load_encoders
from bolus.encoders.modalities import ModalityEncoders, parts_of
from bolus.errors import EncoderError, UsageError
from bolus.files import replacing
from bolus.progress import Meter
from bolus.provenance import digest_of
from bolus.remembering import FOLDER, embedder_key, remember
from bolus.run import Run

SUFFIXES = (".parquet", ".pq")
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Judged:
    """An encoder ready to embed.

    Args:
        name: for display.
        encoder: architecture and weights; or those of several modalities.
        preprocessing: the input it expects.
        run: where it came from, if it was opened as one.
        lineage: whom it and the encoders it was initialised from were trained on, as `lineage_of` says; empty where
            that is not known.
        training: of the cohort that it is judged on, images, samples, and positions of those that are for training and
            readable, int64; None where none are shown to it.
    """

    name: str
    encoder: Encoder | ModalityEncoders
    preprocessing: Preprocessing
    run: Run | None
    lineage: Sequence[Mapping[str, Any]] = ()
    training: tuple[ImageStore, Samples, npt.NDArray[np.int64]] | None = None

    def random_twin(self, seed: int) -> Encoder | ModalityEncoders:
        """The same architecture with fresh weights: what the pixels alone give away."""
        return self.encoder.twin(seed=seed)


def open_encoder(source: str | Path, *, keep_context: bool = True, size: int | None = None) -> Judged:
    """A run folder, an encoder folder, or a hub name; of encoders per modality, the folder of all or of one.

    Args:
        source: what to open; a hub name is asked for on the network unless HF_HUB_OFFLINE is set.
        keep_context: apply the run's MLVICX context blocks; without, the plain backbone is used.
        size: input size in pixels for an encoder that does not state one.

    Raises:
        EncoderError: nothing there can be opened as an encoder, or its training has not ended.
        UsageError: a size for a run or encoder folder, which states its own.
    """
    folder, name = Path(source), Path(source).name or Path(source).resolve().name
    if (folder / "run.json").is_file():
        run = Run.open(folder)
        if not run.encoder.is_dir():
            raise EncoderError(f"{folder}: training has not ended; go on with bolus pretrain ... --resume")
        opened = _open_folder(name, run.encoder, keep_context, size)
        # A run from before encoder folders had a lineage still knows its own patients.
        own = [{"salt": run.record["salt"], "keys": run.record["training_patients"]}]
        return replace(opened, run=run, lineage=opened.lineage or own)
    if is_modality_folder(folder) or (folder / "encoder.json").is_file():
        return _open_folder(name, folder, keep_context, size)
    encoder, contract = external_encoder(str(source))
    fit = cast(Literal["pad", "stretch", "crop"], contract.get("fit", "pad"))
    preprocessing = Preprocessing(size or int(contract.get("size", 224)), encoder.spec.in_channels, fit)
    return Judged(name, encoder, preprocessing, None)


def _open_folder(name: str, folder: Path, keep_context: bool, size: int | None) -> Judged:
    """An encoder folder, or one that holds those of several modalities."""
    if is_modality_folder(folder):
        if size is not None:
            raise UsageError(f"{folder} holds encoders that state their own input size; leave out the size {size}")
        encoders, preprocessing, lineage = load_encoders(folder, keep_context=keep_context)
        return Judged(name, encoders, preprocessing, None, lineage)
    encoder, contract = load_encoder(folder, keep_context=keep_context)
    return Judged(name, encoder, _as_stated(folder, contract, size), None, lineage_of(folder))


def _as_stated(folder: Path, contract: Mapping[str, Any], size: int | None) -> Preprocessing:
    """The contract of an encoder folder, which a person cannot overrule."""
    if "size" in contract and size is not None:
        raise UsageError(f"{folder} states its own input size, {contract['size']} pixels; leave out the size {size}")
    if "size" not in contract and size is None:
        raise EncoderError(f"{folder} does not state its input size; give one")
    return Preprocessing(**({"size": size} | dict(contract)))


def samples_of(judged: Judged, cohort: Cohort) -> Samples:
    """The cohort in the unit that the encoder was made for: clips where it sees frames, else images.

    What judges works on these, with `samples.cohort` as the cohort: of clip files it has a row a frame.

    Raises:
        CohortError: as `bolus.data.images.clips.open_samples`.
    """
    return open_samples(cohort, "clip" if judged.preprocessing.frames else "image")


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
        keep: look for them in the cache beside the pixels, and write there what was not found (`bolus.remembering`).
        meter: told how many samples are done.

    Returns:
        float32 `[n, D]`, in the order of the positions.

    Raises:
        EncoderError: a modality for which there is no encoder, where each has its own.
        UsageError: fp16 on a CPU, where it is emulated.
    """
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
    return np.concatenate(parts) if parts else np.zeros((0, encoder.shape.dim), np.float32)


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


def open_store(judged: Judged, cohort: Cohort, *, cache: Path | None = None) -> ImageStore:
    """The cohort's images as this encoder expects them; for clips, give it the cohort of `samples_of`.

    A range that the cohort states wins over the encoder's. A modality that needs one and whose name the encoder does
    not know takes the encoder's only range, where it has one and the cohort has one modality; otherwise the range that
    a check of the cohort found, or the one that covers its images. `remarks_on` says so.

    Raises:
        CohortError: as `build_store`.
        EncoderError: images of a modality for which there is no encoder, where each modality has its own.
    """
    known = judged.preprocessing.ranges
    if isinstance(judged.encoder, ModalityEncoders):
        unseen = sorted(set(cohort.modality.tolist()) - set(judged.encoder.names))
        if unseen:
            names = ", ".join(judged.encoder.names)
            raise EncoderError(
                f"{judged.name} has encoders for {names}, and the cohort has images of {', '.join(unseen)}"
                f"{' (no column has the role modality)' if 'modality' not in cohort.roles else ''}; leave those rows "
                "out, or open one encoder for all rows: a folder in that of the encoders"
            )
    contract = judged.preprocessing.seen_by(cohort.modality)
    store = build_store(cohort, contract, folder=cache)
    unknown = set(store.preprocessing.ranges) - {*known, *cohort.spec.ranges}
    if len(known) == 1 and len(set(cohort.modality)) == 1:
        (only,) = known.values()
        ranges = dict.fromkeys(unknown, only)
    else:
        ranges = {name: cohort.spec.cohort_ranges[name] for name in unknown & set(cohort.spec.cohort_ranges)}
    if not ranges:
        return store
    return build_store(cohort, replace(contract, ranges={**known, **ranges}), folder=cache)


def remarks_on(judged: Judged, store: ImageStore) -> list[str]:
    """What a person must know of the images that `open_store` gave this encoder, in sentences."""
    known, rules = judged.preprocessing.ranges, judged.preprocessing.rules
    said = list(store.remarks)
    for name, (low, high) in sorted(store.preprocessing.ranges.items()):
        if name in known:
            if known[name] != (low, high):
                trained = "{:g} to {:g}".format(*known[name])
                said.append(f"{name}: {low:g} to {high:g} is stated, and the encoder was trained with {trained}.")
            continue
        same = [other for other, values in known.items() if tuple(values) == (low, high)]
        origin = f"the range it knows for {same[0]}" if same else "not a range it was trained with"
        said.append(f"The encoder does not know modality {name!r}: values {low:g} to {high:g} are used, {origin}.")
    for name, (rule, low, high) in sorted((store.preprocessing.rules or {}).items()):
        if rules is None or name not in rules:
            shown = describe_rule(rule, (low, high))
            said.append(f"The encoder does not say how {name} of more than eight bits becomes grey: {shown}.")
    if judged.preprocessing.mirror is not None and store.mirrored is None:
        side = judged.preprocessing.mirror
        said.append(f"The encoder expects images of the {side} mirrored; no column has the role laterality: none was.")
    return said


def embed(
    source: str | Path,
    cohort: CohortLike,
    *,
    out: str | Path | None = None,
    keep_context: bool = True,
    size: int | None = None,
    cache: Path | None = None,
    precision: Precision = "fp32",
    quiet: bool = True,
) -> pd.DataFrame:
    """Embed every readable image or clip of a cohort; quarantined rows are absent, and remarked on in the metadata.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        keep_context: apply the run's MLVICX context blocks; without, BatchNorm keeps the statistics that the network
            had with them (an evaluation estimates its own).
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        precision: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.
        quiet: show no progress.
        out: a Parquet file to write; its schema metadata holds encoder, recipe and preprocessing.

    Returns:
        One line a sample: `row` (from 1), `split`, the table's own columns, and `embedding`, float32 `[D]`; in
        `attrs["remarks"]`, what a person must know of the images. For an encoder of clips a line is a clip: `row` and
        the columns are those of its first frame, and `rows` is how many frames it has, those not readable included.

    Raises:
        EncoderError: the encoder cannot be opened.
        UsageError: a size for an encoder that states its own, another suffix of `out`, or the table itself as `out`.
        CohortError: the cohort cannot be opened, or most of its images cannot be read.
    """
    if out is not None and Path(out).suffix.lower() not in SUFFIXES:
        raise UsageError(f"out: expected a file name that ends in {' or '.join(SUFFIXES)}, found {Path(out).name!r}")
    cohort = Cohort.open(cohort)
    if out is not None:
        cohort.refuse_to_overwrite(Path(out))
    judged = open_encoder(source, keep_context=keep_context, size=size)
    samples = samples_of(judged, cohort)
    store = open_store(judged, samples.cohort, cache=cache)
    positions = np.flatnonzero(samples.readable(store.readable))
    with Meter("embedding", len(positions), quiet=quiet) as meter:
        encoder = judged.encoder.to(device())
        vectors = embed_samples(encoder, store, samples, positions, precision=precision, keep=True, meter=meter)
    rows = samples.cohort.origin[samples.first_row[positions]]
    facts: dict[str, Any] = {"row": rows + 1, "split": cohort.split[rows]}
    if samples.unit == "clip":
        facts["rows"] = samples.num_rows[positions]
    frame = cohort.table.iloc[rows].reset_index(drop=True)
    frame.columns = pd.Index(free_names(list(map(str, frame.columns)), {*facts, "embedding"}))
    for place, (name, values) in enumerate(facts.items()):
        frame.insert(place, name, values)
    if out is not None:
        _write(Path(out), frame, vectors, judged, store)
    frame = frame.assign(embedding=list(vectors))
    frame.attrs["remarks"] = remarks_on(judged, store)
    return frame


def free_names(names: list[str], taken: set[str]) -> list[str]:
    """The names, those that are taken with `table_` before them until they are free.

    >>> free_names(["row", "table_row", "age"], {"row"})
    ['table_table_row', 'table_row', 'age']
    """
    used, found = taken | set(names), []
    for name in names:
        free = name
        while free in taken or (free != name and free in used):
            free = f"table_{free}"
        used.add(free)
        found.append(free)
    return found


def _write(
    path: Path, frame: pd.DataFrame, vectors: npt.NDArray[np.float32], judged: Judged, store: ImageStore
) -> None:
    import json

    table = pa.Table.from_pandas(frame, preserve_index=False)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    metadata: Mapping[str, Any] = {
        "encoder": judged.name,
        "recipe": judged.run.recipe.digest if judged.run else None,
        "preprocessing": store.preprocessing.to_json(),
        "remarks": remarks_on(judged, store),
    }
    table = table.append_column("embedding", column)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), "bolus": json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
