"""What a hazard is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Hazard:
    """One thing that is wrong, or dangerous, with learning a column.

    Args:
        role: of the column.
        kind: `leak` (it tells the split), `shortcut` (it says how the image was made, gives a label away, or is a label
            that follows such a column), `unique` (another value in each sample), `identifier` (in each patient),
            `constant`, `missing`, `doubtful` (a value may mean missing), or `copy` (of another column).
        sentence: what was found, with numbers, and what to do; never a value that may name a patient.
        refuses: the column must not be learnt; else it may be, with care.
    """

    role: str
    kind: Literal["leak", "shortcut", "unique", "identifier", "constant", "missing", "doubtful", "copy"]
    sentence: str
    refuses: bool
