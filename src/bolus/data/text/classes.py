"""Classes: one spelling for what several programs write differently, so that equal classes of two exports are equal.

Numbers lose what changes nothing of them: 1, 1.0 and 1.00 are `1`. In a column of truth values, true, yes and 1 in any
case are the class `1`, and false, no and 0 the class `0`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bolus.data.text.spelling import MISSING, MissingCodes, as_number, clean_text, spell_number, text_of

_WORDS = {"true": "1", "yes": "1", "1": "1", "false": "0", "no": "0", "0": "0"}
_LETTERS = {"y": "1", "n": "0", "t": "1", "f": "0"}  # of which a column of F alone is one of sexes
_PAIRS = (frozenset("yn"), frozenset("tf"))

DOUBTFUL_WORDS = frozenset({"none", "-", "--", ".", "?", "n.a.", "unknown", "unk"})
"""In lower case: what often means missing, and often enough does not."""


def spell_classes(values: Iterable[object], missing: MissingCodes, *, several: bool) -> list[str | None]:
    """The classes of a column, each in one spelling, None where a value means missing.

    Args:
        values: the different values of the column.
        missing: codes that were declared for it.
        several: a value may join several classes by `|`; those that mean missing are dropped, and doubles.

    Example:
        >>> spell_classes(["True", 0.0, "?"], MissingCodes.of(["?"]), several=False)
        ['1', '0', None]
        >>> spell_classes(["edema | n/a", "2.0|mass", "NA"], MissingCodes(), several=True)
        ['edema', '2|mass', None]
    """
    cells: list[list[str]] = []
    for value in values:
        text = text_of(value)
        parts = text.split("|") if several else [text]
        spelled = [] if text in missing else [spell_number(clean_text(part)) for part in parts]
        cells.append([part for part in dict.fromkeys(spelled) if part not in MISSING and part not in missing])
    if all(len(parts) < 2 for parts in cells):
        truth = truth_values({part for parts in cells for part in parts})
        cells = [[truth.get(part, part) for part in parts] for parts in cells]
    return ["|".join(parts) or None for parts in cells]


def truth_values(classes: Collection[str]) -> dict[str, str]:
    """Class -> `1` or `0`, for a column of truth values; empty for any other.

    All classes but one at most must be words of truth: true, yes, 1, false, no, 0, in any case. The other one must
    stand beside both sides, or be such as `unknown`. The letters y, n, t and f count where there are both of a pair, or
    beside a word; a third class beside letters alone makes them something else, such as sexes.

    Args:
        classes: of the whole column, numbers spelled by `spell_number`.

    Example:
        >>> truth_values(["Yes", "no", "unknown"]), truth_values(["F", "M"]), truth_values(["0", "1", "2"])
        ({'Yes': '1', 'no': '0'}, {}, {'0': '0', '1': '1'})
    """
    lower = {name: name.lower() for name in classes}
    worded = any(name in _WORDS and not name.isdigit() for name in lower.values())
    known = dict(_WORDS)
    for pair in _PAIRS:
        if worded or pair <= set(lower.values()):
            known |= {letter: _LETTERS[letter] for letter in pair}
    found = {name: known[low] for name, low in lower.items() if low in known}
    others = {low for low in lower.values() if low not in known}
    if len(others) > 1:
        return {}
    for other in others:
        by_letters = not worded and any(lower[name] in _LETTERS for name in found)
        expected = other in DOUBTFUL_WORDS or as_number(other) is not None
        if not expected and (by_letters or len(set(found.values())) < 2):
            return {}
    return found


def same_class(wanted: str, classes: Collection[str]) -> str | None:
    """The one of the classes that a person means who spells it in another way, or None.

    >>> same_class("yes", ["0", "1"]), same_class("1.0", ["1", "2"]), same_class("True", ["no", "yes"])
    ('1', '1', 'yes')
    >>> same_class("mild", ["0", "1"]) is None
    True
    """
    text = spell_number(clean_text(wanted))
    if text in classes:
        return text
    truth = {**_WORDS, **_LETTERS}
    meant = truth.get(text.lower())
    fitting = [name for name in classes if meant is not None and truth.get(name.lower()) == meant]
    return fitting[0] if len(fitting) == 1 else None
