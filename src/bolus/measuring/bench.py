"""What this machine makes of a recipe: decoding, a step, memory, hours; in about a minute."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.images.clips import open_samples
from bolus.measuring.decoding import DecodingCost, measure_decoding
from bolus.measuring.growth import grow
from bolus.measuring.step import StepCost, measure_step
from bolus.phantom.images import make_phantom
from bolus.phantom.volumes import make_volume_phantom
from bolus.provenance import machine, versions
from bolus.recipe import Recipe
from bolus.recipes.keys import Overrides
from bolus.training.loaders import contract_of


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Args:
        recipe: its name.
        rows: images, or volumes, of the cohort.
        patients: of the cohort.
        decoding: into the cache.
        step: of the training.
        decoding_hours: of the whole cohort, once.
        training_hours: of the whole run.
        growth: axis -> costs at several sizes, see `bolus.measuring.growth.grow`.
        machine: processor, cores and accelerator.
        versions: of the packages that decide speed.
        noun: what was counted: images, or volumes.
    """

    recipe: str
    rows: int
    patients: int
    decoding: DecodingCost
    step: StepCost
    decoding_hours: float
    training_hours: float
    growth: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    noun: str = "images"

    @property
    def _views(self) -> str:
        """What goes through the encoder."""
        return "boxes" if self.noun == "volumes" else "images"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        found = asdict(self)
        found["decoding"]["efficiency"] = self.decoding.efficiency
        return found

    def lines(self) -> list[str]:
        """What a person reads."""
        d, s = self.decoding, self.step
        accelerator = self.machine["accelerator"]
        where = f"{self.machine['cores']} cores" + ("" if accelerator == "none" else f", {accelerator}")
        memory = "unknown" if math.isnan(s.memory_gib) else f"{s.memory_gib:.2f} GiB at the peak"
        cache = f"{d.efficiency:.0%} of {d.cores} cores that only decode"
        said = [
            f"{self.recipe} on {self.rows} {self.noun} of {self.patients} patients; {where}",
            f"decoding   {d.images_per_second:.3g} {self.noun}/s into the cache, {cache}",
            f"step       {s.images_per_second:.3g} {self._views}/s, {s.seconds:.3g} s a step of {s.steps}",
        ]
        if s.efficiency is not None:
            share, low, high = s.efficiency
            passes = "a backward pass" if s.backwards == 1 else f"{s.backwards} backward passes"
            said.append(
                f"           {share:.0%} of it is the networks' own forward and {passes} "
                f"({low:.0%} to {high:.0%} in {s.rounds} rounds)"
            )
        said += [
            f"           views {s.augmentation:.1%} of the step, waiting for data {s.data_wait:.1%}",
            f"memory     {memory}",
            f"estimate   decoding {_hours(self.decoding_hours)}, once; training {_hours(self.training_hours)}",
        ]
        unreadable = max(d.unreadable, s.unreadable)
        said += [f"! {unreadable} {self.noun} cannot be read: bolus check"] if unreadable else []
        for axis, points in self.growth.items():
            said += ["", *_table(axis, points, self._views)]
        return said


def bench(
    cohort: CohortLike | None = None,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe = "simclr",
    overrides: Overrides = (),
    growing: Sequence[str] = (),
    seconds: float = 40.0,
    cache: Path | None = None,
) -> Bench:
    """Measure what a recipe takes on this machine; nothing of it is kept but decoded images.

    Args:
        cohort: cohort.yaml, a table, or an open cohort; where None, a phantom that is made and thrown away.
        recipe: a shipped name, a file, or a recipe.
        overrides: recipe keys.
        growing: axes of `bolus.measuring.growth.AXES`, each of which takes a minute or more.
        seconds: to measure in, growth aside; starting and the first images come on top.
        cache: cache folder; the user's where None.

    Raises:
        CohortError, RecipeError, OutOfMemoryError: as `pretrain`.
        UsageError: an unknown axis.

    Example:
        >>> found = bench(recipe="simclr", overrides=["encoder.backbone=r18w32", "images.size=16"], seconds=0.1)
        >>> found.rows > 0 and found.step.rounds >= 3
        True
    """
    whole = Recipe.load(recipe).override(overrides)
    with _opened(cohort, whole) as (opened, folder):
        samples = open_samples(opened, whole.images.unit)
        number = len(samples) if samples.unit == "volume" else len(samples.cohort)
        decoding = measure_decoding(samples, contract_of(opened, whole), seconds=seconds / 4)
        step = measure_step(opened, whole, seconds=seconds / 2, cache=folder or cache)
        grown = {axis: grow(opened, whole, axis, seconds=seconds / 8, cache=folder or cache) for axis in growing}
        return Bench(
            whole.name,
            number,
            opened.num_patients,
            decoding,
            step,
            number / decoding.images_per_second / 3600,
            step.seconds * step.steps / 3600,
            grown,
            noun="volumes" if samples.unit == "volume" else "images",
        )


@contextmanager
def _opened(cohort: CohortLike | None, recipe: Recipe) -> Iterator[tuple[Cohort, Path | None]]:
    """The cohort, and the folder of its cache where that is not the user's: of a phantom, which goes again."""
    if cohort is not None:
        yield Cohort.open(cohort), None
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        side, batch = recipe.images.side, recipe.sampling.batch_size
        if recipe.images.unit == "volume":  # two of each patient, 60 % of whom are trained on
            make_volume_phantom(work / "phantom", num_patients=max(16, batch), size=max(16, side))
        else:
            make_phantom(work / "phantom", num_patients=max(60, batch), size=round(1.5 * side))
        yield Cohort.open(work / "phantom" / "cohort.yaml"), work / "cache"


def _hours(hours: float) -> str:
    """A length of time in the unit that suits it.

    >>> _hours(0.01), _hours(0.5), _hours(7.25)
    ('36 s', '30 min', '7.2 h')
    """
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"


def _table(axis: str, points: Sequence[Mapping[str, Any]], noun: str) -> list[str]:
    """Costs at several sizes, a line each."""
    lines = []
    for point in points:
        if "refused" in point:
            lines.append(f"{axis} {point[axis]:>9}  refused: {point['refused']}")
        elif axis == "rows":
            lines.append(
                f"rows {point[axis]:>9,}  opened in {point['open_s']:.2f} s, split in {point['split_s']:.2f} s, "
                f"{point['memory_gib']:.2f} GiB"
            )
        else:
            share = "" if point["efficiency"] is None else f", {point['efficiency'][0]:.0%} the networks' own"
            lines.append(
                f"{axis} {point[axis]:>5}  {point['images_per_second']:.3g} {noun}/s, "
                f"{point['memory_gib']:.2f} GiB{share}"
            )
    return lines
