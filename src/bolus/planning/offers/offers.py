"""An objective that a cohort may be trained with, and the evidence that says whether it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.relation import Relation
from bolus.data.cohort.coding import Held, count_codes
from bolus.errors import CohortError
from bolus.planning.hazards.hazard import Hazard
from bolus.planning.offers.pairs import PairCounts, count_pairs

ENOUGH = 20  # training patients behind an objective that is recommended
# Weight of a contrast of pairs, where views have half of it and predictions 1: gradients of contrasts are some ten
# times larger. Chosen on validation patients of odir; those of chest are too few to say (benchmarks/planned.py).
PAIRED = 0.3

Verdict = Literal["recommended", "possible", "refused", "impossible"]


@dataclass(frozen=True)
class Offer:
    """One objective that a cohort may be trained with.

    Args:
        name: in the recipe, such as `bilateral`.
        paper: whose it is, such as `COMPRER`.
        signal: what it learns from, in words.
        verdict: `recommended`; `possible`, and left out of the recipe; `refused`, though the columns are there; or
            `impossible`, for want of columns or pairs.
        reasons: whole sentences, with counts.
        entry: its entry among the recipe's objectives; None where refused or impossible.
        bins: what the recipe's `bins` must hold for it.
    """

    name: str
    paper: str
    signal: str
    verdict: Verdict
    reasons: tuple[str, ...]
    entry: Mapping[str, Any] | None = None
    bins: Mapping[str, int] = field(default_factory=dict)


class _Facts(NamedTuple):
    """Of a role: how many training samples have a value, their share, how many are different, and whose patients."""

    number: int
    share: float
    values: int
    patients: int


@dataclass(frozen=True)
class Evidence:
    """What offers are made from: the training samples' columns, and what must not be learnt.

    Args:
        columns: of the training samples.
        unit: what a sample is: `image`, `slice`, `clip` or `volume`.
        refused: role -> why nothing may learn it.
        copies: role -> which column holds the same and is kept.
    """

    columns: TrainingColumns
    unit: str
    refused: Mapping[str, str]
    copies: Mapping[str, str] = field(default_factory=dict)
    _facts: dict[str, _Facts] = field(default_factory=dict, repr=False)
    _pairs: dict[Relation, PairCounts] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, columns: TrainingColumns, hazards: Sequence[Hazard]) -> Evidence:
        """What a cohort's columns and hazards say."""
        refused = {each.role: each.sentence for each in hazards if each.refuses}
        copies = {each.role: each.sentence for each in hazards if each.kind == "copy"}
        return cls(columns, columns.samples.unit, refused, copies)

    def has(self, role: str) -> bool:
        """Whether some training sample has a value of the role."""
        return role in self.columns and self.facts(role).share > 0

    def known(self, role: str) -> npt.NDArray[np.bool_]:
        """Training samples with a value, bool `[n]`."""
        return _known(self.columns[role])

    def facts(self, role: str) -> _Facts:
        """What is known of a role, counted once."""
        if role not in self._facts:
            held, patients = Held.of(self.columns.held(role)), Held.of(self.columns.held("patient")).codes
            counts, known = held.counts(), held.known
            number = int(counts[known].sum())
            whose = patients if number == len(held) else patients[known[held.codes]]
            share = number / len(held) if len(held) else 0.0
            self._facts[role] = _Facts(number, share, int((counts[known] > 0).sum()), count_codes(whose))
        return self._facts[role]

    def num_values(self, role: str) -> int:
        """Distinct values among training samples."""
        return self.facts(role).values if self.has(role) else 0

    def patients(self, role: str = "patient") -> int:
        """Training patients with a value of the role."""
        return self.facts(role).patients

    def pairs(self, **relation: Any) -> PairCounts:
        """How often a relation holds among the training samples."""
        rule = Relation.parse(relation)
        if rule not in self._pairs:
            self._pairs[rule] = count_pairs(relation, self.columns)
        return self._pairs[rule]

    def shared(self, *roles: str) -> list[str]:
        """Of these roles, those that most training samples have: a sample without one would have no partner."""
        return [role for role in roles if self.has(role) and self.facts(role).share >= 0.8]

    def starting(self, prefix: str) -> list[str]:
        """Roles that begin so, sorted, of which a training sample has a value; those of several classes left out."""
        found = []
        for role in sorted(role for role in self.columns if role.startswith(prefix)):
            try:
                found += [role] if self.has(role) else []
            except CohortError:  # several classes on a row: one code cannot say them
                continue
        return found

    @property
    def noun(self) -> str:
        """Samples in a sentence."""
        return noun(self.unit)


def _known(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(values) if values.dtype.kind == "f" else values != -1)


def noun(unit: str) -> str:
    """Samples of a unit, in a sentence.

    >>> noun("slice")
    'slices'
    """
    return f"{unit}s"


def because(
    about: Offer,
    verdict: Verdict,
    *reasons: str,
    entry: Mapping[str, Any] | None = None,
    bins: Mapping[str, int] | None = None,
) -> Offer:
    """The offer with its verdict."""
    return Offer(about.name, about.paper, about.signal, verdict, reasons, entry, bins or {})
