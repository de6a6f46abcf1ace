"""What every evaluation begins with: encoder and cohort opened, the question checked, images read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from bolus.data.cache import ImageStore
from bolus.data.cohort import Cohort
from bolus.data.samples import Samples
from bolus.data.split import refuse_overlap
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
from bolus.evaluation.results import MAJORITY

RANDOM = "random-init"

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Prepared(Generic[Asked]):
    """An encoder and a cohort that may be judged together.

    Args:
        judged: what was opened.
        samples: of the cohort, in the encoder's unit; `samples.cohort` is the cohort.
        store: its images, as the encoder expects them.
        kept: int64 `[n]`, the samples with something to see.
        notes: what holds for every result, in sentences.
        asked: what `ask` gave.
    """

    judged: Judged
    samples: Samples
    store: ImageStore
    kept: npt.NDArray[np.int64]
    notes: list[str]
    asked: Asked

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
) -> Prepared[Asked]:
    """Open both, and refuse what cannot be judged: first an encoder that saw these patients, then what `ask` refuses.

    `ask` may read files of the cohort (as for masks); images are read into the cache after that.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        ask: finds the question in the samples, or raises.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.

    Raises:
        LeakageError: the encoder, or one that it was initialised from, was trained on validation or test patients.
        EncoderError, CohortError: encoder or cohort cannot be opened.
        UsageError: a size for an encoder that states its own.
    """
    judged = open_encoder(source, size=size)
    samples = samples_of(judged, Cohort.open(cohort))
    refuse_seen_patients(judged, samples.cohort)
    asked = ask(samples)
    notes = []
    if not judged.lineage:
        notes.append(f"{judged.name}: which patients it was trained on is not known here, so overlap was not checked.")
    store = open_store(judged, samples.cohort, cache=cache)
    kept = np.flatnonzero(samples.readable(store.readable))
    return Prepared(judged, samples, store, kept, [*notes, *remarks_on(judged, store)], asked)


def encoders_of(judged: Judged, source: str | Path, seed: int) -> dict[str, Encoder]:
    """The judged encoder, its random-init twin, and itself without context blocks, ready for inference.

    Args:
        judged: what was opened.
        source: where from; needed to open it once more without its context blocks.
        seed: of the random-init twin.
    """
    device = device_for_inference()
    name = f"{judged.name} (encoder)" if judged.name in (MAJORITY, RANDOM) else judged.name  # apart from the baselines
    encoders = {name: judged.encoder.to(device), RANDOM: judged.random_twin(seed).to(device)}
    if judged.encoder.spec.context:
        encoders[f"{name} without context"] = open_encoder(source, keep_context=False).encoder.to(device)
    return encoders


def embed_all(encoders: Mapping[str, Encoder], prepared: Prepared[Asked]) -> dict[str, npt.NDArray[np.float32]]:
    """Encoder name -> embeddings `[n, D]` of the samples kept, in the order of the encoders."""
    return {
        name: embed_samples(encoder, prepared.store, prepared.samples, prepared.kept)
        for name, encoder in encoders.items()
    }


def refuse_seen_patients(judged: Judged, cohort: Cohort) -> None:
    """Raise LeakageError where the encoder, or one it was initialised from, was trained on held-out patients."""
    for depth, training in enumerate(judged.lineage):
        where = judged.name if depth == 0 else f"{judged.name}, initialised from an encoder that was trained before"
        refuse_overlap(
            set(training["keys"]), training["salt"], cohort.patients, cohort.split != "train", where=f"encoder {where}"
        )
