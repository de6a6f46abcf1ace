"""Rank-N-Contrast: of any two rows, the one nearer in score is to be the nearer in the features.

Not through `infonce`: the denominator is another for every pair of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError, UsageError, suggest
from bolus.objectives.base import Loss, Objective, TrainingTable, check_rows, scores_among, standardisation
from bolus.objectives.heads import at_least_float32, optional_head

SIMILARITIES = ("l2", "cosine")


def rank_n_contrast_loss(
    z: Tensor,
    y: Tensor,
    *,
    temperature: float = 2.0,
    similarity: Literal["l2", "cosine"] = "l2",
    valid: Tensor | None = None,
) -> Tensor:
    """Contrast of every pair of rows with those no nearer in label (Rank-N-Contrast, arXiv:2210.01189, eq. 1-3).

    With d the distance of labels, s the similarity over the temperature, and S_ij the rows k other than i with
    d_ik >= d_ij, j among them: the loss of a row i is the mean over the other rows j of
    `log(sum over k in S_ij of e^s_ik) - s_ij`, and the loss is the mean over rows.

    Only the order of the distances counts, so that any scale of `y` gives the same. Distances that differ by no more
    than the rounding of `y` are equal: 0.3 is as far from 0.1 as from 0.5. Where all labels are equal there is no order
    to learn, and the loss evens out the similarities.

    Args:
        z: `[N, D]` float; computed in float64. Views of a sample are rows of equal `y`.
        y: `[N]` or `[N, T]`, whose distance is Euclidean; a row with a NaN has no part in anything.
        temperature: divides the similarity.
        similarity: `l2`, the negative Euclidean distance of rows as they are, or `cosine`.
        valid: bool `[N]`, rows that take part; or `[N, N]`, anchor by row, pairs that do, as members of S too.

    Returns:
        A scalar, float32 (float64 for float64 `z`): the mean over rows that have another; exactly 0 with zero gradients
        where none has. Rows that coincide do not move each other.

    Raises:
        UsageError: shapes that do not fit, a temperature that is not positive, an unknown similarity.

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [3.0]])
        >>> round(rank_n_contrast_loss(z, torch.tensor([40.0, 44.0, 52.0])).item(), 4)
        0.2102
        >>> round(rank_n_contrast_loss(z, torch.tensor([40.0, 52.0, 44.0])).item(), 4)
        0.5436
    """
    values, counted = _by_row(z, y, temperature, similarity, valid)
    return values.sum() / counted.sum().clamp(min=1)


def _by_row(z: Tensor, y: Tensor, temperature: float, similarity: str, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss of every row that takes part, 0 where it has no other row, and which have one."""
    check_rows(z, y, valid, temperature)
    terms, sizes, _ = ranked_terms(z, y, temperature, similarity, valid)
    num_others = (sizes > 0).sum(1)
    return (terms.sum(1) / num_others.clamp(min=1)).to(at_least_float32(z[:0]).dtype), num_others > 0


