"""What holds whatever an encoder is asked: how it is judged, and what the results are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bolus.device import Precision, check_precision
from bolus.errors import UsageError
from bolus.recipe import LARGEST

if TYPE_CHECKING:
    from bolus.evaluation.statistics.results import Result


def option(default: Any, help: str, *, name: str = "", metavar: str = "") -> Any:
    """A field of a dataclass of settings that the command line has, too.

    Args:
        default: what holds where nobody says otherwise.
        help: what `--help` says of it.
        name: of the option, where it is not that of the field; `--yes/--no` for a pair of flags.
        metavar: what stands for the value in `--help`.
    """
    return field(default=default, metadata={"help": help, "name": name, "metavar": metavar})


def options_of(kind: Any) -> dict[str, tuple[str, Field[Any]]]:
    """Every option of a dataclass of settings: its name -> the field that it stands in, if any, and its own field.

    A field whose default is itself a dataclass of settings holds that one's options.

    >>> @dataclass(frozen=True)
    ... class Task:
    ...     target: str = option("", "what is predicted")
    ...     origin: Origin = field(default_factory=lambda: Origin())
    ...     judging: Judging = field(default_factory=Judging)
    >>> list(options_of(Task))
    ['target', 'seed', 'size', 'cache', 'out', 'baselines', 'precision']
    """
    found: dict[str, tuple[str, Field[Any]]] = {}
    for each in fields(kind):
        made: Any = each.default_factory
        if is_dataclass(made):
            found |= {name: (each.name, inner) for name, (_, inner) in options_of(made).items()}
        elif "help" in each.metadata:
            found[each.name] = ("", each)
    return found


@dataclass(frozen=True)
class Judging:
    """How an encoder is judged, whatever it is asked.

    Args:
        seed: of every draw, of fine-tuning, and of the random-init twin.
        draws: bootstrap resamples of the test patients.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        out: folder of the evaluation; where None a folder of the question and the split in the run's `evaluations/`.
        baselines: run folders, encoder folders or hub names that stand beside the encoder.
        precision: of embedding: `fp32`, or `bf16` or `fp16` under autocast, which are faster on an accelerator.
        quiet: show no progress.

    Raises:
        UsageError: numbers out of range, a single name where several are meant, or a file in place of the folder.

    >>> Judging(draws=0)
    Traceback (most recent call last):
    bolus.errors.UsageError: draws must be a whole number of at least 1, found 0
    """

    seed: int = option(0, "of draws, fine-tuning and the random-init twin")
    draws: int = 1000
    size: int | None = option(None, "input pixels of an encoder that does not state them")
    cache: Path | None = option(None, "cache folder (default: BOLUS_CACHE, or the user's)")
    out: str | Path | None = option(None, "folder (default: in the run)", name="-o/--out")
    baselines: Sequence[str | Path] = option(
        (), "encoders to stand beside it, by commas: run folders, encoder folders or hub names"
    )
    precision: Precision = option("fp32", "of embedding, on an accelerator: fp32, bf16 or fp16")
    quiet: bool = False

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("draws", 1)):
            check_whole(name, getattr(self, name), least)
        if self.seed > LARGEST:
            raise UsageError(f"seed must be a whole number up to {LARGEST}, found {self.seed}")
        check_precision(self.precision)
        if isinstance(self.baselines, str | Path):
            raise UsageError(f"baselines: expected a list of folders or hub names, found one name, {self.baselines}")
        if self.out is not None and Path(self.out).is_file():
            raise UsageError(f"out: expected a folder, found the file {Path(self.out).name}")


@dataclass(frozen=True)
class Origin:
    """What results are of.

    Args:
        split_hash: of the cohort's split; empty where unknown.
        recipe_hash: of the recipe that trained the judged encoder; empty where there is none.
    """

    split_hash: str = ""
    recipe_hash: str = ""

    def sign(self, result: Result, judged: str) -> Result:
        """The result with the hashes; that of the recipe is for the judged encoder only."""
        return replace(
            result, split_hash=self.split_hash, recipe_hash=self.recipe_hash if result.encoder == judged else ""
        )


def check_whole(name: str, value: object, least: int) -> None:
    """Raise UsageError for what is not a whole number of at least so much.

    >>> check_whole("repeats", 2.5, 1)
    Traceback (most recent call last):
    bolus.errors.UsageError: repeats must be a whole number of at least 1, found 2.5
    """
    if not is_whole(value, least):
        raise UsageError(f"{name} must be a whole number of at least {least}, found {value!r}")


def is_whole(value: Any, least: int) -> bool:
    """Whether this is a whole number, in Python or NumPy, of at least so much.

    >>> is_whole(3, 1), is_whole(True, 0), is_whole("3", 0)
    (True, False, False)
    """
    return hasattr(value, "__index__") and not isinstance(value, bool) and int(value) >= least
