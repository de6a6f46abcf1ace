"""What a person sees in a terminal: lines no wider than it, and no character that commands it."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from textwrap import wrap

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

WIDTH = 100  # columns of lines, in a wider terminal and where there is none


def columns() -> int:
    """Columns of a line: those of the terminal, or of the variable COLUMNS, and 100 at most; without either, 100."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def fold(text: str, first: str, rest: str) -> list[str]:
    """Lines of at most `columns()`, the first and the others indented so; a word that is longer stays whole.

    >>> fold("a word", "- ", "  ")
    ['- a word']
    """
    return wrap(
        text, columns(), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and those that turn the direction of writing."""


def visible(text: str) -> str:
    r"""A text in which characters that command a terminal stand as escapes, which JSON reads as the characters.

    A cell of a table or the name of a file could otherwise move the cursor, hide lines, or set the window's title.

    >>> visible("a\x1b[2Jb")
    'a\\u001b[2Jb'
    """
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class VisibleFormatter(logging.Formatter):
    """Log records, of which none can command the terminal either."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's message, `visible`."""
        return visible(super().format(record))


class Terminal(Console):
    """rich's console, to which text is never markup, and of which no text can command the terminal.

    Args:
        stderr: write to standard error.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, emoji=False, markup=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments as rich makes them; only its own control codes stay what they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
