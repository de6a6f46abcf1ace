"""Contrast weighted by the difference of a clinical score: LEARNER."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs, Relation
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError, UsageError, suggest
from bolus.objectives.base import Loss, Objective, TrainingTable, scores_among
from bolus.objectives.heads import at_least_float32, optional_head
from bolus.objectives.infonce import infonce
from bolus.objectives.scores.weighting import (
    LEARNED,
    QUANTILE,
    WEIGHTINGS,
    LearnedWeighting,
    fit_to_order,
    quantiles_of,
    weigh,
)

Weighting = str | Callable[[Tensor], Tensor]
NAMES = (*WEIGHTINGS, QUANTILE, LEARNED)


def score_contrast_loss(
    u: Tensor,
    s: Tensor,
    *,
    temperature: float = 0.1,
    threshold: float = 0.1,
    weighting: Weighting = "linear",
    score_range: float | None = None,
    valid: Tensor | None = None,
    among: Tensor | None = None,
) -> Tensor:
    """Contrast in which a larger difference of scores weighs more among negatives and less among positives.

    LEARNER (arXiv:2411.01144) describes this in words; the formula is inferred. With d the difference of two scores
    over `score_range`, at most 1, and w the weighting of d: rows with d <= threshold are positives of weight 1 - w, the
    others negatives of weight w, and the loss of a row is `-log(sum of (1 - w) e^c over positives / (that + sum of
    w e^c over negatives))`, c the cosine over the temperature. Rows that lack positives or negatives are skipped.

    Args:
        u: `[N, D]` float, normalised here; computed in at least float32.
        s: `[N]` scores in any unit; a NaN takes its row out.
        temperature: divides the cosine.
        threshold: largest d of a positive, compared exactly: scores in decimals need a little more than their step.
        weighting: `none` (all factors 1), `linear` d, `exponential` (e^d - 1) / (e - 1), `logarithmic`
            log(1 + d) / log 2, `quantile` the share of the scores `among` that lie between the two (inferred; of
            equal scores half), or a function of d in [0, 1] to [0, 1]. The constant 1/2 equals `none`.
        score_range: the scale of differences, in the unit of `s`: largest less smallest training score; by default the
            batch's own.
        valid: bool `[N]`, rows that take part; or `[N, N]`, anchor by row, pairs that do.
        among: `[n]` known scores, sorted, for `quantile`; by default the batch's own.

    Returns:
        A scalar, float32 (float64 for float64 `u`), the mean over the rows that are not skipped; exactly 0 with zero
        gradients where all are, with a warning where that is because all scores are equal.

    Raises:
        UsageError: shapes that do not fit, numbers out of range, an unknown weighting.

    Example:
        >>> u = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> round(score_contrast_loss(u, torch.tensor([0.0, 0.1, 2.0])).item(), 4)
        0.0001
        >>> round(score_contrast_loss(u, torch.tensor([0.0, 2.0, 0.1])).item(), 4)
        5.6557
    """
    values, counted, _ = _by_row(u, s, temperature, threshold, weighting, score_range, valid, among=among)
    known = s.detach()[s.isfinite()]
    if len(known) > 1 and known.min() == known.max():
        warnings.warn("all scores of the batch are equal: nothing to contrast", stacklevel=2)
    return values.sum() / counted.sum().clamp(min=1)


def _by_row(
    u: Tensor,
    s: Tensor,
    temperature: float,
    threshold: float,
    weighting: Weighting,
    score_range: float | Tensor | None,
    valid: Tensor | None,
    *,
    among: Tensor | None = None,
    learned: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of every row, 0 where it is skipped; which are not; and what a learnt weighting is fitted by.

    `learned` is the curve `[N, PIECES + 1]` and the place `[N]` of every row.
    """
    _check(u, s, temperature, threshold, score_range, valid)
    names = NAMES if learned is not None else tuple(name for name in NAMES if name != LEARNED)
    if isinstance(weighting, str) and weighting not in names:
        raise UsageError(f"unknown weighting {weighting!r}; {suggest(weighting, names)}")
    fitted = torch.zeros((), device=u.device)
    with torch.autocast(device_type=u.device.type, enabled=False):
        score = s.detach().to(u.device, torch.float64)
        known = score.isfinite()
        pairs = known[:, None] & known & ~torch.eye(len(s), dtype=torch.bool, device=u.device)
        if valid is not None:
            valid = valid.to(u.device)
            pairs &= valid if valid.ndim == 2 else valid[:, None] & valid
        score = torch.where(known, score, 0.0)
        gap = (score[:, None] - score).abs()
        if score_range is None:
            score_range = torch.where(known[:, None] & known, gap, 0.0).max() if len(s) else 0.0
        # Where all scores are equal, every pair is a positive, and a row without negatives is skipped.
        d = (gap / torch.as_tensor(score_range, dtype=gap.dtype, device=gap.device).clamp(min=1e-300)).clamp(max=1.0)
        positives, negatives = pairs & (d <= threshold), pairs & (d > threshold)
        kept = (positives.any(1) & negatives.any(1))[:, None]
        unit = F.normalize(at_least_float32(torch.where(known[:, None], u, 0.0)), dim=1)
        w: Tensor | None
        if weighting == QUANTILE:
            quantiles = quantiles_of(score, score[known].sort().values if among is None else among)
            w = (quantiles[:, None] - quantiles).abs().to(unit)
        elif learned is not None:
            curve, place = (at_least_float32(each) for each in learned)
            w = weigh(curve.detach(), d).to(unit)
            fitted = fit_to_order(curve, place, score, d, pairs)
        else:
            weigh_by = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
            w = None if weigh_by is None else weigh_by(d).to(unit)
        values, counted = infonce(
            unit @ unit.T / temperature,
            positives & kept,
            negatives & kept,
            form="in",
            positive_weights=None if w is None else 1 - w,
            negative_weights=w,
            reduction="none",
        )
    return values, counted, fitted


