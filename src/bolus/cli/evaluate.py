"""`bolus evaluate`: a verb for each question that an encoder can be asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bolus.cli.options import (
    CacheOption,
    SizeOption,
    TableOptions,
    Verbs,
    class_names,
    grouped,
    names,
    numbers,
    say,
)
from bolus.cli.options import whole_numbers as whole
from bolus.errors import UsageError, suggest

if TYPE_CHECKING:
    from bolus.data.cohort.cohort import Cohort
    from bolus.evaluation.probing.judging import Evaluation


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

RunArgument = Annotated[str, typer.Argument(metavar="[RUN] COHORT", help="run folder, then the cohort")]
SecondArgument = Annotated[Path | None, typer.Argument(metavar="", hidden=True)]
TargetOption = Annotated[str, typer.Option(help="a label, or LABEL=CLASS")]
ScoreOption = Annotated[str, typer.Option(help="a score, or a numeric attribute")]


@dataclass(frozen=True)
class Judging:
    """Which encoder is judged, and where it is written."""

    encoder: Annotated[str | None, typer.Option(help="any encoder instead of a run: folder or hub name")] = None
    seed: Annotated[int, typer.Option(help="of draws, fine-tuning and the random-init twin")] = 0
    size: SizeOption = None
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder (default: in the run)")] = None
    cache: CacheOption = None

    def sides(self, run: str, cohort: Path | None, table: TableOptions) -> tuple[str, Cohort]:
        """The encoder, and the cohort that it is judged on."""
        if self.encoder is None and cohort is None:
            raise UsageError("expected a run folder and a cohort, or --encoder NAME and a cohort")
        if self.encoder is not None and cohort is not None:
            raise UsageError("give a run folder or --encoder, not both")
        return self.encoder or run, table.open(Path(run) if cohort is None else cohort)


@dataclass(frozen=True)
class Beside:
    """Other encoders that stand beside the judged one."""

    baselines: Annotated[
        str | None, typer.Option(help="other encoders to stand beside it, by commas: run or encoder folders, hub names")
    ] = None

    @property
    def encoders(self) -> Sequence[str]:
        """Their folders or names."""
        return names(self.baselines) or ()


@dataclass(frozen=True)
class Probing:
    """How a target is read off an encoder."""

    probes: Annotated[
        str | None, typer.Option(help="of linear, knn (default: both), frozen and finetune, which train on images")
    ] = None
    fractions: Annotated[str, typer.Option(help="shares of the training patients, by commas")] = "1"
    repeats: Annotated[int, typer.Option(help="draws of each fraction below 1")] = 3

    def kinds(self, default: tuple[str, ...] = ("linear", "knn")) -> Sequence[str]:
        """The probes."""
        return names(self.probes) or default

    @property
    def shares(self) -> list[float]:
        """The fractions."""
        return numbers(self.fractions, "--fractions")


@dataclass(frozen=True)
class Elsewhere:
    """The same target of the next visit, in another cohort, or in groups of patients."""

    horizon: Annotated[
        str | None, typer.Option(help="the next visit's target (next), or only of who is negative now (incident)")
    ] = None
    elsewhere: Annotated[
        Path | None, typer.Option(help="judge the same heads there too; a cohort.yaml, or conventional columns")
    ] = None
    elsewhere_target: Annotated[str | None, typer.Option(help="what the target is called there")] = None
    audit: Annotated[bool, typer.Option("--audit", help="by sex, age band, site, scanner, ...")] = False
    by: Annotated[str | None, typer.Option(help="audit: roles, by commas (default: those the cohort has)")] = None
    age_bands: Annotated[str | None, typer.Option(help="audit: inner edges in years (default: 40,60,75)")] = None

    def check(self, probing: Probing) -> None:
        """Raise where options do not go together."""
        if self.elsewhere is not None and self.audit:
            raise UsageError("--elsewhere and --audit are two questions: ask one at a time")
        if self.horizon is not None and (self.elsewhere is not None or self.audit):
            raise UsageError("--horizon is asked of this cohort as it is: leave out --elsewhere or --audit")
        if self.elsewhere_target is not None and self.elsewhere is None:
            raise UsageError("--elsewhere-target is for --elsewhere")
        for name, value in (("--by", self.by), ("--age-bands", self.age_bands)):
            if value is not None and not self.audit:
                raise UsageError(f"{name} is for --audit")
        if self.audit and (probing.fractions, probing.repeats) != (Probing.fractions, Probing.repeats):
            raise UsageError("--fractions, --repeats: an audit fits heads on all training patients; leave them out")


@grouped
def classify(
    run: RunArgument,
    cohort: SecondArgument = None,
    *,
    target: TargetOption = "",
    min_patients: Annotated[int, typer.Option(help="positive patients that each class needs")] = 20,
    probing: Probing,
    epochs: Annotated[int | None, typer.Option(help="frozen, finetune: at most (default: 30)")] = None,
    class_weights: Annotated[str | None, typer.Option(help="frozen, finetune: none (default) or balanced")] = None,
    beside: Beside,
    further: Elsewhere,
    judging: Judging,
    table: TableOptions,
) -> None:
    """A label: every class against the rest, or the classes of a column with one class a row."""
    source, opened = _asked(run, cohort, target, "a label of the cohort, or LABEL=CLASS", judging, table)
    training = {"epochs": epochs, "class_weights": class_weights}
    _read_off("classify", source, opened, target, probing, training, beside, further, judging, min_patients)


@grouped
def regress(
    run: RunArgument,
    cohort: SecondArgument = None,
    *,
    target: ScoreOption = "",
    probing: Probing,
    epochs: Annotated[int | None, typer.Option(help="frozen, finetune: at most (default: 30)")] = None,
    beside: Beside,
    further: Elsewhere,
    judging: Judging,
    table: TableOptions,
) -> None:
    """A score, an age or another number."""
    source, opened = _asked(run, cohort, target, "a score of the cohort, or a numeric attribute", judging, table)
    _read_off("regress", source, opened, target, probing, {"epochs": epochs}, beside, further, judging, 20)


@grouped
def change(
    run: RunArgument,
    cohort: SecondArgument = None,
    *,
    target: ScoreOption = "",
    tolerance: Annotated[float, typer.Option(help="differences up to this are stable, in the score's unit")] = 0.0,
    higher_is_worse: Annotated[bool, typer.Option("--higher-is-worse/--higher-is-better", help="what more means")] = (
        True
    ),
    adjacent_only: Annotated[bool, typer.Option("--adjacent-only", help="pairs of consecutive visits only")] = False,
    probing: Probing,
    beside: Beside,
    judging: Judging,
    table: TableOptions,
) -> None:
    """Change of a score within patients: does a patient improve, stay or worsen, and by how much?"""
    from bolus.evaluation.change.change import evaluate_change

    source, opened = _asked(run, cohort, target, "a score of the cohort", judging, table)
    found = evaluate_change(
        source,
        opened,
        target=target,
        tolerance=tolerance,
        higher_is_worse=higher_is_worse,
        adjacent_only=adjacent_only,
        out=judging.out,
        seed=judging.seed,
        size=judging.size,
        cache=judging.cache,
        baselines=beside.encoders,
        probes=probing.kinds(),
        fractions=probing.shares,
        repeats=probing.repeats,
    )
    _show(found)


@grouped
def retrieve(
    run: RunArgument,
    cohort: SecondArgument = None,
    *,
    across: Annotated[
        str | None, typer.Option(help="the role that differs, such as laterality, modality or visit")
    ] = None,
    beside: Beside,
    judging: Judging,
    table: TableOptions,
) -> None:
    """The same person: does an image find the patient's others across a role?"""
    from bolus.evaluation.retrieval.retrieve import evaluate_retrieve

    if across is None:
        raise UsageError("--across is needed: the role that differs, such as laterality, modality or visit")
    source, opened = judging.sides(run, cohort, table)
    found = evaluate_retrieve(
        source,
        opened,
        across=across,
        out=judging.out,
        seed=judging.seed,
        size=judging.size,
        cache=judging.cache,
        baselines=beside.encoders,
    )
    say(found.summary(), "", *_notes(found.notes), f"wrote results and ranks to {found.folder}")


