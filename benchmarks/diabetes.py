"""SupReMix as a pure function, with a small network on a table: scikit-learn's diabetes progression.

python benchmarks/diabetes.py

442 people, ten numbers each, and the progression of their disease after a year. Five folds; of the four others a fifth
chooses the learning rate, the temperature and the penalty of the ridge regression that reads the frozen embeddings.
Predictions of all folds are pooled, so intervals are over all people. Beside the contrasts stand a network trained by
the squared error, one that was never trained, the ridge regression of the ten numbers, and the median.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import KFold
from torch import Tensor, nn

from bolus.encoders.backbone import seeded
from bolus.evaluation.probing.fitting import Labelled, fit_linear, fit_majority
from bolus.evaluation.statistics.arms import compare_arms
from bolus.evaluation.statistics.metrics import METRICS
from bolus.objectives.scores.rank_n_contrast import rank_n_contrast_loss
from bolus.objectives.scores.supremix import supremix_loss
from grid import RESULTS, write_results
from judging import Array
from study import RANDOM

SEEDS, FOLDS, STEPS, BATCH = (0, 1, 2), 5, 300, 128
WIDTH, DIM = 64, 32
TOLERANCE, WINDOW = 0.1, 0.5  # of a standard deviation of the progression
RATES, TEMPERATURES = (0.001, 0.003), (0.1, 0.5, 2.0)

Loss = Callable[[Tensor, Tensor, float], Tensor]
OFF = {"mix_negatives": False, "mix_positives": False, "distance_weight": False}


def _supremix(**keys: Any) -> Loss:
    def loss(z: Tensor, y: Tensor, temperature: float) -> Tensor:
        return supremix_loss(z, y, temperature=temperature, window=WINDOW, label_tolerance=TOLERANCE, **keys)

    return loss


LOSSES: dict[str, Loss] = {
    "supremix": _supremix(),
    "supcon": _supremix(**OFF),
    "rank_n_contrast": lambda z, y, temperature: rank_n_contrast_loss(z, y, temperature=temperature),
}


def network() -> nn.Sequential:
    """Ten numbers to an embedding."""
    return nn.Sequential(nn.Linear(10, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, DIM))


def embed(arm: str, x: Array, y: Array, every: Array, *, lr: float, temperature: float, seed: int) -> Array:
    """Embeddings of all people by a network that was trained on some."""
    with seeded(seed):
        encoder, head = network(), nn.Linear(DIM, 1)
        generator = torch.Generator().manual_seed(seed)
        given, target = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=lr)
        for _ in range(0 if arm == RANDOM else STEPS):
            some = torch.randperm(len(x), generator=generator)[:BATCH]
            z = encoder(given[some])
            if arm == "regression":
                loss = (head(z)[:, 0] - target[some]).square().mean()
            else:
                loss = LOSSES[arm](z, target[some], temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return np.asarray(encoder(torch.from_numpy(every).float()).numpy(), np.float64)


def predict(arm: str, x: Array, y: Array, parts: tuple[Array, Array, Array], seed: int) -> Array:
    """What an arm says of the people of a fold, by the keys that its validation people choose."""
    train, val, test = parts
    people = np.arange(len(x))
    if arm == "median":
        return np.asarray(fit_majority(y[train], "regress", 0).predict(np.empty((len(test), 0))))
    best: tuple[float, Array] | None = None
    tried = product(RATES, TEMPERATURES) if arm in LOSSES else [(lr, 0.0) for lr in RATES]
    for lr, temperature in [(0.0, 0.0)] if arm in (RANDOM, "ten numbers") else tried:
        u = x if arm == "ten numbers" else embed(arm, x[train], y[train], x, lr=lr, temperature=temperature, seed=seed)
        fit, held = (Labelled(u[at], y[at], people[at]) for at in (train, val))
        head = fit_linear(fit, held, "regress")
        error = float(METRICS["regress"]["mae"](y[val], head.predict(u[val])))
        if best is None or error < best[0]:
            best = error, head.predict(u[test])
    assert best is not None
    return best[1]


def main() -> None:
    """Every arm, seed and fold, and the comparison."""
    x, progression = load_diabetes(return_X_y=True)
    x, scale = (x - x.mean(0)) / x.std(0), float(progression.std())
    y = (progression - progression.mean()) / scale
    arms = [*LOSSES, "regression", RANDOM, "ten numbers", "median"]
    said: dict[str, list[Array]] = {arm: [np.zeros(len(y)) for _ in SEEDS] for arm in arms}
    for fold, (rest, test) in enumerate(KFold(FOLDS, shuffle=True, random_state=0).split(x)):
        val, train = np.split(np.random.default_rng(fold).permutation(rest), [len(rest) // 5])
        for arm, seed in product(arms, SEEDS):
            said[arm][seed][test] = predict(arm, x, y, (train, val, test), seed)
            print(fold, arm, seed, flush=True)
    lines = []
    for metric in ("mae", "r2"):
        lines += compare_arms(
            {"cohort": "diabetes", "target": "progression", "metric": metric},
            METRICS["regress"][metric],
            progression,
            np.arange(len(y)),
            {arm: [each * scale + progression.mean() for each in by_seed] for arm, by_seed in said.items()},
            pairs=[("supremix", other) for other in arms[1:]] if metric == "mae" else (),
        )
    write_results(RESULTS / "diabetes.json", lines)
    for line in lines:
        print(
            {key: line.get(key) for key in ("metric", "arm", "difference", "estimate", "ci_low", "ci_high", "verdict")}
        )


if __name__ == "__main__":
    main()
