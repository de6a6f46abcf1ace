"""Where an evaluation is written, and how its files take the place of an earlier one's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bolus.data.cohort.cohort import Cohort
from bolus.embedding.opening import Judged
from bolus.evaluation.probing.options import EMBEDDED
from bolus.evaluation.statistics.results import Result, write_results
from bolus.evaluation.targets import file_name
from bolus.files import replacing, write_json

RESULTS, NOTES = "results.jsonl", "notes.json"


def evaluation_folder(
    out: str | Path | None, judged: Judged, cohort: Cohort, question: str, probes: Sequence[str] | None = None
) -> Path:
    """Where an evaluation is written: `out`, or a folder of this question, these probes and this split.

    Args:
        out: what the person asked for, if anything.
        judged: the encoder; that of a run has its folders in the run's `evaluations/`, any other in `./evaluations/`.
        cohort: whose split the folder is of.
        question: task and target, such as `regress-age`; what a file name cannot hold is quoted.
        probes: named in their order where they are not the default ones, so that `regress-age-linear-finetune-...`
            stands beside `regress-age-...`.
    """
    if out is not None:
        return Path(out)
    named = "" if probes is None or tuple(probes) == EMBEDDED else f"-{'-'.join(probes)}"
    name = f"{file_name(question)}{named}-{cohort.split_hash[:6]}"
    if judged.run is not None:
        return judged.run.folder / "evaluations" / name
    return Path("evaluations") / f"{file_name(judged.name)}-{name}"


def write_evaluation(
    folder: Path,
    results: Sequence[Result],
    notes: Sequence[str],
    target_notes: Mapping[str, Sequence[str]],
    *,
    rows_hash: str,
    files: Mapping[str, Callable[[Path], object]] | None = None,
    stale: Iterable[str] = (),
) -> None:
    """Write every file of an evaluation in place of an earlier one's; the results come last, when all else is there.

    Args:
        folder: made where it is not there.
        results: for results.jsonl.
        notes: for notes.json, in sentences: what holds for all.
        target_notes: likewise, target -> what a reader must know of it.
        rows_hash: of the cohort that was judged on, for notes.json: which table the rows of the files are of.
        files: name -> what writes the file to the path that it is called with.
        stale: patterns of further files that an earlier evaluation may have left.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     files = {"said.txt": lambda path: path.write_text("so")}
    ...     write_evaluation(Path(place), [], ["a"], {}, rows_hash="", files=files)
    ...     sorted(path.name for path in Path(place).iterdir())
    ['notes.json', 'results.jsonl', 'said.txt']
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = files or {}
    for pattern in (RESULTS, NOTES, *stale):
        for path in folder.glob(pattern):
            path.unlink()
    for name in files:
        (folder / name).unlink(missing_ok=True)
    for name, write in files.items():
        with replacing(folder / name) as temporary:
            write(temporary)
    of_targets = {name: [*said] for name, said in target_notes.items()}
    write_json(folder / NOTES, {"general": [*notes], "targets": of_targets, "rows_hash": rows_hash})
    write_results(folder / RESULTS, results)
