"""An encoder, opened to judge and to embed, and the images of a cohort as it expects them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.copies.seen import SeenImages
from bolus.data.images.cache import Preprocessing, Progress, Store, build_store
from bolus.data.images.called import Called
from bolus.data.images.clips import open_samples
from bolus.data.images.given import Given, listed, read_given
from bolus.data.pixels.range_rules import describe_rule
from bolus.data.volumes.cache.given import read_given_volumes
from bolus.device import Precision
from bolus.embedding.vectors import embed_samples
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import external_encoder
from bolus.encoders.folders.folder import lineage_of, load_encoder
from bolus.encoders.folders.modality_folder import is_modality_folder, load_encoders, seen_by
from bolus.encoders.modalities import ModalityEncoders
from bolus.errors import EncoderError, UsageError
from bolus.run import Run

_log = logging.getLogger(__name__)


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
        seen: the images of these trainings, as far as they are written down; see `bolus.data.copies.seen`.
        training: of the cohort that it is judged on, images, samples, and positions of those that are for training and
            readable, int64; None where none are shown to it.
    """

    name: str
    encoder: Encoder | ModalityEncoders
    preprocessing: Preprocessing
    run: Run | None
    lineage: Sequence[Mapping[str, Any]] = ()
    seen: Mapping[str, SeenImages] = field(default_factory=dict)
    training: tuple[Store, Samples, npt.NDArray[np.int64]] | None = None

    def embed(
        self,
        images: Given | Sequence[Any],
        *,
        modality: str | Sequence[str] | None = None,
        series: Sequence[Any] | None = None,
        laterality: str | Sequence[str | None] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        readers: Mapping[str, str] | None = None,
        precision: Precision = "fp32",
    ) -> npt.NDArray[np.float32]:
        """Embeddings of images that are given, computed on the device of the encoder; nothing is written.

        What the encoder sees is what `bolus.preprocess` gives, bit for bit what `bolus embed` shows it of the same
        rows; the sums of one batch and another may differ in their last bits.

        Args:
            images: one image, or several; as of `bolus.data.images.given.read_given`. Or volumes, as of
                `bolus.data.volumes.cache.given.read_given_volumes`.
            modality: as of `bolus.data.images.given.Called`, and so are the next four.
            series: names, one for each image.
            laterality: sides.
            ranges: modality -> (black, white).
            readers: suffix -> function.
            precision: as of `bolus.embed`.

        Returns:
            float32 `[n, D]`, in the order given.

        Raises:
            ImageError, EncoderError, UsageError: as `read_given`; EncoderError also for a modality that has no
                encoder.

        Example:
            >>> from bolus.encoders.building import build_encoder
            >>> from bolus.recipe import EncoderSpec
            >>> encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0).eval()
            >>> judged = Judged("tiny", encoder, Preprocessing(32), None)
            >>> judged.embed(np.zeros((40, 30), np.uint8)).shape
            (1, 256)
        """
        called = Called(modality, series, laterality, ranges, readers)
        store, samples = self.read(images, called)
        return embed_samples(self.encoder, store, samples, np.arange(len(samples)), precision=precision)

    def read(self, images: Given | Sequence[Any], called: Called | None = None) -> tuple[Store, Samples]:
        """Images or volumes that are given, as this encoder expects them; what is remarkable is logged.

        As `read_given`, or of an encoder of volumes as `bolus.data.volumes.cache.given.read_given_volumes`.

        Raises:
            EncoderError: also of a modality for which there is no encoder, where each has its own.
        """
        read = read_given if self.preprocessing.volume is None else read_given_volumes
        store, samples = read(listed(images), self.preprocessing, called)
        refuse_unseen(self, samples.cohort)
        for remark in store.remarks:
            _log.warning("%s", remark)
        return store, samples

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
        EncoderError: nothing there can be opened as an encoder, its training has not ended, or it is of volumes and
            not bolus's own, so that nothing says how large a box it sees.
        UsageError: a size for a run or encoder folder, which states its own.
    """
    folder, name = Path(source), Path(source).name or Path(source).resolve().name
    if (folder / "run.json").is_file():
        run = Run.open(folder)
        if not run.encoder.is_dir():
            raise EncoderError(f"{folder}: training has not ended; go on with bolus pretrain ... --resume")
        opened = _open_folder(name, run.encoder, keep_context, size)
        # A run from before encoder folders had a lineage still knows its own patients.
        return replace(opened, run=run, lineage=opened.lineage or [run.training])
    if is_modality_folder(folder) or (folder / "encoder.json").is_file():
        return _open_folder(name, folder, keep_context, size)
    encoder, contract = external_encoder(str(source))
    if encoder.dimensions == 3:
        raise EncoderError(
            f"{source}: a network of volumes, which does not state the box of voxels that it sees; pretrain from it "
            f"(images.unit=volume encoder.backbone={source} encoder.pretrained=true), and open the run"
        )
    fit = cast(Literal["pad", "stretch", "crop"], contract.get("fit", "pad"))
    preprocessing = Preprocessing(size or int(contract.get("size", 224)), encoder.spec.in_channels, fit)
    return Judged(name, encoder, preprocessing, None, lineage_of(folder))


def _open_folder(name: str, folder: Path, keep_context: bool, size: int | None) -> Judged:
    """An encoder folder, or one that holds those of several modalities."""
    if is_modality_folder(folder):
        if size is not None:
            raise UsageError(f"{folder} holds encoders that state their own input size; leave out the size {size}")
        encoders, preprocessing, lineage = load_encoders(folder, keep_context=keep_context)
        return Judged(name, encoders, preprocessing, None, lineage, seen_by(folder))
    encoder, contract = load_encoder(folder, keep_context=keep_context)
    return Judged(name, encoder, _as_stated(folder, contract, size), None, lineage_of(folder), seen_by(folder))


def _as_stated(folder: Path, contract: Mapping[str, Any], size: int | None) -> Preprocessing:
    """The contract of an encoder folder, which a person cannot overrule."""
    if "size" in contract and size is not None:
        raise UsageError(f"{folder} states its own input size, {contract['size']} pixels; leave out the size {size}")
    if "size" not in contract and size is None:
        raise EncoderError(f"{folder} does not state its input size; give one")
    return Preprocessing(**({"size": size} | dict(contract)))


def samples_of(judged: Judged, cohort: Cohort) -> Samples:
    """The cohort in the unit that the encoder was made for: clips where it sees frames, or volumes, else images.

    What judges works on these, with `samples.cohort` as the cohort: of clip files it has a row a frame.

    Raises:
        CohortError: as `bolus.data.images.clips.open_samples`.
    """
    return open_samples(cohort, judged.preprocessing.unit)


def open_store(
    judged: Judged,
    cohort: Cohort,
    *,
    cache: Path | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    on_progress: Progress | None = None,
) -> Store:
    """The cohort's images as this encoder expects them; for clips and volumes, give it the cohort of `samples_of`.

    A range that the cohort states wins over the encoder's. A modality that needs one and whose name the encoder does
    not know takes the encoder's only range, where it has one and the cohort has one modality; otherwise the range that
    a check of the cohort found, or the one that covers its images. `remarks_on` says so. `rows` and `on_progress` are
    as of `build_store`.

    Raises:
        CohortError: as `build_store`.
        EncoderError: images of a modality for which there is no encoder, where each modality has its own.
    """
    known = judged.preprocessing.ranges
    refuse_unseen(judged, cohort)
    contract = judged.preprocessing.seen_by(cohort.modality)
    store = build_store(cohort, contract, folder=cache, rows=rows, on_progress=on_progress)
    unknown = set(store.preprocessing.ranges) - {*known, *cohort.spec.ranges}
    ranges = judged.preprocessing.lend(unknown, cohort.modality)
    if len(known) != 1 or len(set(cohort.modality)) != 1:
        ranges = {name: cohort.spec.cohort_ranges[name] for name in unknown & set(cohort.spec.cohort_ranges)}
    if not ranges:
        return store
    return build_store(cohort, replace(contract, ranges={**known, **ranges}), folder=cache, rows=rows)


def refuse_unseen(judged: Judged, cohort: Cohort) -> None:
    """Raise EncoderError for images of a modality that has no encoder, where each has its own."""
    if isinstance(judged.encoder, ModalityEncoders):
        unseen = sorted(set(cohort.modality.tolist()) - set(judged.encoder.names))
        if unseen:
            names = ", ".join(judged.encoder.names)
            raise EncoderError(
                f"{judged.name} has encoders for {names}, and the cohort has images of {', '.join(unseen)}"
                f"{' (no column has the role modality)' if 'modality' not in cohort.roles else ''}; leave those rows "
                "out, or open one encoder for all rows: a folder in that of the encoders"
            )


def remarks_on(judged: Judged, store: Store) -> list[str]:
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
