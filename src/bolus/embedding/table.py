"""Embeddings beside what of the table names nobody."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.images.cache import ImageStore
from bolus.device import Precision, check_precision, device
from bolus.embedding.opening import Judged, open_encoder, open_store, remarks_on, samples_of
from bolus.embedding.projection import find_maps, find_others
from bolus.embedding.rows import LEFT_OUT, describe_rows, left_out
from bolus.embedding.vectors import embed_samples
from bolus.files import check_ending, replacing
from bolus.progress import Meter

SUFFIXES = (".parquet", ".pq")


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
    """Embed every readable image or clip of a cohort; quarantined rows are absent, and remarked on in the metadata.

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
        an encoder of clips a line is a clip: `row` and the columns are those of its first frame, and `rows` is how many
        frames it has, those not readable included.

    Raises:
        EncoderError: the encoder cannot be opened.
        UsageError: a size for an encoder that states its own, another precision, another suffix of `out`, the table
            itself as `out`, or a column that the table does not have.
        CohortError: the cohort cannot be opened, or most of its images cannot be read.
    """
    if out is not None:
        check_ending(Path(out), "out", *SUFFIXES)
    check_precision(precision)
    cohort = Cohort.open(cohort)
    asked: dict[str, Any] = {"columns": columns, "with_table": with_table}
    dropped = left_out(cohort, **asked)
    if out is not None:
        cohort.refuse_to_overwrite(Path(out))
    judged = open_encoder(source, keep_context=keep_context, size=size)
    samples = samples_of(judged, cohort)
    store = open_store(judged, samples.cohort, cache=cache)
    positions = np.flatnonzero(samples.readable(store.readable))
    with Meter("embedding", len(positions), quiet=quiet) as meter:
        encoder = judged.encoder.to(device())
        vectors = embed_samples(encoder, store, samples, positions, precision=precision, keep=True, meter=meter)
    rows = samples.cohort.origin[samples.first_row[positions]]
    facts = {"rows": samples.num_rows[positions]} if samples.unit == "clip" else {}
    added, said = _map_of(vectors) if with_map else ({}, [])
    frame = describe_rows(cohort, rows, **asked, facts=facts, taken={*added, "embedding"}).assign(**added)
    if out is not None:
        _write(Path(out), frame, vectors, judged, store)
    frame = frame.assign(embedding=list(vectors))
    frame.attrs |= {"remarks": [*remarks_on(judged, store), *said], LEFT_OUT: dropped}
    return frame


def _map_of(vectors: npt.NDArray[np.float32]) -> tuple[dict[str, Any], list[str]]:
    """The columns of a map, and what to know of it."""
    method, places = [*find_maps(vectors)[0].items()][-1]
    others = zip(*(each.tolist() for each in find_others(vectors)), strict=True)
    columns = {
        "x": places[:, 0].astype(np.float32),
        "y": places[:, 1].astype(np.float32),
        "neighbors": [{"ids": ids, "distances": distances} for ids, distances in others],
    }
    means = "; sizes of groups and distances between them mean nothing" if method == "t-SNE" else ""
    return columns, [f"The map is by {method}{means}."]


def _write(
    path: Path, frame: pd.DataFrame, vectors: npt.NDArray[np.float32], judged: Judged, store: ImageStore
) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    metadata: Mapping[str, Any] = {
        "encoder": judged.name,
        "recipe": judged.run.recipe.digest if judged.run else None,
        "preprocessing": store.preprocessing.to_json(),
        "remarks": remarks_on(judged, store),
    }
    table = table.append_column("embedding", column)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), "bolus": json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
