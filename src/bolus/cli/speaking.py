"""What the command line says: lines for a person, one line of JSON for a program, or nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from bolus.terminal import Terminal, visible

console = Terminal()
SHOWN = 5  # names of columns that are left out


@dataclass(frozen=True)
class Everywhere:
    """What every verb has."""

    quiet: Annotated[bool, typer.Option("--quiet", help="print errors only")] = False
    json: Annotated[bool, typer.Option("--json", help="print one line of JSON in place of text")] = False
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:N or mps (default: an accelerator where there is one)")
    ] = None

    def apply(self) -> None:
        """From here on, of this process.

        Raises:
            UsageError: a device that is not here.
        """
        global manner  # noqa: PLW0603
        manner = self
        if self.device is not None:
            from bolus.device import choose

            choose(self.device)


manner = Everywhere()
"""How this process speaks; `Everywhere.apply` sets it."""


def say(*lines: str) -> None:
    """Lines for a person, as they are, neither coloured nor broken."""
    if manner.quiet or manner.json:
        return
    for line in lines:
        console.print(line, soft_wrap=True)


def show(rendered: RenderableType) -> None:
    """What rich renders for a person."""
    if talkative():
        console.print(rendered)


def tell(facts: Mapping[str, Any], *lines: str) -> None:
    """What a verb found: the lines for a person, or, with `--json`, the facts."""
    if manner.json:
        from bolus.files import strict_json

        said = visible(strict_json(facts))
        typer.echo(said if _showable(said) else json.dumps(json.loads(said)))
    else:
        say(*lines)


def spare_letters() -> None:
    """From here on, a letter that the terminal does not have is written as an escape, and stops nothing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's, or a test's, takes any letter
            stream.reconfigure(errors="backslashreplace")


def _showable(text: str) -> bool:
    """Whether standard output has every letter of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def talkative() -> bool:
    """Whether progress is shown."""
    return not (manner.quiet or manner.json)


def say_left_out(columns: Sequence[str]) -> list[str]:
    """A line on the columns of the table that were not written, where there are any.

    >>> say_left_out(["image", "patient"])
    ['left out: image, patient (persons, places, files, days or no role); --columns NAME,... writes them']
    """
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    why = "persons, places, files, days or no role"
    shown = ", ".join(columns[:SHOWN]) + more
    return [f"left out: {shown} ({why}); --columns NAME,... writes them"] if columns else []
