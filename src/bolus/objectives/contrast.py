"""Relation contrast: partners under a relation attract, all others repel.

One objective for SimCLR (relation `views`), supervised contrast on a meta label (same label), and any other relation.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bolus.data.batch import Batch
from bolus.data.relation import Needs, Relation
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError
from bolus.objectives.base import Loss, Objective
from bolus.objectives.heads import ProjectionHead, at_least_float32
from bolus.objectives.infonce import infonce


class Contrast(Objective):
    """InfoNCE between the rows of all views, with a relation's partners as positives.

    Relation `views` is NT-Xent (SimCLR, arXiv:2002.05709); `same` on a label is SupCon (arXiv:2004.11362). Positives of
    a row are its partners in every view, never itself. Negatives are all other rows, except the other views of the
    row's own sample, which are positives where the relation says so and else absent; with `other_patients` also except
    rows of the same patient (a missing patient differs from everybody). A relation with a weighting weights the
    positives.

    A row that lacks a value the relation reads has no positives, hence no part in the mean, but is a negative for
    others. A batch without positives gives exactly 0 and no anchors.

    Args:
        shape: the encoder's shapes.
        relation: a name (`views`) or a mapping, as `Relation.parse` takes.
        temperature: divides the cosine similarities.
        dim: width of the embedding.
        hidden: width of the head's hidden layer; by default the encoder's.
        form: "out" or "in", see `infonce`.
        negatives: "all", or "other_patients".
        last_norm: whether the head ends in batch normalisation.
        hidden_norm: whether its hidden layer has it.

    Raises:
        RecipeError: a relation that does not parse, a temperature that is not positive, a width below 1, or an unknown
            form or choice of negatives.

    Example:
        >>> objective = Contrast(FeatureShape(dim=6, grid_channels=6, grid_stride=32), dim=4)
        >>> batch = Batch({}, {}, {"sample": torch.arange(3)})
        >>> embedded = objective.embed(Features(torch.randn(2, 3, 6)), batch)
        >>> embedded["z"].shape, objective.loss(embedded, batch).num_anchors
        (torch.Size([2, 3, 4]), 6)
    """

    shares_head = True

    def __init__(
        self,
        shape: FeatureShape,
        *,
        relation: str | Mapping[str, Any] = "views",
        temperature: float = 0.1,
        dim: int = 128,
        hidden: int | None = None,
        form: Literal["out", "in"] = "out",
        negatives: Literal["all", "other_patients"] = "all",
        last_norm: bool = False,
        hidden_norm: bool = True,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise RecipeError(f"temperature: expected a positive number, found {temperature}")
        if form not in ("out", "in"):
            raise RecipeError(f"form: expected 'out' or 'in', found {form!r}")
        if negatives not in ("all", "other_patients"):
            raise RecipeError(f"negatives: expected 'all' or 'other_patients', found {negatives!r}")
        self.relation = Relation.parse(relation)
        self.temperature = temperature
        self.form = form
        self.negatives = negatives
        roles = frozenset(self.relation.roles) - {"sample"}  # every batch has that column, no table needs it
        self.needs = Needs(
            views=2 if "sample" in self.relation.same else 1,
            roles=roles | {"patient"} if negatives == "other_patients" else roles,
            relations=(self.relation,),
        )
        widths = [shape.dim if hidden is None else hidden, dim]
        self.head = ProjectionHead(shape.dim, widths, last_norm=last_norm, hidden_norm=hidden_norm)

    @property
    def embeds_with(self) -> Hashable:
        """Contrasts with one head embed alike."""
        return (Contrast, id(self.head))

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`z` `[V, N, dim]`, of unit length, at least float32."""
        z = self.head(features.pooled)
        with torch.autocast(device_type=z.device.type, enabled=False):
            return {"z": F.normalize(at_least_float32(z), dim=-1)}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """InfoNCE over the V * N rows, view-major; the mean over, and the number of, rows with a positive."""
        z_VND = embedded["z"]
        num_views, num_rows = z_VND.shape[:2]
        positives, negatives = pairs_of(self.relation, self.negatives, batch, num_views)
        weights = None
        if self.relation.weighting != "none":
            weights = self.relation.weights(batch.columns).to(z_VND.device).repeat(num_views, num_views)
        with torch.autocast(device_type=z_VND.device.type, enabled=False):
            z = at_least_float32(z_VND).reshape(num_views * num_rows, -1)
            values, valid = infonce(
                z @ z.T / self.temperature,
                positives.to(z.device),
                negatives.to(z.device),
                form=self.form,
                positive_weights=weights,
                reduction="none",
            )
        num_anchors = int(valid.sum())
        return Loss(values.sum() / max(num_anchors, 1), num_anchors)


def pairs_of(relation: Relation, negatives: str, batch: Batch, num_views: int) -> tuple[Tensor, Tensor]:
    """Masks of the positives and of the negatives among the rows of all views, bool `[V * N, V * N]`, view-major.

    Args:
        relation: whose partners are positives, a row never being its own.
        negatives: "all" others, or those of "other_patients"; never another view of the row's own sample.
        batch: its columns.
        num_views: V.
    """
    sample = batch.columns["sample"]
    related = relation.mask(batch.columns)
    opposed = ~related & (sample[:, None] != sample[None, :])
    if negatives == "other_patients":
        patient = batch.columns["patient"]
        opposed &= (patient[:, None] != patient[None, :]) | (patient[:, None] == -1)
    positives = related.repeat(num_views, num_views)
    positives.fill_diagonal_(False)
    return positives, opposed.repeat(num_views, num_views)
