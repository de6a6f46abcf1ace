"""The columns of the samples: what an objective may know of the table, and numbers cut into bins as meta labels.

A role `bin:ROLE` is the bin that a number falls into. Where its edges are quantiles, they are those of all samples of
training patients, readable or not, so that a column does not change with the images that happen to be there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.coding import Held, distinct
from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.roles import BIN, PATHS, binned_role
from bolus.errors import CohortError, RecipeError

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Bins = Mapping[str, int | Sequence[float]]  # role -> how many bins, or the edges between them


def require_one_class(cohort: Cohort, role: str) -> None:
    """Raise where a label has several classes on a row, which one code cannot say.

    Raises:
        CohortError: such a label.
    """
    if role.startswith("label:") and not cohort.labels(role.removeprefix("label:")).exclusive:
        raise CohortError(
            f"{role} holds several classes on a row, joined by '|'; give each class that is to be learnt a column"
        )


def bin_codes(
    values: Array, train: npt.NDArray[np.bool_], spec: int | Sequence[float], *, name: str = "column"
) -> npt.NDArray[np.int64]:
    """Numbers cut into bins: the bin that each value falls into.

    Bins asked for by number have as many training samples each as ties allow: their edges are quantiles
    (`numpy.quantile`, linear), equal ones being one. A value on an edge is in the upper bin. Where fewer bins hold
    training samples than the spec says, a warning is logged.

    Args:
        values: float `[n]`, NaN missing.
        train: bool `[n]`, the samples whose quantiles are the edges.
        spec: number of bins, at least 2; or the inner edges, increasing, in the unit of the values.
        name: what messages call the column.

    Returns:
        int64 `[n]`, 0 for the lowest bin, -1 where the value is missing or infinite.

    Raises:
        CohortError: values that are categories; among the training samples no value, one value only, or values that all
            fall into one bin.
        RecipeError: a spec that is neither.

    Example:
        >>> values = np.array([1.0, 2, 3, 4, np.nan, 9])
        >>> bin_codes(values, np.array([True] * 5 + [False]), 2).tolist()
        [0, 0, 1, 1, -1, 1]
    """
    edges = _given_edges(spec, name)
    if values.dtype.kind != "f":
        raise CohortError(f"{name} holds categories, and only numbers can be cut into bins")
    known = np.isfinite(values)
    taught = values[known & train]
    if not len(taught):
        raise CohortError(f"{name} is missing for every training sample, so that it cannot be cut into bins")
    if taught.min() == taught.max():
        raise CohortError(f"{name} is the same for every training sample that has it, so that it gives one bin")
    if isinstance(spec, int):
        edges = np.unique(np.quantile(taught, np.arange(1, spec) / spec))
        edges = edges[edges > taught.min()]  # below the lowest value lies no bin
    asked = spec if isinstance(spec, int) else len(spec) + 1
    codes = np.where(known, np.searchsorted(edges, values, side="right"), -1).astype(np.int64)
    filled = len(np.unique(codes[known & train]))
    if filled < 2:
        raise CohortError(
            f"{name}: every training sample falls into one of {asked} bins; give edges between "
            f"{taught.min():g} and {taught.max():g}"
        )
    if filled < asked:
        _log.warning("%s: %d bins, not %d: the others hold no training sample", name, filled, asked)
    return codes


def sample_columns(samples: Samples, roles: Iterable[str], bins: Bins) -> dict[str, Array]:
    """The samples' columns, `bin:ROLE` ones too.

    Args:
        samples: all of them; of their values, those of training patients alone set the edges of quantile bins.
        roles: as `Samples.columns` takes them, or `bin:ROLE`.
        bins: role -> number of bins or inner edges, see `bin_codes`.

    Returns:
        Role -> `[n]`, int64 codes with -1 missing or float64 with NaN missing; always with `sample`.

    Raises:
        RecipeError: a `bin:ROLE` without bins.
        CohortError: a role that no column has, or a column that cannot be cut.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.cohort import Cohort
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> columns = {"image": list("abc"), "patient": list("pqr"), "order": [1, 2, 3], "split": ["train"] * 3}
        >>> samples = Cohort(pd.DataFrame(columns), CohortSpec(table="t.csv")).samples("image")
        >>> sample_columns(samples, ["bin:order"], {"order": [2.5]})["bin:order"]
        array([0, 0, 1])
    """
    wanted = list(roles)
    found = samples.columns(role for role in wanted if binned_role(role) is None)
    return found | {role: _binned(samples, role, bins) for role in wanted if binned_role(role) is not None}


def held_columns(samples: Samples, roles: Iterable[str], bins: Bins) -> dict[str, Held | Array]:
    """What `sample_columns` gives, in little room where there is such; arguments and errors are its own."""
    found: dict[str, Held | Array] = {"sample": np.arange(len(samples), dtype=np.int64)}
    for role in roles:
        if role != "sample":
            found[role] = samples.held(role) if binned_role(role) is None else _binned(samples, role, bins)
    return found


def meta_label_problem(codes: Array) -> str | None:
    """Why a meta label teaches nothing, to be said after its name; None where it has positives and negatives.

    Args:
        codes: `[n]` of the training samples, int64 with -1 missing or floats with NaN missing.

    Example:
        >>> meta_label_problem(np.array([0, 0, 1, -1])) is None, meta_label_problem(np.array([3, 3, -1]))
        (True, 'is the same for every training sample, so that there are no negatives')
    """
    known = codes[np.isfinite(codes) if codes.dtype.kind == "f" else codes != -1]
    classes = len(np.unique(known))
    if not classes:
        return "is missing for every training sample"
    if classes == len(known):
        return "is unique to every training sample, so that no two are positives"
    if classes == 1:
        return "is the same for every training sample, so that there are no negatives"
    return None


class TrainingColumns(Mapping[str, npt.NDArray[Any]]):
    """Role -> values of the training patients' samples, `[n]`; each is read when it is asked for.

    Categories are int64 codes with -1 missing, numbers float64 with NaN missing.

    Args:
        samples: of a cohort; those of validation and test patients are never looked at.
        bins: role -> number of bins or inner edges; `bin:ROLE` is then a column too.

    Raises:
        CohortError: on reading a label of which a row has several classes, since one code cannot say them; or a column
            that cannot be cut into bins.
        RecipeError: on reading a `bin:ROLE` that has no bins.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.cohort import Cohort
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> columns = {"image": ["a", "b"], "patient": ["p", "q"], "age": [4, 5], "split": ["train", "test"]}
        >>> frame = pd.DataFrame(columns)
        >>> cohort = Cohort(frame, CohortSpec(table="t.csv", roles={"score:age": "age"}))
        >>> TrainingColumns(cohort.samples("image"))["score:age"]
        array([4.])
    """

    def __init__(self, samples: Samples, bins: Bins | None = None) -> None:
        self.cohort = samples.cohort
        self.samples = samples
        self.bins = bins or {}
        self.taught = samples.on_side("train")
        self._held: dict[str, Held | Array] = {}

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of the cohort that speak for these samples, int64 `[n]`."""
        return self.samples.first_row[self.taught]

    def held(self, role: str) -> Held | Array:
        """What reading gives, in little room where there is such, and kept; errors are those of reading."""
        if role not in self._held:
            if binned_role(role) is not None:
                self._held[role] = _binned(self.samples, role, self.bins)[self.taught]
            elif role not in self:
                raise KeyError(role)
            else:
                require_one_class(self.cohort, role)
                found = self.samples.held(role)
                self._held[role] = found.at(self.taught) if isinstance(found, Held) else found[self.taught]
        return self._held[role]

    @property
    def modalities(self) -> list[str]:
        """The modalities of these samples, sorted."""
        return distinct(self.cohort.modality_of(self.rows))

    def __getitem__(self, role: str) -> Array:
        return self.held(role)[:]

    def __contains__(self, role: object) -> bool:
        if not isinstance(role, str) or role in PATHS or not self.cohort.has(role):
            return False
        cut = binned_role(role)
        return cut is None or cut in self.bins

    def __iter__(self) -> Iterator[str]:
        every = (*self.cohort.roles, "slice_position", *(f"{BIN}{role}" for role in self.bins))
        return (role for role in dict.fromkeys(every) if role in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _binned(samples: Samples, role: str, bins: Bins) -> npt.NDArray[np.int64]:
    """A `bin:ROLE` column, `[n]`."""
    cut = role.removeprefix(BIN)
    if cut not in bins:
        raise RecipeError(f"{role} needs to know its bins; add bins={{{cut}: 4}}, or the edges between them")
    train = samples.on_side("train")
    name = cut if cut in samples.cohort.roles else f"{cut} (by order within volumes)"
    return bin_codes(samples.held(cut)[:], train, bins[cut], name=name)


def _given_edges(spec: int | Sequence[float], name: str) -> npt.NDArray[np.float64]:
    """The inner edges that a recipe gives, none where it gives a number of bins; RecipeError where it is neither."""
    if isinstance(spec, int):
        if isinstance(spec, bool) or spec < 2:
            raise RecipeError(f"bins.{name}: expected at least 2 bins, found {spec}")
        return np.empty(0)
    edges = np.asarray(spec, np.float64)
    if edges.ndim != 1 or not len(edges) or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise RecipeError(f"bins.{name}: expected a number of bins, or their inner edges in rising order; found {spec}")
    return edges
