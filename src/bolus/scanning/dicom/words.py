"""What headers say of an image, in the words of a cohort: dates, sides, projections, regions, phases."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.text.ages import spell_age
from bolus.data.text.spelling import as_number, clean_text

RADIOGRAPHS = ("CR", "DX", "RG")
RADIOGRAPH = "XR"

REGIONS = {
    **{
        code: code.lower() for code in ("CHEST", "ABDOMEN", "PELVIS", "HEAD", "NECK", "BRAIN", "BREAST", "HEART", "EYE")
    },
    **{code: code.lower() for code in ("HAND", "WRIST", "FOREARM", "ELBOW", "ARM", "SHOULDER", "CLAVICLE", "FINGER")},
    **{code: code.lower() for code in ("FOOT", "ANKLE", "LEG", "KNEE", "THIGH", "HIP", "TOE", "HEEL", "EXTREMITY")},
    **{
        code: code.lower() for code in ("SKULL", "JAW", "MAXILLA", "MANDIBLE", "TEETH", "SINUS", "ORBIT", "EAR", "NOSE")
    },
    **{
        code: code.lower()
        for code in ("LIVER", "KIDNEY", "SPLEEN", "PANCREAS", "BLADDER", "PROSTATE", "UTERUS", "LUNG")
    },
    **{
        code: code.lower() for code in ("THYROID", "TESTIS", "OVARY", "PLACENTA", "STOMACH", "COLON", "RECTUM", "AORTA")
    },
    **{code: code.lower() for code in ("SPINE", "RIB", "STERNUM", "SCAPULA", "FEMUR", "TIBIA", "HUMERUS", "RETINA")},
    **{
        code: code.lower()
        for code in ("NECKCHEST", "WHOLEBODY", "CORONARY", "CAROTID", "LARYNX", "TRACHEA", "ESOPHAGUS")
    },
    "CSPINE": "cervical spine",
    "TSPINE": "thoracic spine",
    "LSPINE": "lumbar spine",
    "SSPINE": "sacrum",
    "LSSPINE": "lumbosacral spine",
    "TLSPINE": "thoracolumbar spine",
    "CTSPINE": "cervicothoracic spine",
    "COCCYX": "coccyx",
    "THORAX": "chest",
    "CHESTABDOMEN": "chest and abdomen",
    "CHESTABDPELVIS": "chest, abdomen and pelvis",
    "ABDOMENPELVIS": "abdomen and pelvis",
    "HEADNECK": "head and neck",
    "UPRARM": "upper arm",
    "LOWLEG": "lower leg",
    "TMJOINT": "jaw joint",
    "SIJOINT": "sacroiliac joint",
    "WHOLEBODY": "whole body",
    "ENTIRE BODY": "whole body",
    "UTERUS AND FETUS": "fetus",
    "FETUS": "fetus",
}
"""Codes of Body Part Examined (PS3.16 Annex L), and their usual spellings, as words; spaces do not count."""
_REGIONS = {code.replace(" ", ""): word for code, word in REGIONS.items()}

VIEWS = frozenset(
    ["AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT", "LATERAL", "OBL", "OBLIQUE", "AXIAL", "MLO", "CC", "ML",
     "LM", "LMO", "XCCL", "XCCM", "XCC", "CV", "AT", "SIO", "ISO", "FB", "RAO", "LAO", "RPO", "LPO", "SUNRISE",
     "TANGENTIAL", "LORDOTIC", "SKYLINE", "STANDING", "BILATERAL"]
)  # fmt: skip
_VIEW_WORDS = {
    "medio-lateral oblique": "MLO",
    "mediolateral oblique": "MLO",
    "cranio-caudal": "CC",
    "craniocaudal": "CC",
    "medio-lateral": "ML",
    "latero-medial": "LM",
    "antero-posterior": "AP",
    "anteroposterior": "AP",
    "postero-anterior": "PA",
    "posteroanterior": "PA",
    "left lateral": "LL",
    "right lateral": "RL",
}
EYE_MODALITIES = frozenset(
    ["OP", "OPT", "OPM", "OPR", "OPV", "OPTBSV", "OPTENF", "OAM", "OCT", "KER", "LEN", "AR", "SRF", "VA", "IOL"]
)
"""Of DICOM's modalities, those of one eye."""
_DATE = re.compile(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)")
# A letter alone, but not of a spine (L-SPINE, L/S, L 5), of R/O (rule out), of R-R or of a French article (l').
_NOT_BEFORE = r"(?<![\w/'\u2019])(?<!\br[- ])"
_NOT_AFTER = r"(?!\w|[/'\u2019]|[-. ]{0,2}(?:[st]?[-/. ]{0,2}(?:spine|spn|sp)|[osr]|ws|dopa|[1-5](?! ?v))\b)"
_LEFT = re.compile(
    rf"\b(?:left|lt|links|gauche|izq|izquierd[ao]s?|sinist(?:er|r[aoeiu]m?))\b|{_NOT_BEFORE}l{_NOT_AFTER}",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    rf"\b(?:right|rt|rechts|droite?|derech[ao]s?|dex|dexter|dextr[aiu]m?|destr[aoei])\b|{_NOT_BEFORE}r{_NOT_AFTER}",
    re.IGNORECASE,
)
_EYES = {"left": re.compile(r"\bos\b", re.IGNORECASE), "right": re.compile(r"\bod\b", re.IGNORECASE)}
_SIDES = {"L": "left", "R": "right"}


