"""SupReMix: contrast over a continuous score, with mixtures as hard negatives and hard positives.

Not through `infonce`: the denominator of a row holds a term for every pair of rows about it; see `mixing`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs, Relation
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError
from bolus.objectives.base import Loss, Objective, TrainingTable, scores_among, standardisation
from bolus.objectives.heads import ProjectionHead, at_least_float32
from bolus.objectives.scores.mixing import Settings, supremix
from bolus.seeds import seed_for

_log = logging.getLogger(__name__)


def supremix_loss(
    z: Tensor,
    y: Tensor,
    *,
    temperature: float = 0.5,
    window: float = 5.0,
    beta: tuple[float, float] = (2.0, 8.0),
    distance_weight: bool = True,
    mix_negatives: bool = True,
    mix_positives: bool = True,
    label_tolerance: float = 0.0,
    valid: Tensor | None = None,
    mix_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Supervised contrast for regression with mixed pairs (SupReMix, arXiv:2309.16633).

    For an anchor i, with s the cosine over the temperature and d the distance of labels:

    - real positives: rows with d <= label_tolerance; real negatives: the others;
    - a mixed negative for every real negative k: `m = l z_i + (1 - l) z_k`, l from Beta(*beta), of label
      `l y_i + (1 - l) y_k`;
    - a mixed positive for every pair (j, k) of real negatives nearer than `window` with the anchor's label between
      theirs (in every target, where there are several): `m = a z_j + (1 - a) z_k`, a = d_ik / (d_ij + d_ik);
    - loss: the mean over positives, real and mixed, of `log(sum of w e^s over all real and mixed pairs) - s`, with
      w = d + 1 for negatives and 1 for positives; then the mean over anchors that have a positive.

    Mixtures are neither normalised nor differentiated: gradients reach the anchor and the real pairs only. A kind that
    is switched off leaves nothing behind; with all three off this is SupCon (arXiv:2004.11362).

    Args:
        z: `[N, D]` float, normalised here; computed in at least float32. Views of a sample are rows of equal `y`.
        y: `[N]` or `[N, T]`, in any unit, never rescaled; a row with a NaN has no part in anything.
        temperature: divides the cosine.
        window: in the unit of `y`; mixed positives come from rows nearer than this.
        beta: parameters of the anchor's share in a mixed negative.
        distance_weight: weight negatives by d + 1, else by 1.
        mix_negatives: add mixed negatives.
        mix_positives: add mixed positives.
        label_tolerance: labels at most so far apart count as equal; in the unit of `y`.
        valid: bool `[N]`, rows that take part; or `[N, N]`, anchor by row, pairs that do, as components of a mixture
            too.
        mix_weights: `[N, N]` in [0, 1], the anchor's share in each mixed negative, instead of draws.
        generator: of those draws, on the CPU; the global one where None.

    Returns:
        A scalar, float32 (float64 for float64 `z`): exactly 0 with zero gradients where no row has a positive.

    Raises:
        UsageError: shapes that do not fit, a temperature that is not positive, a negative window or tolerance, shares
            outside [0, 1].

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])
        >>> y = torch.tensor([40.0, 44.0, 42.0, 42.0])
        >>> round(supremix_loss(z, y, mix_negatives=False).item(), 3)
        2.983
        >>> supremix_loss(z, torch.full((4,), torch.nan)).item()
        0.0
    """
    settings = Settings(temperature, window, beta, distance_weight, mix_negatives, mix_positives, label_tolerance)
    return supremix(z, y, settings, valid=valid, mix_weights=mix_weights, generator=generator).value


