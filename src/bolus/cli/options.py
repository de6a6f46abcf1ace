"""What several commands share: arguments, the options of the table, and options that hold several values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bolus.device import Precision
from bolus.errors import UsageError

if TYPE_CHECKING:
    from bolus.data.cohort.cohort import Cohort

CohortArgument = Annotated[Path, typer.Argument(metavar="COHORT", help="cohort.yaml, or a CSV, TSV or Parquet table")]
EncoderArgument = Annotated[str, typer.Argument(metavar="ENCODER", help="run folder, encoder folder or hub name")]
OverridesArgument = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="recipe keys")]
CacheOption = Annotated[Path | None, typer.Option(help="cache folder (default: BOLUS_CACHE, or the user's)")]
SizeOption = Annotated[int | None, typer.Option(help="input pixels of an encoder that does not state them")]

ColumnsOption = Annotated[
    str | None, typer.Option(metavar="NAME,...", help="columns of the table to write besides, such as the patient's")
]
NoTableOption = Annotated[
    bool, typer.Option("--no-table", help="nothing of the table but the row (default: what names no person or file)")
]
PrecisionOption = Annotated[Precision, typer.Option(help="of embedding, on an accelerator: fp32, bf16 or fp16")]


@dataclass(frozen=True)
class TableOptions:
    """How the table is read: roles, missing codes, ranges, the folder of the images and the split."""

    role: Annotated[
        list[str],
        typer.Option("--role", metavar="ROLE=COLUMN", help="the table: what a column is; repeatable"),
    ] = field(default_factory=list)
    missing: Annotated[
        list[str],
        typer.Option("--missing", metavar="COLUMN=VALUE", help="the table: a value that means missing; repeatable"),
    ] = field(default_factory=list)
    value_range: Annotated[
        list[str],
        typer.Option(
            "--range",
            metavar="MODALITY=LOW:HIGH",
            help="the table: values shown as black and white, whatever files say; repeatable",
        ),
    ] = field(default_factory=list)
    root: Annotated[
        str | None,
        typer.Option("--root", help="the table: folder that image paths are relative to (default: its own)"),
    ] = None
    split: Annotated[
        list[str],
        typer.Option(
            "--split",
            metavar="KEY=VALUE",
            help="the table: seed, val or test share of the patients, or leave_out_site; repeatable",
        ),
    ] = field(default_factory=list)

    def open(self, table: Path) -> Cohort:
        """A cohort, or a bare table, read so."""
        from bolus.data.cohort.cohort import Cohort

        codes: dict[str, list[Any]] = {}
        for column, value in pairs(self.missing, "--missing", "COLUMN=VALUE"):
            codes.setdefault(column, []).append(value)
        shares = (
            once(pairs(self.split, "--split", "KEY=VALUE"), "--split") or None
        )  # numbers as text: the cohort's own check reads them
        roles = once(pairs(self.role, "--role", "ROLE=COLUMN"), "--role")
        stated = ranges(self.value_range)
        return Cohort.open(table, roles=roles, missing=codes, ranges=stated, root=self.root, split=shares)

    def words(self, table: Path) -> list[str]:
        """The words that open the same cohort on another command line.

        >>> TableOptions(role=["patient=id"], value_range=["CT=0:80"], split=["test=0.3"]).words(Path("t.csv"))
        ['t.csv', '--role', 'patient=id', '--range', 'CT=0:80', '--split', 'test=0.3']
        """
        roots = [self.root] if self.root is not None else []
        given = {"--role": self.role, "--missing": self.missing, "--range": self.value_range, "--root": roots,
                 "--split": self.split}  # fmt: skip
        return [str(table), *(word for option, values in given.items() for value in values for word in (option, value))]


def names(text: str | None) -> list[str] | None:
    """Names by commas, none of them empty.

    >>> names("sex, site")
    ['sex', 'site']
    """
    found = None if text is None else [part.strip() for part in text.split(",")]
    if found is not None and not all(found):
        raise UsageError(f"expected names by commas, found {text!r}")
    return found


def refuse_swapped(encoder: str, cohort: Path) -> None:
    """Raise UsageError where a file stands in the place of the encoder, and a folder in that of the cohort."""
    if Path(encoder).is_file() and cohort.is_dir():
        raise UsageError(f"expected the encoder first, and then the cohort; write {cohort} {encoder}")


def once(found: list[tuple[str, str]], option: str) -> dict[str, str]:
    """Pairs as a mapping, each name once.

    >>> once([("patient", "id"), ("patient", "name")], "--role")
    Traceback (most recent call last):
    bolus.errors.UsageError: --role names patient twice, with id and name; give one of them
    """
    known: dict[str, str] = {}
    for key, value in found:
        if key in known:
            raise UsageError(f"{option} names {key} twice, with {known[key]} and {value}; give one of them")
        known[key] = value
    return known


def pairs(items: list[str], option: str, form: str = "NAME=VALUE") -> list[tuple[str, str]]:
    """NAME=VALUE options as pairs; `form` says what stands on the two sides."""
    found = []
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key or not value:
            raise UsageError(f"{option} expects {form}, found {item!r}")
        found.append((key, value))
    return found


def whole_numbers(text: str, option: str) -> list[int]:
    """Whole numbers by commas.

    >>> whole_numbers("1,2", "--labelled-patients")
    [1, 2]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} expects whole numbers by commas, found {text!r}") from None


def numbers(text: str, option: str) -> list[float]:
    """Numbers by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} expects numbers by commas, found {text!r}") from None


def class_names(items: list[str]) -> dict[int, str]:
    """--class LABEL=NAME options, each label once.

    >>> class_names(["1=organ", "2=lesion"])
    {1: 'organ', 2: 'lesion'}
    """
    found: dict[int, str] = {}
    for item in items:
        label, _, name = (part.strip() for part in item.partition("="))
        if not name or not label.removeprefix("-").isdecimal():
            raise UsageError(f"--class expects LABEL=NAME with a whole-number label, found {item!r}")
        if int(label) in found:
            raise UsageError(f"--class names the label {int(label)} twice: {found[int(label)]!r} and {name!r}")
        found[int(label)] = name
    return found


def ranges(items: list[str]) -> dict[str, tuple[float, float]]:
    """--range MODALITY=LOW:HIGH options, each modality once.

    >>> ranges(["CT=-1000:1000"])
    {'CT': (-1000.0, 1000.0)}
    """
    found: dict[str, tuple[float, float]] = {}
    for name, text in pairs(items, "--range", "MODALITY=LOW:HIGH"):
        try:
            low, high = (float(part) for part in text.split(":"))
        except ValueError:
            raise UsageError(f"--range expects MODALITY=LOW:HIGH such as CT=-160:240, found {name}={text}") from None
        if name in found:
            raise UsageError(f"--range names the modality {name} twice")
        if not low < high:
            raise UsageError(f"--range {name}: expected black below white, found {low:g}:{high:g}")
        found[name] = (low, high)
    return found
