"""Masks of new images by a saved segmenter, in the geometry of the images.

`bolus.prediction.prediction.predict` calls this where the head that is named is a segmenter.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.cohort.split import overlap
from bolus.data.images.cache import ImageStore
from bolus.data.images.mask_rows import Native
from bolus.data.readers.frames import reason_without_name
from bolus.data.readers.masks import from_square
from bolus.data.readers.own import open_readers
from bolus.data.readers.readers import naming, quiet
from bolus.device import device
from bolus.embedding.opening import open_store, remarks_on, samples_of
from bolus.embedding.table import free_names
from bolus.encoders.modalities import one_encoder
from bolus.errors import ImageError, UsageError, name_rows
from bolus.evaluation.segmentation.annotation import find_natives
from bolus.evaluation.segmentation.saved import SavedSegmenter, load_segmenter
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.prediction.dicom_seg import write_seg
from bolus.prediction.mask_files import Group, write_masks

MaskFormat: TypeAlias = Literal["nifti", "dicom-seg"]
TABLE = "masks.csv"


@dataclass(frozen=True, eq=False)
class _Read:
    """What is needed to draw masks: a segmenter on the images of a cohort."""

    saved: SavedSegmenter
    segmenter: Segmenter
    cohort: Cohort
    store: ImageStore
    samples: Samples


def predict_masks(
    folder: Path, opened: Cohort, *, out: Path, written_as: MaskFormat = "nifti", cache: Path | None = None
) -> pd.DataFrame:
    """A mask of every image that can be read, and `masks.csv` with a line for each row of the table, in its order.

    A NIfTI image has one mask file with its voxels, axes and affines; slices that are on no row are 0. DICOM slices of
    one series have one file, NIfTI from their places, or a segmentation object (SEG). What does not say where it lies
    has a PNG of its own size. Files are called by the row (from 1) of their first image, never by a name of the images.

    Args:
        folder: what `evaluate segment` saved.
        opened: the cohort; masks are not needed.
        out: a folder for the masks and the table, which has no files of an earlier prediction.
        written_as: of DICOM images, `nifti` or `dicom-seg`. SEG files hold the patient's name and identifiers, as the
            standard asks; they are of extra `seg`.
        cache: cache folder; the user's where None.

    Returns:
        `row` (from 1), the table's own columns, `mask` (file in the folder, missing where there is none),
        `pixels:CLASS`, how many pixels of the image are of each class, and `reason`: why there is no mask, else
        missing. In `attrs["remarks"]`, what a person must know.

    Raises:
        UsageError: an output folder with files in it, or an unknown format.
        EvaluationError, EncoderError, CohortError: segmenter or cohort cannot be opened.
        MissingPackageError: highdicom is not installed, where SEG is asked for.
    """
    if written_as not in ("nifti", "dicom-seg"):
        raise UsageError(f"--format: expected nifti or dicom-seg, found {written_as!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out.name}: expected a new or empty folder for the masks, found files in its place")
    read = _open(load_segmenter(folder), opened, cache)
    readable = read.samples.readable(read.store.readable)
    reasons = {item.row: item.reason for item in read.store.quarantined}
    said = {row: reasons.get(row, "no image") for row in np.flatnonzero(~readable).tolist()}
    names, counts = dict[int, str](), dict[int, NDArray[np.int64]]()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        written = Path(temporary) / out.name
        written.mkdir()
        for group in _groups(read.cohort, np.flatnonzero(readable)):
            codes, unseen = _draw(read, group)
            files, failed = _write(read, group.among(codes), codes, written, written_as) if codes else ({}, {})
            names |= {row: path.name for row, path in files.items()}
            counts |= {row: np.bincount(codes[row].ravel(), minlength=read.saved.num_classes)[1:] for row in files}
            said |= unseen | failed
        frame = _table(read, names, counts, said)
        frame.to_csv(written / TABLE, index=False)
        if out.exists():
            out.rmdir()
        written.replace(out)
    frame.attrs["remarks"] = _remarks(read, said, written_as)
    return frame


def _open(saved: SavedSegmenter, opened: Cohort, cache: Path | None) -> _Read:
    samples = samples_of(saved.judged, opened)
    store = open_store(saved.judged, samples.cohort, cache=cache)
    encoder = one_encoder(saved.judged.encoder, wanted_by="segmentation").to(device())
    segmenter = Segmenter(encoder, saved.decoder.to(device()), store, samples, saved.num_classes)
    return _Read(saved, segmenter, samples.cohort, store, samples)


def _groups(cohort: Cohort, rows: NDArray[np.int64]) -> list[Group]:
    """Rows whose masks go into one file: those of one image file, or DICOM files of one series."""
    series = cohort.encoded("series") if "series" in cohort.roles else np.full(len(cohort), -1)
    readers, of_file = open_readers(cohort.spec.readers), dict[str, str]()
    found = dict[tuple[str, object], list[int]]()
    for row in rows.tolist():
        path = cohort.image_path(row)
        if str(path) not in of_file:
            with quiet(), naming(path, readers) as kind:
                of_file[str(path)] = kind
        kind = of_file[str(path)]
        stacked = kind == "DICOM" and series[row] >= 0 and cohort.frame(row) is None
        found.setdefault((kind, int(series[row]) if stacked else str(path)), []).append(row)
    return [
        Group(kind, tuple(members), tuple(map(cohort.image_path, members)), tuple(map(cohort.frame, members)))
        for (kind, _), members in found.items()
    ]


def _draw(read: _Read, group: Group) -> tuple[dict[int, NDArray[np.int64]], dict[int, str]]:
    """Row -> classes `[H, W]` of the image's own pixels; and rows that could not be drawn, with why."""
    readers, preprocessing = open_readers(read.cohort.spec.readers), read.store.preprocessing
    scores = read.segmenter.predict(np.array(group.rows))
    natives: list[Native | None] = [None] * len(group.rows)
    for path in group.files:
        places = [place for place, each in enumerate(group.paths) if each == path]
        of_file = find_natives(path, [group.frames[place] for place in places], readers)
        for place, native in zip(places, of_file, strict=True):
            natives[place] = native
    codes, wrong = dict[int, NDArray[np.int64]](), dict[int, str]()
    for row, native, score in zip(group.rows, natives, scores, strict=True):
        if native is None:
            wrong[row] = "the image, read before, cannot be read any more"
        else:
            codes[row] = from_square(score, native.shape, fit=preprocessing.fit, aspect=native.aspect)
    return codes, wrong


