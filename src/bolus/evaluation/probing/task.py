"""The tasks `classify` and `regress`: a target that is read off an encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from bolus.errors import UsageError, suggest
from bolus.evaluation.contract import Task, Wants
from bolus.evaluation.probing.options import EMBEDDED, TRAINED, FinetuneSpec, Probing
from bolus.evaluation.settings import option

HORIZONS = ("next", "incident")


@dataclass(frozen=True)
class TargetTask(Task):
    """What `classify` and `regress` have in common.

    Args:
        target: see `find_targets`.
        horizon: None: the target as it is. `next`: that of the patient's next visit or time; `incident`: likewise, of
            those only who are negative now (`future.look_ahead`).
        probing: how the target is read.
        finetune: how `frozen` and `finetune` train; `whole` is what the probe's name says.

    Raises:
        UsageError: no target, or options that do not go together.
    """

    expected: ClassVar[str]
    """What a target of the task is."""
    target: str = option("", "what is read off the encoder")
    horizon: str | None = option(
        None, "the next visit's target (next), or only of those who are negative now (incident)"
    )
    probing: Probing = field(default_factory=Probing)
    finetune: FinetuneSpec = field(default_factory=FinetuneSpec)

    def __post_init__(self) -> None:
        if not self.target:
            raise UsageError(f"--target is needed: {self.expected}")
        self.probing.check((*EMBEDDED, *TRAINED))
        self.finetune.check_for(self.name)
        if self.horizon is not None and self.horizon not in HORIZONS:
            raise UsageError(f"unknown horizon {self.horizon!r}; {suggest(self.horizon, HORIZONS)}")
        if self.horizon == "incident" and self.name != "classify":
            raise UsageError("horizon incident asks who becomes positive, which a number does not; take next")

    @property
    def fewest(self) -> int:
        """Positive patients that each class of a many-class label needs."""
        return 20

    @property
    def wants(self) -> Wants:
        """As of `Task`."""
        kind = self.probing.trained
        return Wants(one=f"the probe {kind!r}" if kind else "")

    @property
    def question(self) -> str:
        """As of `Task`."""
        return f"{self.name} {f'{self.horizon}:' if self.horizon else ''}{self.target}"


@dataclass(frozen=True)
class Classify(TargetTask):
    """A label: every class against the rest, or the classes of a column with one class a row.

    Args:
        min_patients: positive patients that each class of a many-class label needs.
    """

    name: ClassVar[str] = "classify"
    expected: ClassVar[str] = "a label of the cohort, or LABEL=CLASS"
    target: str = option("", "a label, or LABEL=CLASS")
    min_patients: int = option(20, "positive patients that each class needs")

    @property
    def fewest(self) -> int:
        """As of `TargetTask`."""
        return self.min_patients


@dataclass(frozen=True)
class Regress(TargetTask):
    """A score, an age or another number."""

    name: ClassVar[str] = "regress"
    expected: ClassVar[str] = "a score of the cohort, or a numeric attribute"
    target: str = option("", "a score, or a numeric attribute")
