"""Text of tables and files as a page may show it: short, on one line, and unable to turn the text around it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

LONGEST = 80  # characters of a value that are shown
MOST = 2000  # characters of any text

# Marks that change the direction of text beyond the value they stand in: Unicode Standard Annex 9, table 3.
_TURNS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(value: object, longest: int = LONGEST) -> str:
    r"""A value on one line, without control characters and marks of direction, cut where it is long.

    Args:
        value: anything; a number is written as it is.
        longest: characters that are kept, the sign of the cut among them.

    >>> plain("a\nb\u202e"), plain("x" * 10_000, 5)
    ('a b', 'xxxx…')
    """
    text = _TURNS.sub("", str(value))[: 20 * longest]  # what is cut anyway need not be looked at
    text = "".join(" " if unicodedata.category(each)[0] in "CZ" else each for each in text)
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def straight(text: str) -> str:
    r"""Text as it is, without marks of direction, and cut where nobody would read on: the last guard of a page.

    >>> straight("a\u202eb\n")
    'ab\n'
    """
    text = _TURNS.sub("", text)
    return text if len(text) <= MOST else f"{text[:MOST]}…"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "patient"), counted(1200, "row")
    ('1 patient', '1,200 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def joined(parts: Iterable[str]) -> str:
    """Parts as a list in a sentence.

    >>> joined(["a", "b", "c"]), joined(["a"])
    ('a, b and c', 'a')
    """
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last
