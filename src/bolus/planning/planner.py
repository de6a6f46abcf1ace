"""A cohort becomes a plan: what its columns allow, what they must not teach, what they can decide, and a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.clips import open_samples
from bolus.data.cohort import Cohort
from bolus.data.columns import TrainingColumns
from bolus.data.readers import read_image
from bolus.data.samples import Samples
from bolus.errors import BolusError
from bolus.planning.contrasts import offer_contrasts
from bolus.planning.hazards import Hazard, find_hazards
from bolus.planning.measures import offer_measures
from bolus.planning.offers import Offer, Table
from bolus.planning.resolution import Resolution, find_resolutions
from bolus.recipe import Recipe

LOOKED = 16  # images whose size and channels are looked at
STEPS = 20_000  # of a training, where the cohort is large enough to see so many batches in 300 epochs
SIZES = (64, 96, 128, 160, 224)  # pixels of the recipe's images
# DICOM's codes of modalities, and the words that tables have for them.
PRESETS = {
    "xray": ("cr", "dx", "dr", "mg", "xr", "rf", "px", "xray", "xrays"),
    "mri": ("mr", "mri", "ct", "pt", "nm", "pet"),
    "ultrasound": ("us", "ivus", "ultrasound", "echo", "bus"),
    "fundus": ("op", "opt", "fundus", "cfp", "xc"),
}

Choices = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plan:
    """What a cohort is good for.

    Args:
        cohort: the cohort.
        samples: its images, slices or clips, as the recipe takes them.
        facts: sentences on what it holds.
        offers: every objective with its verdict.
        hazards: columns that must not be learnt, or whose learning misleads.
        resolutions: what its test patients can decide.
        recipe: the objectives that are recommended, composed; None where there are none.
        choices: (recipe key, why it has its value), such as ("images.size", "...").
    """

    cohort: Cohort
    samples: Samples
    facts: tuple[str, ...]
    offers: tuple[Offer, ...]
    hazards: tuple[Hazard, ...]
    resolutions: tuple[Resolution, ...]
    recipe: Recipe | None
    choices: Choices


def plan(cohort: str | Path | Cohort, *, unit: str | None = None, overrides: Iterable[str] = ()) -> Plan:
    """Say what a cohort's columns allow, and compose a recipe of what is recommended.

    The table is read, and a few images for their size and channels; what is counted is counted on training patients,
    and of test patients only how many there are. Objectives share the views and one forward pass of the encoder.
    Negatives are rows of other patients, so that no objective pushes apart what another holds together in a patient.

    Args:
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        unit: `image`, `slice` or `clip`; by default what the columns suggest.
        overrides: `key=value` assignments into the recipe, applied last.

    Raises:
        CohortError: the cohort cannot be opened, or not in this unit.
        RecipeError: an override that does not fit.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort import CohortSpec
        >>> columns = {"image": [f"{n}.png" for n in range(60)], "patient": [str(n) for n in range(60)]}
        >>> columns |= {"split": ["train"] * 40 + ["test"] * 20}
        >>> found = plan(Cohort(pd.DataFrame(columns), CohortSpec(table="t.csv")))
        >>> list(found.recipe.objectives)
        ['views']
    """
    cohort = Cohort.open(cohort)
    overrides = list(overrides)
    unit = unit or next((each.partition("=")[2] for each in overrides if each.startswith("images.unit=")), None)
    chosen, why_unit = (unit, "As asked for.") if unit is not None else _unit_of(cohort)
    samples = open_samples(cohort, chosen)
    columns = TrainingColumns(samples, {"slice_position": 4} if cohort.has("slice_position") else {})
    hazards = tuple(find_hazards(samples))
    table = Table.of(columns, hazards)
    offers = [*offer_contrasts(table), *offer_measures(table)]
    recipe, choices = _compose(samples, columns, offers, (("images.unit", why_unit),))
    if recipe is not None:
        planned, recipe = recipe, recipe.override(overrides)
        choices = _as_asked(choices, planned, recipe)
    facts = _facts(samples, columns)
    resolutions = tuple(find_resolutions(cohort))
    return Plan(cohort, samples, facts, tuple(offers), hazards, resolutions, recipe, choices)


def _as_asked(choices: Choices, before: Recipe, after: Recipe) -> Choices:
    """The reasons that still hold: a key with another value than planned has it because it was asked for."""
    one, other = before.model_dump(mode="json"), after.model_dump(mode="json")
    return tuple((key, why if _at(one, key) == _at(other, key) else "As asked for.") for key, why in choices)


def _at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _unit_of(cohort: Cohort) -> tuple[str, str]:
    """The unit that the columns suggest, and why."""
    roles, several = set(cohort.roles), len(set(cohort.modality.tolist())) > 1
    # Where modalities differ, places in a volume are not all that rows differ by.
    if cohort.has("slice_position") and ({"mask", "slice_position"} & roles or "series" not in roles) and not several:
        return "slice", "Rows have places in their volumes."
    if {"series", "order"} <= roles:
        return "clip", "Rows are frames, in order, of series; for slices of volumes say --unit slice."
    return "image", "A row is an image; no columns say that rows are slices of a volume or frames of a clip."


def _facts(samples: Samples, columns: TrainingColumns) -> tuple[str, ...]:
    cohort = samples.cohort
    sides = cohort.split[samples.first_row]
    patients = cohort.encoded("patient")[samples.first_row]
    numbers = {
        side: (int((sides == side).sum()), len(np.unique(patients[sides == side]))) for side in ("train", "val", "test")
    }
    uses = zip(numbers.values(), ("training", "validation", "testing"), strict=True)
    parts = ", ".join(f"{count:,} of {people:,} for {use}" for (count, people), use in uses)
    found = [f"{len(samples):,} {samples.unit}s of {len(np.unique(patients)):,} patients: {parts}."]
    train, number = np.unique(columns["patient"], return_counts=True)
    if len(number):
        several = int((number > 1).sum())
        found.append(
            f"A training patient has {number.min()} to {number.max()} {samples.unit}s "
            f"(median {np.median(number):.0f}); {several:,} of {len(train):,} have more than one."
        )
    if numbers["test"][1] == 0:
        found.append("Nobody is held out for testing: nothing learnt here can be judged here.")
    elif numbers["val"][1] < 10:
        found.append(f"{numbers['val'][1]} validation patients: the online probe and any tuning will be noise.")
    return tuple(found)


def _compose(
    samples: Samples, columns: TrainingColumns, offers: Sequence[Offer], choices: Choices
) -> tuple[Recipe | None, Choices]:
    """The recommended objectives as one recipe, and why its keys have their values."""
    taken = [offer for offer in offers if offer.verdict == "recommended"]
    if not taken:
        return None, choices
    said = dict(choices)
    channels, native = _look(samples)
    size = max((size for size in SIZES if size <= native), default=SIZES[0])
    said["images.size"] = f"Images are {native} pixels or more on their shorter side." if native else UNREAD
    views = 2 if any(offer.name == "views" for offer in taken) else 1
    batch = _batch(len(columns.rows), samples.unit)
    said["sampling.batch_size"] = f"{samples.unit}s, each in {views} views; raise it as memory allows."
    related = [offer for offer in taken if offer.entry and offer.entry.get("relation", "views") != "views"]
    preset, said["images.augment.preset"] = _preset(samples)
    backbone, said["encoder.backbone"] = _backbone(samples)
    combiner, said["combiner.kind"] = _combiner(taken)
    per_epoch = max(1, -(-len(columns.rows) // batch)) * (1 + len(related))
    epochs = int(np.clip(round(STEPS / per_epoch), 30, 300))
    said["training.epochs"] = f"About {epochs * per_epoch:,} steps."
    encoder: dict[str, Any] = {"backbone": backbone, "in_channels": channels}
    encoder |= {"stem_pool": False} if size <= 64 and not backbone.startswith("unet") else {}
    encoder |= {"temporal_shift": 8} if samples.unit == "clip" else {}
    images: dict[str, Any] = {"unit": samples.unit, "size": size, "views": views, "augment": {"preset": preset}}
    data: dict[str, Any] = {
        "name": "planned",
        "summary": f"What the columns of {samples.cohort.spec.table} allow, in one run.",
        "encoder": encoder,
        "images": images,
        "bins": {role: number for offer in taken for role, number in offer.bins.items()},
        "sampling": {"batch_size": batch, "partners": 1 if related else 0},
        "objectives": {offer.name: dict(offer.entry or {}) for offer in taken},
        "combiner": combiner,
        "optimizer": {"kind": "adamw", "lr": 1e-3, "weight_decay": 1e-4},
        "schedule": {"kind": "cosine", "warmup_epochs": 1},
        "training": {"epochs": epochs},
    }
    return Recipe.load(data), tuple(said.items())


UNREAD = "None of the first images could be read: bolus check says why."


def _look(samples: Samples) -> tuple[int, int]:
    """Channels for an encoder, and the shorter side of the smallest of a few images in pixels; 0 if all are unread."""
    cohort, channels, sides = samples.cohort, 1, []
    rows = np.unique(np.linspace(0, len(cohort) - 1, LOOKED).astype(int))
    for row in rows.tolist():
        try:
            image = read_image(cohort.image_path(row), frame=cohort.frame(row))
        except BolusError:
            continue
        channels = 3 if image.array.shape[0] == 3 else channels
        sides.append(min(image.array.shape[-2:]))
    return channels, min(sides, default=0)


def _batch(number: int, unit: str) -> int:
    """Samples of a batch: a power of two, of which a training set of this size fills several."""
    batch = 16 if unit == "clip" else 64
    while batch > 4 and batch * 4 > number:
        batch //= 2
    return min(batch, number)


def _preset(samples: Samples) -> tuple[str, str]:
    """How images may be varied, by what the modality column says."""
    said = {name.lower().replace("-", "").replace(" ", "") for name in np.unique(samples.cohort.modality).tolist()}
    found = [preset for preset, codes in PRESETS.items() if said & set(codes)]
    if len(found) == 1:
        return found[0], "By the modality column."
    if samples.cohort.has("laterality") and samples.unit == "image" and not found:
        return "fundus", "A guess, from sides and no modality column: xray, ultrasound, mri or none fit other images."
    if samples.unit == "slice" and not found:
        return "mri", "A guess, from slices of volumes: xray, fundus, ultrasound or none fit other images."
    if samples.unit == "clip" and not found:
        return "ultrasound", "A guess, from clips: xray, fundus, mri or none fit other images."
    which = "several kinds of image: modalities.NAME.augment sets another for one of them" if found else "no column"
    return found[0] if found else "xray", f"A guess, from {which}: fundus, ultrasound, mri or none fit other images."


def _backbone(samples: Samples) -> tuple[str, str]:
    if samples.unit == "slice" and "mask" in samples.cohort.roles:
        return "unet48", "A U-Net's encoder, since there are masks to segment; unet16 for less memory."
    return "resnet18", "resnet50 or dinov2_base (with encoder.pretrained=true) where memory and data allow."


def _combiner(taken: Sequence[Offer]) -> tuple[Mapping[str, Any], str]:
    """Plain sums, unless meta labels cross: images of one class of the one are of several classes of the other."""
    meta = [offer.name for offer in taken if offer.entry and offer.entry.get("head") == "image"]
    if "patient" in meta and len(meta) > 1:
        reason = (
            f"{', '.join(meta)} cross: what one calls alike another tells apart. One backward pass at the features."
        )
        return {"kind": "grad_mitigator", "scope": "features"}, reason
    return {"kind": "sum"}, "Conflicts are logged; grad_mitigator with scope features where they are strong."
