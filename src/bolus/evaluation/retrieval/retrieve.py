"""Is a participant found again from another view of the same person: the other eye, modality or visit?

COMPRER (arXiv:2403.09672) judges its encoder by Top-K retrieval between paired images without defining it. Here there
are two readings, side by side. Top-K: one pair a test participant, and the partner's rank among the N partners; chance
is K / N, hence no Top-K without its N. Recall and NDCG: every test image of one side is a query, and what is looked
for among all test images of the other side are those of the same participant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bolus.data.cohort.cohort import Cohort, CohortLike, Samples
from bolus.device import Precision
from bolus.evaluation.preparation import Prepared, embed_all, prepare
from bolus.evaluation.retrieval.answers import answers_of_ranks
from bolus.evaluation.retrieval.ranking import ranks, top_k
from bolus.evaluation.retrieval.scores import MEDIAN, judge_retrieval
from bolus.evaluation.retrieval.sides import Sides, find_sides, shared_roles
from bolus.evaluation.retrieval.task import Retrieve
from bolus.evaluation.settings import Judging
from bolus.evaluation.statistics.answers import Answer
from bolus.evaluation.statistics.metrics import IntArray
from bolus.evaluation.statistics.results import RANDOM, Result, decimals
from bolus.evaluation.statistics.verdict import asked_of, verdicts_of
from bolus.evaluation.writing import write_evaluation

__all__ = ["Retrieval", "evaluate_retrieve", "judge_retrieval", "ranks", "top_k"]


@dataclass(repr=False)
class Retrieval:
    """What `evaluate_retrieve` found.

    Args:
        results: of task `retrieve`; a target is a direction, such as `laterality: left to right`.
        ranks: a line for each direction, encoder and pair: `row` and `partner_row` of the table (from 1), `rank`.
        folder: where results, ranks and notes were written.
        notes: what holds for all of them, in sentences.
    """

    results: list[Result]
    ranks: pd.DataFrame
    folder: Path
    notes: list[str]

    def summary(self) -> str:
        """A small table of Top-K and the median rank in each direction, chance beside it, and verdicts on Top-1.

        Verdicts are against the start, where there is one, and against the random-init twin: fixed beforehand.
        """
        shown = ("top_1", "top_5", "top_10", MEDIAN)
        lines = [f"{'pairs':>6}  {'encoder':<28}{'top-1 [95 % over patients]':<28}{'top-5':<8}{'top-10':<8}median rank"]
        for target in dict.fromkeys(each.target for each in self.results):
            of_target = [each for each in self.results if each.target == target]
            found = {(each.encoder, each.metric): each for each in of_target if not each.baseline}
            lines.append(target)
            for encoder in dict.fromkeys(encoder for encoder, _ in found):
                top, *others = (found[encoder, metric] for metric in shown)
                five, ten, median = (each.estimate for each in others)
                rest = f"{decimals(five):<8}{decimals(ten):<8}{median:.1f}"
                lines.append(f"{top.num_samples:>6}  {encoder:<28}{top.interval:<28}{rest}")
            one, five, ten, median = (
                next(each.chance or 0.0 for each in of_target if each.metric == metric and not each.baseline)
                for metric in shown
            )
            lines.append(f"{'':>6}  {'chance':<28}{decimals(one):<28}{decimals(five):<8}{decimals(ten):<8}{median:.1f}")
        first = [each for each in self.results if each.metric == shown[0]]
        targets = dict.fromkeys(each.target for each in first)
        asked = [one for target in targets for one in asked_of([each for each in first if each.target == target])]
        said = [f"{each.target}: {said}" for each, said in zip(asked, verdicts_of(asked), strict=True)]
        return "\n".join([*lines, *said])

    def __repr__(self) -> str:
        return f"Retrieval({len(self.results)} results in {self.folder})"

    def text(self) -> str:
        """The summary and the notes."""
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([self.summary(), "", *notes, f"wrote results and ranks to {self.folder}"])


def evaluate_retrieve(
    source: str | Path,
    cohort: CohortLike,
    *,
    across: str,
    out: str | Path | None = None,
    seed: int = 0,
    draws: int = 1000,
    size: int | None = None,
    cache: Path | None = None,
    baselines: Sequence[str | Path] = (),
    precision: Precision = "fp32",
) -> Retrieval:
    """Judge an encoder by whether it finds the participants of the test patients again, beside a random-init twin.

    Nothing is fitted: cosines of embeddings, of test patients alone. Every two values of the role `across` are searched
    in both directions; of visit and time the sides are `earlier` and `later`. `find_sides` says who is on them and what
    both images of a pair share. Of each direction:

    - on one pair a participant, the same for every encoder: `top_1`, `top_5`, `top_10`, `top_1_percent` (K is 1 % of N,
      rounded up) and `median_rank`;
    - on all test images of the two sides: `recall_1`, `recall_5`, `recall_10`, the share of the participant's images
      that are found, and `ndcg_10`. Here everything of the participant is relevant, whatever else differs. Queries of
      participants without an image on the other side are left out and counted.

    Each result has what a random order gives as `chance`, and an interval over patients: ranks stay as they are, and
    patients are drawn. It says nothing of other initialisations: twins of different seeds differ among themselves.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        across: the role that differs; see `find_sides`.
        out: folder for results.jsonl, ranks.parquet (rows of the table as given, no patient) and notes.json, which
            replace those of an earlier evaluation; where None a folder of this question and this split in the run's
            `evaluations/`.
        seed: of the random-init twin and of the bootstrap; which images stand for a patient does not depend on it.
        draws: bootstrap resamples of the patients.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        baselines: further encoders to stand beside it, as of `evaluate`.
        precision: of embedding: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.

    Raises:
        EvaluationError: as `find_sides`.
        LeakageError: an encoder was trained on validation or test patients of the cohort.
        UsageError: numbers out of range, before anything is read; or a size for an encoder that states its own.
        EncoderError, CohortError: an encoder or the cohort cannot be opened.
    """
    return judge(Retrieve(across), source, cohort, Judging(seed, draws, size, cache, out, baselines, precision))


def ask(task: Retrieve, samples: Samples) -> list[Sides]:
    """Who is on which side of the role; Raises as `find_sides`."""
    return find_sides(samples, np.arange(len(samples)), task.across)[0]


def judge(task: Retrieve, source: str | Path, cohort: CohortLike, judging: Judging) -> Retrieval:
    """Rank the test patients' images for each other, and write the files; Args and Raises as `evaluate_retrieve`."""
    return _judge(task, prepare(source, cohort, task, partial(ask, task), judging))


