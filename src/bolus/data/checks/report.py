"""What a check found, as an object, as JSON, and as it looks in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bolus.data.checks.unused import Unused
from bolus.data.cohort.cohort import Cohort
from bolus.data.pixels.range_rules import describe_rule
from bolus.errors import name_rows
from bolus.files import write_json

Severity: TypeAlias = Literal["error", "warning", "note"]
SHOWN, SHOWN_OTHERS = 20, 10  # columns without a role at most: those with a suggestion, and those without
WIDE = 48  # characters of an option beside which its reason stands in line with the others
STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Finding:
    """One thing a person should know.

    Args:
        severity: `error` (training on this is wrong), `warning` (look at it first) or `note`.
        kind: a name to select by, such as `unreadable`.
        message: a sentence, without patient identifiers and file names.
        rows: which rows, counted from 1; empty where it is about the whole cohort.
    """

    severity: Severity
    kind: str
    message: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What `bolus.check` found; `cohort` carries the ranges that its images need.

    Args:
        cohort: as it was given, with `cohort_ranges` for every modality of which some image takes the cohort's range.
        findings: errors first.
        columns: one record a role: role, column, present (share of the rows), distinct.
        modalities: one record a modality: images, minimum and maximum (of the files' values), bits, rule, channels, low
            and high (the values that become 0 and 1; None where they differ between files or series), and used (the
            part of [0, 1] in which the middle 98 % of all pixels are seen).
        splits: one record a side, `all` last: rows, patients, and with_two_visits where visit or time is known.
        unused: the columns without a role, each with the option that would give it one.
    """

    cohort: Cohort
    findings: list[Finding]
    columns: list[dict[str, Any]]
    modalities: list[dict[str, Any]]
    splits: list[dict[str, Any]]
    unused: list[Unused] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Findings that make training on this cohort wrong."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Findings to look at before training."""
        return [finding for finding in self.findings if finding.severity == "warning"]

    def write(self, path: str | Path) -> None:
        """Write everything, with all row numbers, as JSON; folders are made."""
        path = Path(path)
        data = {
            "table": Path(self.cohort.spec.table).name,
            "rows": len(self.cohort),
            "patients": self.cohort.num_patients,
            "split_hash": self.cohort.split_hash,
            "ranges": {name: list(bounds) for name, bounds in self.cohort.spec.ranges.items()},
            "cohort_ranges": {name: list(bounds) for name, bounds in self.cohort.spec.cohort_ranges.items()},
            "findings": [asdict(finding) for finding in self.findings],
            "columns": self.columns,
            "modalities": self.modalities,
            "splits": self.splits,
            "unused": [each._asdict() for each in self.unused],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, data)

    def render(self) -> RenderableType:
        """What each column was taken for, intensities, sides of the split, findings: for 80 columns or more."""
        columns = _table("Columns", ("role", "column"), ("present", "distinct"))
        for each in self.columns:
            _add(columns, each["role"], each["column"], _percent(each["present"]), each["distinct"])
        intensities = _table(
            "Intensities", ("modality",), ("images", "min", "max", "bits", "channels", "black to white", "used")
        )
        for each in self.modalities:
            extremes = (f"{each['minimum']:g}", f"{each['maximum']:g}")
            joined = [", ".join(map(str, each[key])) for key in ("bits", "channels")]
            shown = (describe_shown(each["low"], each["high"], each["rule"]), _percent(each["used"]))
            _add(intensities, each["modality"], each["images"], *extremes, *joined, *shown)
        visits = ["with two visits or more"] if any("with_two_visits" in each for each in self.splits) else []
        sides = _table(f"Split {self.cohort.split_hash}", ("side",), ("rows", "patients", *visits))
        for each in self.splits:
            _add(sides, *each.values())
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(no_wrap=True)
        lines.add_column(overflow="fold")
        for finding in self.findings:
            where = f" ({name_rows(row - 1 for row in finding.rows)})" if finding.rows else ""
            lines.add_row(Text(finding.severity, style=STYLES[finding.severity]), Text(finding.message + where))
        title = Text(f"{len(self.cohort)} rows of {self.cohort.num_patients} patients", style="bold")
        num_notes = len(self.findings) - len(self.errors) - len(self.warnings)
        numbers = (("error", len(self.errors)), ("warning", len(self.warnings)), ("note", num_notes))
        total = Text(", ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in numbers), style="bold")
        listed: list[RenderableType] = [Text("Findings", style="bold"), lines, Text()] if self.findings else []
        unused = [*_unused(self.unused), Text()] if self.unused else []
        return Group(title, Text(), columns, Text(), *unused, intensities, Text(), sides, Text(), *listed, total)


def describe_shown(low: float | None, high: float | None, rules: Sequence[str]) -> str:
    """Black and white of a modality, in words; None where files or series differ.

    >>> describe_shown(-1000.0, 1000.0, ["clinical"]), describe_shown(None, None, ["series"])
    ('-1000 to 1000 (clinical)', 'percentiles 0.5 to 99.5 of each series')
    """
    if low is not None and high is not None:
        return f"{low:g} to {high:g} ({', '.join(rules)})"
    return describe_rule("series") if list(rules) == ["series"] else f"each its own ({', '.join(rules)})"


def frames_in_words(counts: Sequence[int] | npt.NDArray[np.int64]) -> str:
    """How many frames clips have.

    >>> frames_in_words([9, 3, 12]), frames_in_words([1, 1])
    ('3 to 12 frames (median 9)', '1 frame each')
    """
    low, high = min(counts), max(counts)
    if low == high:
        return f"{low} frame{'' if low == 1 else 's'} each"
    return f"{low} to {high} frames (median {np.median(counts):g})"


def _unused(columns: Sequence[Unused]) -> list[Text]:
    """The options to copy, each on a line of its own; then the columns of which none is suggested."""
    offered = [each for each in columns if each.option]
    others = [each for each in columns if not each.option]
    lines = [Text("Columns without a role", style="bold")]
    if offered:
        hint = "guessed from the values; copy those that you want to use"
        if any(":" in each.option for each in offered):
            hint += ", with attribute: in place of label: or score: where nothing is to be predicted"
        lines.append(Text(hint, style="dim"))
    width = min(WIDE, max((len(each.option) for each in offered), default=0))
    lines += [Text.assemble(f"{each.option:{width}}  ", (each.why, "dim")) for each in offered[:SHOWN]]
    lines += [Text.assemble(f"{each.column}: ", (each.why, "dim")) for each in others[:SHOWN_OTHERS]]
    more = max(0, len(offered) - SHOWN) + max(0, len(others) - SHOWN_OTHERS)
    return [*lines, Text(f"and {more} more, which the JSON lists", style="dim")] if more else lines


def _table(title: str, texts: Iterable[str], numbers: Iterable[str]) -> Table:
    """A table without lines; numbers stand to the right."""
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in texts:
        table.add_column(name, overflow="fold", header_style="dim")
    for name in numbers:
        table.add_column(name, overflow="fold", header_style="dim", justify="right")
    return table


def _add(table: Table, *cells: object) -> None:
    """A row of plain text: a `[` in a column's name is no markup."""
    table.add_row(*(Text(str(cell)) for cell in cells))


def _percent(share: float) -> str:
    """Rounded, but never to all where one is missing, nor to none where one is there."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"
