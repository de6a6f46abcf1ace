"""What every section of a recipe is: keys with bounds, and no others."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

LARGEST = 2**31 - 1
"""Of whole numbers in a recipe, seeds among them: what every library under bolus takes."""


class Spec(BaseModel):
    """A section of a recipe; unknown keys are errors, and whole numbers are bounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _within_bounds(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"expected a number up to {LARGEST}")
        return value
