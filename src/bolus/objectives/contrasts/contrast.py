"""Relation contrast: partners under a relation attract, all others repel.

One objective for SimCLR (relation `views`), supervised contrast on a meta label (same label), CLIP between modalities,
visits or eyes (`between`), and any other relation.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs, Relation
from bolus.data.cohort.roles import BIN, CATEGORIES, is_number_role, is_role, known_roles
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError, suggest
from bolus.objectives.base import Loss, Objective
from bolus.objectives.heads import ProjectionHead, at_least_float32
from bolus.objectives.infonce import infonce

MOST_SCALE = 100.0  # of a learnt 1 / temperature (CLIP, arXiv:2103.00020, section 2.5)


class Contrast(Objective):
    """InfoNCE between the rows of all views, with a relation's partners as positives.

    Relation `views` is NT-Xent (SimCLR, arXiv:2002.05709); `same` on a label is SupCon (arXiv:2004.11362). Positives of
    a row are its partners in every view, never itself. Negatives are all other rows, except the other views of the
    row's own sample, which are positives where the relation says so and else absent; with `other_patients` also except
    rows of the same patient (a missing patient differs from everybody). A relation with a weighting weights the
    positives.

    A row that lacks a value the relation reads has no positives, hence no part in the mean, but is a negative for
    others. A batch without positives gives exactly 0 and no anchors.

    `between` makes it the symmetric contrast of CLIP (arXiv:2103.00020, figure 3) between the values of a role, as
    COMPRER (arXiv:2403.09672) has it between modalities, visits and eyes; that it is symmetric is our reading. Two
    values a and b give one term: the mean of InfoNCE from the rows of a to those of b, and from b to a. Rows without a
    partner on the other side take no part in a term, not even as negatives; a term of fewer than two samples on a side,
    or without a single negative, is 0. The loss is the sum over all pairs of values, so that any number of modalities
    can meet. `among` keeps what is contrasted apart: rows only meet rows of the same value of that role, and the terms
    of its values are added (visits of one eye in one modality each). A row without a value in `between` or `among`
    takes no part.

    Args:
        shape: the encoder's shapes.
        relation: a name (`views`) or a mapping, as `Relation.parse` takes.
        temperature: divides the cosine similarities; where it is learnable, the first one.
        dim: width of the embedding.
        hidden: width of the head's hidden layer; by default the encoder's, and with 0 the head is linear.
        form: "out" or "in", see `infonce`.
        negatives: "all", or "other_patients".
        last_norm: whether the head ends in batch normalisation.
        hidden_norm: whether its hidden layer has it.
        between: a role of categories, or visit, whose values are contrasted with each other; None: all rows with all.
        among: likewise a role, within each of whose values rows are contrasted; None: all.
        learnable: whether 1 / temperature is learnt, on a logarithmic scale and held to at most 100, as CLIP does.

    Raises:
        RecipeError: a relation that does not parse, a temperature that is not positive (or below 0.01 where it is
            learnable), a width below 1, an unknown form, choice of negatives or role, or roles that contradict each
            other.

    Example:
        >>> objective = Contrast(FeatureShape(dim=6, grid_channels=6, grid_stride=32), dim=4)
        >>> batch = Batch({}, {}, {"sample": torch.arange(3)})
        >>> embedded = objective.embed(Features(torch.randn(2, 3, 6)), batch)
        >>> embedded["z"].shape, int(objective.loss(embedded, batch).num_anchors)
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
        between: str | None = None,
        among: str | None = None,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        least = 1 / MOST_SCALE if learnable else 0.0
        if not temperature > 0 or temperature < least:
            bound = f"at least {least:g}" if learnable else "a positive number"
            raise RecipeError(f"temperature: expected {bound}, found {temperature}")
        if form not in ("out", "in"):
            raise RecipeError(f"form: expected 'out' or 'in', found {form!r}")
        if negatives not in ("all", "other_patients"):
            raise RecipeError(f"negatives: expected 'all' or 'other_patients', found {negatives!r}")
        self.relation = _across(Relation.parse(relation), between, among)
        self.temperature = temperature
        self.form = form
        self.negatives = negatives
        self.between, self.among = between, among
        # Every batch has the sample column, and no table needs it.
        roles = frozenset(self.relation.roles) | {role for role in (between, among) if role} - {"sample"}
        self.needs = Needs(
            views=2 if "sample" in self.relation.same else 1,
            roles=(roles | {"patient"} if negatives == "other_patients" else roles) - {"sample"},
            relations=(self.relation,),
            # Two on either side of a term; else a row, its partner and a negative, and views may be partners.
            samples=4 if between is not None else 2 if self.relation.with_itself else 3,
        )
        widths = [dim] if hidden == 0 else [shape.dim if hidden is None else hidden, dim]
        self.head = ProjectionHead(shape.dim, widths, last_norm=last_norm, hidden_norm=hidden_norm)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature))) if learnable else None

    @property
    def embeds_with(self) -> Hashable:
        """Contrasts with one head embed alike, unless they learn their temperature."""
        return (Contrast, id(self.head)) if self.log_scale is None else id(self)

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`z` `[V, N, dim]`, at least float32: of unit length; of length 1 / sqrt(temperature) where that is learnt.

        So inner products are the logits, and each process has its own rows' part of the temperature's gradient.
        """
        z = self.head(features.pooled)
        with torch.autocast(device_type=z.device.type, enabled=False):
            z = F.normalize(at_least_float32(z), dim=-1)
            if self.log_scale is None:
                return {"z": z}
            if self.training:
                with torch.no_grad():  # the parameter itself, so that it can come back from there
                    self.log_scale.clamp_(max=math.log(MOST_SCALE))
            return {"z": z * (self.log_scale.clamp(max=math.log(MOST_SCALE)) / 2).exp()}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """InfoNCE over the V * N rows, view-major; the mean over, and the number of, rows with a positive.

        With `between` or `among` the sum of their terms, whose number is counted.
        """
        z_VND = embedded["z"]
        num_views, num_rows = z_VND.shape[:2]
        positives, negatives = pairs_of(self.relation, self.negatives, batch, num_views)
        weights = None
        if self.relation.weighting != "none":
            weights = self.relation.weights(batch.columns).to(z_VND.device).repeat(num_views, num_views)
        starts = num_rows * torch.arange(num_views, device=positives.device)[:, None]  # of each view's rows
        terms, num_anchors = [], torch.zeros((), dtype=torch.int64, device=z_VND.device)
        num_terms = num_anchors
        with torch.autocast(device_type=z_VND.device.type, enabled=False):
            z = at_least_float32(z_VND).reshape(num_views * num_rows, -1)
            for pair in self._terms(batch, positives[:num_rows, :num_rows], negatives[:num_rows, :num_rows]):
                a_ND = b_MD = z
                at: Any = ...  # all rows in order: nothing is picked
                if self.between is not None or self.among is not None:
                    a, b = ((starts + rows).flatten() for rows in pair)
                    a_ND, b_MD, at = z[a.to(z.device)], z[b.to(z.device)], (a[:, None], b)
                a_ND = a_ND if self.log_scale is not None else a_ND / self.temperature
                masks = [a_ND @ b_MD.T, positives[at].to(z.device), negatives[at].to(z.device)]
                masks += [] if weights is None else [weights[at]]
                ways = [masks] if self.between is None else [masks, [each.T for each in masks]]
                means, found = [], torch.zeros_like(num_anchors)
                for s, p, n, *w in ways:
                    weight = w[0] if w else None
                    values, valid = infonce(s, p, n, form=self.form, positive_weights=weight, reduction="none")
                    means.append(values.sum() / valid.sum().clamp(min=1))
                    found = found + valid.sum()
                terms.append(torch.stack(means).mean())  # 0 where no row has a positive
                num_anchors, num_terms = num_anchors + found, num_terms + (found > 0)
            value = torch.stack(terms).sum() if terms else z.sum() * 0.0
        return Loss(value, num_anchors, {} if self.between is None and self.among is None else {"terms": num_terms})

    def _terms(self, batch: Batch, related: Tensor, opposed: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples on either side of each term, as positions; the same ones twice where all meet all."""
        for rows in _groups(self.among, batch, torch.arange(batch.num_samples, device=related.device)):
            if self.between is None:
                yield rows, rows
                continue
            for a, b in combinations(_groups(self.between, batch, rows), 2):
                pairs = related[a[:, None], b]
                a, b = a[pairs.any(1)], b[pairs.any(0)]
                if min(len(a), len(b)) >= 2 and opposed[a[:, None], b].any():
                    yield a, b


