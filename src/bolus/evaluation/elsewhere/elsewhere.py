"""Learned on one cohort, judged on another: what an encoder and its heads are worth where they have never been.

Beside the target stands how well the two cohorts can be told apart from the embedding: where they can, a difference
between them may be one of scanners and habits, and not of patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.cohort.split import split_digest, split_patients
from bolus.device import Precision
from bolus.embedding.opening import open_encoder, samples_of
from bolus.evaluation.elsewhere.matching import match_targets, name_cohorts, refuse_same_patients
from bolus.evaluation.preparation import (
    Prepared,
    embed_all,
    note_uncompared,
    open_baselines,
    read_images,
    refuse_seen_everywhere,
    refuse_seen_patients,
    stand_beside,
)
from bolus.evaluation.probing.fitting import has_target
from bolus.evaluation.probing.heads import digest_of_encoder
from bolus.evaluation.probing.options import EMBEDDED, Probing
from bolus.evaluation.probing.probe import ProbeReport, probe
from bolus.evaluation.probing.reading import Evaluation, reading_of, write_reports
from bolus.evaluation.probing.task import TargetTask
from bolus.evaluation.settings import Judging, Origin
from bolus.evaluation.statistics.results import TOLD_APART
from bolus.evaluation.targets import shown
from bolus.evaluation.writing import evaluation_folder
from bolus.site_key import open_site_key

HELD_OUT = 0.4  # of the patients of either cohort, on whom it is judged how well the cohorts are told apart


@dataclass(frozen=True, eq=False)
class CohortSide:
    """One of the two cohorts, as `judge_elsewhere` needs it.

    Args:
        name: unlike the other's.
        embeddings: encoder name -> `[n, D]` finite floats, of the same encoders in the same order on both sides.
        patients: `[n]` identifiers; what is equal on both sides is one person.
        split: `[n]` of `train`, `val` and `test`; of the cohort elsewhere it is not looked at.
    """

    name: str
    embeddings: dict[str, NDArray[Any]]
    patients: NDArray[Any]
    split: NDArray[np.str_]


def evaluate_elsewhere(
    source: str | Path,
    cohort: CohortLike,
    elsewhere: CohortLike,
    *,
    task: str = "classify",
    target: str,
    elsewhere_target: str | None = None,
    out: str | Path | None = None,
    probes: Sequence[str] = EMBEDDED,
    fractions: Sequence[float] = (1.0,),
    repeats: int = 3,
    seed: int = 0,
    draws: int = 1000,
    min_patients: int = 20,
    size: int | None = None,
    cache: Path | None = None,
    shots: tuple[int, int] = (20, 100),
    baselines: Sequence[str | Path] = (),
    precision: Precision = "fp32",
) -> Evaluation:
    """Fit heads on one cohort, and judge them on its test patients and on all of another cohort.

    Three kinds of reports: `TARGET`, as `evaluate` gives it; `TARGET elsewhere (NAME)`, the same heads on every sample
    of the other cohort, which is named by its table (by its folder where the tables have one name); and
    `cohort:NAME-or-NAME`, how well a linear probe tells the cohorts apart on the 40 % of either's patients, chosen by
    hash, that it was not fitted on. Every report has the random-init twin and the baselines beside the encoder. The
    images of the other cohort are prepared by the encoder's own contract.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: where heads are fitted: cohort.yaml, a table with conventional column names, or an open cohort.
        elsewhere: the other cohort, likewise; its split does not matter. Patients of both with one namespace and one
            identifier are the same person.
        task: `classify` or `regress`.
        target: see `find_targets`. A label asked about as a whole must have the same classes in both cohorts.
        elsewhere_target: what the target is called there, if it is called otherwise; with a class on either side, as
            in `NAME=CLASS`, the two questions are one, whatever the other classes are.
        out: folder for what `evaluate` writes, but for encoders; predictions have a column `cohort`, which `row` is a
            row of. Where None a folder of this question in the run's `evaluations/`.
        probes: of `linear` and `knn`; the cohorts are told apart by a linear one.
        fractions: this and the rest as `evaluate`.
        repeats: draws of each fraction below 1.
        seed: of the draws, of the random-init twin, and of the patients by whom the cohorts are told apart.
        draws: bootstrap resamples of the patients that are judged on.
        min_patients: positive patients that a class of a many-class label needs in the first cohort.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        shots: see `probe`.
        baselines: other encoders, as of `evaluate`.
        precision: of embedding: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.

    Raises:
        LeakageError: the encoder or a baseline was trained on validation or test patients of the cohort or on any
            patient elsewhere, or a training or validation patient of the cohort is elsewhere too.
        EvaluationError: a target that either cohort lacks, or whose classes or units differ.
        UsageError: a probe that is trained on images, or what `evaluate` refuses.
        EncoderError, CohortError: encoder or cohort cannot be opened.
    """
    asked: dict[str, Any] = {"min_patients": min_patients} if task == "classify" else {}
    reading = reading_of(task)(target=target, probing=Probing(probes, fractions, repeats, shots), **asked)
    judging = Judging(seed, draws, size, cache, out, baselines, precision)
    return read_elsewhere(reading, source, cohort, elsewhere, elsewhere_target=elsewhere_target, judging=judging)


def read_elsewhere(
    reading: TargetTask,
    source: str | Path,
    cohort: CohortLike,
    elsewhere: CohortLike,
    *,
    elsewhere_target: str | None = None,
    judging: Judging,
) -> Evaluation:
    """As `evaluate_elsewhere`.

    Args:
        reading: the target, and how it is read.
        source: run folder, encoder folder or hub name.
        cohort: where heads are fitted.
        elsewhere: the other cohort.
        elsewhere_target: what the target is called there, if it is called otherwise.
        judging: how.
    """
    reading.probing.check(EMBEDDED, "images and not available elsewhere")
    open_site_key()
    judged = open_encoder(source, size=judging.size)
    others = open_baselines(judging.baselines, judged)
    here, there = (samples_of(judged, Cohort.open(each)) for each in (cohort, elsewhere))
    names = name_cohorts(here.cohort, there.cohort)
    for kind, each in [("encoder", judged), *(("baseline", other) for other in others.values())]:
        refuse_seen_patients(each, here.cohort, kind=f"{names[0]}: {kind}")
        refuse_seen_patients(
            each, there.cohort, rows=np.ones(len(there.cohort), dtype=bool), kind=f"{names[1]}: {kind}"
        )
    refuse_same_patients(here.cohort, there.cohort, names)
    task, target = reading.name, reading.target
    pairs, notes = match_targets(
        here.cohort, there.cohort, task, target, elsewhere_target, names=names, min_patients=reading.fewest
    )
    both = [read_images(judged, others, each, None, judging=judging, source=source) for each in (here, there)]
    refuse_seen_everywhere(both[0], where=f"{names[0]}: ")
    refuse_seen_everywhere(both[1], rows=np.ones(len(there.cohort), dtype=bool), where=f"{names[1]}: ")
    both[0] = stand_beside(both[0])
    notes += both[0].notes + [f"{names[1]}: {note}" for note in both[1].notes if note not in both[0].notes]
    encoders = both[0].encoders()
    embedded = [embed_all(encoders, prepared, last=prepared is both[-1]) for prepared in both]
    sides = [_side(*each) for each in zip(names, both, embedded, strict=True)]
    rows, origin = [prepared.rows for prepared in both], both[0].origin
    weights = digest_of_encoder(judged.encoder)
    reports: dict[str, ProbeReport] = {}
    for first, second in pairs:
        y = (first.y[rows[0]], second.y[rows[1]])
        found = judge_elsewhere(
            sides[0],
            sides[1],
            y,
            task=task,
            target=first.name,
            classes=first.classes,
            unit=first.unit,
            probing=reading.probing,
            judging=judging,
            origin=origin,
        )
        used = has_target(y[0].astype(np.float64), task) & (sides[0].split != "test")
        fitted = here.cohort.patients.iloc[rows[0][used]]
        report = found[first.name]
        heads = {kind: head.signed(weights, fitted) for kind, head in report.heads.items()}
        reports |= {**found, first.name: replace(report, heads=heads)}
    told = tell_apart(sides[0], sides[1], judging=judging, recipe_hash=origin.recipe_hash)
    if judged.lineage and not note_uncompared(judged.name, judged):
        told.notes.append(
            f"the encoder may have been trained on training patients of {names[0]}, but on none elsewhere"
        )
    reports[told.results[0].target] = told
    question = f"{task}-{shown(target)}-elsewhere-{names[1]}"
    folder = evaluation_folder(judging.out, judged, here.cohort, question, reading.probing.probes)
    evaluation = Evaluation(reports, folder, notes)
    given = np.concatenate([each.cohort.origin[each.rows] for each in both])
    write_reports(evaluation, given, target, rows_hash=here.cohort.rows_hash)
    return evaluation


def judge_elsewhere(
    here: CohortSide,
    there: CohortSide,
    y: tuple[NDArray[Any], NDArray[Any]],
    *,
    task: str,
    target: str,
    classes: Sequence[str] | None = None,
    unit: str = "",
    probing: Probing | None = None,
    judging: Judging | None = None,
    origin: Origin | None = None,
) -> dict[str, ProbeReport]:
    """`TARGET` and `TARGET elsewhere (NAME)`, from embeddings that are there already; the heads are the same.

    Args:
        here: where heads are fitted, on `train` and `val`.
        there: the other cohort, all of which is judged on.
        y: the targets of either, `[n]` codes (-1 or NaN missing) or numbers (NaN missing).
        task: this and the rest as `probe.probe`.
        target: its name.
        classes: names of the codes.
        unit: of a number, where it is known.
        probing: how the target is read.
        judging: its seed is of every draw.
        origin: copied into the results.

    Returns:
        The reports. Positions in their predictions count the samples here, then those there; `cohort` names them. Only
        the first report has heads.

    Raises:
        EvaluationError: as `probe.probe`.

    >>> r = np.random.default_rng(0)
    >>> y, parts = np.arange(90) % 2, np.repeat(["train", "val", "test"], 30)
    >>> sides = [CohortSide(name, {"run": y[:, None] + r.normal(size=(90, 2))}, np.char.add(name, parts), parts)
    ...          for name in ("north", "south")]
    >>> list(judge_elsewhere(*sides, (y, y), task="classify", target="sick",
    ...                      probing=Probing(("linear",)), judging=Judging(draws=20)))
    ['sick', 'sick elsewhere (south)']
    """
    options: dict[str, Any] = {
        "task": task, "classes": classes, "unit": unit, "probing": probing, "judging": judging, "origin": origin,
    }  # fmt: skip
    x, patients, cohorts = _together(here, there)
    first, label = len(here.split), f"{target} elsewhere ({there.name})"
    y_all = np.concatenate([np.asarray(each, dtype=np.float64) for each in y])
    report = probe({name: u[:first] for name, u in x.items()}, y_all[:first], patients[:first], here.split,
                   target=target, **options)  # fmt: skip
    # The test samples here stay in the arrays without a target, so that whatever is drawn of patients is the same.
    y_there = y_all.copy()
    y_there[:first][here.split == "test"] = np.nan
    split = np.concatenate([here.split, np.full(len(there.split), "test")])
    judged = probe(x, y_there, patients, split, target=label, **options)
    missing = int((~has_target(y_all[first:], task)).sum())
    said = [f"{label}: heads are those fitted on {here.name}"]
    said += [f"{target} is missing in {missing} of {len(there.split)} samples of {there.name}, left out"] * bool(
        missing
    )
    if classes and len(classes) == 2:
        said.append(f"{target}: {_prevalence(y_all[:first][here.split == 'test'])} of the test samples of {here.name} "
                    f"and {_prevalence(y_all[first:])} of those of {there.name} are positive")  # fmt: skip
    counted = f"{label} is missing in "  # among them the test samples here
    said += [note for note in judged.notes if not (note.startswith(counted) and note.endswith("test rows, left out"))]
    reports = {target: report, label: replace(judged, heads={}, notes=said)}
    for each in reports.values():
        each.predictions["cohort"] = cohorts[each.predictions["position"]]
    return reports


def tell_apart(
    here: CohortSide, there: CohortSide, *, judging: Judging | None = None, recipe_hash: str = ""
) -> ProbeReport:
    """How well a linear probe tells two cohorts apart: an AUROC of 0.5 is not at all, 1 always.

    Patients are split by hash, 60 % to fit (a fifth of them to choose the strength) and 40 % to judge; somebody who is
    in both cohorts is on one side.

    Args:
        here: code 0; its split is not looked at.
        there: code 1.
        judging: its seed is of the hash and the draws.
        recipe_hash: copied into the results of the judged encoder.

    Returns:
        The report on the target `cohort:HERE-or-THERE`, without heads; positions as of `judge_elsewhere`.

    Raises:
        EvaluationError: embeddings that are not finite, or too few patients to fit or to judge.
    """
    judging = judging or Judging()
    x, codes, cohorts = _together(here, there)
    patients = np.concatenate([here.patients, there.patients])
    split = split_patients(patients, seed=judging.seed, val=0.0, test=HELD_OUT)
    y = np.repeat([0, 1], [len(here.split), len(there.split)])
    report = probe(
        x,
        y,
        codes,
        split,
        task="classify",
        target=f"{TOLD_APART}{here.name}-or-{there.name}",
        classes=(here.name, there.name),
        probing=Probing(("linear",)),
        judging=judging,
        origin=Origin(split_digest(split, patients), recipe_hash),
    )
    report.predictions["cohort"] = cohorts[report.predictions["position"]]
    said = "the higher the AUROC, the more a difference between the cohorts may be one of scanners and not of patients"
    return replace(report, heads={}, notes=[said, *report.notes])


def _side(name: str, prepared: Prepared[Any], embeddings: dict[str, NDArray[np.float32]]) -> CohortSide:
    cohort, rows = prepared.samples.cohort, prepared.rows
    return CohortSide(name, {**embeddings}, cohort.patients.to_numpy()[rows], cohort.split[rows])


def _together(
    here: CohortSide, there: CohortSide
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64], NDArray[np.str_]]:
    """Embeddings, codes of patients and cohort of both sides, those here first."""
    x = {name: np.concatenate([u, there.embeddings[name]]) for name, u in here.embeddings.items()}
    known = np.unique(here.patients)  # first, and sorted, so that draws of patients are those of `evaluate`
    people = pd.Index(np.concatenate([known, np.setdiff1d(there.patients, known)]))
    patients = people.get_indexer(np.concatenate([here.patients, there.patients]))
    cohorts = np.repeat([here.name, there.name], [len(here.split), len(there.split)])
    return x, patients.astype(np.int64), cohorts


def _prevalence(y: NDArray[np.float64]) -> str:
    known = y[has_target(y, "classify")]
    return f"{known.mean():.1%}" if len(known) else "none"
