"""The command `bolus evaluate`: which options go with which question, and what is called for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bolus.errors import UsageError
from bolus.options import (
    CacheOption,
    MissingOption,
    RangeOption,
    RoleOption,
    RootOption,
    SplitOption,
    names,
    numbers,
    only_for,
    open_cohort,
    say,
    segment_arguments,
)

READ_OFF = ("classify", "regress")


def evaluate(
    encoder_or_cohort: Annotated[str, typer.Argument(metavar="[RUN] COHORT", help="run folder, then the cohort")],
    cohort: Annotated[Path | None, typer.Argument(metavar="", hidden=True)] = None,
    encoder: Annotated[str | None, typer.Option(help="any encoder instead of a run: folder or hub name")] = None,
    task: Annotated[
        str,
        typer.Option(
            help="classify, regress, change (of a score within patients), retrieve (participants across a role), or "
            "segment (masks from few labels)"
        ),
    ] = "classify",
    target: Annotated[
        str, typer.Option(help="a label or score, or LABEL=CLASS (not for retrieve; not needed for segment)")
    ] = "",
    baselines: Annotated[
        str | None, typer.Option(help="other encoders to stand beside it, by commas: run or encoder folders, hub names")
    ] = None,
    fractions: Annotated[
        str | None, typer.Option(help="shares of the training patients, by commas (default: 1)")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="draws of each fraction below 1, or of labelled patients (default: 3)")
    ] = None,
    probes: Annotated[
        str | None, typer.Option(help="of linear, knn (default: both), frozen and finetune, which train on images")
    ] = None,
    min_patients: Annotated[
        int | None, typer.Option(help="classify: positive patients that each class needs (default: 20)")
    ] = None,
    horizon: Annotated[
        str | None, typer.Option(help="classify, regress: next visit's target, or incident: of who is negative now")
    ] = None,
    elsewhere: Annotated[
        Path | None,
        typer.Option(help="classify, regress: judge the same heads there too; a cohort.yaml, or conventional columns"),
    ] = None,
    elsewhere_target: Annotated[str | None, typer.Option(help="what the target is called there")] = None,
    audit: Annotated[
        bool | None, typer.Option("--audit", help="classify, regress: by sex, age band, site, scanner, ...")
    ] = None,
    by: Annotated[str | None, typer.Option(help="audit: roles, by commas (default: those the cohort has)")] = None,
    age_bands: Annotated[str | None, typer.Option(help="audit: inner edges in years (default: 40,60,75)")] = None,
    epochs: Annotated[int | None, typer.Option(help="frozen, finetune: at most (default: 30)")] = None,
    class_weights: Annotated[str | None, typer.Option(help="frozen, finetune: none (default) or balanced")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="change: differences up to this are stable, in the score's unit (default: 0)")
    ] = None,
    higher_is_worse: Annotated[
        bool | None, typer.Option("--higher-is-worse/--higher-is-better", help="change (default: worse)")
    ] = None,
    adjacent_only: Annotated[
        bool | None, typer.Option("--adjacent-only", help="change: pairs of consecutive visits only")
    ] = None,
    across: Annotated[
        str | None, typer.Option(help="retrieve: the role that differs, such as laterality, modality or visit")
    ] = None,
    labelled_patients: Annotated[
        str | None,
        typer.Option(help="segment: numbers of training patients to learn from, by commas (default: 1,2,6,10)"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="segment: steps of each training (default: 1000)")] = None,
    overlays: Annotated[
        int | None,
        typer.Option(help="segment: pictures of so many test volumes, truth blue, prediction orange (default: 0)"),
    ] = None,
    class_: Annotated[
        list[str], typer.Option("--class", metavar="LABEL=NAME", help="segment: name a class of the masks; repeatable")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="of draws, fine-tuning and the random-init twin")] = 0,
    size: Annotated[int | None, typer.Option(help="input pixels of an encoder that does not state them")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder (default: in the run)")] = None,
    role: RoleOption = [],  # noqa: B006
    missing: MissingOption = [],  # noqa: B006
    value_range: RangeOption = [],  # noqa: B006
    root: RootOption = None,
    split: SplitOption = [],  # noqa: B006
    cache: CacheOption = None,
) -> None:
    """Judge an encoder on patients it has not seen, beside its random-init twin and the majority class."""
    from bolus.evaluation.targets import OTHERS, check_task

    if encoder is None and cohort is None:
        raise UsageError("expected a run folder and a cohort, or --encoder NAME and a cohort")
    if encoder is not None and cohort is not None:
        raise UsageError("give a run folder or --encoder, not both")
    if not target and task not in ("segment", "retrieve"):
        raise UsageError("--target is needed: a label or score of the cohort, or LABEL=CLASS")
    if task not in (*READ_OFF, *OTHERS):
        check_task(task)
    _given("a label or score: not --task retrieve", task != "retrieve", target=target or None)
    read_off = task in READ_OFF
    fitted = _given("--task classify, regress or change", read_off or task == "change", fractions=fractions)
    kinds = _given("--task classify, regress or change", read_off or task == "change", probes=probes)
    repeated = _given("draws of labelled patients", task != "retrieve" and not audit, repeats=repeats)
    training = _given("--task classify or regress", read_off, epochs=epochs, class_weights=class_weights)
    of_change = {"tolerance": tolerance, "higher_is_worse": higher_is_worse, "adjacent_only": adjacent_only}
    change = _given("--task change", task == "change", **of_change)
    classes = _given("--task classify", task == "classify", min_patients=min_patients)
    _given("--task retrieve", task == "retrieve", across=across)
    _given("an encoder's embeddings: not --task segment", task != "segment", baselines=baselines)
    other = {"elsewhere": elsewhere, "elsewhere_target": elsewhere_target, "audit": audit, "by": by}
    _given("--task classify or regress", read_off, horizon=horizon, age_bands=age_bands, **other)
    _given("--elsewhere", elsewhere is not None, elsewhere_target=elsewhere_target)
    _given("--audit", bool(audit), by=by, age_bands=age_bands)
    _given("a single question: leave out --elsewhere or --audit", not (elsewhere and audit), audit=audit)
    _given("this cohort as it is: leave out --elsewhere or --audit", not (elsewhere or audit), horizon=horizon)
    chosen = {"probes": names(probes)} if kinds else {}
    shares = {"fractions": numbers(fractions, "--fractions", float)} if fractions and fitted else {}
    _given("whole training sets: leave out --audit", not audit, fractions=fractions)
    trains = bool({"frozen", "finetune"} & set(chosen.get("probes") or []))
    training = only_for("--probes frozen or finetune", trains, training)
    segment = {"labelled_patients": labelled_patients, "steps": steps, "overlays": overlays, "class": class_ or None}
    segmenting = segment_arguments(_given("--task segment", task == "segment", **segment))
    table = Path(encoder_or_cohort) if cohort is None else cohort
    source, opened = encoder or encoder_or_cohort, open_cohort(table, role, missing, value_range, root, split)
    common: dict[str, Any] = {"out": out, "seed": seed, "size": size, "cache": cache, **repeated}
    if task == "segment":
        _segment(source, opened, target=target or "mask", **segmenting, **common)
        return
    common |= {"baselines": names(baselines) or ()}
    if task == "retrieve":
        _retrieve(source, opened, across=across, **common)
        return
    common |= {"target": target, **chosen}
    if audit:
        bands = None if age_bands is None else numbers(age_bands, "--age-bands", float)
        _audit(source, opened, task=task, by=names(by), age_bands=bands, **classes, **common)
        return
    common |= shares
    if elsewhere is not None:
        there = open_cohort(elsewhere, [], [], [], None, [])
        classes |= {"elsewhere_target": elsewhere_target}
        _read_off("evaluate_elsewhere", source, opened, there, task=task, **classes, **common)
    elif task == "change":
        _read_off("evaluate_change", source, opened, **change, **common)
    else:
        classes |= {"horizon": horizon, "training": {**training, "seed": seed}}
        _read_off("evaluate", source, opened, task=task, **classes, **common)


def _given(what: str, applies: bool, **options: Any) -> dict[str, Any]:
    """`only_for`, with the options as keywords."""
    return only_for(what, applies, options)


def _read_off(function: str, *cohorts: Any, training: dict[str, Any] | None = None, **arguments: Any) -> None:
    """Whatever gives reports of probes: `evaluate`, `evaluate_change` or `evaluate_elsewhere`."""
    from bolus.evaluation import change, elsewhere, finetune, judging

    home: Any = {"evaluate": judging, "evaluate_change": change, "evaluate_elsewhere": elsewhere}[function]
    if training is not None:
        arguments["finetune"] = finetune.FinetuneSpec(**training)
    found = getattr(home, function)(*cohorts, **arguments)
    for name, summary in found.summaries().items():
        say(summary, *(f"note: {note}" for note in found.reports[name].notes), "")
    say(*(f"note: {note}" for note in found.notes), f"wrote results, predictions and heads to {found.folder}")


def _segment(source: str, opened: Any, **arguments: Any) -> None:
    from bolus.evaluation.segment import evaluate_segment

    found = evaluate_segment(source, opened, **arguments)
    say(found.summary(), "", *(f"note: {note}" for note in found.notes))
    drawn = ", volumes and overlays" if arguments.get("overlays") else " and volumes"
    say(f"wrote results{drawn} to {found.folder}")


def _retrieve(source: str, opened: Any, *, across: str | None, **arguments: Any) -> None:
    from bolus.evaluation.retrieve import evaluate_retrieve

    if across is None:
        raise UsageError("--across is needed: the role that differs, such as laterality, modality or visit")
    found = evaluate_retrieve(source, opened, across=across, **arguments)
    say(found.summary(), "", *(f"note: {note}" for note in found.notes), f"wrote results and ranks to {found.folder}")


def _audit(source: str, opened: Any, **arguments: Any) -> None:
    from bolus.evaluation.audit import evaluate_audit

    found = evaluate_audit(source, opened, **arguments)
    said = [*found.notes]
    for target, notes in found.target_notes.items():
        said += [note if target in note else f"{target}: {note}" for note in notes]
    say(found.summary(), "", *(f"note: {note}" for note in said), f"wrote results to {found.folder}")
