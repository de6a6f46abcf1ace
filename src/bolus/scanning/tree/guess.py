"""The pattern of a regular tree, guessed from its paths, and said; an irregular one is not guessed.

Nothing is guessed file by file: a level of folders, or a place in names that are cut at `_`, `-` or spaces, is one
thing in the whole tree. The patient is the uppermost level, or else the first place, whose names have digits and come
back, unless they are those of batches or years. Where names below it may be the patients as well, nothing is guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bolus.data.text.spelling import shape_of
from bolus.errors import CohortError
from bolus.scanning.tree.pattern import EXAMPLE, split_extension
from bolus.scanning.tree.words import looks_like

REGULAR = 0.9  # of the paths that have the same number of folders, and of the names with the same number of places
MOST_LABELS = 20
PATIENTS_A_LABEL = 4  # on average at least, else the names may be those of persons
FAR_MORE = 5  # names for each of a level above, from which on these, and not that level, may be the patients
ANEW = 1.5  # folders on average that a name stands in, from which on names begin anew in each
KNOWN = ("split", "laterality", "date", "visit", "modality", "view_position", "site")
MOST_ALONE = 0.8  # patients for each image, above which irregular names hardly begin with the patient
ANY = "{*}"


class Guess(NamedTuple):
    """A guessed pattern, and what is said of it; no name of a folder or file is."""

    text: str
    notes: tuple[str, ...]


def guess_pattern(paths: Sequence[str]) -> Guess:
    """The pattern of a tree.

    Args:
        paths: of images, relative to its root, with forward slashes.

    Raises:
        CohortError: the tree is not regular, or no part of it looks like patients.

    Example:
        >>> paths = [f"p{n}_V{visit}_{eye}.png" for n in range(4) for visit in (1, 2) for eye in ("OD", "OS")]
        >>> guess_pattern(paths).text
        '{patient}_{visit}_{laterality}'
    """
    stems = [split_extension(path)[0].split("/") for path in paths]
    depth, count = Counter(map(len, stems)).most_common(1)[0]
    if count < REGULAR * len(stems):
        raise _irregular(paths, "the images lie at several depths of folders")
    stems = [parts for parts in stems if len(parts) == depth]
    separator, number = _find_separator([parts[-1] for parts in stems])
    cut = [[*parts[:-1], *(parts[-1].split(separator) if separator else parts[-1:])] for parts in stems]
    columns = list(zip(*(parts for parts in cut if len(parts) == depth - 1 + number), strict=True))
    levels, roles = depth - 1, [looks_like(set(column)) for column in columns]

    made = [f"{{{role}}}" if role in KNOWN and roles.index(role) == place else ANY for place, role in enumerate(roles)]
    made = [ANY if part == "{split}" and place >= levels else part for place, part in enumerate(made)]
    patient = _find_patient(columns, roles, levels)
    if patient is None:
        first = [parts[-1].partition("_")[0] for parts in stems]
        parted = sum("_" in parts[-1] for parts in stems) >= REGULAR * len(stems)
        if separator or not parted or not _come_back(first):
            above = "".join(f"{part}/" for part in made[:levels])
            raise _irregular(paths, "no part of folders or names comes back as patients do", above)
        patients, names, made[-1] = first, "{patient}_{image}", "{image}"
    else:
        if patient < levels and _may_be_below(columns, roles, levels, patient):
            raise _irregular(paths, f"folders of level {patient + 1} may be patients, or hold many of them")
        patients = list(columns[patient])
        made = ["{patient}" if list(column) == patients else part for part, column in zip(made, columns, strict=True)]
        names = _join(made, roles, levels, separator)
    for level in range(levels if patient is None or patient >= levels else patient):
        if roles[level] == "word":
            if "{label:finding}" in made or not _are_labels(columns[level], patients[: len(columns[level])]):
                raise _irregular(paths, f"folders of level {level + 1} may be persons, classes or something else")
            made[level] = "{label:finding}"
    return _describe("/".join([*made[:levels], names]), made, roles, levels, columns, len(set(patients)))


def _come_back(names: Sequence[str]) -> bool:
    """Whether names are identifiers that most often stand several times."""
    return looks_like(set(names)) == "identifier" and 1 < len(set(names)) < MOST_ALONE * len(names)


def _find_patient(columns: Sequence[Sequence[str]], roles: Sequence[str], levels: int) -> int | None:
    """The uppermost level of folders whose names are identifiers, else the first such part of names that comes back."""
    found = [place for place, role in enumerate(roles) if role == "identifier"]
    if not found or found[0] < levels:
        return found[0] if found else None
    column = columns[found[0]]
    parted = len(columns) - levels > 1  # whole names that come back are numbers, each folder's from 1 on
    return found[0] if parted and len(set(column)) < len(column) else None


def _may_be_below(columns: Sequence[Sequence[str]], roles: Sequence[str], levels: int, patient: int) -> bool:
    """Whether folders below a level, or first parts of names that come back, are far more identifiers than it has.

    Numbers that begin anew in each of its folders are none.
    """
    above = columns[patient]
    for place in range(patient + 1, levels + (len(columns) - levels > 1)):
        below = columns[place]
        kinds, pairs = len(set(below)), len(set(zip(above, below, strict=False)))
        comes_back = place < levels or kinds < len(below)
        apart = pairs < ANEW * kinds and kinds >= FAR_MORE * len(set(above))
        if roles[place] == "identifier" and comes_back and apart:
            return True
    return False


def _join(made: list[str], roles: Sequence[str], levels: int, separator: str) -> str:
    """The part of the pattern for names: `{image}` where they only say which image of the patient it is."""
    names = made[levels:]
    if all(part in (ANY, "{patient}") for part in names) and "{patient}" in made[:levels]:
        made[levels:] = ["{image}"] * len(names)
        return "{image}"
    told = [place for place, part in enumerate(names) if part == ANY and roles[levels + place] != "constant"]
    if told == [len(names) - 1]:  # numbers the images of what stands before it
        made[-1] = names[-1] = "{image}"
    return separator.join(names)


def _are_labels(names: Sequence[str], patients: Sequence[str]) -> bool:
    """Whether folders above patients are classes: few, of several patients each."""
    pairs = Counter(name for name, _ in set(zip(names, patients, strict=False)))
    return len(pairs) <= MOST_LABELS and min(pairs.values()) > 1 and pairs.total() >= PATIENTS_A_LABEL * len(pairs)


def _describe(
    text: str, made: Sequence[str], roles: Sequence[str], levels: int, columns: Sequence[Sequence[str]], patients: int
) -> Guess:
    """The pattern with what is said of it."""
    said = [f"{patients:,} patients"]
    said += [
        f"{len(set(column)):,} folders as {part}" for part, column in zip(made, columns, strict=True) if ":" in part
    ]
    notes = [f"The pattern was guessed: {text} ({', '.join(said)}); --pattern says another one."]
    if "{label:finding}" in made:
        notes.append("Names of folders stand in the table as classes; if they name persons, say another --pattern.")
    untold = [place for place, part in enumerate(made) if part == ANY and roles[place] != "constant"]
    if untold:
        where = [f"folders of level {n + 1}" if n < levels else f"part {n - levels + 1} of the names" for n in untold]
        notes.append(f"{{*}} is not kept ({', '.join(where)}); if it means something, name it in --pattern.")
    return Guess(text, tuple(notes))


def _find_separator(names: Sequence[str]) -> tuple[str, int]:
    """The first separator that cuts nearly all names into one number of parts, and that number; else none, and 1."""
    for separator in "_- ":
        number, count = Counter(name.count(separator) + 1 for name in names).most_common(1)[0]
        if number > 1 and count >= REGULAR * len(names):
            return separator, number
    return "", 1


def _irregular(paths: Sequence[str], why: str, above: str = "") -> CohortError:
    shapes = Counter(shape_of(path) for path in paths).most_common(2)
    shown = " and ".join(repr(shape) for shape, _ in shapes)
    return CohortError(
        f"the paths do not say which image is of which patient: {why}. They look like {shown} (a for letters, 9 for "
        f"digits). Say what their parts are, such as --pattern {EXAMPLE}; or where each image is of a patient of its "
        f"own, --pattern '{above}{{patient}}'"
    )