def ranked_terms(
    z: Tensor, y: Tensor, temperature: float, similarity: str, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """For every row i that takes part and every other row j, `log(sum over k in S_ij of e^s_ik) - s_ij`.

    Args as `rank_n_contrast_loss`.

    Returns:
        Terms, float64 `[M, M]`, 0 where a pair takes no part; how many rows S_ij has, 0 there; the others of a row
        stand farthest first. And the positions of the M rows, int64.

    >>> terms, sizes, rows = ranked_terms(torch.eye(3), torch.tensor([0.0, 1.0, 3.0]), 1.0, "cosine", None)
    >>> sizes.tolist()
    [[1, 2, 0], [1, 2, 0], [1, 2, 0]]
    """
    if similarity not in SIMILARITIES:
        raise UsageError(f"unknown similarity {similarity!r}; {suggest(similarity, SIMILARITIES)}")
    labels = y.detach().to(z.device, torch.float64)
    labels = labels[:, None] if y.ndim == 1 else labels
    valid = torch.ones(len(z), dtype=torch.bool) if valid is None else valid
    valid = valid.to(z.device)
    pairs = valid if valid.ndim == 2 else valid[:, None] & valid
    rows = (labels.isfinite().all(dim=1) & (pairs.any(0) | pairs.any(1))).nonzero().flatten()
    labels, absent = labels[rows], ~pairs[rows][:, rows]
    absent.fill_diagonal_(True)
    with torch.autocast(device_type=z.device.type, enabled=False):
        s = _similarities(z[rows].double(), similarity) / temperature
        order, last = _ranked(labels, absent, _rounding(y, labels))
        absent = absent.gather(1, order)
        # Far below any similarity, yet finite: a row without another has sums of nothing, and a gradient through them.
        s = s.gather(1, order).masked_fill(absent, torch.finfo(s.dtype).min / 4)
        terms = s.logcumsumexp(1).gather(1, last) - s
    return terms.masked_fill(absent, 0.0), (last + 1).masked_fill(absent, 0), rows


def _similarities(z: Tensor, similarity: str) -> Tensor:
    """`[N, N]` of float64 rows, without a pair-by-feature tensor.

    Distances come from products of centred rows: in float64 what is lost lies below the precision of float32 rows, and
    what could be rounding alone is 0, where the root has no gradient.
    """
    if similarity == "cosine":
        unit = F.normalize(z, dim=1)
        return unit @ unit.T
    z = z - z.detach().sum(0) / max(len(z), 1)
    products = z @ z.T
    squares = products.diagonal()
    total = squares[:, None] + squares
    gaps = total - 2 * products
    apart = gaps > z.shape[1] * torch.finfo(z.dtype).eps * total
    return -torch.where(apart, torch.where(apart, gaps, 1.0).sqrt(), 0.0)


def _rounding(y: Tensor, labels: Tensor) -> Tensor:
    """How far apart two equal distances of labels can come out, `y` being rounded to its own precision."""
    precision = torch.float32 if y.dtype == torch.float32 else torch.float64
    return 8 * torch.finfo(precision).eps * (labels.norm(dim=1).max() if len(labels) else labels.new_zeros(()))


def _ranked(labels: Tensor, absent: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """For every row the others, farthest first and absent ones last, and the last place that is as far as each."""
    d = torch.cdist(labels, labels, compute_mode="donot_use_mm_for_euclid_dist").masked_fill(absent, -torch.inf)
    d, order = d.sort(dim=1, descending=True, stable=True)
    ends = torch.ones_like(absent)
    ends[:, :-1] = d[:, :-1] - d[:, 1:] > rounding
    place = torch.arange(len(d), device=d.device).expand_as(order)
    last = torch.where(ends, place, len(d)).flip(1)
    return order, (last.cummin(1).values if len(d) else last).flip(1)


def check_similarity(temperature: float, similarity: str) -> None:
    """Refuse recipe keys that `ranked_terms` does not take.

    Raises:
        RecipeError: a temperature that is not positive, or an unknown similarity.

    >>> check_similarity(1.0, "cosin")
    Traceback (most recent call last):
    bolus.errors.RecipeError: unknown similarity 'cosin'; did you mean 'cosine'?
    """
    if not temperature > 0:
        raise RecipeError(f"temperature: expected a positive number, found {temperature}")
    if similarity not in SIMILARITIES:
        raise RecipeError(f"unknown similarity {similarity!r}; {suggest(similarity, SIMILARITIES)}")


class RankNContrast(Objective):
    """`rank_n_contrast_loss` over the rows of all views, on one score or several of the table.

    Several scores are divided by their standard deviations over the training samples, so that none outweighs the
    others. A row that lacks a score has no part. Every row of a batch is contrasted with every other, so no partners
    are asked for.

    As in the authors' code, what is contrasted is the encoder's own pooled feature; a predictor is fitted on it later.

    Args:
        shape: the encoder's shapes.
        table: role -> values of the training samples, for the standard deviations.
        targets: roles of scores or numbers; by default the table's only score.
        temperature, similarity: see `rank_n_contrast_loss`.
        dim: width of a projection head's embedding; by default there is no head.
        hidden: width of that head's hidden layer; by default the encoder's.

    Raises:
        RecipeError: no score or several where none is named, a target without spread, numbers out of range, `hidden`
            without `dim`.

    Example:
        >>> objective = RankNContrast(FeatureShape(6, 6, 32), {"score:age": torch.arange(9.0).numpy()})
        >>> batch = Batch({}, {}, {"sample": torch.arange(3), "score:age": torch.tensor([40.0, torch.nan, 44.0])})
        >>> int(objective.loss(objective.embed(Features(torch.randn(2, 3, 6)), batch), batch).num_anchors)
        4
    """

    def __init__(
        self,
        shape: FeatureShape,
        table: TrainingTable,
        *,
        targets: str | Sequence[str] | None = None,
        temperature: float = 2.0,
        similarity: Literal["l2", "cosine"] = "l2",
        dim: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        check_similarity(temperature, similarity)
        self.targets = scores_among(table, targets)
        self.temperature, self.similarity = temperature, similarity
        scales = [standardisation(table, role)[1] for role in self.targets] if len(self.targets) > 1 else [1.0]
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scales, dtype=torch.float64))
        self.needs = Needs(views=1, roles=frozenset(self.targets), samples=2)
        self.head = optional_head(shape.dim, dim, hidden)

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`z` `[V, N, D]`, of any length."""
        return {"z": features.pooled if self.head is None else self.head(features.pooled)}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """Over the V * N rows, view-major; the mean over, and the number of, rows with a score and another such row."""
        z_VND = embedded["z"]
        y_NT = torch.stack([batch.columns[role].to(torch.float64) for role in self.targets], dim=1)
        y_NT = y_NT / self.scale.to(y_NT.device)
        values, counted = _by_row(
            z_VND.flatten(0, 1), y_NT.repeat(len(z_VND), 1), self.temperature, self.similarity, None
        )
        num_anchors = counted.sum()
        return Loss(values.sum() / num_anchors.clamp(min=1), num_anchors)
