"""The partners of every row of a table under a relation, from which the sampler draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.batches.counting import combine, count_alike, known_rows, less_equal
from bolus.data.batches.relation import Relation, exact_limit
from bolus.errors import RecipeError, suggest

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]
ATTEMPTS = 8  # proposals for one partner before its slice is read out in full


@dataclass(frozen=True)
class _Slices:
    """Sorted rows, and for each of them the stretches of the sorted order in which its partners lie."""

    order: Array  # [P] rows, sorted by key and range column; everything below is in this order
    start: Array  # [P]
    stop: Array  # [P]
    start_2: Array  # [P] the second stretch, beyond the anchor's value; empty unless the range is far
    stop_2: Array  # [P]

    def lengths(self, at: Positions | slice = slice(None)) -> Positions:
        first, second = self.stop[at] - self.start[at], self.stop_2[at] - self.start_2[at]
        return np.asarray(first + second, np.int64)


class PartnerIndex:
    """The partners of every row of a table, a row never being its own.

    Rows are sorted by the `same` roles and the range column, so that the candidates of a row are one stretch of the
    sorted order (two for `far`), of which `differ` strikes out some. Building takes a sort and a bisection over all
    rows at once, and memory is linear in the rows: positions of less than 2^31 rows take four bytes, codes what they
    took before.

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
        table = {**columns}
        if "sample" in relation.roles and "sample" not in columns:
            table["sample"] = np.arange(self.num_rows)
        for role in relation.roles:
            if role not in table:
                raise RecipeError(f"a relation ({relation.describe()}) needs the role {role}; {suggest(role, columns)}")
        found = {role: np.asarray(table[role]) for role in relation.roles}
        for role, column in found.items():
            assert column.dtype.kind in "iufb", f"{role} must hold codes or numbers, found dtype {column.dtype}"
            assert column.shape == (self.num_rows,), f"{role} has shape {column.shape}, the table {self.num_rows} rows"
            if column.dtype.kind in "ub" or (relation.range and role == relation.range[0] and column.dtype.kind == "i"):
                found[role] = column.astype(np.int64)  # of a range, differences are taken
        known = known_rows(found.values(), self.num_rows)
        self._rows = _narrow(np.flatnonzero(known))  # the rows that can have partners
        self._columns = found if known.all() else {role: column[known] for role, column in found.items()}
        self._slices = self._slice(relation.same)
        self._rank = np.full(self.num_rows, -1, dtype=self._rows.dtype)
        self._rank[self._rows[self._slices.order]] = np.arange(len(self._rows))
        self._differ = [self._columns[role][self._slices.order] for role in relation.differ]
        self._holds_self = relation.far is None

    def partners(self, row: int) -> Positions:
        """Every partner of a row: int64 `[n]` positions, sorted; empty where a value of the row is missing."""
        rank = int(self._rank[row])
        return np.sort(self._to_rows(self._candidates(rank))) if rank >= 0 else np.empty(0, dtype=np.int64)

    def counts(self) -> Positions:
        """How many partners each row has: int64 `[rows]`, exact; counted once, then kept.

        With D roles in `differ` this counts, or with a range sorts, the table 2^D - 1 times more (inclusion and
        exclusion over the roles in which candidates are equal to the anchor).
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

        def lengths(same: Sequence[str]) -> Positions:
            if relation.range is None:
                return count_alike([self._columns[role] for role in same], len(self._rows))
            slices = self._slice(same)
            by_row = np.empty(len(self._rows), dtype=np.int64)
            by_row[slices.order] = slices.lengths()
            return by_row

        by_row = less_equal(relation, lengths, holds_self=self._holds_self)
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
        borders = _narrow(np.append(np.flatnonzero(first), num_rows))
        start, stop = (np.repeat(each, np.diff(borders)) for each in (borders[:-1], borders[1:]))
        if ranged is None:
            return _Slices(_narrow(order), start, stop, stop, stop)
        value = values[0][order]
        limit = exact_limit(ranged[1], value.dtype.kind == "f")
        anchor = np.arange(num_rows)
        low = _bisect(lambda at: value - value[at] <= limit, start, anchor)
        high = _bisect(lambda at: value[at] - value > limit, anchor, stop)
        return _Slices(order, start, low, high, stop) if self.relation.far else _Slices(order, low, high, high, high)

    def _to_rows(self, ranks: Positions) -> Positions:
        return np.asarray(self._rows[self._slices.order[ranks]], np.int64)

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
        start, stop = (each[ranks].astype(np.int64) for each in (self._slices.start, self._slices.stop))
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
    """`numpy.lexsort`; where all columns are whole numbers of a small span, by one sort of these with the rows."""
    bits = num_rows.bit_length()
    combined = combine(sort_by[::-1], num_rows, most=2 ** (62 - bits))
    if combined is None:
        return np.lexsort(sort_by)
    keys = (combined[0] << bits) | np.arange(num_rows)
    keys.sort()
    keys &= (1 << bits) - 1
    return keys


def _narrow(positions: Positions) -> Array:
    """Positions in four bytes where they fit."""
    return positions.astype(np.int32) if positions.max(initial=0) < 2**31 else positions


def _bisect(holds: Callable[[Positions], Array], low: Positions, high: Positions) -> Positions:
    """For every row the first position in [low, high) where `holds`, which is false and then true; high if nowhere."""
    while (active := low < high).any():
        middle = (low + high) // 2
        held = holds(np.minimum(middle, len(low) - 1))
        high = np.where(active & held, middle, high)
        low = np.where(active & ~held, middle + 1, low)
    return low
