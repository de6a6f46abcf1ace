"""How the findings of a check look in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bolus.errors import name_rows

if TYPE_CHECKING:
    from bolus.data.checking import CheckReport

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def render(report: CheckReport) -> RenderableType:
    """A summary line, what was taken for what, intensities, sides of the split, findings, and their number."""
    cohort = report.cohort
    num_notes = len(report.findings) - len(report.errors) - len(report.warnings)
    parts: list[RenderableType] = [
        Text(f"{len(cohort)} rows of {cohort.num_patients} patients", style="bold"),
        _table(
            "Columns",
            ("role", "column", "present", "distinct"),
            ((each["role"], each["column"], _percent(each["present"]), each["distinct"]) for each in report.columns),
            numbers=2,
        ),
        _table(
            "Intensities",
            ("modality", "images", "min", "max", "bits", "channels", "shown from 0 to 1"),
            (
                (
                    each["modality"],
                    each["images"],
                    f"{each['minimum']:g}",
                    f"{each['maximum']:g}",
                    _joined(each["bits"]),
                    _joined(each["channels"]),
                    f"{_range(each)} ({_joined(each['rule'])})",
                )
                for each in report.modalities
            ),
            numbers=6,
        ),
        _table(
            f"Split {cohort.split_hash}",
            (
                "side",
                "rows",
                "patients",
                *(["with two visits or more"] if "with_two_visits" in report.splits[0] else []),
            ),
            (tuple(each.values()) for each in report.splits),
            numbers=3,
        ),
    ]
    if report.findings:
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(no_wrap=True)
        lines.add_column(overflow="fold")
        for finding in report.findings:
            where = f" ({name_rows(row - 1 for row in finding.rows)})" if finding.rows else ""
            lines.add_row(Text(finding.severity, style=STYLES[finding.severity]), Text(finding.message + where))
        parts += [Text("Findings", style="bold"), lines, Text()]
    parts.append(Text(f"{len(report.errors)} errors, {len(report.warnings)} warnings, {num_notes} notes", style="bold"))
    return Group(*parts)


def _table(title: str, header: Iterable[str], rows: Iterable[tuple[Any, ...]], *, numbers: int) -> Table:
    """A table without lines; all but the first columns hold numbers, which stand to the right."""
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    header = list(header)
    for position, name in enumerate(header):
        right = len(header) - position <= numbers
        table.add_column(name, justify="right" if right else "left", overflow="fold", header_style="dim")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    table.add_section()
    return table


def _range(record: dict[str, Any]) -> str:
    return "each its own" if record["low"] is None else f"{record['low']:g} to {record['high']:g}"


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _percent(share: float) -> str:
    """Rounded, but never to all where one is missing nor to none where one is there."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return "<1%" if share < 0.01 else (">99%" if share > 0.99 else f"{share:.0%}")
