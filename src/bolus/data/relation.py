"""Rules over the columns of the table that say which samples are partners, and how strongly.

One definition, two evaluations: `Relation.mask` and `Relation.weights` over the columns of a batch, and
`Relation.index` over the whole table, from which the sampler draws. Both take a difference and compare it in the
column's own dtype, so that they agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bolus.data.roles import CATEGORIES, is_role, known_roles
from bolus.errors import RecipeError, suggest

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]
RANGES = ("within", "near", "far")
ATTEMPTS = 8  # proposals for one partner before its slice is read out in full


@dataclass(frozen=True)
class Relation:
    """A rule over roles: two samples are partners where all of its parts hold.

    A sample with a missing value in any role of the rule is no one's partner, not even its own.

    Args:
        same: roles in which partners are equal.
        differ: roles in which partners are not equal.
        within: (role, amount), partners at most this far apart, in the role's unit (days for `time`).
        near: the same for a score; partners are drawn from both sides of the anchor's score.
        far: (role, amount), partners more than this far apart. At most one of the three ranges.
        weighting: `none`, every partner weighs 1; `linear`, for `within` and `near`: 1 - difference / amount, so a
            partner at the very edge is in the mask with weight 0 (amount 0: weight 1).

    Raises:
        RecipeError: an empty rule, two ranges, a role that is both `same` and something else, an amount that is
            negative or not finite, or linear weighting without `within` or `near`.

    Example:
        >>> Relation(same=("patient",), differ=("time",), within=("time", 365)).describe()
        'same patient, different time, time at most 365 apart'
    """

    same: tuple[str, ...] = ()
    differ: tuple[str, ...] = ()
    within: tuple[str, float] | None = None
    near: tuple[str, float] | None = None
    far: tuple[str, float] | None = None
    weighting: Literal["none", "linear"] = "none"

    def __post_init__(self) -> None:
        for name in ("same", "differ"):  # sorted, so that equal rules are equal objects
            object.__setattr__(self, name, tuple(sorted(set(_roles(name, getattr(self, name))))))
        ranges = [name for name in RANGES if getattr(self, name) is not None]
        for name in ranges:
            object.__setattr__(self, name, _range(name, getattr(self, name)))
        if len(ranges) > 1:
            raise RecipeError(f"a relation has at most one range, found {' and '.join(ranges)}")
        if not (self.same or self.differ or ranges):
            raise RecipeError("an empty relation makes partners of everything; give same, differ, within, near or far")
        for role in self.same:
            if role in self.differ:
                raise RecipeError(f"relation: {role} cannot be both same and different")
            if ranges and role == getattr(self, ranges[0])[0]:
                raise RecipeError(f"relation: {role} is in same already, so that {ranges[0]} has nothing to say")
        if self.weighting not in ("none", "linear"):
            raise RecipeError(f"relation: weighting must be none or linear, found {self.weighting!r}")
        if self.weighting == "linear" and not (self.within or self.near):
            raise RecipeError("relation: linear weighting needs within or near, whose amount is its scale")

    @classmethod
    def parse(cls, value: object) -> Relation:
        """A relation as a recipe writes it: `views`, a role (same in it), a mapping, or a relation.

        Raises:
            RecipeError: an unknown key or role, with a suggestion; a range over categories; or a rule that cannot be.

        Example:
            >>> Relation.parse("views").same
            ('sample',)
            >>> Relation.parse({"same": "region", "near": {"slice_position": 0.1}}).near
            ('slice_position', 0.1)
        """
        if isinstance(value, Relation):
            return value
        if isinstance(value, str):
            relation = cls(same=("sample",)) if value == "views" else cls(same=(value,))
        elif isinstance(value, Mapping):
            known = [field.name for field in fields(cls)]
            for key in value:
                if key not in known:
                    raise RecipeError(f"relation: unknown key {key!r}; {suggest(str(key), known)}")
            relation = cls(**value)
        else:
            raise RecipeError(f"a relation is views, a role, or a mapping such as {{same: [patient]}}; found {value!r}")
        for role in relation.roles:
            if role != "sample" and not is_role(role):
                raise RecipeError(f"relation: unknown role {role!r}; {suggest(role, ['views', *known_roles()])}")
        if relation.range and relation.range[0] in ("sample", *CATEGORIES):
            raise RecipeError(f"relation: {relation.range[0]} holds categories, which lie neither near nor far")
        return relation

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that the rule reads, once."""
        ranged = (self.range[0],) if self.range else ()
        return tuple(dict.fromkeys((*self.same, *self.differ, *ranged)))

    @property
    def range(self) -> tuple[str, float] | None:
        """(role, amount) of the one range, whichever it is."""
        return self.within or self.near or self.far

    def describe(self) -> str:
        """The rule in plain words."""
        if self == Relation(same=("sample",)):
            return "another view of the same sample"
        words = [f"same {role}" for role in self.same] + [f"different {role}" for role in self.differ]
        if self.range:
            role, amount = self.range
            words.append(f"{role} {'more than' if self.far else 'at most'} {amount:g} apart")
        return ", ".join(words) + (", closer counts more" if self.weighting == "linear" else "")

    def mask(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Which samples of a batch are partners.

        Args:
            columns: role -> `[N]`, int64 codes with -1 missing or floats with NaN missing.

        Returns:
            bool `[N, N]`, symmetric. The diagonal is what the rule says of a sample with itself: true for `same`,
            `within` and `near`, false for `differ` and `far`, and false where a value is missing.

        Raises:
            RecipeError: a role that the batch does not hold, or that has several values a sample.

        Example:
            >>> Relation.parse("patient").mask({"patient": torch.tensor([0, 0, -1])}).int().tolist()
            [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
        """
        found = {role: self._column(columns, role) for role in self.roles}
        known = torch.stack([_known(column) for column in found.values()]).all(dim=0)
        mask = known[:, None] & known[None, :]
        for role in self.same:
            mask &= found[role][:, None] == found[role][None, :]
        for role in self.differ:
            mask &= found[role][:, None] != found[role][None, :]
        if self.range:
            close = self._distance(found) <= _limit(self.range[1], found[self.range[0]].is_floating_point())
            mask &= ~close if self.far else close
        return mask

    def weights(self, columns: Mapping[str, Tensor]) -> Tensor:
        """How strongly the samples of a batch are partners; arguments and errors as of `mask`.

        Returns:
            float `[N, N]` in [0, 1], 0 outside the mask; in the range column's dtype if that is floating, else
            float32.

        Example:
            >>> rule = Relation(near=("score:age", 10), weighting="linear")
            >>> rule.weights({"score:age": torch.tensor([40.0, 45.0, 60.0])}).tolist()
            [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]
        """
        mask = self.mask(columns)
        if self.weighting == "none" or self.range is None:
            return mask.to(torch.float32)
        role, amount = self.range
        distance = self._distance({role: self._column(columns, role)})
        distance = distance if distance.is_floating_point() else distance.to(torch.float32)
        weights = 1 - distance / amount if amount > 0 else torch.ones_like(distance)
        return torch.where(mask, weights.clamp(min=0), 0.0)  # where, since a missing value's distance is NaN

    def index(self, columns: Mapping[str, Array]) -> PartnerIndex:
        """The partners of every row of a table; `sample` is the row's position where it is not among the columns.

        Args:
            columns: role -> `[rows]`, int64 codes with -1 missing or floats with NaN missing.

        Raises:
            RecipeError: a role that the table does not hold.
        """
        return PartnerIndex(self, columns)

    def _column(self, columns: Mapping[str, Tensor], role: str) -> Tensor:
        if role not in columns:
            raise RecipeError(f"a relation ({self.describe()}) needs the role {role}; {suggest(role, columns)}")
        column = columns[role]
        if column.ndim != 1:
            raise RecipeError(f"a relation needs one value a sample, but {role} has shape {list(column.shape)}")
        return column if column.is_floating_point() else column.to(torch.int64)

    def _distance(self, columns: Mapping[str, Tensor]) -> Tensor:
        assert self.range is not None
        column = columns[self.range[0]]
        return (column[:, None] - column[None, :]).abs()


@dataclass(frozen=True)
class Needs:
    """What an objective asks of the views, the table and the encoder.

    Args:
        views: the least number of views of a sample.
        roles: columns that must be in the batch.
        relations: rules whose partners the sampler should bring into a batch.
        levels: feature maps of every level of the encoder.
        grid: the last feature map.

    Example:
        >>> Needs(views=2).merge(Needs(roles=frozenset({"patient"}), grid=True))
        Needs(views=2, roles=frozenset({'patient'}), relations=(), levels=False, grid=True)
    """

    views: int = 1
    roles: frozenset[str] = frozenset()
    relations: tuple[Relation, ...] = ()
    levels: bool = False
    grid: bool = False

    def merge(self, *needs: Needs) -> Needs:
        """What satisfies this and all the others: the most views, and everything that any of them asks for."""
        every = (self, *needs)
        return Needs(
            views=max(need.views for need in every),
            roles=frozenset().union(*(need.roles for need in every)),
            relations=tuple(dict.fromkeys(relation for need in every for relation in need.relations)),
            levels=any(need.levels for need in every),
            grid=any(need.grid for need in every),
        )


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
    """The partners of every row of a table, a row never being its own; made by `Relation.index`.

    Rows are sorted by the `same` roles and the range column, so that the candidates of a row are one stretch of the
    sorted order (two for `far`), of which `differ` strikes out some. Building takes a sort and a bisection over all
    rows at once, and memory is linear in the rows.

    Example:
        >>> index = Relation.parse("patient").index({"patient": np.array([0, 1, 0, -1, 0])})
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

    def draw(self, row: int, k: int, rng: np.random.Generator) -> Positions:
        """K distinct partners of a row, or all of them where it has fewer: int64 `[at most k]`, in no order."""
        drawn: Positions = self.draw_each(np.array([row], dtype=np.int64), k, rng)[0]
        return drawn[drawn >= 0]

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
        order = np.lexsort(sort_by) if sort_by else np.arange(num_rows)
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
        limit = _limit(ranged[1], value.dtype.kind == "f")
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


def _bisect(holds: Callable[[Positions], Array], low: Positions, high: Positions) -> Positions:
    """For every row the first position in [low, high) where `holds`, which is false and then true; high if nowhere."""
    while (active := low < high).any():
        middle = (low + high) // 2
        held = holds(np.minimum(middle, len(low) - 1))
        high = np.where(active & held, middle, high)
        low = np.where(active & ~held, middle + 1, low)
    return low


def _limit(amount: float, floating: bool) -> float:
    """The amount in a dtype that compares exactly with differences of the column."""
    return amount if floating else math.floor(amount)


def _known(column: Tensor) -> Tensor:
    return torch.isfinite(column) if column.is_floating_point() else column != -1


def _roles(name: str, value: object) -> tuple[str, ...]:
    roles = (value,) if isinstance(value, str) else value
    if not isinstance(roles, (tuple, list)) or not all(isinstance(role, str) for role in roles):
        raise RecipeError(f"relation: {name} must be a role or a list of roles, found {value!r}")
    return tuple(roles)


def _range(name: str, value: object) -> tuple[str, float]:
    pair = next(iter(value.items())) if isinstance(value, Mapping) and len(value) == 1 else value
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str):
        amount = pair[1]
        if isinstance(amount, (int, float)) and not isinstance(amount, bool) and 0 <= amount < math.inf:
            return pair[0], float(amount)
    raise RecipeError(f"relation: {name} must be {{role: amount}} with one amount of 0 or more, found {value!r}")
