"""cohort.yaml as it is written: the table, the roles of its columns, missing codes, ranges and the split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bolus.data.text.identifiers import identifier_text
from bolus.errors import suggest


class SplitSpec(BaseModel):
    """Shares of the patients in validation and test; a patient's side is a hash of (seed, patient).

    With `leave_out_site`, all patients of that site are the test, whole, and `test` is not looked at; of the others
    the share `val` is in validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    val: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    leave_out_site: str | None = None

    @field_validator("leave_out_site", mode="before")
    @classmethod
    def _site_as_text(cls, site: Any) -> Any:
        number = isinstance(site, (int, float)) and not isinstance(site, bool)
        return identifier_text(site) if number else site  # YAML reads the site 3 as a number

    @model_validator(mode="after")
    def _leaves_training_patients(self) -> SplitSpec:
        if self.leave_out_site is None and self.val + self.test >= 1:
            raise ValueError(f"val {self.val:g} and test {self.test:g} leave no patient to train on")
        return self


class CohortSpec(BaseModel):
    """cohort.yaml: the table, what its columns are, and how missing values are written.

    `ranges` maps a modality to the values shown as black and white, and wins over everything that a file says.
    `cohort_ranges` is what `bolus check` found to cover the images whose range is the cohort's, so that it stays as it
    is when images are added. Patients of two cohorts with one `namespace` and one identifier are the same person.
    `readers` maps the suffix of file names, in any case, to the function that reads such files: an import path or an
    entry point, see `bolus.data.readers.own`. Opening a cohort imports none of them; reading its images does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    table: str
    root: str | None = None  # folder that image paths are relative to; the table's folder where absent
    roles: dict[str, str] = {}
    unit: Literal["image", "slice", "clip", "volume"] | None = (
        None  # what a sample is; by default what the columns suggest
    )
    units: dict[str, str] = {}  # role -> unit of its numbers; that of time may be days, weeks, months, years ...
    missing: dict[str, list[Any]] = {}  # column -> values that mean missing; "*" holds for every column
    split: SplitSpec = SplitSpec()
    ranges: dict[str, tuple[float, float]] = {}
    cohort_ranges: dict[str, tuple[float, float]] = {}
    namespace: str = ""
    readers: dict[str, str] = {}  # suffix, such as .mha, or "*" for all other files -> package.module:name

    @field_validator("readers")
    @classmethod
    def _suffixes(cls, readers: dict[str, str]) -> dict[str, str]:
        for suffix in readers:
            if suffix != "*" and (not suffix.startswith(".") or len(suffix) == 1 or {"/", "\\"} & set(suffix)):
                raise ValueError(f"expected a suffix with its point, such as .mha, or *, found {suffix!r}")
        return {suffix.lower(): name for suffix, name in readers.items()}

    @field_validator("ranges", "cohort_ranges")
    @classmethod
    def _black_below_white(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{name}: expected finite values for black and white, black below white, found "
                                 f"{low:g} and {high:g}")  # fmt: skip
        return ranges


def explain(problem: Mapping[str, Any]) -> str:
    """What pydantic found wrong with a cohort.yaml, in words; for an unknown key, the one that was meant.

    >>> explain({"type": "extra_forbidden", "loc": ("split", "tset"), "input": 0.5})
    "split.tset: unknown key; did you mean 'test'?"
    """
    *section, name = map(str, problem["loc"] or ("cohort",))
    key, found = ".".join([*section, name]), problem.get("input")
    if problem["type"] == "extra_forbidden":
        known = SplitSpec if section == ["split"] else CohortSpec
        return f"{key}: unknown key; {suggest(name, known.model_fields)}"
    shown = f" (found {found!r})" if isinstance(found, str | int | float) else ""
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}"
