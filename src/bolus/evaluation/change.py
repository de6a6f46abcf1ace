"""Within-patient change, LEARNER's downstream question (arXiv:2411.01144).

Does d = u_later - u_earlier tell whether a patient improves, stays or worsens, and by how much? Beside it stands what
the paper asks of such a claim: the concatenation of both embeddings as the ablation, the random-init twin, the majority
class, and whether samples that lie far apart have scores that lie far apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort import Cohort
from bolus.embedding import open_encoder, open_store, remarks_on, samples_of
from bolus.errors import EvaluationError
from bolus.evaluation.distance import judge_distances
from bolus.evaluation.judging import (
    Evaluation,
    embed_all,
    evaluation_folder,
    refuse_seen_patients,
    write_evaluation,
)
from bolus.evaluation.pairs import CHANGES, Pairs, classify_change, concatenate, difference, find_pairs
from bolus.evaluation.probe import ProbeReport, probe
from bolus.evaluation.question import SPLITS
from bolus.evaluation.results import Result
from bolus.evaluation.targets import find_targets


def evaluate_change(
    source: str | Path,
    cohort: str | Path | Cohort,
    *,
    target: str,
    tolerance: float = 0.0,
    higher_is_worse: bool = True,
    adjacent_only: bool = False,
    max_pairs: int = 200,
    probes: Sequence[str] = ("linear", "knn"),
    fractions: Sequence[float] = (1.0,),
    seed: int = 0,
    draws: int = 1000,
    repeats: int = 3,
    out: str | Path | None = None,
    size: int | None = None,
    cache: Path | None = None,
) -> Evaluation:
    """Judge what the difference of two embeddings of a patient tells of the change of a score between them.

    Three reports: `change:NAME`, the three classes; `amount_of_change:NAME`, the change as a number; and
    `distance:NAME`, whose results are of task `change`: the Spearman correlation of cosine distance and size of the
    change over the test pairs, and the mean size of the change (`mean_change`), where there is a time also of adjacent
    and of other pairs alone. Where the cohort has no time or visit, both orders of each two samples of a patient are
    taken, and the notes call it a difference between samples.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        target: a score, as `find_targets` finds it for `regress`.
        tolerance: a change of this size or less is stable; in the score's unit.
        higher_is_worse: the score is a severity.
        adjacent_only: only pairs of consecutive times.
        max_pairs: of each patient.
        probes: of `linear` and `knn`.
        fractions: shares of the training patients whose pairs are used.
        seed: of draws and of the random-init twin.
        draws: bootstrap resamples of the test patients.
        repeats: draws of each fraction below 1.
        out: folder, as of `evaluate`; `row` in its predictions is the earlier sample, `later_row` the later one.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.

    Raises:
        EvaluationError: no such score, or no pair among the training or the test patients.
        UsageError: `adjacent_only` without a time or visit, a negative tolerance, a size for an encoder that states it.
        LeakageError: the encoder was trained on validation or test patients of the cohort.
        EncoderError, CohortError: encoder or cohort cannot be opened.
    """
    classify_change([], tolerance, higher_is_worse)  # refuses a bad tolerance before hours of embedding
    judged = open_encoder(source, size=size)
    samples = samples_of(judged, Cohort.open(cohort))
    cohort = samples.cohort
    scores, name = find_targets(cohort, "regress", target)[0][0].y[samples.first_row], target.split(":", 1)[-1]
    refuse_seen_patients(judged, cohort)
    columns = samples.columns(["patient", *(role for role in ("time", "visit") if role in cohort.roles)])
    store = open_store(judged, cohort, cache=cache)
    kept = np.flatnonzero(samples.readable(store.readable))
    pairs = find_pairs(
        columns["patient"][kept],
        scores[kept],
        time=columns["time"][kept] if "time" in columns else None,
        visit=columns["visit"][kept] if "visit" in columns else None,
        kinds=np.unique(cohort.modality[samples.first_row[kept]], return_inverse=True)[1],
        adjacent=True if adjacent_only else None,
        max_pairs=max_pairs,
        seed=seed,
    )
    split = cohort.split[samples.first_row[kept]]
    _check_pairs(name, pairs, split)
    notes = [*_counts(name, pairs, columns["patient"][kept], split), *pairs.notes, *remarks_on(judged, store)]
    if not judged.lineage:
        notes.append(f"{judged.name}: which patients it was trained on is not known here, so overlap was not checked.")
    reports = judge_change(
        embed_all(judged, source, store, samples, kept, seed),
        pairs,
        columns["patient"][kept],
        split,
        target=name,
        tolerance=tolerance,
        higher_is_worse=higher_is_worse,
        probes=probes,
        fractions=fractions,
        repeats=repeats,
        seed=seed,
        draws=draws,
        split_hash=cohort.split_hash,
        recipe_hash=judged.run.recipe.digest if judged.run else "",
    )
    question = f"{next(iter(reports)).replace(':', '-', 1)}{' adjacent' if adjacent_only else ''}"
    found = Evaluation(reports, evaluation_folder(out, judged, cohort, question), notes)
    for path in found.folder.glob("head-*change%3A*-linear.safetensors"):
        path.unlink()
    rows = cohort.origin[samples.first_row[kept]]  # of the table as given
    for report in reports.values():
        report.predictions["later_row"] = rows[pairs.later[report.predictions["position"]]] + 1
    write_evaluation(found, rows[pairs.earlier], question)
    return found


def judge_change(
    embeddings: Mapping[str, NDArray[Any]],
    pairs: Pairs,
    patients: NDArray[Any],
    split: NDArray[Any],
    *,
    target: str,
    tolerance: float = 0.0,
    higher_is_worse: bool = True,
    probes: Sequence[str] = ("linear", "knn"),
    fractions: Sequence[float] = (1.0,),
    repeats: int = 3,
    seed: int = 0,
    draws: int = 1000,
    split_hash: str = "",
    recipe_hash: str = "",
) -> dict[str, ProbeReport]:
    """The three reports of `evaluate_change`, from embeddings that are there already.

    Args:
        embeddings: encoder name -> `[n, D]` finite floats of samples; the first is judged, the others are baselines,
            and `<judged> concatenated` is added to them.
        pairs: of those samples.
        patients: `[n]` codes of the samples.
        split: `[n]` of `train`, `val` and `test`.
        target: name of the score.
        tolerance: a change of this size or less is stable; in the score's unit.
        higher_is_worse: the score is a severity.
        probes: this and the rest as `probe.probe`.
        fractions: shares of the training patients.
        repeats: draws of each fraction below 1.
        seed: of every draw.
        draws: bootstrap resamples.
        split_hash: copied into the results.
        recipe_hash: copied into the results of the judged encoder.

    Returns:
        `change:NAME` (followed by ` tolerance T` where it is not 0), `amount_of_change:NAME` and `distance:NAME`.
        The positions in their predictions are those of the pairs.

    Raises:
        EvaluationError: as `probe.probe`.

    >>> r = np.random.default_rng(0)
    >>> patients, score, part = np.repeat(np.arange(90), 2), r.normal(size=180), np.repeat(["train", "val", "test"], 60)
    >>> pairs = find_pairs(patients, score, time=np.tile([0.0, 1.0], 90))
    >>> encoders = {"run": score[:, None] + r.normal(size=(180, 3)), "random-init": r.normal(size=(180, 3))}
    >>> reports = judge_change(encoders, pairs, patients, part, target="severity", probes=("linear",), draws=50)
    >>> list(reports), reports["distance:severity"].results[0].metric
    (['change:severity', 'amount_of_change:severity', 'distance:severity'], 'spearman')
    """
    judged, class_target = next(iter(embeddings)), f"change:{target}{f' tolerance {tolerance:g}' if tolerance else ''}"
    inputs = {encoder: difference(u, pairs) for encoder, u in embeddings.items()}
    inputs[f"{judged} concatenated"] = concatenate(embeddings[judged], pairs)
    said = (_meaning(target, tolerance, higher_is_worse), *_kind(pairs))
    who, side = np.asarray(patients)[pairs.earlier], np.asarray(split).astype(str)[pairs.earlier]
    questions: list[tuple[str, str, NDArray[Any], tuple[str, ...] | None]] = [
        ("classify", class_target, classify_change(pairs.delta, tolerance, higher_is_worse), CHANGES),
        ("regress", f"amount_of_change:{target}", pairs.delta, None),
    ]
    reports = {}
    for task, name, y, classes in questions:
        report = probe(
            inputs,
            y,
            who,
            side,
            task=task,
            target=name,
            classes=classes,
            probes=probes,
            fractions=fractions,
            repeats=repeats,
            seed=seed,
            draws=draws,
            split_hash=split_hash,
            recipe_hash=recipe_hash,
        )
        results = [replace(result, notes=(*said, *result.notes)) for result in report.results]
        reports[name] = replace(report, results=results, notes=[*said, *report.notes])
    blank = Result("change", f"distance:{target}", "spearman", np.nan, np.nan, np.nan, 0, 0, seed=seed,
                   split_hash=split_hash, recipe_hash=recipe_hash, probe="none", notes=said)  # fmt: skip
    reports[blank.target] = judge_distances(embeddings, pairs, who, side, blank, draws=draws)
    return reports


def _meaning(name: str, tolerance: float, higher_is_worse: bool) -> str:
    worse = "higher" if higher_is_worse else "lower"
    return f"{name}: a change of at most {tolerance:g} (tolerance, in its unit) is stable, {worse} is worse"


def _kind(pairs: Pairs) -> list[str]:
    """What the pairs are, where they are not simply two times of a patient."""
    if pairs.adjacent is None:
        return ["difference between samples, not change over time: there is no time or visit"]
    return ["only pairs of consecutive times"] if len(pairs) and pairs.adjacent.all() else []


def _check_pairs(name: str, pairs: Pairs, split: NDArray[np.str_]) -> None:
    """Raise where nothing can be fitted or judged."""
    for part in ("train", "test"):
        if not (split[pairs.earlier] == part).any():
            timeless = pairs.adjacent is None
            hint = "" if timeless else "; a column that is no time can be given another role, such as attribute:NAME"
            left_out = f" ({', '.join(pairs.notes)})" if pairs.notes else ""
            where = f"{'two samples' if timeless else 'two times'} of one modality"
            raise EvaluationError(f"no {part} patient has a value of {name!r} at {where}{left_out}{hint}")


def _counts(name: str, pairs: Pairs, patients: NDArray[np.int64], split: NDArray[np.str_]) -> list[str]:
    """How many pairs there are, and whether anything changes at all."""
    side, who = split[pairs.earlier], patients[pairs.earlier]
    counted = [
        f"{(side == part).sum()} {part} pairs of {len(np.unique(who[side == part]))} patients" for part in SPLITS
    ]
    constant = not pairs.delta.any()
    said = [f"{name} is the same in every pair: all are stable, and most metrics undefined"] if constant else []
    return [", ".join(counted), *said]
