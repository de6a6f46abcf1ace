"""What the images of a cohort are: single ones, slices or clips; how large, and how they may be varied."""

from __future__ import annotations

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.roles import DEFAULT_MODALITY
from bolus.data.images.clips import rows_are_files
from bolus.data.readers.own import open_readers
from bolus.data.readers.readers import count_frames, read_image
from bolus.data.volumes.depth import few, why_volumes
from bolus.errors import BolusError

LOOKED = 16  # images whose size and channels are looked at
# DICOM's codes of modalities, and the words that tables have for them.
PRESETS = {
    "xray": ("cr", "dx", "dr", "mg", "xr", "rf", "px", "xray", "xrays"),
    "mri": ("mr", "mri", "ct", "pt", "nm", "pet"),
    "ultrasound": ("us", "ivus", "ultrasound", "echo", "bus"),
    "fundus": ("op", "opt", "fundus", "cfp", "xc"),
}
# Of these an image stands alone, though DICOM numbers the images of a series.
ALONE = frozenset({"cr", "dx", "dr", "mg", "xr", "px", "xray", "xrays", "op", "fundus", "cfp"})


def suggest_unit(cohort: Cohort) -> tuple[str, str]:
    """The unit that cohort.yaml states, else the one that the columns and a few files suggest; and why.

    Args:
        cohort: with its columns.

    Returns:
        `image`, `slice`, `clip` or `volume`, and a sentence.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> frame = pd.DataFrame({"image": ["a", "b"], "patient": ["p", "q"], "slice": [1, 2]})
        >>> suggest_unit(Cohort(frame, CohortSpec(table="t.csv")))
        ('slice', 'Rows have places in their volumes.')
    """
    if cohort.spec.unit is not None:
        return cohort.spec.unit, "cohort.yaml says so."
    if why := why_volumes(cohort):
        return "volume", why
    roles, several = set(cohort.roles), len(set(cohort.modalities)) > 1
    numbers = _frames(cohort) if rows_are_files(cohort) else []
    if sum(number > 1 for number in numbers) > len(numbers) / 2:
        return "clip", "A row is a file of several frames."
    if stand_alone(cohort):
        return "image", "A row is an image: those of this modality stand alone."
    # Where modalities differ, places in a volume are not all that rows differ by.
    if cohort.has("slice_position") and ({"mask", "slice_position"} & roles or "series" not in roles) and not several:
        return "slice", "Rows have places in their volumes."
    if {"series", "order"} <= roles and not numbers:
        return "clip", "Rows are frames, in order, of series; for slices of volumes say --unit slice."
    return "image", "A row is an image; no columns say that rows are slices of a volume or frames of a clip."


def stand_alone(cohort: Cohort) -> bool:
    """Whether images are no slices or frames of anything, by the modality column: an order but numbers them then.

    Args:
        cohort: whose columns; one that says places in volumes is believed.
    """
    said = _modalities(cohort)
    return bool(said) and said <= ALONE and "slice_position" not in cohort.roles


def _frames(cohort: Cohort) -> list[int]:
    """How many frames a few files have, but for those that cannot be read."""
    found, readers = [], open_readers(cohort.spec.readers)
    for row in _few(cohort):
        try:
            found.append(count_frames(cohort.image_path(row), readers))
        except BolusError:
            continue
    return found


def _few(cohort: Cohort) -> list[int]:
    """Rows whose images are looked at."""
    return few(len(cohort), LOOKED)


def _modalities(cohort: Cohort) -> set[str]:
    """As the modality column says them, but for case, hyphens and spaces; none where it says nothing."""
    said = set(cohort.modalities) - {DEFAULT_MODALITY}
    return {name.lower().replace("-", "").replace(" ", "") for name in said}


def look_at(samples: Samples) -> tuple[int, int]:
    """Channels for an encoder, and the shorter side of the smallest of a few images in pixels; 0 if all are unread.

    Args:
        samples: any rows of their cohort are looked at.
    """
    cohort, channels, sides = samples.cohort, 1, []
    readers = open_readers(cohort.spec.readers)
    for row in _few(cohort):
        path, frame = cohort.image_path(row), cohort.frame(row)
        try:
            if samples.unit == "volume" and frame is None and count_frames(path, readers) > 1:
                frame = 0  # one slice says enough
            image = read_image(path, frame=frame, readers=readers)
        except BolusError:
            continue
        channels = 3 if image.array.shape[0] == 3 else channels
        sides.append(min(image.array.shape[-2:]))
    return channels, min(sides, default=0)


def choose_preset(samples: Samples) -> tuple[str, str]:
    """How images may be varied, by what the modality column says, and why.

    Args:
        samples: of the unit that is trained on.
    """
    said = _modalities(samples.cohort)
    if samples.unit == "volume":
        return _preset_of_volumes(said)
    found = [preset for preset, codes in PRESETS.items() if said & set(codes)]
    if len(found) == 1 and said <= set(PRESETS[found[0]]):
        return found[0], "By the modality column."
    if samples.cohort.has("laterality") and samples.unit == "image" and not found:
        return "fundus", "A guess, from sides and no known modality: xray, ultrasound, mri or none fit other images."
    if samples.unit == "slice" and not found:
        return "mri", "A guess, from slices of volumes: xray, fundus, ultrasound or none fit other images."
    if samples.unit == "clip" and not found:
        return "ultrasound", "A guess, from clips: xray, fundus, mri or none fit other images."
    which = "several kinds of image: modalities.NAME.augment sets another for one of them" if found else "no column"
    return found[0] if found else "xray", f"A guess, from {which}: fundus, ultrasound, mri or none fit other images."


def _preset_of_volumes(said: set[str]) -> tuple[str, str]:
    """How volumes may be varied, by their modalities."""
    if said == {"ct"}:
        return "ct", "By the modality column."
    if said and said <= {"mr", "mri", "t1w", "t2w", "pdw", "flair"}:
        return "brain_mri", "By the modality column; of bodies too, but for tilt: 5, and without flips of any axis."
    which = "several kinds of volume: modalities.NAME.augment sets another for one of them" if said else "no column"
    return ("ct" if "ct" in said else "brain_mri"), f"A guess, from {which}: ct, brain_mri or none fit other volumes."
