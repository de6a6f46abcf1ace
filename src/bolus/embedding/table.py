"""Embeddings beside what of the table names nobody."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bolus.data.cohort.cohort import Cohort, CohortLike, Samples
from bolus.data.images.cache import Store
from bolus.device import Precision, check_precision, device
from bolus.embedding.opening import Judged, open_encoder, open_store, remarks_on, samples_of
from bolus.embedding.projection import find_maps, find_others
from bolus.embedding.rows import LEFT_OUT, chosen_columns, describe_rows, left_out
from bolus.embedding.sharing import do_share, is_first
from bolus.embedding.vectors import embed_in_pieces, embed_samples
from bolus.embedding.writing import SUFFIXES, Piece, write_pieces
from bolus.files import check_ending
from bolus.progress import Meter

__all__ = ["SUFFIXES", "Written", "embed", "write_embeddings"]

MAP = ("x", "y", "neighbors")  # columns
PIECE_BYTES, PIECE = 2**23, 8192  # of vectors in a row group of the file, and rows in one: the fewer of both


@dataclass(frozen=True)
class Written:
    """A file of embeddings.

    Args:
        rows: lines, one a sample.
        width: D, of each embedding.
        remarks: what a person must know of the images, in sentences.
        left_out: columns of the table that the file does not have.
    """

    rows: int
    width: int
    remarks: list[str]
    left_out: list[str]


def embed(
    source: str | Path,
    cohort: CohortLike,
    *,
    out: str | Path | None = None,
    keep_context: bool = True,
    size: int | None = None,
    cache: Path | None = None,
    precision: Precision = "fp32",
    with_map: bool = False,
    columns: Sequence[str] = (),
    with_table: bool = True,
    quiet: bool = True,
) -> pd.DataFrame:
    """Embed every readable sample of a cohort; quarantined rows are absent, and remarked on in the metadata.

    All embeddings are in memory; `write_embeddings` holds some at a time. What was embedded once is found again, also
    after an interruption.

    Args:
        source: run folder, encoder folder or hub name.
        cohort: cohort.yaml, a table with conventional column names, or an open cohort.
        keep_context: apply the run's MLVICX context blocks; without, BatchNorm keeps the statistics that the network
            had with them (an evaluation estimates its own).
        size: input pixels of an encoder that does not state them.
        cache: cache folder; the user's where None.
        precision: `bf16` or `fp16` compute under autocast, which on an accelerator is faster.
        with_map: add `x` and `y`, places on a map of the embeddings, and `neighbors`, the 15 nearest others by cosine:
            `{"ids": lines from 0, "distances": 1 - cosine}`, as embedding-atlas reads them.
        columns: of the table that are written besides, such as the patient's.
        with_table: write what of the table names no person and no file: `bolus.embedding.rows.chosen_columns`.
        quiet: show no progress.
        out: a Parquet file to write; its schema metadata holds encoder, recipe and preprocessing.

    Returns:
        One line a sample: `row` (from 1), `split`, columns of the table, and `embedding`, float32 `[D]`; in
        `attrs["remarks"]`, what a person must know of the images, and in `attrs["left_out"]`, the columns left out. For
        an encoder of clips or volumes a line is one of those: `row` and the columns are those of its first frame or
        slice, and `rows` is how many rows it has, those not readable included.

    Raises:
        EncoderError: the encoder cannot be opened.
        UsageError: a size for an encoder that states its own, another precision, another suffix of `out`, the table
            itself as `out`, or a column that the table does not have.
        CohortError: the cohort cannot be opened, or most of its images cannot be read.
    """
    asked = _Asked(columns, with_table, with_map, precision, quiet or not is_first())
    opened = _open(source, cohort, out, asked, keep_context=keep_context, size=size, cache=cache)
    frame, vectors, said = _whole(opened)
    if out is not None and is_first():
        _write(Path(out), opened, _slices(frame, vectors))
    frame = frame.assign(embedding=list(vectors))
    frame.attrs |= {"remarks": [*opened.remarks, *said], LEFT_OUT: opened.left_out}
    return frame


def write_embeddings(
    source: str | Path,
    cohort: CohortLike,
    out: str | Path,
    *,
    keep_context: bool = True,
    size: int | None = None,
    cache: Path | None = None,
    precision: Precision = "fp32",
    with_map: bool = False,
    columns: Sequence[str] = (),
    with_table: bool = True,
    quiet: bool = True,
) -> Written:
    """The file that `embed` writes, in memory that does not grow with the number of embeddings.

    They are written as they come, a row group at a time, and the file is there once it is whole. A map needs all
    embeddings at once. Of several processes that were launched together, each decodes and embeds an equal share, and
    the first writes the file.

    Args:
        source: as of `embed`, and so are all others.
        cohort: a cohort.
        out: a Parquet file.
        keep_context: with context blocks.
        size: input pixels.
        cache: cache folder.
        precision: of computing.
        with_map: add `x`, `y` and `neighbors`.
        columns: written besides.
        with_table: write columns of the table.
        quiet: show no progress.

    Returns:
        What was written; the embeddings are in the file.

    Raises:
        EncoderError, UsageError, CohortError: as `embed`.
    """
    asked = _Asked(columns, with_table, with_map, precision, quiet or not is_first())
    opened = _open(source, cohort, out, asked, keep_context=keep_context, size=size, cache=cache)
    said: list[str] = []
    if not is_first():
        pass  # its share is done
    elif with_map:
        frame, vectors, said = _whole(opened)
        _write(Path(out), opened, _slices(frame, vectors))
    else:
        _write(Path(out), opened, _pieces(opened))
    width = opened.judged.encoder.shape.dim
    return Written(len(opened.positions), width, [*opened.remarks, *said], opened.left_out)


@dataclass(frozen=True)
class _Asked:
    """How embeddings are made, and what stands beside them."""

    columns: Sequence[str]
    with_table: bool
    with_map: bool
    precision: Precision
    quiet: bool


@dataclass(frozen=True)
class _Opened:
    """An encoder, a cohort, and `positions`, int64 `[n]`, the samples with something to see."""

    judged: Judged
    cohort: Cohort
    samples: Samples
    store: Store
    positions: npt.NDArray[np.int64]
    asked: _Asked

    @property
    def remarks(self) -> list[str]:
        return remarks_on(self.judged, self.store)

    @property
    def left_out(self) -> list[str]:
        return left_out(self.cohort, self.asked.columns, with_table=self.asked.with_table)

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Of columns of Python objects, such as dates, which a part of them may not show."""
        chosen = chosen_columns(self.cohort, self.asked.columns, with_table=self.asked.with_table)
        written = self.describe(0, 0).columns[::-1][: len(chosen)][::-1]
        found = {name: self.cohort.columns.plain(column) for name, column in zip(written, chosen, strict=True)}
        return {name: pa.Array.from_pandas(each).type for name, each in found.items() if each.dtype == object}

    def describe(self, start: int, stop: int) -> pd.DataFrame:
        """The columns beside the embeddings of some positions."""
        some = self.positions[start:stop]
        rows = self.samples.cohort.origin[self.samples.first_row[some]]
        facts = {"rows": self.samples.num_rows[some]} if self.samples.unit in ("clip", "volume") else {}
        wanted: dict[str, Any] = {"columns": self.asked.columns, "with_table": self.asked.with_table}
        taken = {*(MAP if self.asked.with_map else ()), "embedding"}
        return describe_rows(self.cohort, rows, **wanted, facts=facts, taken=taken)