def _check(
    u: Tensor,
    s: Tensor,
    temperature: float,
    threshold: float,
    score_range: float | Tensor | None,
    valid: Tensor | None,
) -> None:
    """Raise UsageError where something does not fit together."""
    if u.ndim != 2 or not u.is_floating_point() or s.shape != (len(u),):
        raise UsageError(f"expected u float [N, D] and s [N], found {u.dtype} {list(u.shape)} and {list(s.shape)}")
    if valid is not None and (valid.dtype != torch.bool or valid.shape not in ((len(u),), (len(u), len(u)))):
        raise UsageError(f"valid: expected bool [N] or [N, N], found {valid.dtype} {list(valid.shape)}")
    if not temperature > 0:
        raise UsageError(f"temperature: expected a positive number, found {temperature}")
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold: expected a share of the range, 0 to 1, found {threshold}")
    if isinstance(score_range, float | int) and not score_range > 0:
        raise UsageError(f"score_range: expected a positive number, found {score_range}")


class ScoreContrast(Objective):
    """`score_contrast_loss` over the rows of all views; differences are shares of the range of the training scores.

    Another view of the same sample is absent, as the paper's pairs are of different scans. Partners with a `near` score
    are brought into the batch. A row that lacks the score has no part.

    Args:
        shape: the encoder's shapes.
        table: role -> values of the training samples, for the range.
        target: role of the score; by default the table's only one.
        temperature: divides the cosine.
        threshold: largest difference of a positive, as a share of the range; 0 for an ordinal score.
        weighting: `none`, `linear`, `exponential`, `logarithmic`, `quantile` (the share of training scores between the
            two) or `learned` (`LearnedWeighting`: how well images of training patients tell such a difference); the
            last two are ours.
        inter_patient_only: contrast only with rows of other patients.
        dim: width of a projection head's embedding; by default there is no head, and what is contrasted is the
            encoder's own embedding (u, where the encoder has a neck).
        hidden: width of that head's hidden layer; by default the encoder's.

    Raises:
        RecipeError: no score or several where none is named, a score without spread, numbers out of range, `hidden`
            without `dim`, which would do nothing.

    Example:
        >>> objective = ScoreContrast(FeatureShape(6, 6, 32), {"score:severity": np.arange(4.0)}, threshold=0.0)
        >>> batch = Batch({}, {}, {"sample": torch.arange(3), "score:severity": torch.tensor([1.0, 1.0, 3.0])})
        >>> int(objective.loss(objective.embed(Features(torch.randn(1, 3, 6)), batch), batch).num_anchors)
        2
    """

    def __init__(
        self,
        shape: FeatureShape,
        table: TrainingTable,
        *,
        target: str | None = None,
        temperature: float = 0.1,
        threshold: float = 0.1,
        weighting: Literal["none", "linear", "exponential", "logarithmic", "quantile", "learned"] = "linear",
        inter_patient_only: bool = False,
        dim: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise RecipeError(f"temperature: expected a positive number, found {temperature}")
        if not 0 <= threshold < 1:
            raise RecipeError(f"threshold: expected a share of the range, 0 or more and below 1, found {threshold}")
        if weighting not in NAMES:
            raise RecipeError(f"unknown weighting {weighting!r}; {suggest(weighting, NAMES)}")
        (self.target,) = scores_among(table, target, "target")
        self.temperature, self.threshold, self.weighting = temperature, threshold, weighting
        self.inter_patient_only = inter_patient_only
        known = table[self.target][np.isfinite(table[self.target])]
        self.score_range: Tensor
        self.register_buffer("score_range", torch.tensor(float(np.ptp(known)), dtype=torch.float64))
        roles = {self.target, "patient"} if inter_patient_only else {self.target}
        differ = ("patient",) if inter_patient_only else ()
        near = Relation(differ=differ, near=(self.target, threshold * float(np.ptp(known))))
        self.needs = Needs(views=1, roles=frozenset(roles), relations=(near,), samples=3)
        self.head = optional_head(shape.dim, dim, hidden)
        self.among: Tensor | None  # the training scores, sorted
        self.register_buffer("among", torch.from_numpy(np.sort(known)) if weighting == QUANTILE else None)
        self.learned = LearnedWeighting(dim or shape.dim) if weighting == LEARNED else None

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`u` `[V, N, D]`; of a learnt weighting, `curve` `[V, N, PIECES + 1]` and `place` `[V, N, 1]` too."""
        u = features.pooled if self.head is None else self.head(features.pooled)
        if self.learned is None:
            return {"u": u}
        curve = self.learned.curve(u.shape[0] * u.shape[1]).view(*u.shape[:2], -1)
        return {"u": u, "curve": curve, "place": self.learned.place(u)}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """Over the V * N rows; the mean over, and the number of, rows with positives and negatives."""
        u_VND = embedded["u"]
        num_views = len(u_VND)
        sample = batch.columns["sample"]
        valid = sample[:, None] != sample
        if self.inter_patient_only:
            patient = batch.columns["patient"]
            valid = valid & ((patient[:, None] != patient) | (patient[:, None] == -1))
        learned = None
        if self.learned is not None:
            learned = embedded["curve"].flatten(0, 1), embedded["place"].flatten()
        values, counted, fitted = _by_row(
            u_VND.flatten(0, 1),
            batch.columns[self.target].repeat(num_views),
            self.temperature,
            self.threshold,
            self.weighting,
            self.score_range,
            valid.repeat(num_views, num_views),
            among=self.among,
            learned=learned,
        )
        num_anchors = counted.sum()
        # What the weighting is fitted by moves nothing but the weighting, and is no part of the value.
        value = values.sum() / num_anchors.clamp(min=1) + (fitted - fitted.detach())
        return Loss(value, num_anchors)
