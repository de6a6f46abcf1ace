"""A cohort becomes a plan: what its columns allow, what they must not teach, what they can decide, and a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bolus.data.batches.columns import TrainingColumns
from bolus.data.batches.relation import Needs, Relation
from bolus.data.cohort.coding import Held, count_codes
from bolus.data.cohort.cohort import Cohort, CohortLike, Samples
from bolus.data.images.clips import open_samples
from bolus.device import device
from bolus.errors import CohortError, UsageError
from bolus.evaluation.notebook import as_html
from bolus.objectives import needs_of
from bolus.planning.cost import estimate
from bolus.planning.hazards.hazard import Hazard
from bolus.planning.hazards.hazards import find_hazards, some_patients
from bolus.planning.offers.contrasts import offer_contrasts
from bolus.planning.offers.images import choose_preset, look_at, suggest_unit
from bolus.planning.offers.measures import offer_measures
from bolus.planning.offers.offers import Evidence, Offer
from bolus.planning.resolution import Resolution, find_resolutions
from bolus.planning.start import ASKED, SOONER, choose_start
from bolus.planning.volumes import choose_box, choose_chunk, see_volumes
from bolus.recipe import Recipe
from bolus.recipes.keys import Overrides, written

# Of a training from random weights, where the cohort is large enough to see so many batches in 300 epochs.
STEPS = 20_000
SUMMED = (
    "Weights make the objectives' gradients about even, and negatives of other patients leave them little to quarrel "
    "over; where the run says that two pull apart, try grad_mitigator with scope features."
)

Choices = tuple[tuple[str, str], ...]


@dataclass(frozen=True, repr=False)
class Plan:
    """What a cohort is good for.

    Args:
        cohort: the cohort.
        samples: its images, slices, clips or volumes, as the recipe takes them.
        facts: sentences on what it holds.
        offers: every objective with its verdict.
        hazards: columns that must not be learnt, or whose learning misleads.
        resolutions: what its test patients can decide.
        recipe: the objectives that are recommended, composed; None where there are none.
        choices: (recipe key, why it has its value), such as ("images.size", "...").
        cost: a sentence on what the training takes; empty where nothing like it was measured.
    """

    cohort: Cohort
    samples: Samples
    facts: tuple[str, ...]
    offers: tuple[Offer, ...]
    hazards: tuple[Hazard, ...]
    resolutions: tuple[Resolution, ...]
    recipe: Recipe | None
    choices: Choices
    cost: str = ""

    def __repr__(self) -> str:
        names = [each.name for each in self.offers if each.verdict == "recommended"]
        return f"Plan({self.cohort!r}: {', '.join(names) or 'nothing'} recommended, {len(self.hazards)} hazards)"

    def _repr_html_(self) -> str:
        """In a notebook: a row an objective; hazards, and what the test patients can decide, below."""
        rows = [[each.name, each.paper, each.verdict, " ".join(each.reasons)] for each in self.offers]
        below = [*(each.sentence for each in self.hazards), *(each.sentence for each in self.resolutions)]
        return as_html(["objective", "paper", "verdict", "why"], rows, [*self.facts, *below])


def plan(cohort: CohortLike, *, unit: str | None = None, overrides: Overrides = ()) -> Plan:
    """Say what a cohort's columns allow, and compose a recipe of what is recommended.

    The table is read, and a few images for their size and channels; what is counted is counted on training patients,
    and of test patients only how many there are. Objectives share the views and one forward pass of the encoder.
    Negatives are rows of other patients, so that no objective pushes apart what another holds together in a patient.
    The encoder starts from pretrained weights where this machine has some (`choose_start`), and its images are as large
    as the device allows on which a training would run.

    Args:
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        unit: `image`, `slice`, `clip` or `volume`; by default what the columns suggest.
        overrides: `key=value` assignments, or a mapping of keys, into the recipe, applied last.

    Raises:
        CohortError: the cohort cannot be opened, or not in this unit.
        EncoderError: a backbone in the overrides that is not there.
        RecipeError: an override that does not fit.
        UsageError: an unknown unit, or an override that sets another one.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> columns = {"image": [f"{n}.png" for n in range(60)], "patient": [str(n) for n in range(60)]}
        >>> columns |= {"split": ["train"] * 40 + ["test"] * 20}
        >>> found = plan(Cohort(pd.DataFrame(columns), CohortSpec(table="t.csv")))
        >>> list(found.recipe.objectives)
        ['views']
    """
    cohort = Cohort.open(cohort)
    overrides = written(overrides)
    unit = unit or next((each.partition("=")[2] for each in overrides if each.startswith("images.unit=")), None)
    chosen, why_unit = (unit, ASKED) if unit is not None else suggest_unit(cohort)
    try:
        samples = open_samples(cohort, chosen)
    except CohortError as error:
        if unit is not None:
            raise
        message = f"{str(error).splitlines()[0]}; --unit image takes each row as an image"
        raise CohortError(message, error.violations) from None
    placed = cohort.has("slice_position") and chosen != "volume"
    columns = TrainingColumns(samples, {"slice_position": 4} if placed else {})
    looked = some_patients(samples)
    hazards = tuple(find_hazards(samples, looked))
    evidence = Evidence.of(columns, hazards)
    offers = [*offer_contrasts(evidence), *offer_measures(evidence)]
    recipe, choices = _compose(samples, columns, offers, (("images.unit", why_unit),))
    cost = ""
    if recipe is not None:
        recipe, choices, cost = _complete(recipe, choices, overrides, samples, len(columns.rows))
    facts = _facts(samples, columns, looked)
    resolutions = tuple(find_resolutions(cohort, samples))
    return Plan(cohort, samples, facts, tuple(offers), hazards, resolutions, recipe, choices, cost)


def _as_asked(choices: Choices, before: Recipe, after: Recipe) -> Choices:
    """The reasons that still hold: a key with another value than planned has it because it was asked for."""
    one, other = before.model_dump(mode="json"), after.model_dump(mode="json")
    return tuple((key, why if _at(one, key) == _at(other, key) else ASKED) for key, why in choices)


def _at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _facts(samples: Samples, columns: TrainingColumns, looked: Samples) -> tuple[str, ...]:
    patients = samples.first_of(samples.cohort.coded("patient").codes)
    numbers = {
        side: (int(here.sum()), count_codes(patients[here]))
        for side, here in ((side, samples.on_side(side)) for side in ("train", "val", "test"))
    }
    uses = zip(numbers.values(), ("training", "validation", "testing"), strict=True)
    parts = ", ".join(f"{count:,} of {people:,} for {use}" for (count, people), use in uses)
    found = [f"{len(samples):,} {samples.unit}s of {count_codes(patients):,} patients: {parts}."]
    number = Held.of(columns.held("patient")).counts()[:-1]
    number = number[number > 0]
    if len(number):
        several = int((number > 1).sum())
        spread = f"{number.min():,} to {number.max():,} {samples.unit}s (median {np.median(number):.0f})"
        if number.min() == number.max():
            spread = f"{number.min():,} {samples.unit}{'s' if several else ''}"
        found.append(f"A training patient has {spread}; {several:,} of {len(number):,} have more than one.")
    if numbers["test"][1] == 0:
        found.append("Nobody is held out for testing: nothing learnt here can be judged here.")
    elif numbers["val"][1] < 10:
        found.append(f"{numbers['val'][1]} validation patients: the online probe and any tuning will be noise.")
    if len(looked) < len(samples):
        drawn = count_codes(looked.first_of(samples.cohort.coded("patient").codes))
        found.append(
            f"How columns hang together (leaks, shortcuts, copies) was looked at in {drawn:,} of these patients, drawn "
            f"at random, with {len(looked):,} {samples.unit}s: what is given for it are estimates."
        )
    return tuple(found)


def _compose(
    samples: Samples, columns: TrainingColumns, offers: Sequence[Offer], choices: Choices
) -> tuple[Recipe | None, Choices]:
    """The recommended objectives as one recipe, and why its keys have their values."""
    taken = [offer for offer in offers if offer.verdict == "recommended"]
    if not taken:
        return None, choices
    said = dict(choices)
    views = 2 if any(offer.name == "views" for offer in taken) else 1
    batch = _batch(len(columns.rows), samples.unit)
    related = [offer for offer in taken if offer.entry and offer.entry.get("relation", "views") != "views"]
    preset, said["images.augment.preset"] = choose_preset(samples)
    said["combiner.kind"] = SUMMED
    per_epoch = max(1, -(-len(columns.rows) // batch)) * (1 + len(related))
    epochs = int(np.clip(round(STEPS / per_epoch), 30, 300))
    data: dict[str, Any] = {
        "name": "planned",
        "summary": f"What the columns of {samples.cohort.spec.table} allow, in one run.",
        "images": {"unit": samples.unit, "views": views, "augment": {"preset": preset}},
        "bins": {role: number for offer in taken for role, number in offer.bins.items()},
        "sampling": {"batch_size": batch, "partners": 1 if related else 0},
        "objectives": {offer.name: dict(offer.entry or {}) for offer in taken},
        "combiner": {"kind": "sum"},
        "optimizer": {"kind": "adamw", "weight_decay": 1e-4},
        "schedule": {"kind": "cosine", "warmup_epochs": 1},
        "training": {"epochs": epochs},
    }
    return Recipe.load(data), tuple(said.items())


def _complete(
    composed: Recipe, choices: Choices, overrides: Sequence[str], samples: Samples, number: int
) -> tuple[Recipe, Choices, str]:
    """The recipe with its start and with what was asked for, the reasons that then hold, and what it takes."""
    (channels, shorter), accelerated = look_at(samples), device().type != "cpu"
    start = choose_start(
        composed.override(overrides),
        [each.partition("=")[0] for each in overrides],
        number=number,
        channels=channels,
        shorter=shorter,
        masks=samples.unit == "slice" and "mask" in samples.cohort.roles,
        accelerated=accelerated,
        box=choose_box(see_volumes(samples), accelerated=accelerated) if samples.unit == "volume" else None,
    )
    planned = composed.override(start.keys)
    if start.pretrained:
        planned = planned.override({"training.epochs": round(planned.training.epochs / SOONER)})
    held: dict[str, tuple[Any, str]] = {}
    if samples.unit == "volume":
        asked = planned.override(overrides)
        held = choose_chunk(asked.encoder, asked.images, asked.sampling.batch_size)
        planned = planned.override({key: value for key, (value, _) in held.items()})
    recipe = planned.override(overrides)
    if recipe.images.unit != samples.unit:
        raise UsageError(f"images.unit={recipe.images.unit} asks for another unit than {samples.unit}: say it once")
    needs = Needs().merge(*needs_of(recipe, TrainingColumns(samples, recipe.bins)).values())
    steps = _steps(recipe, needs, number)
    cost = estimate(recipe, steps, accelerated=accelerated)
    lasting = _lasting(recipe, steps, cost, sooner=start.pretrained and recipe.training == planned.training)
    told = (*choices, *start.choices, *lasting, *((key, why) for key, (_, why) in held.items()))
    return recipe, _as_asked(told, planned, recipe), cost


def _steps(recipe: Recipe, needs: Needs, number: int) -> int:
    """How many it takes to show so many samples so often, as partners fill a part of a batch."""
    sampling, spec = recipe.sampling, recipe.training
    asked = set(needs.relations) - {Relation.parse("views")}
    partners = 0 if sampling.participants is not None else sampling.partners
    anchors = max(1, sampling.batch_size // (1 + partners * len(asked)))
    steps = -(-spec.epochs * -(-number // anchors) // spec.accumulate)
    return steps if spec.max_steps is None else min(steps, spec.max_steps)


def _lasting(recipe: Recipe, steps: int, cost: str, *, sooner: bool) -> Choices:
    """What a batch is, and how long the training takes."""
    views = f"each in {recipe.images.views} views" if recipe.images.views > 1 else "each in one view"
    batch = f"{recipe.images.unit}s, {views}; raise it as memory allows."
    less = f" A pretrained start settles sooner: random weights would get {SOONER} times as many." if sooner else ""
    measured = f" {cost} bolus pretrain ... --dry-run measures it here." if cost else ""
    return (("sampling.batch_size", batch), ("training.epochs", f"About {steps:,} steps.{less}{measured}"))


def _batch(number: int, unit: str) -> int:
    """Samples of a batch: a power of two, of which a training set of this size fills several."""
    batch = 16 if unit in ("clip", "volume") else 64
    while batch > 4 and batch * 4 > number:
        batch //= 2
    return min(batch, number)