def _write(
    read: _Read, group: Group, codes: dict[int, NDArray[np.int64]], folder: Path, written_as: MaskFormat
) -> tuple[dict[int, Path], dict[int, str]]:
    """Row -> its file; and rows that no file could be written of, with why."""

    def name(row: int, suffix: str) -> Path:
        return folder / f"mask-row{read.cohort.origin[row] + 1}{suffix}"

    try:
        if written_as == "dicom-seg" and group.kind == "DICOM":
            if any(frame is not None for frame in group.frames):
                raise ImageError("no SEG of single frames of a file is written; --format nifti writes masks of them")
            stack = np.stack([codes[row] for row in group.rows])
            write_seg(group.paths, stack, read.saved.names, out := name(group.rows[0], ".dcm"))
            return dict.fromkeys(group.rows, out), {}
        of_code = np.array([0, *read.saved.labels])
        return write_masks(group, {row: of_code[each] for row, each in codes.items()}, name), {}
    except ImageError as error:
        return {}, dict.fromkeys(group.rows, reason_without_name(error, group.paths[0]))


def _table(
    read: _Read, names: dict[int, str], counts: dict[int, NDArray[np.int64]], said: dict[int, str]
) -> pd.DataFrame:
    """A line for each row of the table that was given."""
    first = read.cohort.origin[read.samples.first_row]
    number = range(len(read.samples))
    columns: dict[str, Any] = {"mask": pd.array([names.get(each) for each in number], dtype="string")}
    for place, name in enumerate(read.saved.names):
        values = [counts[each][place] if each in names else None for each in number]
        columns[f"pixels:{name}"] = pd.array(values, dtype="Int64")
    columns["reason"] = pd.array([None if each in names else said.get(each) for each in number], dtype="string")
    found = pd.DataFrame(columns)
    table = read.cohort.table.iloc[read.samples.first_row].reset_index(drop=True)
    table.columns = pd.Index(free_names(list(map(str, table.columns)), {"row", *found.columns}))
    frame = pd.concat([pd.Series(first + 1, name="row"), table, found], axis=1)
    return frame.iloc[np.argsort(first, kind="stable")].reset_index(drop=True)


def _remarks(read: _Read, said: dict[int, str], written_as: str) -> list[str]:
    """What a person must know, in sentences."""
    patients, saved = read.cohort.patients, read.saved
    trained = np.zeros(len(patients), dtype=bool)
    for training in saved.judged.lineage:
        trained |= overlap(set(training["keys"]), patients, training["salt"])
    found: list[str] = []
    if said:
        found.append(
            f"{len(said)} rows have no mask, see their reason ({name_rows(read.cohort.origin[sorted(said)])})."
        )
    for rows, what in (
        (trained, "the encoder was trained on"),
        (saved.knows(patients), "the segmenter learnt the masks of"),
    ):
        worse = "; on new patients it may do worse" if rows.any() else ""
        found.append(f"{int(rows.sum())} of {len(rows)} rows belong to patients that {what}{worse}.")
    if written_as == "dicom-seg":
        found.append("SEG files hold names and identifiers of their patients, as DICOM asks.")
    return [*found, *remarks_on(saved.judged, read.store)]
