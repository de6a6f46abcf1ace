"""What every evaluation begins with: encoder and cohort opened, the question checked, images read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort, CohortLike, Samples
from bolus.data.cohort.split import refuse_overlap
from bolus.data.images.cache import Preprocessing, Store
from bolus.device import device
from bolus.embedding.opening import Judged, open_encoder, open_store, remarks_on, samples_of
from bolus.embedding.seen import refuse_seen_images, unknown_images
from bolus.embedding.sharing import do_share, is_first, leave_unless_first
from bolus.embedding.vectors import embed_samples
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, one_encoder
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation import ungated
from bolus.evaluation.contract import Task
from bolus.evaluation.settings import Judging, Origin
from bolus.evaluation.starts import open_start
from bolus.evaluation.statistics.metrics import IntArray
from bolus.evaluation.statistics.results import MAJORITY, RANDOM, START
from bolus.evaluation.writing import evaluation_folder
from bolus.progress import Meter
from bolus.site_key import find_secret, open_site_key, say_absent

PRESENT = "present label"  # of a question about the future: what is known without the image

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Baseline:
    """Another encoder that reads the same samples, a column beside the judged one.

    Args:
        name: unlike that of any other column.
        judged: what was opened; its size, channels and ranges are its own.
        store: the images as it expects them.
    """

    name: str
    judged: Judged
    store: Store


@dataclass(frozen=True)
class Prepared(Generic[Asked]):
    """An encoder and a cohort that may be judged together.

    Args:
        judged: what was opened.
        samples: of the cohort, in the encoder's unit; `samples.cohort` is the cohort.
        store: its images, as the encoder expects them.
        kept: int64 `[n]`, the samples with something to see, for every encoder.
        notes: what holds for every result, in sentences.
        asked: what `ask` gave.
        judging: how it is judged.
        source: where the encoder is from.
        baselines: other encoders, in the order in which they were named.
        start: the pretrained encoder that the run began with, if it did and can be opened.
    """

    judged: Judged
    samples: Samples
    store: Store
    kept: npt.NDArray[np.int64]
    notes: list[str]
    asked: Asked
    judging: Judging
    source: str | Path
    baselines: tuple[Baseline, ...] = ()
    start: Encoder | ModalityEncoders | None = None

    @property
    def cohort(self) -> Cohort:
        """The samples' cohort."""
        return self.samples.cohort

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row of the samples' cohort that speaks for each sample kept, int64 `[n]`."""
        return self.samples.first_row[self.kept]

    @property
    def patients(self) -> IntArray:
        """The patient of each sample kept, codes int64 `[n]`."""
        return np.asarray(self.cohort.encoded("patient")[self.rows], dtype=np.int64)

    @property
    def split(self) -> npt.NDArray[np.str_]:
        """The part of the split that each sample kept is in, `[n]`."""
        return self.cohort.split[self.rows]

    @property
    def origin(self) -> Origin:
        """What results are of."""
        return Origin(self.cohort.split_hash, self.judged.run.recipe.digest if self.judged.run else "")

    def encoders(self) -> dict[str, Encoder | ModalityEncoders]:
        """The judged encoder, its start, its random-init twin, and itself without context blocks, ready for inference.

        The start is there of a run that began with pretrained weights. `judged` is as `stand_beside` gives it; itself
        without context blocks is left out where it says so.
        """
        place, seed = device(), self.judging.seed
        encoders = {shown_name(self.judged): self.judged.encoder.to(place)}
        if self.start is not None:
            encoders[START] = self.start.to(place)
        encoders[RANDOM] = self.judged.random_twin(seed).to(place)
        bare = ungated.open_ungated(self.judged, self.source, seed=seed, device=place)
        if bare is not None:
            encoders[_ungated_name(self.judged)] = bare
        return encoders

    def folder(self, question: str, probes: Sequence[str] | None = None) -> Path:
        """Where the evaluation is written; see `evaluation_folder`."""
        return evaluation_folder(self.judging.out, self.judged, self.cohort, question, probes)


