"""The columns of the training samples: what an objective may know of the table before training begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt

from bolus.data.cohort import Cohort
from bolus.data.roles import PATHS
from bolus.data.samples import Samples
from bolus.errors import CohortError


def require_one_class(cohort: Cohort, role: str) -> None:
    """Raise where a label has several classes on a row, which one code cannot say.

    Raises:
        CohortError: such a label.
    """
    if role.startswith("label:") and not cohort.labels(role.removeprefix("label:")).exclusive:
        raise CohortError(
            f"{role} holds several classes on a row, joined by '|'; give each class that is to be learnt a column"
        )


class TrainingColumns(Mapping[str, npt.NDArray[Any]]):
    """Role -> values of the training patients' samples, `[n]`; each is read when it is asked for.

    Categories are int64 codes with -1 missing, numbers float64 with NaN missing.

    Args:
        samples: of a cohort; those of validation and test patients are never looked at.

    Raises:
        CohortError: on reading a label of which a row has several classes, since one code cannot say them.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort import Cohort, CohortSpec
        >>> columns = {"image": ["a", "b"], "patient": ["p", "q"], "age": [4, 5], "split": ["train", "test"]}
        >>> frame = pd.DataFrame(columns)
        >>> cohort = Cohort(frame, CohortSpec(table="t.csv", roles={"score:age": "age"}))
        >>> TrainingColumns(cohort.samples("image"))["score:age"]
        array([4.])
    """

    def __init__(self, samples: Samples) -> None:
        self.cohort = samples.cohort
        first = samples.first_row
        self.rows = first[self.cohort.split[first] == "train"]

    def __getitem__(self, role: str) -> npt.NDArray[Any]:
        if role not in self:
            raise KeyError(role)
        require_one_class(self.cohort, role)
        values: npt.NDArray[Any] = self.cohort.encoded(role)[self.rows]
        return values

    def __contains__(self, role: object) -> bool:
        return role in self.cohort.roles and role not in PATHS

    def __iter__(self) -> Iterator[str]:
        return (role for role in self.cohort.roles if role not in PATHS)

    def __len__(self) -> int:
        return sum(1 for _ in self)
