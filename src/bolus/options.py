"""What several commands share: printing, the options about the cohort, and options that hold pairs or numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bolus.errors import UsageError

console = Console(emoji=False)  # label:eye: is a label

CohortArgument = Annotated[Path, typer.Argument(metavar="COHORT", help="cohort.yaml, or a CSV, TSV or Parquet table")]
RoleOption = Annotated[list[str], typer.Option("--role", metavar="ROLE=COLUMN", help="what a column is; repeatable")]
MissingOption = Annotated[
    list[str], typer.Option("--missing", metavar="COLUMN=VALUE", help="a value that means missing; repeatable")
]
RangeOption = Annotated[
    list[str],
    typer.Option(
        "--range", metavar="MODALITY=LOW:HIGH", help="values shown as black and white, whatever files say; repeatable"
    ),
]
RootOption = Annotated[str | None, typer.Option(help="folder that image paths are relative to (default: the table's)")]
SplitOption = Annotated[
    list[str],
    typer.Option(
        "--split", metavar="KEY=VALUE", help="seed, val or test share of the patients, or leave_out_site; repeatable"
    ),
]
CacheOption = Annotated[Path | None, typer.Option(help="cache folder (default: BOLUS_CACHE, or the user's)")]


def say(*lines: str) -> None:
    """Lines as they are, neither coloured nor broken."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def names(text: str | None) -> list[str] | None:
    """Names by commas, none of them empty.

    >>> names("sex, site")
    ['sex', 'site']
    """
    found = None if text is None else [part.strip() for part in text.split(",")]
    if found is not None and not all(found):
        raise UsageError(f"expected names by commas, found {text!r}")
    return found


def pairs(items: list[str], option: str) -> list[tuple[str, str]]:
    """NAME=VALUE options as pairs."""
    found = []
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key or not value:
            raise UsageError(f"{option} expects NAME=VALUE, found {item!r}")
        found.append((key, value))
    return found


def only_for(what: str, applies: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, which is a wrong call where they do not apply."""
    given = {name: value for name, value in options.items() if value is not None}
    if given and not applies:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} is for {what}")
    return given


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers by commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        whole = "whole " if kind is int else ""
        raise UsageError(f"{option} expects {whole}numbers by commas, found {text!r}") from None


def segment_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate_segment` takes of the options of --task segment that were given."""
    from bolus.evaluation.segmenter import SegmentSpec

    found: dict[str, Any] = {"overlays": given.get("overlays", 0)}
    if "steps" in given:
        found["spec"] = SegmentSpec(steps=given["steps"])
    if "labelled_patients" in given:
        found["labelled"] = numbers(given["labelled_patients"], "--labelled-patients", int)
    if "class" in given:
        found["classes"] = class_names(given["class"])
    return found


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
    for name, text in pairs(items, "--range"):
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


def open_cohort(
    path: Path, role: list[str], missing: list[str], value_range: list[str], root: str | None, split: list[str]
) -> Any:
    """A cohort or bare table with the roles, missing codes, ranges and split of the command line."""
    from bolus.data.cohort import Cohort

    codes: dict[str, list[Any]] = {}
    for column, value in pairs(missing, "--missing"):
        codes.setdefault(column, []).append(value)
    shares = dict(pairs(split, "--split")) or None  # numbers as text: the cohort's own check reads them
    roles = dict(pairs(role, "--role"))
    return Cohort.open(path, roles=roles, missing=codes, ranges=ranges(value_range), root=root, split=shares)


def cohort_words(
    path: Path, role: list[str], missing: list[str], value_range: list[str], root: str | None, split: list[str]
) -> list[str]:
    """The words that open the same cohort on another command line.

    >>> cohort_words(Path("t.csv"), ["patient=id"], [], ["CT=0:80"], None, ["test=0.3"])
    ['t.csv', '--role', 'patient=id', '--range', 'CT=0:80', '--split', 'test=0.3']
    """
    roots = [root] if root is not None else []
    options = {"--role": role, "--missing": missing, "--range": value_range, "--root": roots, "--split": split}
    return [str(path), *(word for option, values in options.items() for value in values for word in (option, value))]
