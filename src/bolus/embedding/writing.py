"""A Parquet file of embeddings, a row group at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bolus.files import replacing

SUFFIXES = (".parquet", ".pq")

Piece: TypeAlias = tuple[pd.DataFrame, npt.NDArray[np.float32]]
"""Columns of some samples, and their embeddings `[m, D]`."""


def write_pieces(
    path: Path, pieces: Iterable[Piece], facts: Mapping[str, Any], types: Mapping[str, pa.DataType]
) -> None:
    """Write embeddings and the columns beside them, a row group for each piece; the file is there once it is whole.

    Args:
        path: of the file; its folder is made.
        pieces: at least one, all with the same columns, in the order of the rows.
        facts: JSON values, for the metadata of the schema.
        types: column -> what its values are, where a piece may not show it.

    Raises:
        OSError: the file cannot be written, as on a full disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pieces = [(pd.DataFrame({"row": [row]}), np.ones((1, 2), np.float32)) for row in (1, 2)]
    ...     write_pieces(Path(folder, "e.parquet"), pieces, {}, {})
    ...     pq.read_table(Path(folder, "e.parquet")).to_pylist()
    [{'row': 1, 'embedding': [1.0, 1.0]}, {'row': 2, 'embedding': [1.0, 1.0]}]
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        writer: pq.ParquetWriter | None = None
        try:
            for frame, vectors in pieces:
                table = pa.Table.from_pandas(frame, preserve_index=False)
                if writer is None:
                    fields = [field.with_type(types.get(field.name, field.type)) for field in table.schema]
                    schema = pa.schema(fields, metadata=table.schema.metadata)
                    kind = pa.list_(pa.float32(), vectors.shape[1])
                    whole = schema.append(pa.field("embedding", kind))
                    whole = whole.with_metadata({**(schema.metadata or {}), "bolus": json.dumps(facts)})
                    writer = pq.ParquetWriter(temporary, whole)
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
                table = table.cast(schema).append_column("embedding", column)
                writer.write_table(table.replace_schema_metadata(whole.metadata), row_group_size=max(1, len(vectors)))
        finally:
            if writer is not None:
                writer.close()
