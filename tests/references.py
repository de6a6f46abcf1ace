"""SupReMix as the paper writes it: loops in float64 and explicit mixture vectors, no algebra. Slow on purpose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def supremix_terms(
    z: Tensor,
    y: Tensor,
    *,
    temperature: float = 0.5,
    window: float = 5.0,
    distance_weight: bool = True,
    mix_negatives: bool = True,
    mix_positives: bool = True,
    label_tolerance: float = 0.0,
    valid: Tensor | None = None,
    mix_weights: Tensor | None = None,
) -> list[tuple[list[Tensor], list[tuple[float, Tensor]]]]:
    """For every anchor: the similarities of its positives, real and mixed, and (weight, similarity) of all its terms.

    Mixtures are vectors of numbers made from z, so no gradient can flow through them. y is `[N]` or `[N, K]`.
    """
    N = z.shape[0]
    rows = [z[i] / z[i].norm() for i in range(N)]
    numbers = [row.detach().numpy() for row in rows]
    labels = (y[:, None] if y.ndim == 1 else y).double().tolist()

    def usable(i: int, j: int) -> bool:
        given = valid is None or bool(valid[j] and valid[i] if valid.ndim == 1 else i == j or valid[i, j])
        return given and not any(math.isnan(value) for value in labels[i] + labels[j])

    def between(j: int, i: int, k: int) -> bool:
        return all(a < b < c or c < b < a for a, b, c in zip(labels[j], labels[i], labels[k], strict=True))

    anchors = []
    for i in range(N):
        near: list[int] = []
        far: list[int] = []
        for j in range(N):
            if j != i and usable(i, j):
                (near if math.dist(labels[i], labels[j]) <= label_tolerance else far).append(j)
        positives = [rows[i] @ rows[j] / temperature for j in near]
        terms = [(1.0, s) for s in positives]
        for j in far:
            weight = math.dist(labels[i], labels[j]) + 1 if distance_weight else 1.0
            terms.append((weight, rows[i] @ rows[j] / temperature))
        vectors, weights = [], []
        if mix_negatives:
            assert mix_weights is not None, "the reference draws nothing"
            for k in far:
                share = float(mix_weights[i, k])
                vectors.append(share * numbers[i] + (1 - share) * numbers[k])
                label = [share * a + (1 - share) * b for a, b in zip(labels[i], labels[k], strict=True)]
                weights.append(math.dist(labels[i], label) + 1 if distance_weight else 1.0)
        num_negatives = len(vectors)
        if mix_positives:
            for j in far:
                for k in far:
                    d_j, d_k = math.dist(labels[i], labels[j]), math.dist(labels[i], labels[k])
                    if j < k and between(j, i, k) and d_j < window and d_k < window:
                        alpha = d_k / (d_j + d_k)
                        vectors.append(alpha * numbers[j] + (1 - alpha) * numbers[k])
                        weights.append(1.0)
        if vectors:
            similarities = torch.from_numpy(np.stack(vectors)) @ rows[i] / temperature
            terms += list(zip(weights, similarities, strict=True))
            positives += list(similarities[num_negatives:])
        anchors.append((positives, terms))
    return anchors


def supremix(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    """The mean over anchors with a positive of -(1 / |R + P|) sum over R and P of (s_ip - log D_i)."""
    losses = []
    for positives, terms in supremix_terms(z, y, **options):
        if positives:
            log_d = torch.stack([weight * similarity.exp() for weight, similarity in terms]).sum().log()
            losses.append(-torch.stack([s - log_d for s in positives]).mean())
    return torch.stack(losses).mean() if losses else 0 * z.sum()


def supremix_by_anchor(
    z: Tensor, y: Tensor, mix_weights: Tensor, *, temperature: float = 0.5, window: float = 5.0, tolerance: float = 0.0
) -> Tensor:
    """The same with every mode on for y `[N]`, one anchor at a time: `[J, K, D]` mixtures, for hundreds of rows."""
    rows = z / z.norm(dim=1, keepdim=True)
    fixed, losses = rows.detach(), []
    for i in range(len(y)):
        dy = y - y[i]
        real = rows[i] @ rows.T / temperature
        near = dy.abs() <= tolerance
        weights = torch.where(near, 1.0, dy.abs() + 1)
        itself = torch.arange(len(y)) == i
        share = mix_weights[i, ~near]
        mixed = share[:, None] * fixed[i] + (1 - share[:, None]) * fixed[~near]
        below, above = ~near & (dy < 0) & (dy > -window), ~near & (dy > 0) & (dy < window)
        alpha = (dy[above] / (dy[above] - dy[below][:, None]))[..., None]
        between = (alpha * fixed[below][:, None] + (1 - alpha) * fixed[above]).flatten(0, 1)
        hard, soft = mixed @ rows[i] / temperature, between @ rows[i] / temperature
        terms = [real + weights.log(), hard + ((1 - share) * dy[~near].abs() + 1).log(), soft]
        log_d = torch.cat([terms[0][~itself], *terms[1:]]).logsumexp(dim=0)
        positives = torch.cat([real[near & ~itself], soft])
        if len(positives):
            losses.append(log_d - positives.mean())
    return torch.stack(losses).mean()
