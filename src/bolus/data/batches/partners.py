"""The partners of every row of a table under a relation, from which the sampler draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.batches.relation import Relation, exact_limit
from bolus.errors import RecipeError, suggest

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]
ATTEMPTS = 8  # proposals for one partner before its slice is read out in full


@dataclass(frozen=True)
class _Slices:
    """Sorted rows, and for each of them the stretches of the sorted order in which its partners lie."""

    order: Positions  # [P] rows, sorted by key and range column; everything below is in this order
    start: Positions  # [P]
    stop: Positions  # [P]
    start_2: Positions  # [P] the second stretch, beyond the anchor's value; empty unless the range is far
    stop_2: Positions  # [P]

    def lengths(self, at: Positions | slice = slice(None)) -> Positions:
        return self.stop[at] - self.start[at] + self.stop_2[at] - self.start_2[at]


class PartnerIndex:
    """The partners of every row of a table, a row never being its own.

    Rows are sorted by the `same` roles and the range column, so that the candidates of a row are one stretch of the
    sorted order (two for `far`), of which `differ` strikes out some. Building takes a sort and a bisection over all
    rows at once, and memory is linear in the rows.

    Args:
        relation: who is whose partner.
        columns: role -> `[rows]`, int64 codes with -1 missing or floats with NaN missing; `sample` is the row's
            position where it is not among them.

    Raises:
        RecipeError: a role that the table does not hold.

    Example:
        >>> index = PartnerIndex(Relation.parse("patient"), {"patient": np.array([0, 1, 0, -1, 0])})
        >>> index.partners(0).tolist(), index.counts().tolist()
        ([2, 4], [2, 0, 2, 0, 2])
    """

    def __init__(self, relation: Relation, columns: Mapping[str, Array]) -> None:
        self.relation = relation
        self.num_rows = max((len(column) for column in columns.values()), default=0)
        table = {**columns} if "sample" in columns else {**columns, "sample": np.arange(self.num_rows)}
        for role in relation.roles:
            if role not in table:
                raise RecipeError(f"a relation ({relation.describe()}) needs the role {role}; {suggest(role, columns)}")
        found = {role: np.asarray(table[role]) for role in relation.roles}
        for role, column in found.items():
            assert column.dtype.kind in "iufb", f"{role} must hold codes or numbers, found dtype {column.dtype}"
            assert column.shape == (self.num_rows,), f"{role} has shape {column.shape}, the table {self.num_rows} rows"
            found[role] = column if column.dtype.kind == "f" else column.astype(np.int64)
        known = np.ones(self.num_rows, dtype=bool)
        for column in found.values():
            known &= np.isfinite(column) if column.dtype.kind == "f" else column != -1
        self._rows = np.flatnonzero(known)  # the rows that can have partners
        self._columns = {role: column[self._rows] for role, column in found.items()}
        self._slices = self._slice(relation.same)
        self._rank = np.full(self.num_rows, -1, dtype=np.int64)
        self._rank[self._rows[self._slices.order]] = np.arange(len(self._rows))
        self._differ = [self._columns[role][self._slices.order] for role in relation.differ]
        self._holds_self = relation.far is None

    def partners(self, row: int) -> Positions:
        """Every partner of a row: int64 `[n]` positions, sorted; empty where a value of the row is missing."""
        rank = int(self._rank[row])
        return np.sort(self._to_rows(self._candidates(rank))) if rank >= 0 else np.empty(0, dtype=np.int64)

    def counts(self) -> Positions:
        """How many partners each row has: int64 `[rows]`, exact; counted once, then kept.

        With D roles in `differ` this sorts the table 2^D - 1 times more (inclusion and exclusion over the roles in
        which candidates are equal to the anchor).
        """
        return self._counts

    def draw_each(self, rows: Positions, k: int, rng: np.random.Generator) -> Positions:
        """K distinct partners of each row, uniformly; for `near`, in turn below and above the row's value.

        Args:
            rows: int64 `[A]`.
            k: partners for each.
            rng: a seeded generator; the result is a function of its state.

        Returns:
            int64 `[A, k]`, with -1 where a row has fewer than k partners. A side of a `near` range that is empty or
            used up is made up for by the other. Slices are read out only for rows whose proposals `differ` refuses
            again and again, or that have hardly more than k candidates.
        """
        ranks = self._rank[rows]
        wanted = np.minimum(self._counts[rows], k)
        chosen = np.full((len(rows), k), -1, dtype=np.int64)  # ranks
        below = rng.random(len(rows)) < 0.5 if self.relation.near else np.zeros(len(rows), dtype=bool)
        for slot in range(k):
            pending = np.flatnonzero(wanted > slot)
            for attempt in range(ATTEMPTS):
                if not len(pending):
                    break
                sided = self.relation.near is not None and attempt < ATTEMPTS // 2
                proposed = self._propose(ranks[pending], below[pending] if sided else None, rng)
                good = ~(chosen[pending, :slot] == proposed[:, None]).any(axis=1)
                for column in self._differ:
                    good &= column[proposed] != column[ranks[pending]]
                chosen[pending[good], slot] = proposed[good]
                pending = pending[~good]
            below = ~below
        for anchor in np.flatnonzero((chosen >= 0).sum(axis=1) < wanted):
            empty = np.flatnonzero(chosen[anchor] < 0)[: wanted[anchor] - (chosen[anchor] >= 0).sum()]
            left = np.setdiff1d(self._candidates(int(ranks[anchor])), chosen[anchor], assume_unique=False)
            chosen[anchor, empty] = rng.choice(left, len(empty), replace=False)
        drawn = np.full_like(chosen, -1)
        drawn[chosen >= 0] = self._to_rows(chosen[chosen >= 0])
        return drawn

    @cached_property
    def _counts(self) -> Positions:
        relation = self.relation
        total = self._slices.lengths()
        if not relation.differ:
            total -= self._holds_self
        by_row = np.zeros(len(self._rows), dtype=np.int64)
        by_row[self._slices.order] = total
        for size in range(1, len(relation.differ) + 1):
            for equal in combinations(relation.differ, size):
                slices = self._slice((*relation.same, *equal))
                by_row[slices.order] += (-1) ** size * slices.lengths()
        counts = np.zeros(self.num_rows, dtype=np.int64)
        counts[self._rows] = by_row
        return counts

    def _slice(self, same: Sequence[str]) -> _Slices:
        """Sort by these roles and the range column, and find every row's stretches."""
        num_rows, ranged = len(self._rows), self.relation.range
        keys = [self._columns[role] for role in same]
        values = [self._columns[ranged[0]]] if ranged else []
        sort_by = [*values, *reversed(keys)]
        order = _rank(sort_by, num_rows)
        first = np.zeros(num_rows, dtype=bool)
        first[:1] = True
        for key in keys:
            in_order = key[order]
            first[1:] |= in_order[1:] != in_order[:-1]
        group = np.cumsum(first) - 1
        borders = np.append(np.flatnonzero(first), num_rows)
        start, stop = borders[group], borders[group + 1]
        if ranged is None:
            return _Slices(order, start, stop, stop, stop)
        value = values[0][order]
        limit = exact_limit(ranged[1], value.dtype.kind == "f")
        anchor = np.arange(num_rows)
        low = _bisect(lambda at: value - value[at] <= limit, start, anchor)
        high = _bisect(lambda at: value[at] - value > limit, anchor, stop)
        return _Slices(order, start, low, high, stop) if self.relation.far else _Slices(order, low, high, high, high)

    def _to_rows(self, ranks: Positions) -> Positions:
        return self._rows[self._slices.order[ranks]]

    def _candidates(self, rank: int) -> Positions:
        """Ranks of every partner."""
        slices = self._slices
        first = np.arange(slices.start[rank], slices.stop[rank])
        ranks = np.concatenate([first, np.arange(slices.start_2[rank], slices.stop_2[rank])])
        keep = ranks != rank
        for column in self._differ:
            keep &= column[ranks] != column[rank]
        kept: Positions = ranks[keep]
        return kept

    def _propose(self, ranks: Positions, below: npt.NDArray[np.bool_] | None, rng: np.random.Generator) -> Positions:
        """One rank from each anchor's stretches, itself excluded, whatever `differ` says; on a side if one is given."""
        start, stop = self._slices.start[ranks], self._slices.stop[ranks]
        if below is not None:
            use_below = (below & (ranks > start)) | (ranks + 1 >= stop)
            start, stop = np.where(use_below, start, ranks + 1), np.where(use_below, ranks, stop)
            return start + rng.integers(stop - start)
        length = self._slices.lengths(ranks) - self._holds_self
        proposed = start + rng.integers(length)
        if self._holds_self:
            return proposed + (proposed >= ranks)
        return np.where(proposed < stop, proposed, proposed - stop + self._slices.start_2[ranks])


def _rank(sort_by: Sequence[Array], num_rows: int) -> Positions:
    """`numpy.lexsort`; where all columns are whole numbers of a small span, by one sort of their products with rows."""
    keys, width = np.arange(num_rows), num_rows + 1
    for column in sort_by:
        lowest = column.min(initial=0)
        span = float(column.max(initial=0)) - float(lowest) + 1
        if width * span >= 2**62 or (column.dtype.kind == "f" and (column % 1 != 0).any()):
            return np.lexsort(sort_by)
        keys, width = keys + width * (column - lowest).astype(np.int64), width * int(span)
    return np.sort(keys) % (num_rows + 1)


def _bisect(holds: Callable[[Positions], Array], low: Positions, high: Positions) -> Positions:
    """For every row the first position in [low, high) where `holds`, which is false and then true; high if nowhere."""
    while (active := low < high).any():
        middle = (low + high) // 2
        held = holds(np.minimum(middle, len(low) - 1))
        high = np.where(active & held, middle, high)
        low = np.where(active & ~held, middle + 1, low)
    return low
