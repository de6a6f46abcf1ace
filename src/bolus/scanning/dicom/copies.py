"""Images that are there twice: by SOPInstanceUID, or by their pixels under another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.scanning.dicom.elements import NotDicomError, TornError, digest_pixels
from bolus.scanning.dicom.series import TOMOGRAPHIC
from bolus.scanning.files import LeftOut

SAME_INSTANCE = "copies of another file (the same SOPInstanceUID)"
SAME_PIXELS = "copies of another image (the same pixels under another SOPInstanceUID)"


def drop_copies(rows: pd.DataFrame, left_out: LeftOut) -> tuple[pd.DataFrame, list[str]]:
    """Each image once: the first by path.

    Pixels are compared by pieces of them, and whole where these are equal. Of CT, MR and PT a series is a copy where
    all of its slices are, so that empty slices stay.

    Args:
        rows: fields of headers, sorted by path.
        left_out: takes the copies.

    Returns:
        The rows that stay, and sentences.
    """
    again = rows["instance"].fillna("").ne("") & rows["instance"].duplicated()
    left_out[SAME_INSTANCE] += [Path(path) for path in rows.loc[again, "image"]]
    rows = rows[~again].reset_index(drop=True)
    series = rows.groupby(["patient", "series"], sort=False, dropna=False).ngroup().to_numpy()
    sliced = rows["modality"].fillna("").str.upper().isin(TOMOGRAPHIC).to_numpy()
    group = np.where(sliced, series, len(rows) + np.arange(len(rows)))
    alike = _alike(group, rows["fingerprint"].fillna(""))
    candidates = np.isin(group, alike)
    digests = pd.Series([_digest(path) for path in rows.loc[candidates, "image"]], dtype=object)
    whole = _join(group[candidates], digests)
    gone = np.isin(group, whole.index[whole.duplicated() & (whole != "")])
    left_out[SAME_PIXELS] += [Path(path) for path in rows.loc[gone, "image"]]
    people = pd.Series(rows["patient"].to_numpy(), index=group)
    owners = pd.DataFrame({"whole": whole, "patient": people[~people.index.duplicated()].reindex(whole.index)})
    shared = owners[owners["whole"] != ""].groupby("whole")["patient"].nunique()
    notes = []
    if (shared > 1).any():
        notes.append(f"{int((shared > 1).sum()):,} images or series stand under several patients; each was taken once.")
    return rows[~gone].reset_index(drop=True), notes


def _join(group: np.ndarray[Any, Any], texts: pd.Series[Any]) -> pd.Series[Any]:
    """The sorted texts of each group as one, empty where one of them is."""
    held = pd.DataFrame({"group": group, "text": texts.to_numpy(dtype=object)}).sort_values(["group", "text"])
    joined = held.groupby("group")["text"].agg("|".join)
    joined[held[held["text"] == ""]["group"].unique()] = ""
    return joined


def _alike(group: np.ndarray[Any, Any], prints: pd.Series[Any]) -> np.ndarray[Any, Any]:
    """Groups whose fingerprints are those of another group."""
    whole = _join(group, prints)
    return whole.index[(whole != "") & whole.duplicated(keep=False)].to_numpy()


def _digest(path: Any) -> str:
    """Of all pixels; empty where they cannot be read, which is like nothing."""
    try:
        return digest_pixels(path)
    except (OSError, NotDicomError, TornError):
        return ""