def _across(relation: Relation, between: str | None, among: str | None) -> Relation:
    """The relation that also says what `between` and `among` do, so that partners are drawn accordingly."""
    for name, role in (("between", between), ("among", among)):
        if role is None:
            continue
        if not is_role(role):
            raise RecipeError(f"{name}: unknown role {role!r}; {suggest(role, known_roles())}")
        if role not in CATEGORIES and role != "visit" and not role.startswith((BIN, "label:", "attribute:")):
            cut = f", or {BIN}{role}" if is_number_role(role) else ""
            raise RecipeError(f"{name}: expected a role of categories, or visit{cut}; found {role}")
    if between is not None and between == among:
        raise RecipeError(f"among: rows cannot be both of one {among} and of two")
    if between is not None and "sample" in relation.same:
        raise RecipeError(f"between: views of one sample are of one {between}, hence never of two")
    if between is not None and between in relation.same:
        raise RecipeError(f"between: partners are of the same {between} by the relation, hence never of two")
    if among is not None and among in relation.differ:
        raise RecipeError(f"among: partners are of different {among} by the relation, hence never of one")
    differ = relation.differ if between is None else (*relation.differ, between)
    return replace(relation, differ=differ, same=relation.same if among is None else (*relation.same, among))


def _groups(role: str | None, batch: Batch, rows: Tensor) -> list[Tensor]:
    """The rows by their value in a role, those without one left out; all of them together where there is no role."""
    if role is None:
        return [rows]
    values = batch.columns[role][rows]
    if values.is_floating_point() and role != "visit":
        raise RecipeError(f"{role} holds numbers, of which nearly each is its own; cut it into bins as {BIN}{role}")
    known = values.isfinite() if values.is_floating_point() else values != -1
    return [rows[values == value] for value in torch.unique(values[known])]


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
