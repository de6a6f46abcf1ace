"""ChronoCon: of a patient's visits on one side of a visit, the nearer in order is to be the nearer in the features.

Rank-N-Contrast without a score. Where a disease only progresses, a later visit is at least as far along, however long
it took; so visits are compared in their order, and only with those on the same side of the anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs, Relation
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError, UsageError
from bolus.objectives.base import Loss, Objective, TrainingTable, check_rows
from bolus.objectives.heads import at_least_float32, optional_head
from bolus.objectives.scores.rank_n_contrast import check_similarity, ranked_terms

ORDERED = ("visit", "time")


def chronocon_loss(
    z: Tensor,
    t: Tensor,
    group: Tensor,
    *,
    temperature: float = 1.0,
    similarity: Literal["l2", "cosine"] = "cosine",
) -> Tensor:
    """Contrast of every pair of visits with those farther along in time, forwards and backwards (arXiv:2603.21935).

    Among the rows of one group, with s the similarity over the temperature: forwards, S_ij are the rows k other than i
    with t_i <= t_j <= t_k, j among them; backwards, those with t_i >= t_j >= t_k. A pair's term is
    `log(sum over k in S_ij of e^s_ik) - s_ij`, and each direction is the mean of its terms over the pairs whose S_ij
    has two rows or more (others are 0 whatever the features), as the authors' code does by default. The loss is the sum
    of both directions. Rows of one time, such as two views, are in both.

    Only the order of `t` within a group counts; rows of different groups are not compared.

    Args:
        z: `[N, D]` float; computed in float64. Views of a sample are rows of equal `t` and `group`.
        t: `[N]` visits in order, or times; a row with a NaN has no part in anything.
        group: int64 `[N]`, such as codes of patients; -1, which is missing, has no part either.
        temperature: divides the similarity.
        similarity: `cosine`, or `l2`, the negative Euclidean distance of rows as they are.

    Returns:
        A scalar, float32 (float64 for float64 `z`); exactly 0 with zero gradients where no group has three rows, or
        none of them an order.

    Raises:
        UsageError: shapes that do not fit, a temperature that is not positive, an unknown similarity.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> round(chronocon_loss(z, torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64)).item(), 4)
        0.8086
        >>> round(chronocon_loss(z, torch.tensor([0, 2, 1]), torch.zeros(3, dtype=torch.int64)).item(), 4)
        1.9692
    """
    check_rows(z, t, None, temperature)
    if t.ndim != 1 or group.shape != t.shape:
        raise UsageError(f"t and group: expected [{len(z)}] both, found {list(t.shape)} and {list(group.shape)}")
    return _both_ways(z, t, (group[:, None] == group) & (group[:, None] != -1), temperature, similarity)[0]


def _both_ways(
    z: Tensor, t: Tensor, together: Tensor, temperature: float, similarity: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the rows that have a term other than 0, and how many such terms there are.

    Args as `chronocon_loss`; `together`: bool `[N, N]`, which rows are of one group.
    """
    times, together = t.detach().to(z.device, torch.float64), together.to(z.device)
    value, count = z[:0].double().sum(), times.new_zeros((), dtype=torch.int64)
    anchors = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for later in (times >= times[:, None], times <= times[:, None]):
        terms, sizes, rows = ranked_terms(z, times, temperature, similarity, together & later)
        telling = sizes > 1
        number = telling.sum()
        value = value + terms.masked_fill(~telling, 0.0).sum() / number.clamp(min=1)  # of one row, S has a term of 0
        count = count + number
        anchors[rows] |= telling.any(1)
    return value.to(at_least_float32(z[:0]).dtype), anchors.sum(), count


class ChronoCon(Objective):
    """`chronocon_loss` over the rows of all views, by the order of a patient's visits: no label is needed.

    It rests on a disease that only progresses: where visits get better and worse again, it teaches a false order.

    The paper compares images of one joint of one side of a patient, in the order of visits (its code: groups of
    patient, joint and side). Inferred here: the roles in `same` stand for that; the order is that of the `visit`
    column, or of `time` where there is none; partners are other visits of the anchor's group.

    Args:
        shape: the encoder's shapes.
        table: role -> values of the training samples: whether there is a visit.
        by: `visit` or `time`; by default the first that the table has.
        same: roles in which rows must agree to be compared, such as `[patient, laterality]`.
        temperature, similarity: see `chronocon_loss`.
        dim: width of a projection head's embedding; by default there is no head, as in the authors' code.
        hidden: width of that head's hidden layer; by default the encoder's.

    Raises:
        RecipeError: neither visits nor times, `same` without the patient or with the order itself, numbers out of
            range, `hidden` without `dim`.

    Example:
        >>> objective = ChronoCon(FeatureShape(6, 6, 32), {"visit": torch.arange(3.0).numpy()})
        >>> patients, visits = torch.tensor([0, 0, 1]), torch.tensor([0.0, 1.0, 0.0])
        >>> batch = Batch({}, {}, {"sample": torch.arange(3), "patient": patients, "visit": visits})
        >>> int(objective.loss(objective.embed(Features(torch.randn(2, 3, 6)), batch), batch).num_anchors)
        4
    """

    def __init__(
        self,
        shape: FeatureShape,
        table: TrainingTable,
        *,
        by: Literal["visit", "time"] | None = None,
        same: Sequence[str] = ("patient",),
        temperature: float = 1.0,
        similarity: Literal["l2", "cosine"] = "cosine",
        dim: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        check_similarity(temperature, similarity)
        there = [role for role in ORDERED if role in table]
        if by is None and not there:
            raise RecipeError(
                "by: the order of a patient's images needs a column of the role visit or time, found none"
            )
        self.by = by or there[0]
        if "patient" not in same:
            raise RecipeError(f"same: expected the patient among the roles, found {', '.join(same) or 'none'}")
        self.together, others = Relation(same=tuple(same)), Relation(same=tuple(same), differ=(self.by,))
        self.temperature, self.similarity = temperature, similarity
        self.needs = Needs(views=1, roles=frozenset(others.roles), relations=(others,), samples=2)
        self.head = optional_head(shape.dim, dim, hidden)

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`z` `[V, N, D]`, of any length."""
        return {"z": features.pooled if self.head is None else self.head(features.pooled)}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """Over the V * N rows, view-major; counts the rows that have an order to learn, and the terms."""
        z_VND, num_views = embedded["z"], len(embedded["z"])
        t, together = batch.columns[self.by].repeat(num_views), self.together.mask(batch.columns)
        value, anchors, terms = _both_ways(
            z_VND.flatten(0, 1), t, together.repeat(num_views, num_views), self.temperature, self.similarity
        )
        return Loss(value, anchors, {"terms": terms})
