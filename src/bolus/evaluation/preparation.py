"""What every evaluation begins with: encoder and cohort opened, the question checked, images read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.split import refuse_overlap
from bolus.data.images.cache import ImageStore
from bolus.embedding import (
    Judged,
    device_for_inference,
    embed_samples,
    open_encoder,
    open_store,
    remarks_on,
    samples_of,
)
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, one_encoder
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation import ungated
from bolus.evaluation.statistics.results import MAJORITY

RANDOM = "random-init"
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
    store: ImageStore


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
        baselines: other encoders, in the order in which they were named.
    """

    judged: Judged
    samples: Samples
    store: ImageStore
    kept: npt.NDArray[np.int64]
    notes: list[str]
    asked: Asked
    baselines: tuple[Baseline, ...] = ()

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row of the samples' cohort that speaks for each sample kept, int64 `[n]`."""
        return self.samples.first_row[self.kept]

    @property
    def recipe_hash(self) -> str:
        """Which recipe trained the encoder; empty where there is none."""
        return self.judged.run.recipe.digest if self.judged.run else ""


def prepare(
    source: str | Path,
    cohort: str | Path | Cohort,
    ask: Callable[[Samples], Asked],
    *,
    size: int | None = None,
    cache: Path | None = None,
    baselines: Sequence[str | Path] = (),
    wants_one: str = "",
) -> Prepared[Asked]:
    """Open both, and refuse what cannot be judged: first an encoder that saw these patients, then what `ask` refuses.

    `ask` may read files of the cohort (as for masks); images are read into the cache after that.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        ask: finds the question in the samples, or raises.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        baselines: run folders, encoder folders or hub names that `embed_all` embeds as well, each at its own size.
        wants_one: what takes one encoder and images of one size, for the message; empty where nothing does.

    Raises:
        LeakageError: the encoder or a baseline, or one that it was initialised from, was trained on validation or test
            patients.
        EncoderError, CohortError: encoder or cohort cannot be opened; or where `wants_one`, an encoder for each
            modality.
        EvaluationError: where `wants_one`, modalities that the encoder sees at different sizes.
        UsageError: a size for an encoder that states its own, or a baseline that sees clips where the encoder sees
            images, or the reverse.
    """
    judged = open_encoder(source, size=size)
    others = open_baselines(baselines, judged)
    samples = samples_of(judged, Cohort.open(cohort))
    if wants_one:
        one_encoder(judged.encoder, wanted_by=wants_one)
        _refuse_several_sizes(judged, samples.cohort, wants_one)
    refuse_seen_patients(judged, samples.cohort)
    for other in others.values():
        refuse_seen_patients(other, samples.cohort, kind="baseline")
    return show_training(read_images(judged, others, samples, ask(samples), cache=cache))


def open_baselines(baselines: Sequence[str | Path], judged: Judged) -> dict[str, Judged]:
    """Name -> baseline, the names unlike each other and all other columns: the folder's, with a number where taken.

    Args:
        baselines: run folders, encoder folders or hub names.
        judged: the encoder they stand beside.

    Raises:
        EncoderError: nothing there can be opened as an encoder.
        UsageError: not a sequence of names, or a baseline of another unit (images, clips) than the judged encoder.
    """
    if isinstance(baselines, str | Path):
        raise UsageError(f"baselines: expected a list of folders or hub names, found the single name {baselines}")
    shown = shown_name(judged)
    taken = {MAJORITY, RANDOM, PRESENT, shown, _ungated_name(judged), f"{shown} concatenated"}
    found: dict[str, Judged] = {}
    for source in baselines:
        other = open_encoder(source)
        if (other.preprocessing.frames is None) != (judged.preprocessing.frames is None):
            units = ["single images" if each.preprocessing.frames is None else "clips" for each in (other, judged)]
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
    judged: Judged, others: Mapping[str, Judged], samples: Samples, asked: Asked, *, cache: Path | None = None
) -> Prepared[Asked]:
    """The images of the samples, as each encoder expects them; kept is what all of them can see.

    Args:
        judged: the encoder.
        others: name -> baseline.
        samples: in the unit of them all; whether their patients were trained on must be known already.
        asked: kept in what is returned.
        cache: cache folder; the user's where None.
    """
    store = open_store(judged, samples.cohort, cache=cache)
    baselines = tuple(
        Baseline(name, other, open_store(other, samples.cohort, cache=cache)) for name, other in others.items()
    )
    notes = [
        f"{name}: which patients it was trained on is not known here, so overlap was not checked."
        for name, each in [(judged.name, judged), *others.items()]
        if not each.lineage
    ]
    notes += remarks_on(judged, store)
    for each in baselines:
        said = (f"baseline {each.name}: {remark}" for remark in remarks_on(each.judged, each.store))
        notes += [remark for remark in said if remark.removeprefix(f"baseline {each.name}: ") not in notes]
    readable = store.readable
    for each in baselines:
        readable = readable & each.store.readable
    kept = np.flatnonzero(samples.readable(readable))
    return Prepared(judged, samples, store, kept, notes, asked, baselines)


