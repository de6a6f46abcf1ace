"""Rules over the columns of the table that say which samples are partners, and how strongly.

One definition, two evaluations: `Relation.mask` and `Relation.weights` over the columns of a batch, and
`data.batches.partners.PartnerIndex` over the whole table, from which the sampler draws. Both take a difference and
compare it in the column's own dtype, so that they agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from bolus.data.cohort.roles import BIN, CATEGORIES, NUMBERS, is_role, known_roles
from bolus.errors import RecipeError, suggest

RANGES = ("within", "near", "far")


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
                known = [f"{BIN}{number}" for number in NUMBERS] if role.startswith(BIN) else ["views"]
                raise RecipeError(f"relation: unknown role {role!r}; {suggest(role, [*known, *known_roles()])}")
        if relation.range and (
            relation.range[0] in ("sample", *CATEGORIES) or relation.range[0].startswith((BIN, "label:"))
        ):
            raise RecipeError(f"relation: {relation.range[0]} holds categories, which lie neither near nor far")
        return relation

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that the rule reads, once."""
        ranged = (self.range[0],) if self.range else ()
        return tuple(dict.fromkeys((*self.same, *self.differ, *ranged)))

    @property
    def with_itself(self) -> bool:
        """Whether a sample without missing values is its own partner, so that its other views are.

        >>> Relation.parse("patient").with_itself, Relation(same=("patient",), differ=("time",)).with_itself
        (True, False)
        """
        return not (self.differ or self.far)

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
            close = self._distance(found) <= exact_limit(self.range[1], found[self.range[0]].is_floating_point())
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
        pixels: the views themselves, of single images.
        samples: the least number of samples of a batch; with fewer there is nothing to compare, however many views.

    Example:
        >>> Needs(views=2).merge(Needs(roles=frozenset({"patient"}), grid=True))
        Needs(views=2, roles=frozenset({'patient'}), relations=(), levels=False, grid=True, pixels=False, samples=1)
    """

    views: int = 1
    roles: frozenset[str] = frozenset()
    relations: tuple[Relation, ...] = ()
    levels: bool = False
    grid: bool = False
    pixels: bool = False
    samples: int = 1

    def merge(self, *needs: Needs) -> Needs:
        """What satisfies this and all the others: the most views, and everything that any of them asks for."""
        every = (self, *needs)
        return Needs(
            views=max(need.views for need in every),
            roles=frozenset().union(*(need.roles for need in every)),
            relations=tuple(dict.fromkeys(relation for need in every for relation in need.relations)),
            levels=any(need.levels for need in every),
            grid=any(need.grid for need in every),
            pixels=any(need.pixels for need in every),
            samples=max(need.samples for need in every),
        )


def exact_limit(amount: float, floating: bool) -> float:
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
