"""JSON sidecars and their inheritance: what stands in a folder holds for all files below it that its name fits.

"The Inheritance Principle" of the specification: a sidecar is about a file if it lies in the file's folder or in one
above it, has the file's suffix, and no entity that the file lacks or has with another label. Of several, the values of
the lower folder win.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bolus.data.text.spelling import text_of
from bolus.scanning.bids.names import Name, parse_name

Keys = dict[str, Any]


class Sidecars:
    """The sidecars of a data set, each read once.

    Args:
        root: folder of the data set; nothing above it counts.
        files: of the data set; those that end in `.json` are looked at.
    """

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        self.root = root
        self.unreadable: list[Path] = []
        self._in: dict[Path, list[tuple[Name, Path]]] = defaultdict(list)
        self._read: dict[Path, Keys] = {}
        for path in files:
            name = parse_name(path.name) if path.suffix == ".json" else None
            if name is not None:
                self._in[path.parent].append((name, path))

    def of(self, path: Path, name: Name) -> Keys:
        """All keys that hold for a file, each with the value of the lowest folder that has it."""
        found: Keys = {}
        folders = [folder for folder in path.parents if folder == self.root or self.root in folder.parents]
        for folder in reversed(folders):
            fitting = [(len(each.entities), where) for each, where in self._in.get(folder, []) if each.within(name)]
            for _, where in sorted(fitting):  # of several in one folder, the one with the most entities wins
                found |= self._keys(where)
        return found

    def _keys(self, path: Path) -> Keys:
        if path not in self._read:
            try:
                read = json.loads(path.read_text(encoding="utf-8-sig"))
            except (OSError, ValueError):
                read = None
            if not isinstance(read, dict):
                self.unreadable.append(path)
                read = {}
            self._read[path] = read
        return self._read[path]


def first_text(keys: Keys, *names: str) -> str:
    """The first of these keys that holds a text or number, as clean text; else nothing.

    >>> first_text({"BodyPart": "n/a", "BodyPartExamined": "BRAIN"}, "BodyPart", "BodyPartExamined")
    'BRAIN'
    """
    texts = (text_of(keys[name]) for name in names if isinstance(keys.get(name), str | int | float))
    return next(filter(None, texts), "")
