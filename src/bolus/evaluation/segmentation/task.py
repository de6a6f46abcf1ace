"""The task `segment`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from bolus.errors import UsageError
from bolus.evaluation.contract import Task, Wants
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.settings import check_whole, is_whole, option

TARGET = "mask"


@dataclass(frozen=True)
class Segment(Task):
    """Masks, learnt from few labelled patients: Dice and Hausdorff distances of whole volumes.

    Args:
        target: `mask`.
        labelled: numbers M of labelled training patients.
        repeats: draws of each.
        overlays: pictures of so many test volumes at most.
        classes: label -> name; None: the labels in the masks of the training patients. 0 is the background.
        spec: how encoder and decoder are trained.

    Raises:
        UsageError: numbers out of range, another target, or classes that cannot be.
    """

    name: ClassVar[str] = "segment"
    baselines: ClassVar[bool] = False
    target: str = option(TARGET, "the masks")
    labelled: Sequence[int] = option(
        (1, 2, 6, 10), "numbers of training patients to learn from, by commas", name="--labelled-patients"
    )
    repeats: int = option(3, "draws of labelled patients")
    overlays: int = option(0, "pictures of so many test volumes, truth blue, prediction orange")
    classes: Mapping[int, str] | None = option(
        None, "name a class of the masks; repeatable", name="--class", metavar="LABEL=NAME"
    )
    spec: SegmentSpec = field(default_factory=SegmentSpec)

    def __post_init__(self) -> None:
        from bolus.evaluation.segmentation.annotation import check_classes

        if self.target != TARGET:
            raise UsageError(f"segment is about the role mask: expected the target {TARGET!r}, found {self.target!r}")
        given = self.labelled
        many = isinstance(given, Iterable) and not isinstance(given, str)
        if not many or not len(given) or not all(is_whole(number, 1) for number in given):
            raise UsageError(
                f"labelled: expected numbers of training patients, each at least 1, such as (1, 2, 6); found {given!r}"
            )
        object.__setattr__(self, "labelled", tuple(sorted({int(number) for number in given})))
        check_whole("repeats", self.repeats, 1)
        check_whole("overlays", self.overlays, 0)
        check_classes(self.classes)

    @property
    def wants(self) -> Wants:
        """As of `Task`."""
        return Wants(one="segmentation", images=True, volumes=True)

    @property
    def question(self) -> str:
        """As of `Task`."""
        return f"segment {self.target}"
