"""The task `retrieve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bolus.errors import UsageError
from bolus.evaluation.contract import Task
from bolus.evaluation.settings import option


@dataclass(frozen=True)
class Retrieve(Task):
    """The same person: does an image find the patient's others across a role?

    Args:
        across: the role that differs; see `find_sides`.

    Raises:
        UsageError: no role.
    """

    name: ClassVar[str] = "retrieve"
    across: str = option("", "the role that differs, such as laterality, modality or visit")

    def __post_init__(self) -> None:
        if not self.across:
            raise UsageError("--across is needed: the role that differs, such as laterality, modality or visit")

    @property
    def question(self) -> str:
        """As of `Task`."""
        return f"retrieve across {self.across}"
