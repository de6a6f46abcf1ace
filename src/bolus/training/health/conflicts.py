"""Which objectives pull apart, which coincide, which dominate and which are silent, in words and with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.training.health.health import HealthFinding

FIGHT = -0.1  # mean cosine of gradients below which two objectives pull apart
OFTEN = 0.75  # likewise the share of looks with a cosine below 0 above which they do
FEWEST = 4  # looks from which on that share says anything
ALIKE = 0.9  # mean cosine above which two objectives ask for much the same
NAMED = 5  # pairs that pull apart and are named, the worst; the rest are counted
MOST = 0.8  # share of a branch's gradient norms above which one objective dominates
LEAST = 0.01  # likewise below which one is silent

RECONCILED = {
    "grad_mitigator": "grad_mitigator reconciles them already, so lower",
    "pcgrad": "pcgrad reconciles them already, so lower",
    "torchjd": "combiner.aggregator decides what becomes of them already; try another, or lower",
}

Array = npt.NDArray[np.float64]


def weigh_conflicts(looks: Sequence[Mapping[str, Any]], kind: str = "sum") -> list[HealthFinding]:
    """How the objectives stand to each other over looks at their gradients, each finding with what to do about it.

    Only objectives of one branch are compared. A pair pulls apart where its mean cosine is below -0.1, or where it is
    opposed in more than 3 of 4 looks (of at least 4); it coincides above 0.9. An objective dominates with more than
    80 % of its branch's gradient norms, the mean over looks in which at least two have a gradient, and is silent with
    less than 1 % or with no gradient in most looks. Norms are those of weighted losses, in the encoder or, with
    `combiner.scope: features`, at its features, before the combiner changes anything: nothing is said of shares where
    it gives gradients the norms of their weights.

    Args:
        looks: as `bolus.training.gradients.mitigator.Conflicts.to_json` gives them, all of the same objectives.
        kind: of the combiner.

    Returns:
        Findings `conflict A B`, `more conflicts` or `no conflict`; `alike A B`; `dominant A`; `silent A`. Their values
        are mean cosines (the lowest for `no conflict`), the number of further pairs, and shares.

    Example:
        >>> look = {"objectives": ["a", "b"], "branches": ["image"] * 2, "norms": [1.0, 9.0], "goals": {},
        ...         "cosines": [[1.0, -0.2], [-0.2, 1.0]]}
        >>> for finding in weigh_conflicts([look]):
        ...     print(finding.name, round(finding.value, 2), finding.sentence.partition(":")[0])
        conflict a b -0.2 a and b pull apart in the only look at their gradients (mean cosine -0.20)
        dominant b 0.9 b has 90 % of the gradient
    """
    if not looks:
        return []
    names, branches = looks[0]["objectives"], looks[0]["branches"]
    cosines = np.array([look["cosines"] for look in looks], np.float64)  # null, of no direction, becomes NaN
    norms = np.array([look["norms"] for look in looks], np.float64)
    pairs = [
        (float(met.mean()), float((met < 0).mean()), len(met), a, b)
        for a, b in combinations(range(len(names)), 2)
        if branches[a] == branches[b] and len(met := cosines[:, a, b][np.isfinite(cosines[:, a, b])])
    ]
    findings = list(_conflicts(sorted(pairs), names, kind))
    for mean, _, _, a, b in pairs:
        if mean > ALIKE:
            sentence = (
                f"{names[a]} and {names[b]} pull alike (mean cosine {mean:.2f}): one of them may do; leave one out, as "
                f"with objectives.{names[b]}=null, and compare."
            )
            findings.append(HealthFinding(f"alike {names[a]} {names[b]}", mean, True, sentence))
    for branch in dict.fromkeys(branches):
        members = [place for place, own in enumerate(branches) if own == branch]
        where = f" of the {branch} branch" if len(set(branches)) > 1 else ""
        findings += _shares(norms[:, members], [names[place] for place in members], where, kind != "balanced")
    return findings


def _conflicts(
    pairs: Sequence[tuple[float, float, int, int, int]], names: Sequence[str], kind: str
) -> Iterator[HealthFinding]:
    """The pairs that pull apart, given all of them by mean cosine, the lowest first; or that none does."""
    apart = [pair for pair in pairs if pair[0] < FIGHT or (pair[1] > OFTEN and pair[2] >= FEWEST)]
    cure = RECONCILED.get(
        kind,
        "combiner.kind=grad_mitigator reconciles them, in one pass through the encoder with combiner.scope=features "
        "where both read the same features; or lower",
    )
    for mean, opposed, count, a, b in apart[:NAMED]:
        when = f"{100 * opposed:.0f} % of {_looks(count)}" if count > 1 else "the only look"
        sentence = (
            f"{names[a]} and {names[b]} pull apart in {when} at their gradients "
            f"(mean cosine {mean:.2f}): {cure} objectives.{names[a]}.weight or objectives.{names[b]}.weight, or leave "
            f"one out, as with objectives.{names[b]}=null."
        )
        yield HealthFinding(f"conflict {names[a]} {names[b]}", mean, False, sentence)
    more = len(apart) - NAMED
    if more > 0:
        sentence = (
            f"{more} more pair{'s' if more > 1 else ''} of objectives pull{'' if more > 1 else 's'} apart, less than "
            "these: with so many, leave objectives out one at a time with objectives.NAME=null and compare."
        )
        yield HealthFinding("more conflicts", float(more), False, sentence)
    if pairs and not apart:
        mean, _, count, a, b = pairs[0]
        sentence = (
            f"No two objectives pull apart: the lowest mean cosine of their gradients is {mean:.2f}, of {names[a]} and "
            f"{names[b]} in {_looks(count)}."
        )
        yield HealthFinding("no conflict", mean, True, sentence)


def _shares(norms_LM: Array, names: Sequence[str], where: str, counts: bool) -> Iterator[HealthFinding]:
    """Who of a branch dominates, and who is silent, by gradient norms of L looks; NaN where they are not finite.

    Unless norms count, as where the combiner sets them, only who has no gradient is silent.
    """
    finite = norms_LM[np.isfinite(norms_LM).all(1)]
    if not len(finite):
        return
    mute = (finite == 0).mean(0)
    together = finite[(finite > 0).sum(1) >= 2]
    share = (together / together.sum(1, keepdims=True)).mean(0) if len(together) else np.full(len(names), np.nan)
    for name, part in zip(names, share.tolist(), strict=True):
        if counts and part > MOST:
            even = (1 - part) / (len(names) - 1) / part
            sentence = (
                f"{name} has {100 * part:.0f} % of the gradient{where}: what the others ask for hardly counts; lower "
                f"objectives.{name}.weight to {even:.2g} times what it is to make them even, or raise the others'."
            )
            yield HealthFinding(f"dominant {name}", part, False, sentence)
    for name, part, empty in zip(names, share.tolist(), mute.tolist(), strict=True):
        if empty > 0.5:
            sentence = (
                f"{name} has no gradient in {100 * empty:.0f} % of {_looks(len(finite))}: its weight is 0, or its "
                "batches seldom hold what it needs (see its anchors in metrics.jsonl; sampling.partners brings "
                f"partners into the batch); or leave it out with objectives.{name}=null."
            )
            yield HealthFinding(f"silent {name}", 0.0 if np.isnan(part) else part, False, sentence)
        elif counts and 0 < part < LEAST:  # 0: it had a gradient only where no other had one
            even = (1 - part) / (len(names) - 1) / part
            sentence = (
                f"{name} has {100 * part:.2g} % of the gradient{where}: it hardly teaches the encoder; raise "
                f"objectives.{name}.weight (about {even:.2g} times would make it even), or leave it out with "
                f"objectives.{name}=null."
            )
            yield HealthFinding(f"silent {name}", part, False, sentence)


def _looks(number: int) -> str:
    return f"{number} look{'s' * (number != 1)}"