def _open(
    source: str | Path,
    cohort: CohortLike,
    out: str | Path | None,
    asked: _Asked,
    *,
    keep_context: bool,
    size: int | None,
    cache: Path | None,
) -> _Opened:
    """What is embedded, once all that can be refused has been looked at."""
    if out is not None:
        check_ending(Path(out), "out", *SUFFIXES)
    check_precision(asked.precision)
    cohort = Cohort.open(cohort)
    left_out(cohort, asked.columns, with_table=asked.with_table)
    if out is not None:
        cohort.refuse_to_overwrite(Path(out))
    judged = open_encoder(source, keep_context=keep_context, size=size)
    samples = samples_of(judged, cohort)
    with Meter("decoding", len(samples.cohort), quiet=asked.quiet) as meter:
        options: dict[str, Any] = {"cache": cache, "on_progress": meter.follow}
        every = np.arange(len(samples.cohort), dtype=np.int64)
        do_share(every, lambda rows: open_store(judged, samples.cohort, rows=rows, **options))
        store = open_store(judged, samples.cohort, **options)
    judged.encoder.to(device())
    positions = np.flatnonzero(samples.readable(store.readable))
    opened = _Opened(judged, cohort, samples, store, positions, asked)
    do_share(positions, lambda share: _remember(replace(opened, positions=share)))
    return opened


