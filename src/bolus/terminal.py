"""Lines for a person, no wider than the terminal that shows them."""

from __future__ import annotations

import shutil
from textwrap import wrap

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
