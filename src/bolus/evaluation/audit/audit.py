"""Whether an encoder serves everybody, the question that COMPRER (arXiv:2403.09672) leaves open.

What a linear probe predicts is judged in each group of test patients, the worst group is held against the best, and it
is said how well each attribute itself can be read off the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bolus.data.cohort.cohort import CohortLike, Samples
from bolus.device import Precision
from bolus.evaluation.audit.decoding import TASK, decode
from bolus.evaluation.audit.gaps import GroupReport, judge_groups
from bolus.evaluation.audit.subgroups import Grouping, find_groupings
from bolus.evaluation.audit.task import Auditing
from bolus.evaluation.preparation import Prepared, embed_all, prepare
from bolus.evaluation.probing import reading
from bolus.evaluation.probing.options import Probing
from bolus.evaluation.probing.probe import ProbeReport, probe
from bolus.evaluation.settings import Judging, Origin
from bolus.evaluation.statistics.intervals import holm
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.evaluation.statistics.results import MAJORITY, RANDOM, START, Result
from bolus.evaluation.statistics.verdict import after_holm, verdicts_of
from bolus.evaluation.targets import Target, shown
from bolus.evaluation.writing import write_evaluation

Audited = tuple[list[Target], list[Grouping], list[str]]
"""What is asked: the targets, the groupings, and notes on what was left out."""


@dataclass(repr=False)
class Audit:
    """What `evaluate_audit` found; every result is of task `audit`.

    Args:
        groups: metrics on all test samples (`subset` empty) and in each group (`subset` such as `sex=F`).
        gaps: worst group against best and against all; see `gaps.GroupReport`.
        decoding: how well a linear probe reads each attribute; target `decode:sex`.
        folder: where results and notes were written.
        notes: what holds for all of them, in sentences.
        target_notes: target -> what a reader must know of it, likewise.
    """

    groups: list[Result]
    gaps: list[Result]
    decoding: list[Result]
    folder: Path
    notes: list[str]
    target_notes: dict[str, list[str]]

    @property
    def results(self) -> list[Result]:
        """Every result."""
        return [*self.groups, *self.gaps, *self.decoding]

    def summary(self) -> str:
        """For each target and probe a table of the groups, then the gaps; at last what the embedding tells of them.

        Metrics are the first of each question; of the encoders the judged one and the random-init twin are shown.
        """
        return "\n".join(summarise_audit(self.groups, self.gaps, self.decoding))

    def __repr__(self) -> str:
        return f"Audit({len(self.results)} results in {self.folder})"

    def text(self) -> str:
        """The summary and the notes."""
        said = [note if t in note else f"{t}: {note}" for t, notes in self.target_notes.items() for note in notes]
        notes = [f"note: {note}" for note in [*self.notes, *said]]
        return "\n".join([self.summary(), "", *notes, f"wrote results to {self.folder}"])


def summarise_audit(groups: Sequence[Result], gaps: Sequence[Result], decoding: Sequence[Result]) -> list[str]:
    """The lines of `Audit.summary`."""
    judged, lines = groups[0].encoder, []
    first = {r.target: r.metric for r in reversed(groups)}
    shown = [r for r in gaps if r.encoder == judged and r.metric == first[r.target]]
    corrected = holm([math.nan if r.p_value is None else r.p_value for r in shown])
    for target, kind in dict.fromkeys((r.target, r.probe) for r in groups if r.encoder == judged):
        main = [r for r in groups if r.target == target and r.probe in (kind, "none")]
        main = [r for r in main if r.metric == main[0].metric and not r.baseline]
        columns = [name for name in (judged, START, RANDOM) if name in {r.encoder for r in main}]
        named = "".join(f"{name:<27}" for name in columns).rstrip()
        lines += [f"{target}, {kind}: {main[0].metric} [95 % interval over patients]"]
        lines += [f"{'group':<24}{'patients':>9}{'positive':>9}  {named}"]
        for result in (r for r in main if r.encoder == judged):
            row = {r.encoder: r for r in main if r.subset == result.subset}
            positive = "" if result.num_positive_patients is None else result.num_positive_patients
            values = "".join(f"{row[name].interval:<27}" for name in columns).rstrip()
            lines.append(f"{result.subset or 'all':<24}{result.num_patients:>9}{positive:>9}  {values}")
        lines += [
            f"{gap.subset.rpartition(': ')[0]}: {gap.notes[0]}{after_holm(gap.notes[0], p, len(shown))}"
            for gap, p in zip(shown, corrected.tolist(), strict=True)
            if (gap.target, gap.probe) == (target, kind)
        ]
    targets = list(dict.fromkeys(r.target for r in decoding))
    read = {name: [r for r in decoding if r.target == name] for name in targets}
    read = {name: [r for r in found if r.metric == found[0].metric] for name, found in read.items()}
    beside = [r for name in targets for r in read[name] if r.baseline == RANDOM]
    verdicts = dict(zip((r.target for r in beside), verdicts_of(beside), strict=True))
    for name in targets:
        values = ", ".join(f"{r.encoder} {r.interval}" for r in read[name] if not r.baseline)
        lines.append(f"{name}: {read[name][0].metric} {values}")
        lines += [f"  {verdicts[name]}"] if name in verdicts else []
    return lines


def evaluate_audit(
    source: str | Path,
    cohort: CohortLike,
    *,
    target: str,
    task: str = "classify",
    by: Sequence[str] | None = None,
    age_bands: Sequence[float] | None = None,
    probes: Sequence[str] = ("linear",),
    out: str | Path | None = None,
    seed: int = 0,
    draws: int = 1000,
    min_patients: int = 20,
    size: int | None = None,
    cache: Path | None = None,
    baselines: Sequence[str | Path] = (),
    precision: Precision = "fp32",
) -> Audit:
    """Judge what is read off an encoder in each group of test patients, and whether the groups are read off it too.

    Heads are fitted on all training patients, as `evaluate` fits them; only what is judged is divided. Groups are of
    samples: a patient whose samples differ (in the eye, or in a sex that was entered in two ways) is in several, and
    counted in the notes. Samples whose group is not known count among all.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        target: see `find_targets`.
        task: `classify` or `regress`.
        by: roles whose groups are compared; see `find_groupings` for what None means and how numbers are cut.
        age_bands: inner edges in years; None: 40, 60, 75, or quartiles of the training patients where these have few.
        probes: of `linear` and `knn`.
        out: folder for results.jsonl and notes.json, which replace those of an earlier audit; where None a folder of
            this question in the run's `evaluations/`.
        seed: of draws, random groups and the random-init twin.
        draws: bootstrap resamples of the test patients, and random groupings.
        min_patients: positive patients that a class of a many-class label needs.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        baselines: further encoders, beside the random-init twin.
        precision: of embedding: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.

    Raises:
        EvaluationError: a target or role that the cohort does not have, or no two groups among the test patients.
        UsageError: an unknown task or probe, edges out of order, a role that names files or people, or a size for an
            encoder that states its own.
        LeakageError: the encoder or a baseline was trained on validation or test patients of the cohort.
        EncoderError, CohortError: encoder or cohort cannot be opened.
    """
    asked: dict[str, Any] = {"min_patients": min_patients} if task == "classify" else {}
    read = reading.reading_of(task)(target=target, probing=Probing(probes), **asked)
    judging = Judging(seed, draws, size, cache, out, baselines, precision)
    return judge(Auditing(read, by, age_bands), source, cohort, judging)


def judge(task: Auditing, source: str | Path, cohort: CohortLike, judging: Judging) -> Audit:
    """Read the targets, judge the predictions in each group, read the groups themselves, and write the files.

    Args and Raises as `evaluate_audit`.
    """

    def ask(samples: Samples) -> Audited:
        asked = reading.ask(task.reading, samples)
        found, left_out = find_groupings(samples.cohort, task.by, age_bands=task.age_bands)
        return asked.targets, found, [*asked.notes, *left_out]

    return _judge(task, prepare(source, cohort, task, ask, judging))


def _judge(task: Auditing, prepared: Prepared[Audited]) -> Audit:
    rows, read, judging, origin = prepared.rows, task.reading, prepared.judging, prepared.origin
    questions, groupings, notes = prepared.asked
    embeddings = embed_all(prepared.encoders(), prepared)
    groupings = [grouping.take(rows) for grouping in groupings]
    patients, split, probes = prepared.patients, prepared.split, read.probing.probes
    groups = f" by {' '.join(task.by)}" if task.by else ""
    bands = f" bands {' '.join(f'{edge:g}' for edge in task.age_bands)}" if task.age_bands else ""
    fitted = "" if probes == ("linear",) else f" {' '.join(probes)}"
    asked = f"{TASK}-{read.name}-{shown(read.target)}{groups}{bands}{fitted}"
    audit = Audit([], [], [], prepared.folder(asked), [*notes, *prepared.notes], {})
    audit.notes.append(
        "random groups exchange the groups of patients with like outcomes, and within a patient those of its samples: "
        "a group keeps its size and, by patients, its outcomes"
    )
    together = 2 * len(questions) * len(groupings) * len(probes)  # each worst group against the best, and against all
    for question in questions:
        report = probe(
            embeddings,
            question.y[rows],
            patients,
            split,
            task=read.name,
            target=question.name,
            classes=question.classes,
            probing=read.probing,
            judging=judging,
            origin=origin,
        )
        said = list(report.notes)
        for kind in probes:
            found = audit_probe(
                report, kind, patients, groupings,
                classes=question.classes, judging=judging, origin=origin, together=together,
            )  # fmt: skip
            again = () if kind == probes[0] else (MAJORITY,)  # which no probe reads off an encoder
            audit.groups += [result for result in found.groups if result.encoder not in again]
            audit.gaps += [result for result in found.gaps if result.encoder not in again]
            said += found.notes
        audit.target_notes[question.name] = list(dict.fromkeys(said))
    for grouping in groupings:
        results, said = decode(embeddings, grouping, patients, split, judging=judging, origin=origin)
        audit.decoding += results
        audit.target_notes[f"decode:{grouping.name}"] = said
    write_evaluation(audit.folder, audit.results, audit.notes, audit.target_notes, rows_hash=prepared.cohort.rows_hash)
    return audit


def audit_probe(
    report: ProbeReport,
    kind: str,
    patients: NDArray[Any],
    groupings: Sequence[Grouping],
    *,
    classes: Sequence[str] | None,
    judging: Judging | None = None,
    origin: Origin | None = None,
    together: int = 1,
) -> GroupReport:
    """The groups of one probe's test predictions at fraction 1.0, of all its encoders and the majority.

    Args:
        report: what `probe.probe` found, for one target.
        kind: the probe.
        patients: `[n]` codes of the samples that were embedded.
        groupings: of those samples.
        classes: names of the codes 0..K-1; None for numbers.
        judging: its seed and draws are of the bootstrap and of the random groups.
        origin: copied into the results.
        together: as of `judge_groups`.

    >>> from bolus.evaluation.audit.subgroups import Grouping
    >>> r, y = np.random.default_rng(0), np.arange(200) % 2
    >>> parts = np.repeat(["train", "val", "test"], [80, 20, 100])
    >>> report = probe({"run": r.normal(size=(200, 3)) + 3 * y[:, None]}, y, np.arange(200), parts, task="classify",
    ...                target="sick", probing=Probing(("linear",)), judging=Judging(draws=50))
    >>> sex = Grouping.of_labels("sex", ["F", "F", "M", "M"] * 50)
    >>> found = audit_probe(report, "linear", np.arange(200), [sex], classes=("no", "yes"),
    ...                     judging=Judging(draws=50))
    >>> [result.subset for result in found.groups if (result.encoder, result.metric) == ("majority", "auroc")]
    ['', 'sex=F', 'sex=M']
    """
    judging, origin, first = judging or Judging(), origin or Origin(), report.results[0]
    position, y, scores = _predicted(report, kind, classes)
    blank = replace(first, task=TASK, metric="", probe=kind, encoder="", baseline="", subset="", notes=(),
                    num_positive=None, num_positive_patients=None, sd_repeats=None, detectable=None,
                    split_hash=origin.split_hash, recipe_hash="")  # fmt: skip
    found = judge_groups(
        y,
        scores,
        patients[position],
        [grouping.take(position) for grouping in groupings],
        blank=blank,
        task=first.task,
        num_classes=len(classes) if classes else 2 * (first.task == "classify"),
        draws=judging.draws,
        seed=judging.seed,
        together=together,
    )
    judged = next(iter(scores))

    def signed(result: Result) -> Result:
        kind_of = "none" if result.encoder == MAJORITY else kind
        return origin.sign(replace(result, probe=kind_of), judged)

    return GroupReport([signed(r) for r in found.groups], [signed(r) for r in found.gaps], found.notes)


def _predicted(
    report: ProbeReport, kind: str, classes: Sequence[str] | None
) -> tuple[IntArray, FloatArray, dict[str, FloatArray]]:
    """Positions `[m]` and targets of the test predictions of a probe, and each encoder's `[m]` or `[m, K]`."""
    frame = report.predictions
    frame = frame[(frame["split"] == "test") & (frame["fraction"] == 1.0) & frame["probe"].isin((kind, "none"))]
    columns: Any = [f"score:{name}" for name in classes] if classes and len(classes) > 2 else "score"
    parts = {str(name): part for name, part in frame.groupby("encoder", sort=False)}
    first = next(iter(parts.values()))
    position = first["position"].to_numpy(np.int64)
    assert all(np.array_equal(part["position"], position) for part in parts.values())
    scores = {name: part[columns].to_numpy(np.float64) for name, part in parts.items()}
    return position, first["y"].to_numpy(np.float64), scores