def answers(task: Retrieve, folder: Path, patient: Callable[[pd.Series[Any]], IntArray], encoder: str) -> list[Answer]:
    """As `bolus.evaluation.tasks.answers`."""
    return answers_of_ranks(pd.read_parquet(folder / "ranks.parquet"), patient, encoder, task.across)


def _judge(task: Retrieve, prepared: Prepared[list[Sides]]) -> Retrieval:
    across, cohort = task.across, prepared.cohort
    prepared = replace(prepared, kept=prepared.kept[prepared.split == "test"])  # nothing else is embedded
    sides, left_out = find_sides(prepared.samples, prepared.kept, across)
    rows = prepared.rows
    results, found = judge_retrieval(
        embed_all(prepared.encoders(), prepared),
        sides,
        prepared.patients,
        across=across,
        judging=prepared.judging,
        origin=prepared.origin,
    )
    given = cohort.origin[rows] + 1
    table = pd.DataFrame(
        {
            "row": given[found["query"]],
            "partner_row": given[found["partner"]],
            "rank": found["rank"],
            "encoder": found["encoder"],
            "direction": found["direction"],
        }
    )
    notes = [*notes_on_sides(cohort, rows, sides, across), *left_out, *prepared.notes]
    folder = prepared.folder(f"retrieve-{across}")
    said: dict[str, list[str]] = {}
    for result in results:
        said[result.target] = list(dict.fromkeys([*said.get(result.target, []), *result.notes]))
    files = {"ranks.parquet": table.to_parquet}
    write_evaluation(folder, results, notes, said, rows_hash=cohort.rows_hash, files=files)
    return Retrieval(results, table, folder, notes)


def notes_on_sides(cohort: Cohort, rows: IntArray, sides: Sequence[Sides], across: str) -> list[str]:
    """How much there is to search, what chance gives, and what both images of a pair share; `rows` of the positions."""
    said, shared = [], shared_roles(cohort, across)
    for each in sides:
        (one, other), (first, second) = each.names, each.members
        said.append(
            f"{across}, {one} and {other}: {len(each.pairs)} pairs, one a test patient, so that chance of Top-K is "
            f"K / {len(each.pairs)}; {len(first)} and {len(second)} test images in the full galleries"
        )
    if shared:
        said.append(f"both images of a pair have the same {' and '.join(shared)}, of which the N partners have any")
    else:
        said.append(f"nothing but the patient is the same in both images of a pair: no column but {across} says more")
    for each in sides if shared else []:
        known = np.stack([cohort.encoded(role)[rows[each.pairs[:, 0]]] for role in shared], axis=1).astype(np.float64)
        _, number = np.unique(np.nan_to_num(known, nan=-1), axis=0, return_counts=True)
        if len(number) > 1:
            said.append(
                f"{across}, {' and '.join(each.names)}: an embedding that told only what a pair shares would reach "
                f"Top-1 {len(number) / number.sum():.3f}, where K / N is {1 / number.sum():.3f}"
            )
    if across == "modality" and len(shared) > len({"visit", "time"} & set(shared)):
        said.append("laterality, region, view position or phase may be missing in one image of a pair")
    said.append(
        f"intervals are over patients; {RANDOM} is one initialisation, and those of other seeds differ from it as well"
    )
    return said
