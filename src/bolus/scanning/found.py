"""What a finder hands to the frame of a scan: raw rows, what their columns are, and what was left out, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Found:
    """The files of one folder as rows, before anything is made private.

    Args:
        kind: `dicom`, `bids` or `tree`.
        table: one row a file, or a frame or slice of a file where a sample is that. Values are raw. Columns are the
            roles in the field's words: image and mask (absolute paths as text), patient, date (datetime64 or NaT),
            visit, modality, laterality, view_position, region, series, order, slice_position, phase, sex, age (years),
            scanner, site, label:NAME, score:NAME; spacing_row and spacing_column in mm.
        roles: column -> role of cohort.yaml; a column without one is kept without.
        identifying: columns that hold identifiers, which the frame replaces by keyed hashes. Dates always become days.
        left_out: a reason, as a plain sentence without an identifier -> the files left out for it.
        notes: sentences for the report, without an identifier.

    Example:
        >>> Found("tree", pd.DataFrame({"image": ["/a.png"], "patient": ["p"]}), {"image": "image"}, ("patient",)).notes
        ()
    """

    kind: str
    table: pd.DataFrame
    roles: Mapping[str, str]
    identifying: tuple[str, ...]
    left_out: Mapping[str, list[Path]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