class SupReMix(Objective):
    """`supremix_loss` over the rows of all views, on one score or several of the table.

    One score keeps its unit, and `window` and `label_tolerance` are in it. Several are standardised on the training
    samples, so that none outweighs the others; `window` and `label_tolerance` are then in standard deviations. A row
    that lacks a score has no part. Partners `near` the anchor's score, below and above it, are brought into the batch.

    With the three switches off this is SupCon on equal scores (arXiv:2004.11362).

    Args:
        shape: the encoder's shapes.
        table: role -> values of the training samples, for the standardisation.
        targets: roles of scores or numbers; by default the table's only score.
        temperature, window, beta, distance_weight, mix_negatives, mix_positives, label_tolerance: see `supremix_loss`.
        dim: width of the embedding.
        hidden: width of the head's hidden layer; by default the encoder's.
        negatives: "all", or "other_patients": rows of the same patient are then absent, other views of a sample stay.

    Raises:
        RecipeError: no score or several where none is named, a target without spread, numbers out of range.

    Example:
        >>> objective = SupReMix(FeatureShape(6, 6, 32), {"score:age": torch.arange(9.0).numpy()}, dim=4)
        >>> batch = Batch({}, {}, {"sample": torch.arange(3), "score:age": torch.tensor([40.0, 42.0, 44.0])})
        >>> embedded = objective.embed(Features(torch.randn(2, 3, 6)), batch)
        >>> loss = objective.loss(embedded, batch)
        >>> int(loss.num_anchors), {name: int(count) for name, count in loss.counts.items()}
        (6, {'real_positives': 6, 'mixed_positives': 8})
    """

    def __init__(
        self,
        shape: FeatureShape,
        table: TrainingTable,
        *,
        targets: str | Sequence[str] | None = None,
        temperature: float = 0.5,
        window: float = 5.0,
        beta: tuple[float, float] = (2.0, 8.0),
        distance_weight: bool = True,
        mix_negatives: bool = True,
        mix_positives: bool = True,
        label_tolerance: float = 0.0,
        dim: int = 128,
        hidden: int | None = None,
        negatives: Literal["all", "other_patients"] = "all",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise RecipeError(f"temperature: expected a positive number, found {temperature}")
        if not (window >= 0 and label_tolerance >= 0 and min(beta) > 0):
            raise RecipeError(
                "expected window and label_tolerance of 0 or more and beta above 0, "
                f"found {window}, {label_tolerance} and {beta}"
            )
        self.settings = Settings(
            temperature, window, beta, distance_weight, mix_negatives, mix_positives, label_tolerance
        )
        self.targets = scores_among(table, targets)
        self.negatives = negatives
        reach = max(window, label_tolerance)
        values = table[self.targets[0]]
        if len(self.targets) == 1 and window > np.nanmax(values) - np.nanmin(values):
            _log.warning("the window of %g covers the whole range of %s in training", window, self.targets[0])
        if len(self.targets) > 1:
            scales = [standardisation(table, role) for role in self.targets]
        else:
            scales = [(0.0, 1.0)]
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor([mean for mean, _ in scales], dtype=torch.float64))
        self.register_buffer("scale", torch.tensor([scale for _, scale in scales], dtype=torch.float64))
        near = [Relation(near=(role, reach * scale)) for role, (_, scale) in zip(self.targets, scales, strict=True)]
        roles = frozenset(self.targets)
        self.needs = Needs(
            views=1,
            roles=roles | {"patient"} if negatives == "other_patients" else roles,
            relations=tuple(near),
            samples=2,
        )
        self.head = ProjectionHead(shape.dim, [shape.dim if hidden is None else hidden, dim], last_norm=True)

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`z` `[V, N, dim]`, of unit length, at least float32."""
        z = self.head(features.pooled)
        with torch.autocast(device_type=z.device.type, enabled=False):
            return {"z": F.normalize(at_least_float32(z), dim=-1)}

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """Over the V * N rows, view-major; the mean over, and the number of, rows with a positive."""
        z_VND = embedded["z"]
        num_views = len(z_VND)
        y_NT = torch.stack([batch.columns[role].to(torch.float64) for role in self.targets], dim=1)
        y_NT = (y_NT - self.mean.to(y_NT.device)) / self.scale.to(y_NT.device)
        valid = None
        if self.negatives == "other_patients":
            patient, sample = batch.columns["patient"], batch.columns["sample"]
            other = (patient[:, None] != patient) | (patient[:, None] == -1) | (sample[:, None] == sample)
            valid = other.repeat(num_views, num_views)
        found = supremix(
            z_VND.flatten(0, 1),
            y_NT.repeat(num_views, 1),
            self.settings,
            valid=valid,
            generator=torch.Generator().manual_seed(seed_for(batch.seed, self.name)),
        )
        return Loss(found.value, found.anchors, {"real_positives": found.real, "mixed_positives": found.mixed})
