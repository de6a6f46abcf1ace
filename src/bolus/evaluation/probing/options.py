"""How a target is read off an encoder: with which probes, on which labels, and how an encoder is trained on for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from bolus.errors import UsageError, suggest
from bolus.evaluation.settings import option
from bolus.recipe import AugmentSpec

EMBEDDED = ("linear", "knn")
"""Probes that are fitted on embeddings; both by default."""

TRAINED = ("frozen", "finetune")
"""Probes that are trained on images."""


@dataclass(frozen=True)
class Probing:
    """How a target is read off an encoder.

    Args:
        probes: of `linear` and `knn`, which are fitted on embeddings, and `frozen` and `finetune`, which are trained on
            images; each once. Verdicts are on the first.
        fractions: shares of the training patients whose labels are used, above 0 and at most 1.
        repeats: draws of each fraction below 1.
        shots: of a number, metrics also stand for the test samples whose targets are rare, less so, or common among the
            training rows: fewer than the first of these numbers, or more than the second.

    Raises:
        UsageError: an unknown probe, none, or numbers that are out of range.

    >>> Probing(("linear", "linear"), fractions=(0.1, 1)).probes
    ('linear',)
    """

    probes: Sequence[str] = option(EMBEDDED, "of linear, knn (default: both), frozen and finetune, by commas")
    fractions: Sequence[float] = option((1.0,), "shares of the training patients, by commas")
    repeats: int = option(3, "draws of each fraction below 1")
    shots: tuple[int, int] = (20, 100)

    def __post_init__(self) -> None:
        for name, example in (("probes", "linear"), ("fractions", 0.1)):
            value: object = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise UsageError(f"{name}: expected a list, such as [{example!r}], found {value!r}")
        object.__setattr__(self, "probes", tuple(dict.fromkeys(self.probes)))
        fine = all(0 < fraction <= 1 for fraction in self.fractions)
        if not self.probes or not self.fractions or not fine or self.repeats < 1:
            fractions = ", ".join(map(str, self.fractions)) or "none"
            raise UsageError(
                "expected one probe or more, fractions above 0 and at most 1, and repeats from 1 on; found the probes "
                f"{', '.join(self.probes) or 'none'}, the fractions {fractions} and {self.repeats} repeats"
            )
        if not 1 <= self.shots[0] <= self.shots[1]:
            raise UsageError(f"shots: expected two numbers of training rows, 1 <= few <= many; found {self.shots}")

    def check(self, known: Sequence[str], why: str = "") -> None:
        """Raise UsageError where a probe is not among the known ones; `why` it may be another's."""
        for kind in self.probes:
            if kind not in known and kind in TRAINED and why:
                raise UsageError(f"the probe {kind!r} is trained on {why}; take {', '.join(known)}")
            if kind not in known:
                raise UsageError(f"unknown probe {kind!r}; {suggest(kind, known)}")

    @property
    def trained(self) -> str:
        """The first probe that is trained on images, or nothing."""
        return next((kind for kind in self.probes if kind in TRAINED), "")


@dataclass(frozen=True)
class FinetuneSpec:
    """How an encoder is trained on; AdamW with a cosine to 0 over all epochs.

    Args:
        epochs: at most.
        lr: of encoder and head, where the encoder is trained.
        head_lr: of the head, where the encoder is frozen.
        weight_decay: of both.
        batch_size: samples of a step, at least 2.
        whole: whether the encoder is trained as well; its batch norms then see batches, and otherwise never.
        class_weights: `balanced`: the loss of a sample is weighted by the inverse of its class's share.
        augment: of training images; None: none, unless whoever asks knows better (see `mild`).
        patience: epochs without a better validation before training stops.
        seed: of order, augmentation and dropout.

    Raises:
        UsageError: a number that is out of range, or unknown class weights.
    """

    epochs: int = option(30, "frozen, finetune: at most")
    lr: float = 3e-4
    head_lr: float = 3e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    whole: bool = True
    class_weights: Literal["none", "balanced"] = option("none", "frozen, finetune: none or balanced")
    augment: AugmentSpec | None = None
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 2, "patience": 1, "weight_decay": 0.0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise UsageError(f"fine-tuning: {name} must be at least {low:g}, found {getattr(self, name)}")
        if not (self.lr > 0 and self.head_lr > 0):
            raise UsageError(f"fine-tuning: learning rates must be above 0, found {self.lr} and {self.head_lr}")
        if self.class_weights not in ("none", "balanced"):
            raise UsageError(f"fine-tuning: class_weights must be none or balanced, found {self.class_weights!r}")

    def check_for(self, task: str) -> None:
        """Raise UsageError for a task that has no classes to weight."""
        if task == "regress" and self.class_weights == "balanced":
            raise UsageError("fine-tuning: class weights are for classify; a number has no classes to balance")
