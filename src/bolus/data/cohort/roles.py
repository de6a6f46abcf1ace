"""The roles a column can have, what kind of value each holds, and the names people give such columns."""

from __future__ import annotations

from collections.abc import Iterable

# Roles whose values are categories become codes; those in NUMBERS become floats.
CATEGORIES = ("patient", "modality", "laterality", "view_position", "region", "series", "phase", "site", "split")
NUMBERS = ("visit", "time", "order", "slice_position")
PATHS = ("image", "mask")
IDENTIFYING = (*PATHS, "patient", "series", "site")
"""Roles whose values lead to a person or a place: paths, and what `bolus scan` hashes. Dates do in any role."""
NAMED = ("score:", "label:", "attribute:")
DEFAULT_MODALITY = "image"  # of rows whose modality the table does not say
BIN = "bin:"  # before the role of a number: the bin that the number falls into; no column has such a role of its own

# Compared in lower case without spaces and punctuation; the first name that the table has wins.
CONVENTIONAL_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "imagepath", "path", "filepath", "filename", "file", "imageindex", "img"),
    "mask": ("mask", "maskpath", "segmentation", "seg"),
    "patient": ("patient", "patientid", "subject", "subjectid", "participant", "participantid"),
    "visit": ("visit", "visitid", "followup", "followupnumber", "session"),
    "time": ("time", "days", "date", "studydate", "acquisitiondate"),
    "modality": ("modality",),
    "laterality": ("laterality", "eye", "side"),
    "view_position": ("viewposition", "view"),
    "region": ("region", "zone", "bodypart", "bodypartexamined"),
    "series": ("series", "seriesid", "seriesinstanceuid", "video", "volume", "clip"),
    "order": ("order", "slice", "sliceindex", "instancenumber", "frame"),
    "slice_position": ("sliceposition", "pos"),
    "phase": ("phase",),
    "site": ("site", "hospital", "institution", "center", "centre"),
    "split": ("split",),
    "attribute:sex": ("sex", "gender", "patientgender", "patientsex"),
    "attribute:age": ("age", "patientage"),
    "attribute:scanner": ("scanner", "manufacturermodelname"),
}


def known_roles() -> list[str]:
    """Every role; those with NAME take a name of their own, and ROLE is a role whose values are numbers.

    >>> "score:NAME" in known_roles(), known_roles()[-1]
    (True, 'bin:ROLE')
    """
    return [*PATHS, *CATEGORIES, *NUMBERS, *(f"{prefix}NAME" for prefix in NAMED), f"{BIN}ROLE"]


def is_role(role: str) -> bool:
    """Whether this is a role; of an attribute that is to be cut into bins, its values must yet prove to be numbers.

    >>> is_role("score:age"), is_role("score:"), is_role("view"), is_role("bin:score:age"), is_role("bin:region")
    (True, False, False, True, False)
    """
    cut = binned_role(role)
    if cut is not None:
        return is_role(cut) and (is_number_role(cut) or cut.startswith("attribute:"))
    return role in PATHS + CATEGORIES + NUMBERS or any(role.startswith(n) and len(role) > len(n) for n in NAMED)


def binned_role(role: str) -> str | None:
    """The role that is cut into bins, or None where none is.

    >>> binned_role("bin:slice_position"), binned_role("slice_position")
    ('slice_position', None)
    """
    return role.removeprefix(BIN) if role.startswith(BIN) else None


def is_number_role(role: str) -> bool:
    """Whether the role's values are numbers wherever they are not missing.

    >>> [is_number_role(role) for role in ("visit", "score:mmse", "label:edema", "bin:visit")]
    [True, True, False, False]
    """
    return role in NUMBERS or role.startswith("score:")


def infer_roles(columns: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Roles from conventional column names; a column that was given a role by hand is left alone.

    >>> infer_roles(["Image Index", "patient_id", "view", "shoe size"], set())
    {'image': 'Image Index', 'patient': 'patient_id', 'view_position': 'view'}
    """
    plain = {"".join(c for c in str(column).lower() if c.isalnum()): str(column) for column in columns}
    found = {}
    for role, names in CONVENTIONAL_NAMES.items():
        for name in names:
            if name in plain and plain[name] not in taken:
                found[role] = plain[name]
                break
    return found
