"""Masks of new images by a saved segmenter, in the geometry of the images.

`bolus.prediction.prediction.predict` calls this where the head that is named is a segmenter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.volumes import volume_codes
from bolus.data.images.mask_rows import Native
from bolus.data.readers.frames import reason_without_name, reason_without_names
from bolus.data.readers.masks import from_square
from bolus.data.readers.own import open_readers
from bolus.data.readers.readers import naming, quiet
from bolus.data.text.formulas import write_csv
from bolus.data.volumes.cache.store import VolumeStore
from bolus.device import device
from bolus.embedding.opening import open_store, remarks_on, samples_of
from bolus.embedding.seen import note_seen_images
from bolus.encoders.modalities import one_encoder
from bolus.errors import ImageError, UsageError, name_rows, require
from bolus.evaluation.segmentation.annotation import find_natives
from bolus.evaluation.segmentation.saved import SavedSegmenter, load_segmenter
from bolus.evaluation.segmentation.segmenter import Segmenter
from bolus.evaluation.segmentation.volumes.masks import files_of
from bolus.files import check_new, making
from bolus.prediction.dicom_seg import write_seg
from bolus.prediction.mask_files import Group, write_masks
from bolus.prediction.rows import Beside, beside_table, note_seen
from bolus.prediction.volume_masks import Drawn, draw_volume, write_volume

MaskFormat: TypeAlias = Literal["nifti", "dicom-seg"]
TABLE = "masks.csv"

_Found: TypeAlias = tuple[Group, dict[int, NDArray[np.int64]], dict[int, str], Drawn | None]
"""Rows; row -> classes 0..K-1 at its file's pixels; rows that could not be drawn, with why; and the volume."""


def predict_masks(
    folder: Path,
    opened: Cohort,
    *,
    out: Path,
    written_as: MaskFormat = "nifti",
    cache: Path | None = None,
    beside: Beside | None = None,
) -> pd.DataFrame:
    """A mask of every image that can be read, and `masks.csv` with a line for each row of the table, in its order.

    A NIfTI image has one mask file with its voxels, axes and affines; slices that are on no row are 0. DICOM slices of
    one series have one file, NIfTI from their places, or a segmentation object (SEG). What does not say where it lies
    has a PNG of its own size. A segmenter of volumes draws them as a whole, and a volume in one file has a NIfTI mask.
    Files are called by the row (from 1) of their first image, never by a name of the images.

    Args:
        folder: what `evaluate segment` saved.
        opened: the cohort; masks are not needed.
        out: a folder for the masks and the table, which has no files of an earlier prediction.
        written_as: of DICOM images, `nifti` or `dicom-seg`. SEG files hold the patient's name and identifiers, as the
            standard asks; they are of extra `seg`.
        cache: cache folder; the user's where None.
        beside: what of the table is written; None for what names nobody.

    Returns:
        `row` (from 1), `split`, columns of the table, `mask` (file in the folder, missing where there is none),
        `pixels:CLASS`, how many pixels of the image are of each class, and `reason`: why there is no mask, else
        missing. In `attrs["remarks"]`, what a person must know.

    Raises:
        UsageError: an output folder with files in it, an unknown format, or a column that the table does not have.
        EvaluationError, EncoderError, CohortError: segmenter or cohort cannot be opened.
        MissingPackageError: highdicom is not installed, where SEG is asked for.
    """
    if written_as not in ("nifti", "dicom-seg"):
        raise UsageError(f"--format: expected nifti or dicom-seg, found {written_as!r}")
    beside = beside or Beside()
    beside.check(opened)
    check_new(out)
    if written_as == "dicom-seg":
        require("highdicom", "DICOM segmentation objects (SEG)")
    saved = load_segmenter(folder)
    samples = samples_of(saved.judged, opened)
    cohort, store = samples.cohort, open_store(saved.judged, samples.cohort, cache=cache)
    encoder = one_encoder(saved.judged.encoder, wanted_by="segmentation").to(device())
    segmenter = Segmenter(encoder, saved.decoder.to(device()), store, samples, saved.num_classes)
    readable, origin = samples.readable(store.readable), cohort.origin
    reasons = {item.row: item.reason for item in store.quarantined}
    said = dict[int, str]()
    for position in np.flatnonzero(~readable).tolist():
        why = reasons.get(int(origin[samples.first_row[position]]), "no image")
        said |= dict.fromkeys(samples.rows_of(position).tolist(), why)
    files, pixels = dict[int, str](), dict[int, NDArray[np.int64]]()
    drawn = _volumes(segmenter, readable) if isinstance(store, VolumeStore) else _slices(segmenter, readable)
    with making(out) as written:
        for group, codes, unseen, volume in drawn:
            made, failed = _write(saved, group.among(codes), codes, written, written_as, origin, volume)
            files |= {row: path.name for row, path in made.items()}
            pixels |= {row: np.bincount(codes[row].ravel(), minlength=saved.num_classes)[1:] for row in made}
            said |= unseen | failed
        which = f"{len(said)} row has" if len(said) == 1 else f"{len(said)} rows have"
        without = [f"{which} no mask, see the reason ({name_rows(origin[sorted(said)])})."]
        named = ["SEG files hold names and identifiers of their patients, as DICOM asks."]
        remarks = [
            *(without if said else []),
            *note_seen(saved.judged, saved, cohort.patients),
            *note_seen_images(saved.judged, cohort, store),
            *(named if written_as == "dicom-seg" else []),
            *remarks_on(saved.judged, store),
        ]
        frame = beside_table(opened, origin, _columns(len(cohort), saved, files, pixels, said), beside, remarks)
        write_csv(frame, written / TABLE)
    return frame


