"""`bolus evaluate`: a verb for each task in `bolus.evaluation.tasks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bolus.cli.commands import Verbs, grouped
from bolus.cli.options import TableOptions, names, numbers, refuse_swapped
from bolus.cli.speaking import talkative, tell
from bolus.errors import UsageError, suggest
from bolus.evaluation.contract import Outcome, Task
from bolus.evaluation.probing.options import FinetuneSpec
from bolus.evaluation.probing.task import TargetTask
from bolus.evaluation.settings import Judging
from bolus.evaluation.tasks import TASKS, judge

if TYPE_CHECKING:
    from bolus.data.cohort.cohort import Cohort


class _Questions(Verbs):
    """Whoever leaves out the question, or mistypes it, is told what can be asked."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As of `Verbs`; what is no question is a UsageError."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            known = list(self.commands)
            near = suggest(args[0], known)
            hint = "" if near.startswith("known") else f"; {near}"
            raise UsageError(
                f"bolus evaluate needs a question first, one of {', '.join(known)}; found {args[0]!r}{hint}"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Questions,
    name="evaluate",
    help="Judge an encoder on patients it has not seen, beside its random-init twin and the majority class.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

RunAndCohort = Annotated[list[str], typer.Argument(metavar="[RUN] COHORT", help="run folder, then the cohort")]


@dataclass(frozen=True)
class WhichEncoder:
    """Which encoder is judged."""

    encoder: Annotated[str | None, typer.Option(help="any encoder instead of a run: folder or hub name")] = None

    def open(self, sides: list[str], table: TableOptions) -> tuple[str, Cohort]:
        """The encoder, and the cohort that it is judged on."""
        if self.encoder is not None and len(sides) == 2:
            raise UsageError("give a run folder or --encoder, not both")
        both = sides if self.encoder is None else [self.encoder, *sides]
        if len(both) != 2:
            raise UsageError("expected a run folder and a cohort, or --encoder NAME and a cohort")
        refuse_swapped(both[0], Path(both[1]))
        return both[0], table.open(Path(both[1]))


@dataclass(frozen=True)
class Further:
    """The same target in another cohort, or in groups of patients."""

    elsewhere: Annotated[
        Path | None, typer.Option(help="judge the same heads there too; a cohort.yaml, or conventional columns")
    ] = None
    elsewhere_target: Annotated[str | None, typer.Option(help="what the target is called there")] = None
    audit: Annotated[bool, typer.Option("--audit", help="by sex, age band, site, scanner, ...")] = False
    by: Annotated[str | None, typer.Option(help="audit: roles, by commas (default: those the cohort has)")] = None
    age_bands: Annotated[str | None, typer.Option(help="audit: inner edges in years (default: 40,60,75)")] = None

    def check(self, reading: TargetTask) -> None:
        """Raise where options do not go together."""
        for name in ("epochs", "class_weights"):
            changed = getattr(reading.finetune, name) != getattr(FinetuneSpec, name)
            if changed and not reading.probing.trained:
                raise UsageError(f"--{name.replace('_', '-')} is for --probes frozen or finetune")
        if self.elsewhere is not None and self.audit:
            raise UsageError("--elsewhere and --audit are two questions: ask one at a time")
        if reading.horizon is not None and (self.elsewhere is not None or self.audit):
            raise UsageError("--horizon is asked of this cohort as it is: leave out --elsewhere or --audit")
        if self.elsewhere_target is not None and self.elsewhere is None:
            raise UsageError("--elsewhere-target is for --elsewhere")
        for name, value in (("--by", self.by), ("--age-bands", self.age_bands)):
            if value is not None and not self.audit:
                raise UsageError(f"{name} is for --audit")

    def ask(self, reading: TargetTask, source: str, cohort: Cohort, judging: Judging, *, probes_given: bool) -> Outcome:
        """Put the reading to the encoder: here, elsewhere, or in groups, by a linear probe where none was given."""
        from bolus.evaluation.targets import find_targets

        # What may be mistyped is told before an encoder is opened, which takes seconds.
        find_targets(cohort, reading.name, reading.target, min_patients=reading.fewest)
        if self.audit:
            from bolus.evaluation.audit.audit import judge as judge_groups
            from bolus.evaluation.audit.task import Auditing

            bands = None if self.age_bands is None else numbers(self.age_bands, "--age-bands")
            if not probes_given:
                reading = replace(reading, probing=replace(reading.probing, probes=("linear",)))
            return judge_groups(Auditing(reading, names(self.by), bands), source, cohort, judging)
        if self.elsewhere is None:
            return judge(reading, source, cohort, judging)
        from bolus.evaluation.elsewhere.elsewhere import read_elsewhere

        there, target = TableOptions().open(self.elsewhere), self.elsewhere_target
        return read_elsewhere(reading, source, cohort, there, elsewhere_target=target, judging=judging)


def verb_of(task: type[Task]) -> Callable[..., None]:
    """A command that asks the task, with an option for each of its own."""

    def verb(ctx: typer.Context, sides: RunAndCohort, **given: Any) -> None:
        asked: Task = given["asked"]
        if "further" in given:
            given["further"].check(asked)
        source, opened = given["judged"].open(sides, given["table"])
        judging = replace(given["judging"], quiet=not talkative())
        if "further" in given:
            probes_given = ctx.params["probes"] is not None
            found = given["further"].ask(asked, source, opened, judging, probes_given=probes_given)
        else:
            found = judge(asked, source, opened, judging)
        results = [asdict(each) for each in found.results]
        tell({"folder": str(found.folder), "notes": found.notes, "results": results}, found.text())

    verb.__name__, verb.__doc__ = task.name, (task.__doc__ or "").partition("\n")[0]
    groups: dict[str, Any] = {"asked": task, "judged": WhichEncoder, "judging": Judging, "table": TableOptions}
    if issubclass(task, TargetTask):
        groups["further"] = Further
    return grouped(verb, groups, without=() if task.baselines else ("baselines", "precision"))


for _name, _entry in TASKS.items():
    app.command(_name)(verb_of(_entry.options))