@grouped
def segment(
    run: RunArgument,
    cohort: SecondArgument = None,
    *,
    labelled_patients: Annotated[
        str, typer.Option(help="numbers of training patients to learn from, by commas")
    ] = "1,2,6,10",
    repeats: Annotated[int, typer.Option(help="draws of labelled patients")] = 3,
    steps: Annotated[int, typer.Option(help="steps of each training")] = 1000,
    overlays: Annotated[int, typer.Option(help="pictures of so many test volumes, truth blue, prediction orange")] = 0,
    class_: Annotated[
        list[str], typer.Option("--class", metavar="LABEL=NAME", help="name a class of the masks; repeatable")
    ] = [],  # noqa: B006
    judging: Judging,
    table: TableOptions,
) -> None:
    """Masks, learnt from few labelled patients: Dice and Hausdorff distances of whole volumes."""
    from bolus.evaluation.segmentation.segment import evaluate_segment
    from bolus.evaluation.segmentation.segmenter import SegmentSpec

    labelled, classes = whole(labelled_patients, "--labelled-patients"), class_names(class_)
    spec = SegmentSpec(steps=steps)
    source, opened = judging.sides(run, cohort, table)
    found = evaluate_segment(
        source,
        opened,
        labelled=labelled,
        repeats=repeats,
        spec=spec,
        classes=classes or None,
        overlays=overlays,
        out=judging.out,
        seed=judging.seed,
        size=judging.size,
        cache=judging.cache,
    )
    drawn = ", volumes and overlays" if overlays else " and volumes"
    say(found.summary(), "", *_notes(found.notes), f"wrote results{drawn} to {found.folder}")


