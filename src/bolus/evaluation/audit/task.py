"""The task behind `--audit`: a target read off an encoder, judged in each group of test patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bolus.errors import UsageError
from bolus.evaluation.contract import Task
from bolus.evaluation.probing.options import EMBEDDED
from bolus.evaluation.probing.task import TargetTask


@dataclass(frozen=True)
class Auditing(Task):
    """A target, read in groups of patients.

    Args:
        reading: the target and how it is read: on all training patients, as it is now.
        by: roles whose groups are compared; see `find_groupings` for what None means and how numbers are cut.
        age_bands: inner edges in years; None: 40, 60, 75, or quartiles of the training patients where these have few.

    Raises:
        UsageError: one text in place of roles; a reading of the future, of a part of the training patients, or by a
            probe trained on images.
    """

    name: ClassVar[str] = "audit"
    reading: TargetTask
    by: Sequence[str] | None = None
    age_bands: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.by, str):
            raise UsageError(f"by: expected a list of roles, such as ['sex'], found {self.by!r}")
        probing = self.reading.probing
        probing.check(EMBEDDED, "images and not available for an audit")
        if tuple(probing.fractions) != (1.0,):
            raise UsageError("--fractions: an audit fits heads on all training patients; leave it out")
        if self.reading.horizon is not None:
            raise UsageError("--horizon is asked of this cohort as it is: leave out --audit")

    @property
    def question(self) -> str:
        """As of `Task`."""
        groups = f" by {' '.join(self.by)}" if self.by else ""
        return f"audit {self.reading.question}{groups}"
