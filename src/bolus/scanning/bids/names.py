"""File names of BIDS: `sub-01_ses-02_acq-fast_T1w.nii.gz` is entities, a suffix and an extension.

The rules are those of the specification, v1.10, "Filenames" and "Entities": https://bids-specification.readthedocs.io.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from bolus.data.pixels.range_rules import rule_of

_PAIR = re.compile(r"([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)")
_SUFFIX = re.compile(r"[a-zA-Z0-9]+")

DATATYPES = frozenset({"anat", "func", "dwi", "fmap", "perf", "pet", "micr", "ct"})
NO_IMAGES = frozenset({"eeg", "ieeg", "meg", "emg", "beh", "motion", "nirs", "mrs"})
_MR = frozenset({"anat", "func", "dwi", "fmap", "perf"})


@dataclass(frozen=True)
class Name:
    """A file name of BIDS.

    Args:
        entities: key -> label, without the keys of a suffix or extension.
        suffix: such as `T1w`; empty where there is none.
        extension: from its first full stop on, such as `.nii.gz`.
    """

    entities: Mapping[str, str]
    suffix: str
    extension: str

    def within(self, other: Name) -> bool:
        """Whether the other has all of these entities and the suffix: then a sidecar of this name is about it."""
        return self.suffix == other.suffix and self.entities.items() <= other.entities.items()


@lru_cache(maxsize=200_000)
def parse_name(filename: str) -> Name | None:
    """The parts of a file name; None where it does not follow BIDS.

    >>> name = parse_name("sub-01_ses-02_T1w.nii.gz")
    >>> name.entities, name.suffix, name.extension
    ({'sub': '01', 'ses': '02'}, 'T1w', '.nii.gz')
    >>> parse_name("T1w.json").entities, parse_name("README"), parse_name("sub-01_my scan.nii")
    ({}, None, None)
    """
    stem, dot, extension = filename.partition(".")
    *pairs, suffix = stem.split("_")
    found: dict[str, str] = {}
    for pair in pairs:
        match = _PAIR.fullmatch(pair)
        if match is None or match[1] in found:
            return None
        found[match[1]] = match[2]
    if not dot or _SUFFIX.fullmatch(suffix) is None:
        return None
    return Name(found, suffix, dot + extension)


def modality_of(suffix: str, datatype: str) -> str:
    """The modality of an image: its suffix where bolus knows how such values become grey, else that of the folder.

    >>> modality_of("T1w", "anat"), modality_of("T2starw", "anat"), modality_of("pet", "pet"), modality_of("BF", "micr")
    ('T1w', 'MR', 'PET', 'BF')
    """
    if datatype == "pet":
        return "PET"
    if rule_of(suffix) != "display":
        return suffix.upper() if suffix.lower() == "ct" else suffix
    return "MR" if datatype in _MR else suffix