def each(series: pd.Series[Any], change: Callable[[str], Any]) -> pd.Series[Any]:
    """The column with each different text changed once; missing and empty ones are None."""
    codes, kinds = pd.factorize(series)
    made = np.empty(len(kinds) + 1, dtype=object)
    made[: len(kinds)] = [change(text) if text else None for text in kinds]
    made[-1] = None
    return pd.Series(made[codes], index=series.index, dtype=object)


def dates_of(series: pd.Series[Any]) -> pd.Series[Any]:
    """Dates such as `20240131`, or `2024.01.31` of ACR-NEMA, as datetime64[s]; NaT where there is none.

    >>> dates_of(pd.Series(["20240131", "2024.02.30", None])).dt.day.tolist()
    [31.0, nan, nan]
    """

    def date(text: str) -> Any:
        found = _DATE.fullmatch(text[:10].strip())
        try:
            return np.datetime64("-".join(found.groups()), "s") if found else None
        except ValueError:
            return None

    return pd.Series(each(series, date).to_numpy(), index=series.index).astype("datetime64[s]")


def sides_of(series: pd.Series[Any]) -> pd.Series[Any]:
    """`left` or `right`; missing where neither, unpaired or both.

    >>> sides_of(pd.Series(["L", "B", "r"])).tolist()
    ['left', None, 'right']
    """
    return each(
        series, lambda text: _SIDES.get(text.upper()[:1] if text.upper() in ("L", "R", "LEFT", "RIGHT") else "")
    )


def guess_side(text: str, *, eye: bool = False) -> str | None:
    """The side that a description names, None where it names none or both.

    Args:
        text: of the description.
        eye: the image is of an eye, so that OS and OD are sides.

    Example:
        >>> guess_side("KNEE LT 2 VIEWS"), guess_side("both hands, left and right"), guess_side("chest pa")
        ('left', None, None)
        >>> guess_side("L-spine lat"), guess_side("macula OS", eye=True), guess_side("T1 OS sagittal")
        (None, 'left', None)
    """
    words = " ".join(text.replace("_", " ").split())
    patterns = (("left", _LEFT), ("right", _RIGHT))
    found = [side for side, plain in patterns if plain.search(words) or (eye and _EYES[side].search(words))]
    return found[0] if len(found) == 1 else None


def view_of(text: str) -> str | None:
    """A projection as DICOM codes it, None where it is none of those: it may be free text.

    >>> view_of("ap"), view_of("cranio-caudal"), view_of("asked by Dr X")
    ('AP', 'CC', None)
    """
    code = text.strip().upper()
    return code if code in VIEWS else _VIEW_WORDS.get(text.strip().lower())


def region_of(text: str) -> str | None:
    """A part of the body in plain words, None where it is no code of DICOM's: it may be free text.

    >>> region_of("LSPINE"), region_of("Chest"), region_of("Smith, J")
    ('lumbar spine', 'chest', None)
    """
    return _REGIONS.get("".join(text.upper().split()).replace("_", ""))


def age_of(text: str) -> float | None:
    """An age in years, of AS such as `058Y`; None where it is none.

    >>> age_of("006M"), age_of("58"), age_of("old")
    (0.5, 58.0, None)
    """
    number = as_number(spell_age(text.strip()))
    return number if number is not None and 0 <= number <= 130 else None


def sex_of(text: str) -> str | None:
    """`F`, `M` or `O`.

    >>> sex_of("f"), sex_of("unknown")
    ('F', None)
    """
    return text.upper() if text.upper() in {"F", "M", "O"} else None


def scanner_of(text: str) -> str | None:
    """The name of a model as it is, without white space that means nothing."""
    return clean_text(text)[:64] or None


def phase_of(rows: pd.DataFrame) -> pd.Series[Any]:
    """The phase of contrast or of the heart, or the number of a time in a series of several; None where none is said.

    >>> rows = pd.DataFrame({"contrast_phase": [None, None], "cardiac_position": [None, "END_SYSTOLE"],
    ...                      "cardiac_percent": ["70", None]})
    >>> phase_of(rows).tolist()
    ['cardiac 70 %', 'end systole']
    """
    plain = lambda text: clean_text(text.replace("_", " ")).lower()[:32] or None  # noqa: E731
    found = each(rows["contrast_phase"], plain)
    found = found.where(found.notna(), each(rows["cardiac_position"], plain))
    percent = each(
        rows["cardiac_percent"], lambda text: None if as_number(text) is None else f"cardiac {float(text):g} %"
    )
    return found.where(found.notna(), percent)
