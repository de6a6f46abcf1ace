"""The roles a column can have, what kind of value each holds, and the names people give such columns."""

from __future__ import annotations

from collections.abc import Iterable

# Roles whose values are categories become codes; those in NUMBERS become floats.
CATEGORIES = ("patient", "modality", "laterality", "view_position", "region", "series", "phase", "site", "split")
NUMBERS = ("visit", "time", "order", "slice_position")
PATHS = ("image", "mask")
NAMED = ("score:", "label:", "attribute:")

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
    """Every role; the last three take a name of their own.

    >>> "score:NAME" in known_roles()
    True
    """
    return [*PATHS, *CATEGORIES, *NUMBERS, *(f"{prefix}NAME" for prefix in NAMED)]


def is_role(role: str) -> bool:
    """Whether this is a role.

    >>> is_role("score:age"), is_role("score:"), is_role("view")
    (True, False, False)
    """
    return role in PATHS + CATEGORIES + NUMBERS or any(role.startswith(n) and len(role) > len(n) for n in NAMED)


def is_number_role(role: str) -> bool:
    """Whether the role's values are numbers wherever they are not missing.

    >>> is_number_role("visit"), is_number_role("score:mmse"), is_number_role("label:edema")
    (True, True, False)
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
