"""A saved head on new images: the rows of a table come back with what the head says of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort import Cohort
from bolus.data.split import overlap
from bolus.embedding import (
    Judged,
    device_for_inference,
    embed_samples,
    open_encoder,
    open_store,
    remarks_on,
    samples_of,
)
from bolus.errors import EvaluationError, UsageError, name_rows, suggest
from bolus.evaluation.heads import Head
from bolus.evaluation.targets import file_name

SUFFIXES = (".csv", ".parquet")
_OF_PAIRS = ("change:", "amount_of_change:")


def predict(
    source: str | Path,
    cohort: str | Path | Cohort,
    *,
    head: str | Path,
    out: str | Path | None = None,
    size: int | None = None,
    cache: Path | None = None,
) -> pd.DataFrame:
    """Predict for every row of a cohort, in its order, with a head that an evaluation saved.

    Labels are not needed. Clips come as one line each, with the columns of their first row.

    Args:
        source: run folder, encoder folder or hub name; a head that lies with its own encoder (`finetuned-NAME`) is used
            with that one.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        head: the name of a target in the evaluations of the run, a head file, or a folder with an encoder and a head.
        out: a .csv or .parquet file to write, whole or not at all.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.

    Returns:
        `row` (from 1), the table's own columns (`table_NAME` where a name is taken), then for a number `prediction` in
        the target's unit, for classes `predicted` and `probability:CLASS` (of two classes: of the second, which is
        predicted above 0.5), and `reason`: why there is no prediction, else missing. In `attrs["remarks"]`, what a
        person must know.

    Raises:
        UsageError: another suffix of `out`, a head of pairs of samples, a name that several heads have, or a size for
            an encoder that states its own.
        EvaluationError: no such head, or one for embeddings of another width.
        EncoderError, CohortError: encoder or cohort cannot be opened, or most of its images cannot be read.
    """
    if out is not None and Path(out).suffix.lower() not in SUFFIXES:
        raise UsageError(f"out: expected a file name that ends in {' or '.join(SUFFIXES)}, found {Path(out).name!r}")
    path = find_head(source, head)
    found = Head.load(path)
    if found.target.startswith(_OF_PAIRS):
        raise UsageError(f"the head of {found.target!r} reads the difference of two samples, not single images")
    judged = open_encoder(path.parent if (path.parent / "encoder.json").is_file() else source, size=size)
    width = judged.encoder.shape.dim
    if width != len(found.mean):
        raise EvaluationError(
            f"the head of {found.target!r} needs embeddings of width {len(found.mean)}, "
            f"but those of {judged.name} have width {width}: it belongs to another encoder"
        )
    opened = Cohort.open(cohort)
    samples = samples_of(judged, opened)
    store = open_store(judged, samples.cohort, cache=cache)
    readable = samples.readable(store.readable)
    u = embed_samples(judged.encoder.to(device_for_inference()), store, samples, np.flatnonzero(readable))
    # The store names rows of the table as given, samples those of a table with a row a frame.
    origin = samples.cohort.origin
    unread = {int(position): origin[samples.rows_of(int(position))] for position in np.flatnonzero(~readable)}
    reasons = {item.row: item.reason for item in store.quarantined}
    why = [reasons[int(unread[position][0])] if position in unread else None for position in range(len(samples))]
    said = _columns(found, found.predict(u), readable).assign(reason=pd.array(why, dtype="string"))

    first = origin[samples.first_row]
    own = opened.table.iloc[first].reset_index(drop=True)
    own = own.rename(columns={name: f"table_{name}" for name in {"row", *said.columns} & set(own.columns)})
    frame = pd.concat([pd.Series(first + 1, name="row"), own, said], axis=1)
    frame = frame.iloc[np.argsort(first, kind="stable")].reset_index(drop=True)

    empty, lines = {int(row) for rows in unread.values() for row in rows}, np.sort(first[~readable])
    # Of what the store calls left out, only frames of a clip are: the rest keeps its line.
    partly = replace(store, quarantined=[item for item in store.quarantined if item.row not in empty])
    frame.attrs["remarks"] = [
        *([f"{len(lines)} rows have no prediction, see their reason ({name_rows(lines)})."] if len(lines) else []),
        *remarks_on(judged, partly),
        _seen(judged, opened.patients.iloc[first]),
        *(f"head of {found.target}: {note}" for note in found.notes),
    ]
    if out is not None:
        _write(Path(out), frame)
    return frame


def find_head(source: str | Path, head: str | Path) -> Path:
    """The head file that is meant.

    Args:
        source: a run folder, where a name is looked up: `evaluations/*/head-NAME-linear.safetensors`, and
            `evaluations/*/finetuned-NAME/head.safetensors`; or any encoder, where `head` must be a path.
        head: a name, a file, or a folder with one head in it.

    Raises:
        EvaluationError: nothing there.
        UsageError: several heads have the name, or lie in the folder.

    >>> find_head("/nowhere", "edema")
    Traceback (most recent call last):
    bolus.errors.EvaluationError: no head 'edema': no such file, and /nowhere has no evaluations to look it up in
    """
    path = Path(head)
    if path.is_file():
        return path
    inside = sorted(path.glob("head*.safetensors"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise UsageError(f"{path} holds {len(inside)} heads, give one of them: {', '.join(h.name for h in inside)}")
    folder, name = Path(source) / "evaluations", str(head)
    if not folder.is_dir():
        raise EvaluationError(f"no head {name!r}: no such file, and {source} has no evaluations to look it up in")
    heads = sorted([*folder.glob("*/head-*.safetensors"), *folder.glob("*/finetuned-*/head.safetensors")])
    name = file_name(name.split(":", 1)[1] if name.startswith(("label:", "score:", "attribute:")) else name)
    fitting = [each for each in heads if _name_of(each) == name]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        shown = "".join(f"\n  - {each}" for each in fitting)
        raise UsageError(f"{len(fitting)} heads have the name {head!r}, give the path of one:{shown}")
    known = {unquote(_name_of(each)) for each in heads}
    raise EvaluationError(f"no head {head!r} in the evaluations of {source}; {suggest(str(head), known)}")


def _name_of(path: Path) -> str:
    """The target as the head's file or, beside an encoder, its folder spells it."""
    if path.name == "head.safetensors":
        return path.parent.name.removeprefix("finetuned-")
    return path.name.removeprefix("head-").removesuffix(".safetensors").removesuffix("-linear")


