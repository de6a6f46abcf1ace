"""What an ablation is before it begins and after it has ended: arms, budget, hours; comparisons and what they say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bolus.ablation.arms import Arm, Arms
from bolus.ablation.comparison import Comparison
from bolus.ablation.wording import beside, sentences, table
from bolus.evaluation.contract import Task
from bolus.recipe import Recipe


@dataclass(frozen=True)
class Planned:
    """An arm as it will be trained.

    Args:
        arm: its name, and its recipe as long as the budget allows.
        passes: of the encoder, in one cell.
        hours: of one cell, without decoding and judging.
        memory_gib: at the peak, of this arm and those that were looked at before it.
    """

    arm: Arm
    passes: int
    hours: float
    memory_gib: float

    @property
    def steps(self) -> int:
        """Of one cell."""
        return int(self.arm.recipe.training.max_steps or 0)

    def recipe(self, seed: int) -> Recipe:
        """Of one cell."""
        recipe = self.arm.recipe
        return recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})


@dataclass
class Ablation:
    """What `ablate` found.

    Args:
        arms: what is compared with what.
        planned: arm -> how it is trained.
        budget: encoder passes of a cell, at most.
        seeds: of every arm.
        task: what was asked.
        on: `test` or `validation`.
        folder: with runs, judged, cells.jsonl, results.jsonl, ablation.json and table.txt.
        hours: of the cells that were not trained when it began, without decoding and judging.
        comparisons: the first is that by which arms are decided; none after a dry run.
        failed: arm -> why it is not there, or not with all its seeds.
        notes: what holds for all, in sentences.
    """

    arms: Arms
    planned: dict[str, Planned]
    budget: int
    seeds: tuple[int, ...]
    task: Task
    on: str
    folder: Path
    hours: float = 0.0
    comparisons: list[Comparison] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def plan(self) -> str:
        """The arms, their steps and their hours, before anything is trained."""
        names = [arm.name for arm in self.arms.arms]
        width = max(map(len, names)) + 2
        lines = [f"{len(names)} arms, {_seeds(len(self.seeds))}, {self.budget:,} encoder passes each"]
        for name in names:
            if name in self.planned:
                each = self.planned[name]
                lines.append(f"  {name:<{width}}{each.steps:>9,} steps{each.hours:>9.2f} h")
            else:
                lines.append(f"  {name:<{width}}{self.failed[name]}")
        memory = max(each.memory_gib for each in self.planned.values())
        lines.append(
            f"training takes about {self.hours:.2f} h for what is not trained yet, and up to {memory:.1f} GiB; judging "
            "comes on top"
        )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def summary(self) -> str:
        """The table and the sentences."""
        if not self.comparisons:
            return "nothing was judged"
        first = self.comparisons[0]
        value = first.lines[0].value
        head = f"Ablation of {self.arms.reference.recipe.name} by {self.task.question}: {_seeds(len(self.seeds))}, "
        head += f"{self.budget:,} encoder passes an arm; {self.on}: {value['num_patients']} patients, "
        lines = [f"{head}{value['num_samples']} samples", "", table(first, self.arms.reference.name, self.failed), ""]
        said = [*sentences(first, self.arms, on=self.on), beside(self.comparisons)]
        return "\n".join([*lines, *(f"- {each}" for each in [*said, *first.notes, *self.notes] if each)])


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"