def prepare(
    source: str | Path,
    cohort: CohortLike,
    task: Task,
    ask: Callable[[Samples], Asked],
    judging: Judging,
) -> Prepared[Asked]:
    """Open both, and refuse what cannot be judged: an encoder that saw these patients, then what the task refuses.

    Of processes that were launched together, each decodes a share, and those that have nothing to embed leave here.
    `ask` may read files of the cohort (as for masks); images are read into the cache after that.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        task: what it wants of the encoder.
        ask: finds the question in the samples, or raises.
        judging: how; each baseline is embedded at its own size.

    Raises:
        LeakageError: the encoder or a baseline, or one that it was initialised from, was trained on validation or test
            patients, or on near copies of their images.
        EncoderError, CohortError: encoder or cohort cannot be opened; or an encoder for each modality where the task
            wants one.
        EvaluationError: an encoder that the task cannot be put to.
        UsageError: a size for an encoder that states its own, baselines where none can be, or one that sees clips where
            the encoder sees images, or the reverse; or a site's key that cannot be used.
    """
    if judging.baselines and not task.baselines:
        raise UsageError(f"{task.name} takes no baselines: judge each encoder by itself")
    if judging.baselines and task.wants.one:
        raise UsageError(
            f"{task.wants.one} is trained on images and baselines are only embedded: take linear or knn, or judge the "
            "baseline by itself"
        )
    open_site_key()  # with which heads hash whom they were fitted on: what is wrong with it shows before any work
    judged = open_encoder(source, size=judging.size)
    if task.wants.images:
        contract = judged.preprocessing
        mirrored = contract.mirror is not None
        refuse_views(task.wants.one, unit=contract.unit, mirrored=mirrored, volumes=task.wants.volumes)
    others = open_baselines(judging.baselines, judged)
    samples = samples_of(judged, Cohort.open(cohort))
    if task.wants.one:
        one_encoder(judged.encoder, wanted_by=task.wants.one)
        _refuse_several_sizes(judged, samples.cohort, task.wants.one)
    refuse_seen_patients(judged, samples.cohort)
    for other in others.values():
        refuse_seen_patients(other, samples.cohort, kind="baseline")
    prepared = read_images(judged, others, samples, ask(samples), judging=judging, source=source)
    if task.wants.one:  # trained on images, by one process
        leave_unless_first()
    refuse_seen_everywhere(prepared)
    return stand_beside(prepared)


def refuse_views(wanted_by: str, *, unit: str, mirrored: bool, volumes: bool = False) -> None:
    """Raise EvaluationError where an encoder does not see single images (or volumes) as they are, as masks are of.

    >>> refuse_views("segmentation", unit="clip", mirrored=False)
    Traceback (most recent call last):
    bolus.errors.EvaluationError: segmentation is of single images, and this encoder sees clips
    """
    if unit == "clip" or (unit == "volume" and not volumes):
        raise EvaluationError(f"{wanted_by} is of single images, and this encoder sees {unit}s")
    if mirrored:
        raise EvaluationError(
            "this encoder sees images of one side mirrored, and masks are not mirrored with them; segment with an "
            "encoder that was trained with images.mirror=null"
        )


def open_baselines(baselines: Sequence[str | Path], judged: Judged) -> dict[str, Judged]:
    """Name -> baseline, the names unlike each other and all other columns: the folder's, with a number where taken.

    Args:
        baselines: run folders, encoder folders or hub names.
        judged: the encoder they stand beside.

    Raises:
        EncoderError: nothing there can be opened as an encoder.
        UsageError: a baseline of another unit (images, clips) than the judged encoder.
    """
    shown = shown_name(judged)
    taken = {MAJORITY, RANDOM, START, PRESENT, shown, _ungated_name(judged), f"{shown} concatenated"}
    found: dict[str, Judged] = {}
    for source in baselines:
        other = open_encoder(source)
        units = [each.preprocessing.unit for each in (other, judged)]
        if units[0] != units[1]:
            units = ["single images" if unit == "image" else f"{unit}s" for unit in units]
            raise UsageError(
                f"baseline {other.name} sees {units[0]}, but {judged.name} {units[1]}: expected encoders of one unit"
            )
        name = first = shown_name(other)
        number = 1
        while name in taken:
            number += 1
            name = f"{first} ({number})"
        taken.add(name)
        found[name] = other
    return found


def read_images(
    judged: Judged,
    others: Mapping[str, Judged],
    samples: Samples,
    asked: Asked,
    *,
    judging: Judging,
    source: str | Path,
) -> Prepared[Asked]:
    """The images of the samples, as each encoder expects them; kept is what all of them can see.

    Args:
        judged: the encoder.
        others: name -> baseline.
        samples: in the unit of them all; whether their patients were trained on must be known already.
        asked: kept in what is returned, as the rest.
        judging: with the cache folder.
        source: where the encoder is from.
    """
    cache, every = judging.cache, np.arange(len(samples.cohort), dtype=np.int64)
    for seeing in (judged, *others.values()):
        do_share(every, partial(_decode, seeing, samples.cohort, cache))
    store = open_store(judged, samples.cohort, cache=cache)
    baselines = tuple(
        Baseline(name, other, open_store(other, samples.cohort, cache=cache)) for name, other in others.items()
    )
    notes = [
        f"{name}: which patients it was trained on is not known here, so overlap was not checked."
        for name, each in [(judged.name, judged), *others.items()]
        if not each.lineage
    ]
    notes += [note for name, each in [(judged.name, judged), *others.items()] for note in note_uncompared(name, each)]
    notes += [
        f"{name}: its training images are not written down, so images of them under other patients are not found."
        for name, each in [(judged.name, judged), *others.items()]
        if unknown_images(each)
    ]
    notes += remarks_on(judged, store)
    for each in baselines:
        said = (f"baseline {each.name}: {remark}" for remark in remarks_on(each.judged, each.store))
        notes += [remark for remark in said if remark.removeprefix(f"baseline {each.name}: ") not in notes]
    readable = store.readable
    for each in baselines:
        readable = readable & each.store.readable
    kept = np.flatnonzero(samples.readable(readable))
    return Prepared(judged, samples, store, kept, notes, asked, judging, source, baselines)