def _columns(head: Head, scores: npt.NDArray[np.float64], readable: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Predictions as columns, a line for each sample; `scores` are those of the readable ones."""
    full = np.full((len(readable), *scores.shape[1:]), np.nan)
    full[readable] = scores
    if head.task == "regress":
        return pd.DataFrame({"prediction": full})
    names = head.class_names or tuple(str(code) for code in range(head.num_classes))
    shown = {f"probability:{names[1]}": full} if full.ndim == 1 else {
        f"probability:{name}": column for name, column in zip(names, full.T, strict=True)
    }  # fmt: skip
    code = (scores > 0.5).astype(np.int64) if scores.ndim == 1 else scores.argmax(1)
    predicted = np.full(len(readable), None, dtype=object)
    predicted[readable] = np.array(names, dtype=object)[code]
    return pd.DataFrame({"predicted": pd.Series(predicted, dtype="string"), **shown})


def _seen(judged: Judged, patients: pd.Series) -> str:
    """How many rows are of patients that the encoder was trained on, as a count."""
    if not judged.lineage:
        return f"Which patients {judged.name} was trained on is not known here."
    seen = np.zeros(len(patients), dtype=bool)
    for training in judged.lineage:
        seen |= overlap(set(training["keys"]), patients, training["salt"])
    said = f"{int(seen.sum())} of {len(seen)} rows belong to patients that the encoder was trained on"
    return f"{said}; on new patients it may do worse." if seen.any() else f"{said}."


def _write(path: Path, frame: pd.DataFrame) -> None:
    """As CSV or Parquet, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        if path.suffix.lower() == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` in one step once it has been written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
