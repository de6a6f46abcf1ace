"""What a section is made of: headed paragraphs, figures, tables, and what is missing with the command that fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from bolus.reporting.wording import plain

if TYPE_CHECKING:
    from markupsafe import Markup

GOOD, CONCERN, OPEN, PLAIN = "good", "concern", "open", "plain"
"""How a sentence stands: fine, a cause for concern, undecided, or neither."""

HINT = "only a hint"  # what Holm's correction leaves of a verdict
SENTENCE = 600  # characters of a sentence that are shown


@dataclass(frozen=True)
class Sentence:
    """A sentence, and how it stands."""

    text: str
    state: str = PLAIN

    @property
    def word(self) -> str:
        """What stands before it, for those who see no colours; nothing where the sentence says it itself."""
        if HINT in self.text:
            return "hint"
        said = "undecided" in self.text.lower()
        return {GOOD: "good", CONCERN: "look here", OPEN: "" if said else "open", PLAIN: ""}[self.state]


@dataclass(frozen=True)
class Sentences:
    """A list of sentences."""

    kind: ClassVar[str] = "sentences"
    items: Sequence[Sentence]


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Table:
    """A table of text; numbers are text too.

    Args:
        head: names of the columns; the first column heads its rows.
        rows: of as many cells.
        title: what it shows.
        folded: whether it opens on a click.
    """

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """Charts with what they show and how to read them.

    Args:
        title: what it shows.
        panels: charts.
        reading: what it means, and how not to misread it.
        key: a legend.
        table: the same numbers.
    """

    kind: ClassVar[str] = "figure"
    title: str
    panels: Sequence[Markup]
    reading: str
    key: Markup | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Missing:
    """What there is no evidence for, in one sentence, and the command that would give it."""

    kind: ClassVar[str] = "missing"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    kind: ClassVar[str] = "commands"
    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Drawing:
    """Markup that is made elsewhere: the flow of patients, the map, pictures."""

    kind: ClassVar[str] = "drawing"
    markup: Markup


Block = Sentences | Heading | Table | Figure | Missing | Commands | Drawing


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        key: its anchor.
        title: a short heading.
        lead: the question that it answers.
        blocks: what is said of all runs together.
        by_run: name of a run -> what is said of it, side by side.
        together_first: whether what is said of all stands before what is said of each.
    """

    key: str
    title: str
    lead: str
    blocks: Sequence[Block] = ()
    by_run: dict[str, Sequence[Block]] = field(default_factory=dict)
    together_first: bool = False


def sentence(text: str, state: str = PLAIN) -> Sentence:
    """A sentence as a page may show it."""
    return Sentence(plain(text, SENTENCE), state)


def standing_of(verdict: str) -> str:
    """How a verdict stands, by its own words.

    >>> standing_of("decided for this training: better by 0.04"), standing_of("undecided: worse by 0.01")
    ('good', 'open')
    """
    said = verdict.lower()
    if "undecided" in said or "too few" in said or HINT in said:
        return OPEN
    if "better" in said:
        return GOOD
    return CONCERN if "worse" in said else PLAIN
