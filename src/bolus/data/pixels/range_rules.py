"""Which values of a modality become black and white, where nobody states it: one rule for each kind of number.

CT numbers have a unit, so one clinical range holds for all of them. PET numbers are quantities, of which the cohort's
range keeps the proportions. MR numbers have no unit, so each series has a range of its own, and all of its slices that
one. Radiographs, ultrasound and everything else are shown as their window or VOI LUT says; where they say nothing, the
cohort's range holds. Eight bits and fewer stay as they are.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

RangeRule: TypeAlias = Literal["clinical", "cohort", "series", "display"]
Bounds: TypeAlias = tuple[float, float]

# Air to dense bone, in HU: air is -1000 by definition, and cortical bone reaches about 1000.
CLINICAL_RANGE: Bounds = (-1000.0, 1000.0)
PERCENTILES: Bounds = (0.5, 99.5)  # of all pixels of a series, but for padding
HAS_AIR = -100.0  # HU below which some value of a CT cohort lies, fat and air; of other numbers none need

# In upper case: DICOM's Modality (0008,0060), and how tables write it.
RULES: dict[str, RangeRule] = {
    "CT": "clinical",
    **dict.fromkeys(("PT", "PET", "RTDOSE"), "cohort"),
    **dict.fromkeys(("MR", "MRI", "T1W", "T2W", "PDW", "FLAIR", "DWI", "BOLD"), "series"),
}
# What the two numbers of a rule are, where it has some.
NUMBERS: dict[RangeRule, Bounds] = {"clinical": CLINICAL_RANGE, "series": PERCENTILES}


def ruled_name(*modalities: str) -> str:
    """The first of these names that has a rule, as `RULES` spells it; empty where none has.

    >>> ruled_name("axial", "ct"), ruled_name("DX")
    ('CT', '')
    """
    return next((name for each in modalities if (name := each.strip().upper()) in RULES), "")


def rule_of(*modalities: str) -> RangeRule:
    """The rule of the first of these names that has one; `display`, the window or VOI LUT, where none has.

    >>> rule_of("T1w"), rule_of("axial", "CT"), rule_of("DX"), rule_of("")
    ('series', 'clinical', 'display', 'display')
    """
    return RULES.get(ruled_name(*modalities), "display")


def describe_rule(rule: RangeRule, bounds: Bounds | None = None) -> str:
    """The rule in words.

    >>> describe_rule("series"), describe_rule("clinical", (-160, 240))
    ('percentiles 0.5 to 99.5 of each series', '-160 to 240 HU')
    """
    low, high = bounds or NUMBERS.get(rule, (0.0, 0.0))
    words = {
        "clinical": f"{low:g} to {high:g} HU",
        "series": f"percentiles {low:g} to {high:g} of each series",
        "cohort": "the range of the cohort",
        "display": "the window or VOI LUT of the file, else the range of the cohort",
    }
    return words[rule]