def _groups(cohort: Cohort, rows: NDArray[np.int64]) -> list[Group]:
    """Rows whose masks go into one file: those of one image file, or DICOM files of one series of a patient."""
    series = cohort.encoded("series") if "series" in cohort.roles else np.full(len(cohort), -1)
    volumes, _ = volume_codes(cohort)
    readers, of_file = open_readers(cohort.spec.readers), dict[str, str]()
    found = dict[tuple[str, object], list[int]]()
    for row in rows.tolist():
        path = cohort.image_path(row)
        if str(path) not in of_file:
            with quiet(), naming(path, readers) as kind:
                of_file[str(path)] = kind
        kind = of_file[str(path)]
        stacked = kind == "DICOM" and series[row] >= 0 and cohort.frame(row) is None
        found.setdefault((kind, int(volumes[row]) if stacked else str(path)), []).append(row)
    return [
        Group(kind, tuple(members), tuple(map(cohort.image_path, members)), tuple(map(cohort.frame, members)))
        for (kind, _), members in found.items()
    ]


def _slices(segmenter: Segmenter, readable: NDArray[np.bool_]) -> Iterator[_Found]:
    """The masks of images, a group of rows after the other."""
    for group in _groups(segmenter.samples.cohort, np.flatnonzero(readable)):
        yield group, *_draw(segmenter, group), None


def _volumes(segmenter: Segmenter, readable: NDArray[np.bool_]) -> Iterator[_Found]:
    """The masks of volumes, one after the other."""
    samples = segmenter.samples
    for position in np.flatnonzero(readable).tolist():
        try:
            drawn = draw_volume(segmenter, position)
        except ImageError as error:
            reason = reason_without_names(error, files_of(samples, position)[0])
            yield Group("", (), (), ()), {}, dict.fromkeys(samples.rows_of(position).tolist(), reason), None
        else:
            yield drawn.group, drawn.codes, drawn.left_out, drawn


def _draw(segmenter: Segmenter, group: Group) -> tuple[dict[int, NDArray[np.int64]], dict[int, str]]:
    """Row -> classes `[H, W]` of the image's own pixels; and rows that could not be drawn, with why."""
    preprocessing = segmenter.store.preprocessing
    readers = open_readers(segmenter.samples.cohort.spec.readers)
    scores = segmenter.predict(np.array(group.rows))
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
    saved: SavedSegmenter,
    group: Group,
    codes: dict[int, NDArray[np.int64]],
    folder: Path,
    written_as: MaskFormat,
    origin: NDArray[np.int64],
    volume: Drawn | None,
) -> tuple[dict[int, Path], dict[int, str]]:
    """Row -> its file; and rows that no file could be written of, with why."""
    if not codes:
        return {}, {}

    def name(row: int, suffix: str) -> Path:
        return folder / f"mask-row{origin[row] + 1}{suffix}"

    try:
        if written_as == "dicom-seg" and group.kind == "DICOM":
            if any(frame is not None for frame in group.frames) or (volume is not None and volume.whole):
                raise ImageError("no SEG of a file of many frames is written; --format nifti writes masks of them")
            shapes = {codes[row].shape for row in group.rows}
            if len(shapes) > 1:
                listed = ", ".join(f"{height} x {width}" for height, width in sorted(shapes))
                raise ImageError(f"a SEG: expected slices of one size, found {listed}")
            stack = np.stack([codes[row] for row in group.rows])
            write_seg(group.paths, stack, saved.names, out := name(group.rows[0], ".dcm"))
            return dict.fromkeys(group.rows, out), {}
        of_code = np.array([0, *saved.labels])
        if volume is not None:
            return write_volume(volume, of_code, name), {}
        return write_masks(group, {row: of_code[each] for row, each in codes.items()}, name), {}
    except ImageError as error:
        return {}, dict.fromkeys(group.rows, reason_without_name(error, group.paths[0]))


def _columns(
    number: int,
    saved: SavedSegmenter,
    files: dict[int, str],
    pixels: dict[int, NDArray[np.int64]],
    said: dict[int, str],
) -> pd.DataFrame:
    """What is said of every row of so many: its file, its pixels of each class, or why there is none."""
    rows = range(number)
    columns: dict[str, Any] = {"mask": pd.array([files.get(row) for row in rows], dtype="string")}
    for place, name in enumerate(saved.names):
        counts = [pixels[row][place] if row in pixels else None for row in rows]
        columns[f"pixels:{name}"] = pd.array(counts, dtype="Int64")
    return pd.DataFrame(columns | {"reason": pd.array([said.get(row) for row in rows], dtype="string")})
