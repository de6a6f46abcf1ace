"""Images that an encoder was trained on, found again under other patient identifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import seen_rows
from bolus.data.copies.seen import SeenImages, name_of, remember_images
from bolus.data.images.cache import Store
from bolus.data.images.thumbnails import thumbnails_in
from bolus.embedding.opening import Judged
from bolus.embedding.remembering import FOLDER, embedder_key, remember
from bolus.errors import LeakageError, name_rows
from bolus.site_key import find_secret

SEEN = "seen images 1"  # raise it when other answers are given to the same images


def remember_training(cohort: Cohort, store: Store, training: Mapping[str, Any]) -> dict[str, SeenImages]:
    """What an encoder folder keeps of the training images of a cohort, by the name of the salt of its lineage.

    Args:
        cohort: of the samples: of clip files it has a row a frame.
        store: its images, as the encoder sees them.
        training: of the lineage, as of `data.cohort.split.hash_patients`; its key must be here.
    """
    key = _key_of(training)
    assert key is not None, "a training has just been hashed with it"
    rows = np.flatnonzero((cohort.split == "train") & store.held)
    thumbnails = thumbnails_in(store, cohort, rows)
    return {name_of(training["salt"]): remember_images(thumbnails, cohort.encoded("patient")[rows], key)}


def _key_of(training: Mapping[str, Any]) -> str | None:
    """What decides the bits of a training's images: its salt and the site's secret; None where that is not here."""
    secret = find_secret(str(training.get("key", "")))
    return None if secret is None else f"{training['salt']}{secret.hex()}"


def refuse_seen_images(
    judged: Judged,
    cohort: Cohort,
    store: Store,
    *,
    rows: npt.NDArray[np.bool_] | None = None,
    kind: str = "encoder",
) -> None:
    """Raise LeakageError where held-out images show what training images of the encoder, or of its start, show.

    Args:
        judged: whose training images are asked; nothing is refused of trainings whose images are not written down, or
            whose key is not here.
        cohort: which is judged on.
        store: its images, as the encoder sees them.
        rows: bool `[rows]`, those that are held out; where None all but the training rows.
        kind: what the encoder is, for the message.
    """
    held_out = np.flatnonzero((cohort.split != "train" if rows is None else rows) & store.held)
    again = held_out[recognised(judged, cohort, store, held_out)]
    if len(again):
        raise LeakageError(
            f"{kind} {judged.name}: expected images that it, or the encoder it was initialised from, was not trained "
            f"on; {len(again)} of {len(held_out)} images that are held out look like training images, under other "
            f"patient identifiers ({name_rows(np.unique(cohort.origin[again]))}); look at them, leave them out of the "
            "table or judge on other patients"
        )


def recognised(judged: Judged, cohort: Cohort, store: Store, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of these rows, all readable, show what a training image of the encoder shows, bool `[n]`.

    Answers are remembered beside the embeddings, so that a second question asks no image again.
    """
    known = np.zeros(len(rows), bool)
    trainings = [(_key_of(each), judged.seen.get(name_of(str(each["salt"])))) for each in judged.lineage]
    there = [(key, seen) for key, seen in trainings if key is not None and seen is not None]
    for key, seen in there:

        def ask(places: npt.NDArray[np.int64], key: str = key, seen: SeenImages = seen) -> npt.NDArray[np.float32]:
            return seen.recognise(thumbnails_in(store, cohort, rows[places]), key)[:, None].astype(np.float32)

        folder = store.folder / FOLDER / embedder_key(seen.digest, [SEEN, key])
        known |= remember(folder, store.keys(rows), 1, ask)[:, 0] > 0
    return known


def note_seen_images(judged: Judged, cohort: Cohort, store: Store) -> list[str]:
    """How many rows of patients that the encoder was not trained on show training images of it, in a sentence."""
    if not judged.seen:
        return []
    new = store.held
    for training in judged.lineage:
        trained = seen_rows(training, cohort.patients)
        new = new if trained is None else new & ~trained
    rows = np.flatnonzero(new)
    again = np.unique(cohort.origin[rows[recognised(judged, cohort, store, rows)]])
    if not len(again):
        return []
    which = f"{len(again)} rows look like images that the encoder was trained on, under other patient identifiers"
    return [f"{which} ({name_rows(again)}); on new images it may do worse."]


def unknown_images(judged: Judged) -> bool:
    """Whether patients of a training are written down, and its images are not, as by earlier versions."""
    return any(name_of(str(each["salt"])) not in judged.seen for each in judged.lineage)
