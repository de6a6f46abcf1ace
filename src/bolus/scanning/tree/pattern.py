"""Patterns such as `{label:finding}/{patient}/{image}`: what the folders and names of a tree say of its images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from bolus.data.cohort.roles import CATEGORIES, CONVENTIONAL_NAMES, NAMED, NUMBERS, infer_roles, is_role
from bolus.data.images.file_names import EXTENSIONS
from bolus.errors import UsageError, suggest

EXAMPLE = "'{label:finding}/{patient}/{image}'"
_PART = re.compile(r"\{([^{}]*)\}")
_SKIP = "*"
_COUNTED = frozenset({"order", "slice_position"})


@dataclass(frozen=True)
class Pattern:
    """A compiled pattern.

    Args:
        text: as it was given.
        regex: of a whole path without its extension.
        columns: group of the expression -> column.
        extension: that files must have; empty where any will do.
    """

    text: str
    regex: re.Pattern[str]
    columns: Mapping[str, str]
    extension: str

    def match(self, path: str) -> dict[str, str] | None:
        """Column -> what a path says, without `image`; None where it does not fit.

        Args:
            path: relative to the root of the tree, with forward slashes.
        """
        stem, extension = split_extension(path)
        if self.extension and extension.lower() != self.extension:
            return None
        found = self.regex.fullmatch(stem)
        if found is None:
            return None
        return {column: found[group] for group, column in self.columns.items() if column != "image"}

    def without(self, path: str, column: str) -> str:
        """A path that fits, with nothing in the place of a column: what all frames of a series have in common.

        >>> compile_pattern("{patient}/x_{order}").without("p7/x_010.png", "order")
        'p7/x_.png'
        """
        stem, extension = split_extension(path)
        found = self.regex.fullmatch(stem)
        group = next(name for name, known in self.columns.items() if known == column)
        assert found is not None, "only of a path that fits"
        return stem[: found.start(group)] + stem[found.end(group) :] + extension


def compile_pattern(text: str, *, strict: bool = False) -> Pattern:
    """A pattern from its text.

    Folders are set apart by `/`. `{ROLE}` stands for a part of a path, `{*}` for one that says nothing, everything else
    for itself. A path fits as a whole, without its extension. A part of a name holds none of the characters `_`, `-`,
    `.` and the like that stand beside it, but for `{image}`, and in a name without it the first part. A role that
    stands twice must be the same text in both places.

    Args:
        text: of the pattern.
        strict: the first part is as the others, so that a name with more parts than the pattern does not fit.

    Raises:
        UsageError: an unknown role, two parts with nothing between them, a bracket without its other one, or no
            patient.

    Example:
        >>> compile_pattern("{label:finding}/{patient}/{image}").match("edema/p7/left_1.png")
        {'label:finding': 'edema', 'patient': 'p7'}
        >>> compile_pattern("{subject}_{visit}_{side}").match("a_12_V2_OD.nii.gz")
        {'patient': 'a_12', 'visit': 'V2', 'laterality': 'OD'}
        >>> compile_pattern("{patient}/{*}_f{order}.png").match("p7/x_y_f010.png")
        {'patient': 'p7', 'order': '010'}
    """
    stem, extension = split_extension(text.strip().lstrip("/"))
    columns: dict[str, str] = {}
    made = [_segment(segment, text, columns, strict) for segment in stem.split("/")]
    if "patient" not in columns.values():
        raise UsageError(f"--pattern {text}: no part is the patient; expected one such as {EXAMPLE}")
    return Pattern(text, re.compile("/".join(made)), columns, extension.lower())


def split_extension(path: str) -> tuple[str, str]:
    """A path without the extension of an image, and that extension.

    >>> split_extension("p/brain.nii.gz"), split_extension("p/1.2.840")
    (('p/brain', '.nii.gz'), ('p/1.2.840', ''))
    """
    extension = next((each for each in EXTENSIONS if path.lower().endswith(each)), "")
    return path[: len(path) - len(extension)], path[len(path) - len(extension) :]


def relative(path: PurePath, root: PurePath) -> str:
    """A path below the root, with forward slashes."""
    return path.relative_to(root).as_posix()


def column_of(word: str, text: str) -> str:
    """The column that a word in brackets stands for; `side` is laterality, as in a table.

    Raises:
        UsageError: no such role.

    Example:
        >>> column_of("side", ""), column_of("subject", ""), column_of("age", ""), column_of("label:x", "")
        ('laterality', 'patient', 'age', 'label:x')
    """
    short = {"sex", "age", "scanner"}
    if word in {*CATEGORIES, *NUMBERS, "image", "date", *short} - {"time"}:
        return word
    if word.startswith(NAMED) and is_role(word):
        return word
    role = next(iter(infer_roles([word], set())), "")
    name = "date" if role == "time" else role.removeprefix("attribute:")
    if name and name != "mask":
        return name
    known = [*CONVENTIONAL_NAMES, *(f"{prefix}NAME" for prefix in NAMED), "date", _SKIP]
    raise UsageError(f"--pattern {text}: unknown role {word!r}; {suggest(word, set(known) - {'mask', 'time'})}")


def _segment(segment: str, text: str, columns: dict[str, str], strict: bool) -> str:
    """The expression of a folder or file name; `columns` takes its groups."""
    pieces = _PART.split(segment)  # text, word, text, word, ... text
    if any("{" in piece or "}" in piece for piece in pieces[::2]):
        raise UsageError(f"--pattern {text}: a bracket without its other one; expected one such as {EXAMPLE}")
    if any(not piece for piece in pieces[2:-2:2]):
        raise UsageError(f"--pattern {text}: two parts with nothing between them, which cannot be told apart")
    words = [word.strip() for word in pieces[1::2]]
    named = [word if word == _SKIP else column_of(word, text) for word in words]
    greedy = None if strict or "image" in named else 0
    made = re.escape(pieces[0])
    for place, column in enumerate(named):
        before, after = pieces[2 * place], pieces[2 * place + 2]
        held = "".join(sorted({c for c in before[-1:] + after[:1] if not c.isalnum()}))
        if column == "image" or place == greedy:
            expression = "[^/]+"
        elif column in _COUNTED:
            expression = r"[0-9]+(?:\.[0-9]+)?"
        else:
            expression = f"[^/{re.escape(held)}]+?"
        group = next((name for name, known in columns.items() if known == column), "")
        if column == _SKIP:
            made += f"(?:{expression})"
        elif group:
            made += f"(?P={group})"
        else:
            group = f"g{len(columns)}"
            columns[group] = column
            made += f"(?P<{group}>{expression})"
        made += re.escape(after)
    return made
