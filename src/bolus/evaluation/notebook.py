"""How results look in a notebook: a small table, and notes that open on a click."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def as_html(columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A table of text, with notes below that are folded away.

    >>> as_html(["target", "auroc"], [["a<b", "0.9"]], ["one class only"])[-90:]
    '<td>0.9</td></tr></table><details><summary>1 note</summary><p>one class only</p></details>'
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    folded = "".join(f"<p>{escape(note)}</p>" for note in notes)
    count = f"{len(notes)} note{'s' * (len(notes) != 1)}"
    details = f"<details><summary>{count}</summary>{folded}</details>" if notes else ""
    return f"<table><tr>{head}</tr>{body}</table>{details}"
