"""A saved head on new images: the rows of a table come back with what the head says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.text.classes import same_class
from bolus.data.text.formulas import write_csv
from bolus.device import Precision, check_precision, device
from bolus.embedding.opening import Judged, open_encoder, open_store, remarks_on, samples_of
from bolus.embedding.seen import note_seen_images
from bolus.embedding.vectors import embed_samples
from bolus.errors import EvaluationError, UsageError, name_rows, suggest
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.segmentation.saved import DECODER
from bolus.evaluation.targets import file_name, shown
from bolus.files import check_ending, replacing
from bolus.prediction.masks import MaskFormat, predict_masks
from bolus.prediction.rows import Beside, beside_table, note_seen

SUFFIXES = (".csv", ".parquet")
_OF_PAIRS = ("change:", "amount_of_change:")


def predict(
    source: str | Path,
    cohort: CohortLike,
    *,
    head: str | Path,
    out: str | Path | None = None,
    size: int | None = None,
    cache: Path | None = None,
    precision: Precision = "fp32",
    written_as: MaskFormat = "nifti",
    columns: Sequence[str] = (),
    with_table: bool = True,
) -> pd.DataFrame:
    """Predict for every row of a cohort, in its order, with a head or a segmenter that an evaluation saved.

    Labels are not needed. Clips come as one line each, with the columns of their first row. What a segmenter gives,
    files of masks, is said at `bolus.prediction.masks.predict_masks`.

    Args:
        source: run folder, encoder folder or hub name, which must be there even where it is not used: a head that lies
            with its own encoder (`finetuned-NAME`) is used with that one, and a remark says so.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        head: the name of a target in the evaluations of the run, a head file, or a folder with an encoder and a head.
        out: a .csv or .parquet file to write, whole or not at all; for a segmenter, the folder of its masks.
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        precision: of embedding: `bf16` or `fp16` compute under autocast, which on an accelerator is faster; masks are
            computed in `fp32`.
        written_as: masks of DICOM images as `nifti` or `dicom-seg`.
        columns: of the table that are written besides, such as the patient's.
        with_table: write what of the table names no person and no file: `bolus.embedding.rows.chosen_columns`.

    Returns:
        `row` (from 1), `split`, columns of the table (where a name is taken, with `table_` before it until it is free),
        then for a number `prediction` in the target's unit, for classes `predicted` and `probability:CLASS` (of two
        classes: of the second, which is predicted above 0.5), and `reason`: why there is no prediction, else missing.
        In `attrs["remarks"]`, what a person must know, and in `attrs["left_out"]`, the columns left out.

    Raises:
        UsageError: another suffix of `out`, the table itself as `out`, a head of pairs of samples, a name that several
            heads have, a column that the table does not have, another precision, or a size for an encoder that states
            its own; a segmenter without a folder to write to.
        EvaluationError: no such head, or one that was fitted on embeddings of another encoder.
        EncoderError, CohortError: encoder or cohort cannot be opened, or most of its images cannot be read.
    """
    check_precision(precision)
    path, beside = find_head(source, head), Beside(columns, with_table)
    if path.name == DECODER:
        if size is not None or precision != "fp32":
            raise UsageError("a segmenter states its size, and computes in fp32: leave out size and precision")
        if out is None or Path(out).suffix.lower() in SUFFIXES:
            raise UsageError(f"-o: masks need a folder, found {'none' if out is None else Path(out).name}")
        opened, out = Cohort.open(cohort), Path(out)
        return predict_masks(path.parent, opened, out=out, written_as=written_as, cache=cache, beside=beside)
    if written_as != "nifti":
        raise UsageError(f"--format {written_as} is for masks, and {path.name} is a head of one value an image")
    if out is not None:
        check_ending(Path(out), "out", *SUFFIXES)
    opened = Cohort.open(cohort)
    beside.check(opened)
    if out is not None:
        opened.refuse_to_overwrite(Path(out))
    found = Head.load(path)
    if found.target.startswith(_OF_PAIRS):
        raise UsageError(f"the head of {found.target!r} reads the difference of two samples, not single images")
    judged, own = encoder_for(path, source, size)
    width = judged.encoder.shape.dim
    if width != len(found.mean):
        raise EvaluationError(
            f"the head of {found.target!r} needs embeddings of width {len(found.mean)}, "
            f"but those of {judged.name} have width {width}: it belongs to another encoder"
        )
    same = found.fits(judged.encoder)
    if same is False:
        raise EvaluationError(
            f"the head of {found.target!r} was fitted on embeddings of other weights than those of {judged.name}: "
            "it belongs to another encoder, or to this one before it was trained on"
        )
    samples = samples_of(judged, opened)
    store = open_store(judged, samples.cohort, cache=cache)
    readable = samples.readable(store.readable)
    encoder, positions = judged.encoder.to(device()), np.flatnonzero(readable)
    u = embed_samples(encoder, store, samples, positions, precision=precision, keep=True)
    # The store names rows of the table as given, samples those of a table with a row a frame.
    origin = samples.cohort.origin
    unread = {int(position): origin[samples.rows_of(int(position))] for position in np.flatnonzero(~readable)}
    reasons = {item.row: item.reason for item in store.quarantined}
    why = [reasons[int(unread[position][0])] if position in unread else None for position in range(len(samples))]
    said = _columns(found, found.predict(u), readable).assign(reason=pd.array(why, dtype="string"))

    first = origin[samples.first_row]
    empty, lines = {int(row) for rows in unread.values() for row in rows}, np.sort(first[~readable])
    # Of what the store calls left out, only frames of a clip are: the rest keeps its line.
    partly = replace(store, quarantined=[item for item in store.quarantined if item.row not in empty])
    remarks = [
        *([f"{len(lines)} rows have no prediction, see their reason ({name_rows(lines)})."] if len(lines) else []),
        *([f"The head is used with its own encoder, {path.parent}, not with {source}."] if own else []),
        *([] if same else ["The head does not say whose embeddings it was fitted on: this was not checked."]),
        *remarks_on(judged, partly),
        *note_seen(judged, found, opened.patients.iloc[first]),
        *note_seen_images(judged, samples.cohort, store),
        *(f"head of {found.target}: {note}" for note in found.notes),
    ]
    frame = beside_table(opened, first, said, beside, remarks)
    if out is not None:
        _write(Path(out), frame)
    return frame


def find_head(source: str | Path, head: str | Path) -> Path:
    """The head file that is meant.

    Args:
        source: a run folder, where a name is looked up: `evaluations/*/head-NAME-linear.safetensors`, and
            `evaluations/*/finetuned-NAME/head.safetensors`, of which `finetuned-NAME` means the latter only, and
            `evaluations/*/segmenter-NAME/decoder.safetensors`; or any encoder, where `head` must be a path.
        head: a name, a file, or a folder with one head or segmenter in it.

    Raises:
        EvaluationError: nothing there.
        UsageError: several heads that differ have the name, or several lie in the folder.

    >>> find_head("/nowhere", "edema")
    Traceback (most recent call last):
    bolus.errors.EvaluationError: no head 'edema': no such file, and /nowhere has no evaluations to look it up in; ...
    """
    path = Path(head)
    if path.is_file():
        return path
    inside = sorted([*path.glob("head*.safetensors"), *path.glob(DECODER)])
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise UsageError(f"{path} holds {len(inside)} heads, give one of them: {', '.join(h.name for h in inside)}")
    folder, name = Path(source) / "evaluations", str(head)
    if not folder.is_dir():
        raise EvaluationError(
            f"no head {name!r}: no such file, and {source} has no evaluations to look it up in; "
            "bolus evaluate saves heads"
        )
    kinds = ("head-*.safetensors", "finetuned-*/head.safetensors", f"segmenter-*/{DECODER}")
    heads = sorted(path for kind in kinds for path in folder.glob(f"*/{kind}"))
    name = file_name(shown(name))
    fitting = [each for each in heads if name in _names_of(each)] or [
        each for each in heads if _asks(each, shown(str(head)))
    ]
    if len(fitting) == 1 or (fitting and _are_one(fitting)):
        return fitting[0]
    if fitting:
        listed = "".join(f"\n  - {each}" for each in fitting)
        raise UsageError(f"{len(fitting)} heads have the name {head!r}, give the path of one:{listed}")
    known = {unquote(each_name) for each in heads for each_name in _names_of(each)}
    raise EvaluationError(f"no head {head!r} in the evaluations of {source}; {suggest(str(head), known)}")


def _are_one(heads: list[Path]) -> bool:
    """Whether several evaluations saved the same head, as one with `--elsewhere` does after one without."""
    if any(path.name == DECODER for path in heads):
        return False
    first, *others = (Head.load(path) for path in heads)
    return all(first.predicts_as(other) for other in others)


def _asks(path: Path, target: str) -> bool:
    """Whether the head is of this class of this label, in another spelling: `1` where `yes` is asked for."""
    label, equals, wanted = target.partition("=")
    for name in map(unquote, _names_of(path)):
        own, _, known = name.partition("=")
        if equals and own == label and known and same_class(wanted, [known]) is not None:
            return True
    return False


def _names_of(path: Path) -> tuple[str, ...]:
    """The target as the head's file or, beside an encoder, its folder spells it; that folder's name, too."""
    if path.name in ("head.safetensors", DECODER):
        return path.parent.name.partition("-")[2], path.parent.name
    return (path.name.removeprefix("head-").removesuffix(".safetensors").removesuffix("-linear"),)


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


def encoder_for(head: Path, source: str | Path, size: int | None) -> tuple[Judged, bool]:
    """The encoder that a head goes with, and whether it is one that lies beside the head and not the source."""
    if not (head.parent / "encoder.json").is_file() or head.parent.resolve() == Path(source).resolve():
        return open_encoder(source, size=size), False
    if not any((Path(source) / name).is_file() for name in ("run.json", "encoder.json", "encoders.json")):
        open_encoder(source)  # raises where there is no such thing, on the hub either
    return open_encoder(head.parent, size=size), True


def _write(path: Path, frame: pd.DataFrame) -> None:
    """As CSV or Parquet, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".csv":
            write_csv(frame, temporary)
        else:
            frame.to_parquet(temporary, index=False)