def shown_name(judged: Judged) -> str:
    """The encoder's name, told apart from those of the columns that are always there."""
    return f"{judged.name} (encoder)" if judged.name in (MAJORITY, RANDOM, PRESENT) else judged.name


def _refuse_several_sizes(judged: Judged, cohort: Cohort, wanted_by: str) -> None:
    groups = judged.preprocessing.groups(cohort.modality)
    if len(groups) > 1:
        seen = ", ".join(
            f"{'/'.join(np.unique(cohort.modality[places]))} {each.size} pixels ({each.fit})" for each, places in groups
        )
        raise EvaluationError(
            f"{wanted_by} needs images of one size, and this encoder sees {seen}; give a table with the rows of one "
            "modality"
        )


def show_training(prepared: Prepared[Asked]) -> Prepared[Asked]:
    """As `bolus.evaluation.ungated.show_training`, of what was prepared; its notes say so."""
    judged, note = ungated.show_training(
        prepared.judged, prepared.store, prepared.samples, prepared.kept, name=_ungated_name(prepared.judged)
    )
    return replace(prepared, judged=judged, notes=[*prepared.notes, *([note] if note else [])])


def encoders_of(judged: Judged, source: str | Path, seed: int) -> dict[str, Encoder | ModalityEncoders]:
    """The judged encoder, its random-init twin, and itself without context blocks, ready for inference.

    Args:
        judged: as `show_training` gives it; itself without context blocks is left out where it says so.
        source: where from; needed to open it once more without its context blocks.
        seed: of the random-init twin, and of which images BatchNorm statistics are estimated on without context blocks.
    """
    device = device_for_inference()
    encoders = {shown_name(judged): judged.encoder.to(device), RANDOM: judged.random_twin(seed).to(device)}
    bare = ungated.open_ungated(judged, source, seed=seed, device=device)
    if bare is not None:
        encoders[_ungated_name(judged)] = bare
    return encoders


def _ungated_name(judged: Judged) -> str:
    return f"{shown_name(judged)} without context"


def embed_all(
    encoders: Mapping[str, Encoder | ModalityEncoders], prepared: Prepared[Asked]
) -> dict[str, npt.NDArray[np.float32]]:
    """Name -> embeddings `[n, D]` of the samples kept: of the encoders in their order, then of the baselines."""
    found = {
        name: embed_samples(encoder, prepared.store, prepared.samples, prepared.kept)
        for name, encoder in encoders.items()
    }
    device = device_for_inference()
    for each in prepared.baselines:
        encoder = each.judged.encoder.to(device)
        found[each.name] = embed_samples(encoder, each.store, prepared.samples, prepared.kept)
        encoder.cpu()
    return found


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
        refuse_overlap(set(training["keys"]), training["salt"], cohort.patients, held_out, where=f"{kind} {where}")
