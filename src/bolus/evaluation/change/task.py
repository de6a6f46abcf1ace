"""The task `change`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from bolus.errors import UsageError
from bolus.evaluation.contract import Task
from bolus.evaluation.probing.options import EMBEDDED, Probing
from bolus.evaluation.settings import option


@dataclass(frozen=True)
class Change(Task):
    """Change of a score within patients: does a patient improve, stay or worsen, and by how much?

    Args:
        target: a score, as `find_targets` finds it for `regress`.
        tolerance: a change of this size or less is stable; in the score's unit.
        higher_is_worse: the score is a severity.
        adjacent_only: only pairs of consecutive times.
        max_pairs: of each patient.
        probing: how the change is read off the difference of two embeddings.

    Raises:
        UsageError: no target, a negative tolerance, or a probe that is trained on images.
    """

    name: ClassVar[str] = "change"
    target: str = option("", "a score, or a numeric attribute")
    tolerance: float = option(0.0, "differences up to this are stable, in the score's unit")
    higher_is_worse: bool = option(True, "what more means", name="--higher-is-worse/--higher-is-better")
    adjacent_only: bool = option(False, "pairs of consecutive visits only")
    max_pairs: int = 200
    probing: Probing = field(default_factory=Probing)

    def __post_init__(self) -> None:
        if not self.target:
            raise UsageError("--target is needed: a score of the cohort, or a numeric attribute")
        if not self.tolerance >= 0:
            raise UsageError(f"tolerance: expected a number of at least 0, found {self.tolerance}")
        self.probing.check(EMBEDDED, "single images and not available for change")

    @property
    def question(self) -> str:
        """As of `Task`."""
        return f"change {self.target}"
