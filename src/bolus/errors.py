"""The exception tree.

BolusError                    exit code 1: something in the user's data, recipe or run
├── UsageError                exit code 2: the command was called wrongly
├── MissingPackageError       a package that is not installed, and how to install it
├── CohortError               a table, its roles, or its rows
│   └── LeakageError          a patient on both sides of a split, or of pretraining and test
├── ImageError                one image that cannot be read rightly
│   ├── TooLargeError         ... that would take more memory than one image may
│   └── MissingDecoderError   ... for want of a package (a MissingPackageError too)
├── RecipeError               a recipe, an override, or an objective's parameters
├── EncoderError              an encoder that cannot be built, loaded or fed
├── TrainingError             a run that cannot start or go on
│   ├── NonFiniteLossError    a loss became NaN or infinite
│   ├── InterruptedRunError   a signal ended the run, which can go on (exit code 128 and the signal's number)
│   └── OutOfMemoryError      the step does not fit; names the keys to change
└── EvaluationError           a question the data cannot answer

Messages say what was expected, what was found, and the table row; never a patient identifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any


class BolusError(Exception):
    """Anything a person can mend: the command line prints it without a traceback."""

    exit_code = 1


class UsageError(BolusError):
    """The command or function was called with arguments that do not go together."""

    exit_code = 2


class MissingPackageError(BolusError):
    """What was asked for needs a package that is not installed; the message says how to install it."""


class CohortError(BolusError):
    """The table, its roles or its rows do not hold what they must; lists every violation."""

    def __init__(self, message: str, violations: Sequence[str] = ()) -> None:
        self.violations = tuple(violations)
        shown = "".join(f"\n  - {violation}" for violation in self.violations[:50])
        more = len(self.violations) - 50
        super().__init__(message + shown + (f"\n  ... and {more} more" if more > 0 else ""))


class LeakageError(CohortError):
    """A patient stands on both sides of a line that must separate patients."""


class ImageError(BolusError):
    """An image file that cannot be read, or cannot be read rightly."""


class TooLargeError(ImageError):
    """Decoding the image would take more memory than one image may; the message says how to allow it."""


class MissingDecoderError(ImageError, MissingPackageError):
    """The file is sound but needs a decoder that is not installed."""


class RecipeError(BolusError):
    """A recipe, an override or an objective's parameters."""


class EncoderError(BolusError):
    """An encoder that cannot be built, loaded or fed with these images."""


class TrainingError(BolusError):
    """A run that cannot start or cannot go on."""


class InterruptedRunError(TrainingError):
    """A signal asked the run to end; its checkpoint is written, and it can go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as shells tell it


class NonFiniteLossError(TrainingError):
    """A loss or gradient became NaN or infinite; the last good checkpoint is kept."""


class OutOfMemoryError(TrainingError):
    """The training step does not fit into memory."""


class EvaluationError(BolusError):
    """A question that this cohort or these embeddings cannot answer."""


def require(module: str, purpose: str, error: type[MissingPackageError] = MissingPackageError) -> Any:
    """Import a package that not every installation has, where it is used.

    Args:
        module: dotted name; its first part is also the name by which pip knows the package.
        purpose: what needs it, in the plural.
        error: what to raise.

    Returns:
        The module.

    Raises:
        MissingPackageError: the package, or one that it needs, is not installed or cannot be loaded.

    >>> require("json", "numbers").loads("1")
    1
    >>> require("nibbler.headers", "NBL files")
    Traceback (most recent call last):
    bolus.errors.MissingPackageError: NBL files need the package nibbler, which is not installed: pip install nibbler
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as problem:
        absent = isinstance(problem, ModuleNotFoundError) and (problem.name or "").partition(".")[0] == package
        why = "is not installed" if absent else f"cannot be imported ({problem})"
        raise error(f"{purpose} need the package {package}, which {why}: pip install {package}") from problem


def name_rows(rows: Iterable[int], limit: int = 5) -> str:
    """Row numbers as a person counts them: the first data row of the table is row 1.

    >>> name_rows([0, 4, 5])
    'rows 1, 5, 6'
    >>> name_rows(range(9))
    'rows 1, 2, 3, 4, 5 and 4 more'
    """
    numbers = [int(row) + 1 for row in rows]
    shown = ", ".join(str(number) for number in numbers[:limit])
    more = f" and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return f"{'row' if len(numbers) == 1 else 'rows'} {shown}{more}"


def yaml_problem(error: Exception) -> str:
    """What is wrong with a YAML text, in one line and without quoting it.

    >>> import yaml
    >>> try:
    ...     yaml.safe_load("roles: {time: days")
    ... except yaml.YAMLError as error:
    ...     yaml_problem(error)
    "line 1: expected ',' or '}', but got '<stream end>'"
    """
    if isinstance(error, UnicodeDecodeError):
        return "expected UTF-8 text, found something else"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = "" if mark is None else f"line {mark.line + 1}: "
    return f"{where}{problem or type(error).__name__}"


def suggest(name: str, known: Iterable[str]) -> str:
    """A did-you-mean clause, or the list of what there is.

    >>> suggest("batchsize", ["batch_size", "seed"])
    "did you mean 'batch_size'?"
    >>> suggest("zzz", ["seed"])
    'known: seed'
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
