"""The columns of a cohort from the fields of headers, and where two fields of one fact disagree."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.text.identifiers import identifier_text
from bolus.scanning.dicom.stacks import numbers_of
from bolus.scanning.dicom.words import (
    EYE_MODALITIES,
    RADIOGRAPH,
    RADIOGRAPHS,
    age_of,
    dates_of,
    each,
    guess_side,
    phase_of,
    region_of,
    scanner_of,
    sex_of,
    sides_of,
    view_of,
)

_YEAR = 365.2425
_TELLS = ("US", "IVUS", "SC", "ES", "XC", "RF", "XA", "GM", "OT")  # modalities whose pixels often hold text

Notes = list[str]


def make_facts(
    rows: pd.DataFrame, *, guess: bool = False, keep_radiographs: bool = False
) -> tuple[pd.DataFrame, Notes]:
    """What each file says of its image.

    Args:
        rows: fields of headers, one row a file, with `image`, the path.
        guess: take sides from ProtocolName and SeriesDescription where no field of sides says them.
        keep_radiographs: CR, DX and RG stay modalities of their own, and do not become XR.

    Returns:
        Columns as `bolus.scanning.found.Found` names them, with birth, study, accession and instance; and sentences.
    """
    made, notes = pd.DataFrame({"image": rows["image"]}), Notes()
    made["patient"] = each(rows["patient"], identifier_text)
    for name in ("study", "accession", "instance"):
        made[name] = rows[name]
    made["date"] = _first_date(rows, notes)
    made["modality"] = each(rows["modality"], str.upper)
    odd = made["modality"].isin(RADIOGRAPHS)
    if odd.any() and not keep_radiographs:
        kinds = " and ".join(sorted(set(made.loc[odd, "modality"])))
        made.loc[odd, "modality"] = RADIOGRAPH
        notes.append(f"modality: {kinds} are {RADIOGRAPH}, one kind of radiograph; --keep-modalities tells them apart.")
    made["laterality"] = _side(rows, notes, guess=guess)
    views = each(rows["view"], view_of)
    made["view_position"] = views.where(views.notna(), each(rows["view_code"], view_of))
    regions = each(rows["body_part"], region_of)
    made["region"] = regions.where(regions.notna(), each(rows["region_code"], region_of))
    _untold(rows, "body_part", made["region"], "region", notes)
    _untold(rows, "view", made["view_position"], "view_position", notes)
    made["phase"] = phase_of(rows)
    made["sex"] = each(rows["sex"], sex_of)
    made["birth"] = dates_of(rows["birth"])
    made["age"] = _age(rows, made, notes)
    made["scanner"] = each(rows["model"], scanner_of)
    made["site"] = each(rows["site"], scanner_of)
    spacing = numbers_of(rows["spacing"].where(rows["spacing"].notna(), rows["spacing_at_detector"]), 2)
    made["spacing_row"], made["spacing_column"] = spacing[:, 0], spacing[:, 1]
    made["burned_in"] = _burned(rows, made["modality"], notes)
    return made, notes


def _first_date(rows: pd.DataFrame, notes: Notes) -> pd.Series[Any]:
    """StudyDate, else the date of the series, the acquisition or the content."""
    fields = ("study_date", "series_date", "acquisition_date", "content_date")
    dates = [dates_of(rows[name]) for name in fields]
    found, other = dates[0], 0
    for each_date in dates[1:]:
        missing = found.isna() & each_date.notna()
        other += int(missing.sum())
        found = found.where(~missing, each_date)
    apart = (dates[0] - dates[2]).abs() > pd.Timedelta(days=1)
    if other:
        notes.append(f"time: {other:,} files have no StudyDate; another date of theirs was taken.")
    if apart.any():
        notes.append(f"time: in {int(apart.sum()):,} files StudyDate and AcquisitionDate are more than a day apart; "
                     "StudyDate was taken.")  # fmt: skip
    if found.isna().any():
        notes.append(f"time: {int(found.isna().sum()):,} files have no date that can be read.")
    return found


def _side(rows: pd.DataFrame, notes: Notes, *, guess: bool) -> pd.Series[Any]:
    """ImageLaterality, that of frames, else that of the series; missing where they disagree."""
    sides = [sides_of(rows[name]) for name in ("image_laterality", "frame_laterality", "laterality")]
    found, wrong = sides[0], pd.Series(False, index=rows.index)
    for side in sides[1:]:
        wrong |= found.notna() & side.notna() & (found != side)
        found = found.where(found.notna(), side)
    found = found.where(~wrong, None)
    if wrong.any():
        notes.append(f"laterality: {int(wrong.sum()):,} files name two sides in two fields; it is missing there.")
    told = _told_side(rows, "protocol")
    told = told.where(told.notna(), _told_side(rows, "series_description"))
    against = found.notna() & told.notna() & (found != told)
    if against.any():
        notes.append(f"laterality: in {int(against.sum()):,} files the description names the other side than the field "
                     "of the side; the field was taken.")  # fmt: skip
    more = found.isna() & told.notna() & ~wrong
    if more.any() and guess:
        found = found.where(~more, told)
        notes.append(f"laterality: guessed from descriptions in {int(more.sum()):,} files.")
    elif more.any():
        notes.append(
            f"laterality: {int(more.sum()):,} files name it in descriptions only; --guess takes it from there."
        )
    return found


def _told_side(rows: pd.DataFrame, field: str) -> pd.Series[Any]:
    """The side that a description names; OS and OD are one where the image is of an eye."""
    eyes = each(rows["modality"], str.upper).isin(EYE_MODALITIES)
    eyes |= each(rows["body_part"], region_of).isin(("eye", "retina"))
    return each(rows[field], guess_side).where(~eyes, each(rows[field], partial(guess_side, eye=True)))


def _age(rows: pd.DataFrame, made: pd.DataFrame, notes: Notes) -> pd.Series[Any]:
    """PatientAge in years, else from birth to study."""
    stated = pd.to_numeric(each(rows["age"], age_of), errors="coerce").astype(np.float64)
    since = (made["date"] - made["birth"]).dt.days / _YEAR
    counted = since.where((since >= 0) & (since <= 130))
    apart = (stated - counted).abs() > 1.5  # years: ages are whole, and may be of another day than the study
    if apart.any():
        notes.append(f"age: in {int(apart.sum()):,} files PatientAge is not what birth and study date say; "
                     "PatientAge was taken.")  # fmt: skip
    more = stated.isna() & counted.notna()
    if more.any():
        notes.append(f"age: from birth and study date in {int(more.sum()):,} files without PatientAge.")
    return stated.where(~more, np.floor(counted))


def _untold(rows: pd.DataFrame, field: str, found: pd.Series[Any], role: str, notes: Notes) -> None:
    lost = int((rows[field].fillna("") != "").sum() - (found.notna() & (rows[field].fillna("") != "")).sum())
    if lost:
        notes.append(f"{role}: {lost:,} files have another text than DICOM's codes there, which is not kept.")


def _burned(rows: pd.DataFrame, modality: pd.Series[Any], notes: Notes) -> pd.Series[Any]:
    """`yes` as stated, `possible` by the modality, `no` as stated, missing where nothing is known."""
    stated = each(rows["burned_in"], lambda text: {"YES": "yes", "NO": "no"}.get(text.upper()))
    found = stated.where(stated.notna() | ~modality.isin(_TELLS), "possible")
    for value, why in (("yes", "by their headers"), ("possible", "usual for their modality; the headers do not say")):
        if number := int((found == value).sum()):
            notes.append(f"burned_in: {number:,} files may show text, such as names, in their pixels ({why}); look at "
                         "them with bolus check --thumbnails.")  # fmt: skip
    faces = (rows["features"].fillna("").str.upper() == "YES").sum()
    if faces:
        notes.append(f"{int(faces):,} files show a face or what else makes a person known, by their headers.")
    return found