def _remember(opened: _Opened) -> None:
    """Embed, and keep nothing but what is remembered."""
    for _ in _pieces(opened):
        pass


def _whole(opened: _Opened) -> tuple[pd.DataFrame, npt.NDArray[np.float32], list[str]]:
    """All at once: the columns beside the embeddings, those, and what is to be said of their map."""
    with Meter("embedding", len(opened.positions), quiet=opened.asked.quiet) as meter:
        options: dict[str, Any] = {"precision": opened.asked.precision, "keep": True, "meter": meter}
        vectors = embed_samples(opened.judged.encoder, opened.store, opened.samples, opened.positions, **options)
    added, said = _map_of(vectors) if opened.asked.with_map else ({}, [])
    return opened.describe(0, len(vectors)).assign(**added), vectors, said


def _slices(frame: pd.DataFrame, vectors: npt.NDArray[np.float32]) -> Generator[Piece]:
    for start, stop in _cuts(*vectors.shape):
        yield frame.iloc[start:stop].reset_index(drop=True), vectors[start:stop]


def _pieces(opened: _Opened) -> Generator[Piece]:
    """Some embeddings at a time, and the columns beside them."""
    cuts = _cuts(len(opened.positions), opened.judged.encoder.shape.dim)
    with Meter("embedding", len(opened.positions), quiet=opened.asked.quiet) as meter:
        options: dict[str, Any] = {"precision": opened.asked.precision, "keep": True, "meter": meter}
        what = opened.judged.encoder, opened.store, opened.samples, opened.positions, [stop for _, stop in cuts]
        with closing(embed_in_pieces(*what, **options)) as found:
            for (start, stop), vectors in zip(cuts, found, strict=True):
                yield opened.describe(start, stop), vectors


def _cuts(number: int, dim: int) -> list[tuple[int, int]]:
    """Where row groups begin and end; one that is empty where there is nothing.

    >>> _cuts(20000, 8), _cuts(0, 8), len(_cuts(20000, 2048))
    ([(0, 8192), (8192, 16384), (16384, 20000)], [(0, 0)], 20)
    """
    step = min(PIECE, max(1, PIECE_BYTES // (4 * dim)))
    return [(start, min(start + step, number)) for start in range(0, max(number, 1), step)]


def _map_of(vectors: npt.NDArray[np.float32]) -> tuple[dict[str, Any], list[str]]:
    """The columns of a map, and what to know of it."""
    method, places = [*find_maps(vectors)[0].items()][-1]
    others = zip(*(each.tolist() for each in find_others(vectors)), strict=True)
    near = [{"ids": ids, "distances": distances} for ids, distances in others]
    columns = dict(zip(MAP, (*places.T.astype(np.float32), near), strict=True))
    means = "; sizes of groups and distances between them mean nothing" if method == "t-SNE" else ""
    return columns, [f"The map is by {method}{means}."]


def _write(path: Path, opened: _Opened, pieces: Generator[Piece]) -> None:
    judged = opened.judged
    facts = {
        "encoder": judged.name,
        "recipe": judged.run.recipe.digest if judged.run else None,
        "rows_hash": opened.cohort.rows_hash,
        "preprocessing": opened.store.preprocessing.to_json(),
        "remarks": opened.remarks,
    }
    with closing(pieces):
        write_pieces(path, pieces, facts, opened.types)
