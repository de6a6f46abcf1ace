"""Columns of text in Arrow's memory, of which no value becomes a Python object."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Positions: TypeAlias = "npt.NDArray[np.int64]"
SHORT = 64  # letters of the longest text up to which it is looked for what all begin with


def arrow_texts(texts: pd.Series[Any]) -> pa.LargeStringArray:
    """A column of text as one Arrow array.

    >>> arrow_texts(pd.concat([pd.Series(["a"], dtype="str")] * 2)).to_pylist()
    ['a', 'a']
    """
    found = pa.array(texts, pa.large_string())
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def sort_texts(texts: pa.LargeStringArray) -> Positions:
    """The order of texts that are all different and none missing, `[n]`.

    Where eight bytes at most follow what all begin with, as in many identifiers, these are sorted as numbers, which
    takes a fraction of the time.

    >>> sort_texts(pa.array(["P07", "P0", "P10"], pa.large_string())).tolist()
    [1, 0, 2]
    """
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    starts, lengths = ends[:-1], np.diff(ends)
    if lengths.max() > SHORT:
        return np.asarray(pc.array_sort_indices(texts).to_numpy(), np.int64)
    shared = 0
    while shared < lengths.min() and (letters[starts + shared] == letters[starts[0] + shared]).all():
        shared += 1
    width = int(lengths.max()) - shared
    if width > 8 or not letters[ends[0] : ends[-1]].all():  # a letter of 0 is like none
        return np.asarray(pc.array_sort_indices(texts).to_numpy(), np.int64)
    keys = np.zeros(len(texts), np.uint64)
    for place in range(shared, shared + width):
        at = np.minimum(starts + place, len(letters) - 1)
        keys = (keys << np.uint64(8)) | np.where(place < lengths, letters[at], 0).astype(np.uint64)
    return np.argsort(keys)


def joined_lines(texts: pa.LargeStringArray) -> memoryview:
    r"""Texts, a line each, as UTF-8; Arrow joins them without a Python object for each.

    >>> bytes(joined_lines(pa.array(["a", "b"], pa.large_string())))
    b'a\nb'
    """
    whole = pa.LargeListArray.from_arrays(pa.array([0, len(texts)], pa.int64()), texts)
    return memoryview(pc.binary_join(whole, pa.scalar("\n", pa.large_string()))[0].as_buffer())


def as_python(texts: pd.Series[Any]) -> pa.LargeStringArray:
    r"""Texts as Python's `ascii` writes them.

    >>> as_python(pd.Series(["a", "\xe9"], dtype="str")).to_pylist()
    ["'a'", "'\\xe9'"]
    """
    found = arrow_texts(texts)
    if pc.all(pc.match_substring_regex(found, r"^[ !#-&(-\[\]-~]*$")).as_py():  # neither quotes nor backslashes
        return beside("'", found, "'")
    return pa.array([ascii(text) for text in texts.tolist()], pa.large_string())


def beside(before: str, texts: pa.LargeStringArray, after: str) -> pa.LargeStringArray:
    """Each text between two others."""
    parts = pa.scalar(before, pa.large_string()), texts, pa.scalar(after, pa.large_string())
    return pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()))
