"""The contract of a task: a question that can be asked of any encoder, and what its answer has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from bolus.evaluation.statistics.results import Result


class Outcome(Protocol):
    """What a task found: results and notes, which are also in the files of its folder."""

    folder: Path
    notes: list[str]

    @property
    def results(self) -> list[Result]:
        """Every estimate and difference."""

    def text(self) -> str:
        """Tables, verdicts and notes, as a person reads them."""


@dataclass(frozen=True)
class Wants:
    """What a task asks of an encoder.

    Args:
        one: what needs one encoder for all modalities, and images of one size, for the message; empty where nothing
            does.
        images: an encoder of single images that are not mirrored, as masks are.
        volumes: where it is so, one of volumes will do as well.
    """

    one: str = ""
    images: bool = False
    volumes: bool = False


@dataclass(frozen=True)
class Task:
    """A question, ready to be asked: the fields of a task are its options, here and on the command line.

    The docstring's first line is what `--help` says of it.
    """

    name: ClassVar[str]
    baselines: ClassVar[bool] = True
    """Whether other encoders can stand beside the judged one."""

    @property
    def wants(self) -> Wants:
        """What is asked of the encoder."""
        return Wants()

    @property
    def question(self) -> str:
        """In words, such as `classify sick`."""
        return self.name
