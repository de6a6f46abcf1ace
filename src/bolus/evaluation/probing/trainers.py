"""The probes that are trained on images, `frozen` and `finetune`, as `probe.probe` calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Store
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, one_encoder
from bolus.evaluation.probing.finetune import Finetuned, fit_finetuned, mild
from bolus.evaluation.probing.options import TRAINED, FinetuneSpec
from bolus.evaluation.probing.probe import Trainer
from bolus.evaluation.probing.question import Question
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.recipe import AugmentSpec
from bolus.seeds import seed_for


def trainers_of(
    encoders: Mapping[str, Encoder | ModalityEncoders],
    store: Store,
    samples: Samples,
    positions: IntArray,
    spec: FinetuneSpec,
    *,
    seed: int = 0,
    pretrained_with: AugmentSpec | None = None,
    keep: Callable[[str, Finetuned], None] = lambda target, found: None,
    class_names: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, Trainer]:
    """`frozen`, which trains a linear head on the encoder as it is, and `finetune`, which trains both.

    Every encoder meets the same order of samples, the same views and the same number of epochs at most.

    Args:
        encoders: name -> encoder, on the device that is trained on; the first is judged. One for each modality is
            refused when it is to be trained.
        store: images in their preprocessing.
        samples: of the store's cohort.
        positions: int64 `[n]`, the sample of each row that `probe` speaks of.
        spec: how to train; `whole` is what the probe's name says.
        seed: together with the spec's, of every training.
        pretrained_with: where the spec has no augmentation, `finetune` takes a milder form of this one (`mild`).
        keep: called with the target and what was trained, for `finetune` of the judged encoder on all training rows.
        class_names: target -> names of its classes, written into the heads that are kept.
    """

    def train_one(
        whole: bool, name: str, question: Question, train: IntArray, val: IntArray, held: IntArray, repeat: int
    ) -> tuple[FloatArray, tuple[str, ...]]:
        augment = spec.augment
        if augment is None and whole and pretrained_with is not None:
            augment = mild(pretrained_with)
        y = np.full(len(samples), np.nan)
        y[positions] = question.y
        found = fit_finetuned(
            one_encoder(encoders[name], wanted_by="the probe 'finetune'" if whole else "the probe 'frozen'"),
            store,
            samples,
            y,
            train=positions[train],
            val=positions[val],
            held=positions[held],
            task=question.task,
            num_classes=question.num_classes,
            spec=replace(spec, whole=whole, augment=augment, seed=seed_for(seed, spec.seed, repeat)),
        )
        if whole and name == next(iter(encoders)) and len(train) == len(question.rows["train"]):
            names = (class_names or {}).get(question.target, ())
            keep(question.target, replace(found, head=replace(found.head, target=question.target, class_names=names)))
        return found.predictions, found.notes

    return {kind: partial(train_one, kind == "finetune") for kind in TRAINED}