def _decode(judged: Judged, cohort: Cohort, cache: Path | None, rows: npt.NDArray[np.int64]) -> None:
    """Have these rows in the cache."""
    open_store(judged, cohort, cache=cache, rows=rows)


def shown_name(judged: Judged) -> str:
    """The encoder's name, told apart from those of the columns that are always there."""
    return f"{judged.name} (encoder)" if judged.name in (MAJORITY, RANDOM, START, PRESENT) else judged.name


def refuse_seen_everywhere(
    prepared: Prepared[Asked], *, rows: npt.NDArray[np.bool_] | None = None, where: str = ""
) -> None:
    """As `refuse_seen_images`, of the encoder and the baselines; `where` comes first in the message."""
    cohort = prepared.cohort
    refuse_seen_images(prepared.judged, cohort, prepared.store, rows=rows, kind=f"{where}encoder")
    for each in prepared.baselines:
        refuse_seen_images(each.judged, cohort, each.store, rows=rows, kind=f"{where}baseline")


def _refuse_several_sizes(judged: Judged, cohort: Cohort, wanted_by: str) -> None:
    groups = judged.preprocessing.groups(cohort.modality)
    if len(groups) > 1:

        def shown(each: Preprocessing) -> str:
            return f"{each.size} pixels" if each.volume is None else each.extent

        seen = ", ".join(
            f"{'/'.join(np.unique(cohort.modality[places]))} {shown(each)} ({each.fit})" for each, places in groups
        )
        raise EvaluationError(
            f"{wanted_by} needs images of one size, and this encoder sees {seen}; give a table with the rows of one "
            "modality"
        )


def stand_beside(prepared: Prepared[Asked]) -> Prepared[Asked]:
    """With the run's start, and with what an encoder without its context blocks needs; the notes say what is not there.

    See `bolus.evaluation.starts.open_start` and `bolus.evaluation.ungated.show_training`.
    """
    start, missing = open_start(prepared.judged)
    judged, note = ungated.show_training(
        prepared.judged, prepared.store, prepared.samples, prepared.kept, name=_ungated_name(prepared.judged)
    )
    return replace(
        prepared, judged=judged, start=start, notes=[*prepared.notes, *(each for each in (missing, note) if each)]
    )


def _ungated_name(judged: Judged) -> str:
    return f"{shown_name(judged)} without context"


def embed_all(
    encoders: Mapping[str, Encoder | ModalityEncoders], prepared: Prepared[Asked], *, last: bool = True
) -> dict[str, npt.NDArray[np.float32]]:
    """Name -> embeddings `[n, D]` of the samples kept: of the encoders in their order, then of the baselines.

    Args:
        encoders: by name, of the prepared samples at their own size.
        prepared: what is embedded.
        last: whether nothing else is embedded afterwards: of processes that were launched together each has embedded
            its share, and all but the first leave.
    """
    judging, samples, kept = prepared.judging, prepared.samples, prepared.kept
    total = (len(encoders) + len(prepared.baselines)) * len(kept)
    found = {}
    with Meter("embedding", total, quiet=judging.quiet or not is_first()) as meter:
        options: dict[str, Any] = {"precision": judging.precision, "keep": True}
        every = [(name, encoder, prepared.store) for name, encoder in encoders.items()]
        every += [(each.name, each.judged.encoder, each.store) for each in prepared.baselines]
        for name, encoder, store in every:
            encoder.to(device())
            do_share(kept, partial(embed_samples, encoder, store, samples, **options))
            if is_first():
                found[name] = embed_samples(encoder, store, samples, kept, meter=meter, **options)
            if name not in encoders:  # a baseline, of which there may be many
                encoder.cpu()
    if last:
        leave_unless_first()
    return found


def note_uncompared(name: str, judged: Judged) -> list[str]:
    """A sentence for each key that training patients of the encoder were hashed with and that is not here."""
    absent = {key: None for key in (each.get("key", "") for each in judged.lineage) if find_secret(key) is None}
    return [f"{name}: overlap was not checked: its training patients were {say_absent(key)}." for key in absent]


def refuse_seen_patients(
    judged: Judged, cohort: Cohort, *, rows: npt.NDArray[np.bool_] | None = None, kind: str = "encoder"
) -> None:
    """Raise LeakageError where the encoder, or one it was initialised from, was trained on held-out patients.

    Args:
        judged: whose lineage is asked.
        cohort: which is judged on.
        rows: bool `[rows]`, those that are held out; where None all but the training rows.
        kind: what the encoder is, for the message.
    """
    held_out = cohort.split != "train" if rows is None else rows
    for depth, training in enumerate(judged.lineage):
        where = judged.name if depth == 0 else f"{judged.name}, initialised from an encoder that was trained before"
        refuse_overlap(training, cohort.patients, held_out, where=f"{kind} {where}")
