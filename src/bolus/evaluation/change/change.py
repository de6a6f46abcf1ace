"""Within-patient change, LEARNER's downstream question (arXiv:2411.01144).

Does d = u_later - u_earlier tell whether a patient improves, stays or worsens, and by how much? Beside it stands what
the paper asks of such a claim: the concatenation of both embeddings as the ablation, the random-init twin, the majority
class, and whether samples that lie far apart have scores that lie far apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.cohort.cohort import CohortLike, Samples
from bolus.device import Precision
from bolus.errors import EvaluationError
from bolus.evaluation.change.distance import judge_distances
from bolus.evaluation.change.pairs import (
    CHANGES,
    Pairs,
    classify_change,
    concatenate,
    constant_roles,
    difference,
    pairs_of,
)
from bolus.evaluation.change.task import Change
from bolus.evaluation.preparation import Prepared, embed_all, prepare
from bolus.evaluation.probing.answers import answers_of_probes
from bolus.evaluation.probing.heads import digest_of_encoder
from bolus.evaluation.probing.options import EMBEDDED, Probing
from bolus.evaluation.probing.probe import ProbeReport, probe
from bolus.evaluation.probing.question import SPLITS
from bolus.evaluation.probing.reading import Evaluation, write_reports
from bolus.evaluation.settings import Judging, Origin
from bolus.evaluation.statistics.answers import Answer
from bolus.evaluation.statistics.metrics import IntArray
from bolus.evaluation.statistics.results import Result
from bolus.evaluation.targets import Target, find_targets


def evaluate_change(
    source: str | Path,
    cohort: CohortLike,
    *,
    target: str,
    tolerance: float = 0.0,
    higher_is_worse: bool = True,
    adjacent_only: bool = False,
    max_pairs: int = 200,
    probes: Sequence[str] = EMBEDDED,
    fractions: Sequence[float] = (1.0,),
    seed: int = 0,
    draws: int = 1000,
    repeats: int = 3,
    out: str | Path | None = None,
    size: int | None = None,
    cache: Path | None = None,
    baselines: Sequence[str | Path] = (),
    precision: Precision = "fp32",
) -> Evaluation:
    """Judge what the difference of two embeddings of a patient tells of the change of a score between them.

    Three reports: `change:NAME`, the three classes; `amount_of_change:NAME`, the change as a number; and
    `distance:NAME`, whose results are of task `change`: the Spearman correlation of cosine distance and size of the
    change over the test pairs, and the mean size of the change (`mean_change`), where there is a time also of adjacent
    and of other pairs alone. Pairs are of the same modality, laterality, region, view position and phase, as far as the
    cohort has them; what is missing counts as a value of its own. Where the cohort has no time or visit, both orders of
    each two samples of a patient and modality are taken, and the notes call it a difference between samples.

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
        seed: of draws and of the random-init twin; which pairs are judged does not depend on it.
        draws: bootstrap resamples of the test patients.
        repeats: draws of each fraction below 1.
        out: folder, as of `evaluate`; `row` in its predictions is the earlier sample, `later_row` the later one.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        baselines: other encoders, as of `evaluate`.
        precision: of embedding: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.

    Raises:
        EvaluationError: no such score, or no pair among the training or the test patients.
        UsageError: `adjacent_only` without a time or visit, a negative tolerance, a probe that is unknown or trained on
            images, other numbers out of range, or a size for an encoder that states its own.
        LeakageError: the encoder or a baseline was trained on validation or test patients of the cohort.
        EncoderError, CohortError: encoder or cohort cannot be opened.
    """
    task = Change(target, tolerance, higher_is_worse, adjacent_only, max_pairs, Probing(probes, fractions, repeats))
    return judge(task, source, cohort, Judging(seed, draws, size, cache, out, baselines, precision))


def ask(task: Change, samples: Samples, *, readable: NDArray[np.bool_] | None = None) -> tuple[Target, Pairs]:
    """The score and the pairs of samples that it is asked of.

    Args:
        task: what is asked.
        samples: positions of the pairs are among them.
        readable: bool `[samples]`; all where None.

    Raises:
        EvaluationError: no such score, or no pair among the training or the test patients.
        UsageError: only adjacent pairs are wanted where there is no time or visit.
    """
    found = find_targets(samples.cohort, "regress", task.target)[0][0]
    pairs = pairs_of(samples, found.y, readable, adjacent_only=task.adjacent_only, max_pairs=task.max_pairs)
    _check_pairs(found.name, pairs, samples)
    return found, pairs


def judge(task: Change, source: str | Path, cohort: CohortLike, judging: Judging) -> Evaluation:
    """Read the change off the differences of embeddings, and write the files; Args and Raises as `evaluate_change`."""
    return _judge(task, prepare(source, cohort, task, partial(ask, task), judging))


def answers(task: Change, folder: Path, patient: Callable[[pd.Series[Any]], IntArray], encoder: str) -> list[Answer]:
    """As `bolus.evaluation.tasks.answers`."""
    frame = pd.read_parquet(folder / "predictions.parquet")
    return answers_of_probes(frame, patient, encoder, task=task.name, target=task.target)


def _judge(task: Change, prepared: Prepared[tuple[Target, Pairs]]) -> Evaluation:
    samples, kept, judging = prepared.samples, prepared.kept, prepared.judging
    cohort, (target, pairs), rows = samples.cohort, prepared.asked, prepared.rows
    if len(kept) < len(samples):
        readable = np.isin(np.arange(len(samples)), kept)
        target, pairs = ask(task, samples, readable=readable)
    name = target.name
    place = np.searchsorted(kept, np.stack([pairs.earlier, pairs.later]))  # among those kept
    pairs = replace(pairs, earlier=place[0], later=place[1])
    notes = [*_counts(name, pairs, prepared.patients, prepared.split), *pairs.notes, *prepared.notes]
    constant = constant_roles(cohort)
    notes.append(f"both samples of a pair have the same {' and '.join(constant)}" if constant
                 else "nothing but the patient is the same in both samples of a pair: no column says more")  # fmt: skip
    reports = judge_change(
        embed_all(prepared.encoders(), prepared),
        pairs,
        prepared.patients,
        prepared.split,
        target=name,
        unit=target.unit,
        tolerance=task.tolerance,
        higher_is_worse=task.higher_is_worse,
        probing=task.probing,
        judging=judging,
        origin=prepared.origin,
    )
    fitted = cohort.patients.iloc[rows[pairs.earlier[prepared.split[pairs.earlier] != "test"]]]
    weights = digest_of_encoder(prepared.judged.encoder)
    for report in reports.values():
        report.heads = {kind: head.signed(weights, fitted) for kind, head in report.heads.items()}
    question = f"{next(iter(reports)).replace(':', '-', 1)}{' adjacent' if task.adjacent_only else ''}"
    found = Evaluation(reports, prepared.folder(question, task.probing.probes), notes)
    for path in found.folder.glob("head-*change%3A*-linear.safetensors"):
        path.unlink()
    rows = cohort.origin[rows]  # of the table as given
    for report in reports.values():
        report.predictions["later_row"] = rows[pairs.later[report.predictions["position"]]] + 1
    write_reports(found, rows[pairs.earlier], question, rows_hash=cohort.rows_hash)
    return found


def judge_change(
    embeddings: Mapping[str, NDArray[Any]],
    pairs: Pairs,
    patients: NDArray[Any],
    split: NDArray[Any],
    *,
    target: str,
    unit: str = "",
    tolerance: float = 0.0,
    higher_is_worse: bool = True,
    probing: Probing | None = None,
    judging: Judging | None = None,
    origin: Origin | None = None,
) -> dict[str, ProbeReport]:
    """The three reports of `evaluate_change`, from embeddings that are there already.

    Args:
        embeddings: encoder name -> `[n, D]` finite floats of samples; the first is judged, the others are baselines,
            and `<judged> concatenated` is added to them.
        pairs: of those samples.
        patients: `[n]` codes of the samples.
        split: `[n]` of `train`, `val` and `test`.
        target: name of the score.
        unit: of the score, where it is known.
        tolerance: a change of this size or less is stable; in the score's unit.
        higher_is_worse: the score is a severity.
        probing: this and the rest as `probe.probe`.
        judging: its seed is of every draw.
        origin: copied into the results.

    Returns:
        `change:NAME` (followed by ` tolerance T` where it is not 0), `amount_of_change:NAME` and `distance:NAME`.
        The positions in their predictions are those of the pairs.

    Raises:
        EvaluationError: as `probe.probe`.

    >>> from bolus.evaluation.change.pairs import find_pairs
    >>> r = np.random.default_rng(0)
    >>> patients, score, part = np.repeat(np.arange(90), 2), r.normal(size=180), np.repeat(["train", "val", "test"], 60)
    >>> pairs = find_pairs(patients, score, time=np.tile([0.0, 1.0], 90))
    >>> encoders = {"run": score[:, None] + r.normal(size=(180, 3)), "random-init": r.normal(size=(180, 3))}
    >>> reports = judge_change(encoders, pairs, patients, part, target="severity", probing=Probing(("linear",)),
    ...                        judging=Judging(draws=50))
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
            unit="" if classes else unit,
            probing=probing,
            judging=judging,
            origin=origin,
        )
        results = [replace(result, notes=(*said, *result.notes)) for result in report.results]
        reports[name] = replace(report, results=results, notes=[*said, *report.notes])
    judging, origin = judging or Judging(), origin or Origin()
    blank = Result("change", f"distance:{target}", "spearman", np.nan, np.nan, np.nan, 0, 0, seed=judging.seed,
                   split_hash=origin.split_hash, recipe_hash=origin.recipe_hash, probe="none", notes=said)  # fmt: skip
    reports[blank.target] = judge_distances(embeddings, pairs, who, side, blank, draws=judging.draws)
    return reports


def _meaning(name: str, tolerance: float, higher_is_worse: bool) -> str:
    worse = "higher" if higher_is_worse else "lower"
    return f"{name}: a change of at most {tolerance:g} (tolerance, in its unit) is stable, {worse} is worse"


def _kind(pairs: Pairs) -> list[str]:
    """What the pairs are, where they are not simply two times of a patient."""
    if pairs.adjacent is None:
        return ["difference between samples, not change over time: there is no time or visit"]
    return ["only pairs of consecutive times"] if len(pairs) and pairs.adjacent.all() else []


def _check_pairs(name: str, pairs: Pairs, samples: Samples) -> None:
    """Raise where nothing can be fitted or judged."""
    side = samples.cohort.split[samples.first_row[pairs.earlier]]
    for part in ("train", "test"):
        if not (side == part).any():
            timeless = pairs.adjacent is None
            hint = "" if timeless else "; a column that is no time can be given another role, such as attribute:NAME"
            left_out = f" ({', '.join(pairs.notes)})" if pairs.notes else ""
            same = " and ".join(constant_roles(samples.cohort))
            where = f"{'two samples' if timeless else 'two times'}{f' of one {same}' if same else ''}"
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