for _command in (classify, regress, change, retrieve, segment):
    app.command()(_command)


def _asked(
    run: str, cohort: Path | None, target: str, what: str, judging: Judging, table: TableOptions
) -> tuple[str, Cohort]:
    """The encoder and the cohort, where a target was given."""
    if not target:
        raise UsageError(f"--target is needed: {what}")
    return judging.sides(run, cohort, table)


def _read_off(
    task: str,
    source: str,
    cohort: Cohort,
    target: str,
    probing: Probing,
    training: dict[str, Any],
    beside: Beside,
    further: Elsewhere,
    judging: Judging,
    min_patients: int,
) -> None:
    """A label or a number: here, at the next visit, elsewhere, or in groups."""
    further.check(probing)
    given = {name: value for name, value in training.items() if value is not None}
    if given and not {"frozen", "finetune"} & set(names(probing.probes) or []):
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} is for --probes frozen or finetune")
    if further.audit:
        from bolus.evaluation.audit.audit import evaluate_audit

        audit = evaluate_audit(
            source,
            cohort,
            task=task,
            target=target,
            by=names(further.by),
            age_bands=None if further.age_bands is None else numbers(further.age_bands, "--age-bands"),
            probes=probing.kinds(("linear",)),
            min_patients=min_patients,
            out=judging.out,
            seed=judging.seed,
            size=judging.size,
            cache=judging.cache,
            baselines=beside.encoders,
        )
        said = [note if t in note else f"{t}: {note}" for t, notes in audit.target_notes.items() for note in notes]
        say(audit.summary(), "", *_notes([*audit.notes, *said]), f"wrote results to {audit.folder}")
    elif further.elsewhere is not None:
        from bolus.evaluation.probing.elsewhere import evaluate_elsewhere

        found = evaluate_elsewhere(
            source,
            cohort,
            TableOptions().open(further.elsewhere),
            task=task,
            target=target,
            elsewhere_target=further.elsewhere_target,
            probes=probing.kinds(),
            fractions=probing.shares,
            repeats=probing.repeats,
            min_patients=min_patients,
            out=judging.out,
            seed=judging.seed,
            size=judging.size,
            cache=judging.cache,
            baselines=beside.encoders,
        )
        _show(found)
    else:
        from bolus.evaluation.probing.finetune import FinetuneSpec
        from bolus.evaluation.probing.judging import evaluate

        found = evaluate(
            source,
            cohort,
            task=task,
            target=target,
            horizon=further.horizon,
            finetune=FinetuneSpec(**given, seed=judging.seed),
            probes=probing.kinds(),
            fractions=probing.shares,
            repeats=probing.repeats,
            min_patients=min_patients,
            out=judging.out,
            seed=judging.seed,
            size=judging.size,
            cache=judging.cache,
            baselines=beside.encoders,
        )
        _show(found)


def _show(found: Evaluation) -> None:
    """Each target with its verdict and its notes, then what holds for all."""
    for name, summary in found.summaries().items():
        say(summary, *_notes(found.reports[name].notes), "")
    say(*_notes(found.notes), f"wrote results, predictions and heads to {found.folder}")


def _notes(notes: Iterable[str]) -> list[str]:
    return [f"note: {note}" for note in notes]
