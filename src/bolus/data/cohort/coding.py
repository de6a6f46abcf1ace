"""The columns of a table in little room: text that repeats is kept once, and each row holds a small number for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bolus.data.text.columns import arrow_texts, sort_texts
from bolus.data.text.identifiers import EXACT

LOOKED = 2**16  # rows by which a column is taken for one of which no two values are the same
Array: TypeAlias = "npt.NDArray[Any]"


@dataclass(frozen=True)
class Coded:
    """A column as codes.

    Args:
        codes: signed integers `[rows]`, as narrow as they fit; -1 is missing.
        values: `[k]`, what each code stands for; all different and none missing. Its name is the column's.

    Example:
        >>> column = Coded.of(pd.Series(["b", None, "a", "b"]))
        >>> column.codes.tolist(), column.ranked().codes.tolist(), column.plain().tolist()
        ([0, -1, 1, 0], [1, -1, 0, 1], ['b', nan, 'a', 'b'])
    """

    codes: Array
    values: pd.Series[Any]

    @classmethod
    def of(cls, series: pd.Series[Any]) -> Coded:
        """A column of any kind."""
        codes, values = pd.factorize(series)
        return cls(narrow(codes, len(values)), pd.Series(values, name=series.name))

    @classmethod
    def of_arrow(cls, column: pa.ChunkedArray, name: str) -> Coded:
        """A column of text as Arrow reads it."""
        found = column.dictionary_encode().combine_chunks()
        if isinstance(found, pa.ChunkedArray):  # of no rows, or too long for one chunk
            found = found.unify_dictionaries()
            chunks = [_codes_of(chunk) for chunk in found.chunks]
            values = found.chunk(0).dictionary if chunks else pa.array([], pa.string())
            return cls(np.concatenate([np.empty(0, np.int8), *chunks]), _series(values, name))
        return cls(_codes_of(found), _series(found.dictionary, name))

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def absent(self) -> npt.NDArray[np.bool_]:
        """Rows without a value, `[rows]`."""
        return np.asarray(self.codes < 0)

    def counts(self) -> npt.NDArray[np.int64]:
        """How many rows have each value, `[k]`."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))

    def spread(self, of_values: Array, missing: Any) -> Array:
        """What holds for each value `[k]`, for each row `[rows]`."""
        return np.append(np.asarray(of_values), np.asarray(missing, np.asarray(of_values).dtype))[self.codes]

    def plain(self) -> pd.Series[Any]:
        """The column with a value in each row."""
        taken = self.values.array.take(self.codes, allow_fill=True)
        return pd.Series(taken, name=self.values.name)

    def value(self, row: int) -> Any:
        """The value of one row, None where it is missing."""
        code = self.codes[row]
        return None if code < 0 else self.values.iloc[code]

    def take(self, rows: npt.NDArray[np.int64]) -> Coded:
        """These rows, and of the values those that they have."""
        codes = self.codes[rows]
        used = mark_codes(codes, len(self.values))
        kept = self.values[used].reset_index(drop=True)
        return Coded(narrow(np.append(np.cumsum(used) - 1, -1)[codes], len(kept)), kept)

    def change(self, change: Callable[[pd.Series[Any]], pd.Series[Any]]) -> Coded:
        """The column with other values: `change` is given the values and gives as many, equal or missing ones too."""
        changed = change(self.values)
        if changed is self.values:
            return self
        codes, values = pd.factorize(changed)
        if len(values) == len(self.values):
            return Coded(self.codes, changed)
        return Coded(narrow(np.append(codes, -1)[self.codes], len(values)), pd.Series(values, name=self.values.name))

    def ranked(self) -> Coded:
        """The same column of text with codes in the order of its values."""
        texts = arrow_texts(self.values)
        if pc.all(pc.less(texts[:-1], texts[1:])).as_py() is not False:
            return self
        order = sort_texts(texts)
        rank = np.empty(len(order) + 1, self.codes.dtype)
        rank[order], rank[-1] = np.arange(len(order)), -1
        return Coded(rank[self.codes], self.values.iloc[order].reset_index(drop=True))


Column: TypeAlias = "Coded | pd.Series[Any]"


@dataclass(frozen=True)
class Held:
    """Codes or numbers `[n]` in little room, each made when it is asked for: `held[places]` is an array.

    Args:
        codes: signed integers `[n]`, as narrow as they fit; -1 is missing.
        values: int64 or float64 `[k + 1]`, all different, what each code stands for; the last, -1 or NaN, is missing.

    Example:
        >>> held = Held.of(np.array([2.5, np.nan, 2.5]))
        >>> held.codes.tolist(), held[np.array([1, 2])].tolist(), held.counts().tolist()
        ([0, -1, 0], [nan, 2.5], [2, 1])
    """

    codes: Array
    values: Array

    @classmethod
    def of(cls, numbers: Array | Held) -> Held:
        """Floats `[n]`, NaN missing, or codes from 0, -1 missing; what is held already is as it is."""
        if isinstance(numbers, Held):
            return numbers
        if numbers.dtype.kind != "f":
            number = int(numbers.max(initial=-1)) + 1
            return cls(narrow(numbers, number), np.append(np.arange(number), -1))
        codes, values = pd.factorize(numbers)
        return cls(narrow(codes, len(values)), np.append(values, np.nan))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, places: Any) -> Array:
        return np.asarray(self.values[self.codes[places]])

    def at(self, places: Any) -> Held:
        """These places, in little room as well."""
        return Held(self.codes[places], self.values)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which of `values` are any, bool `[k + 1]`; an infinite number is none."""
        return np.asarray(np.isfinite(self.values) if self.values.dtype.kind == "f" else self.values >= 0)

    @property
    def comparable(self) -> Array:
        """Codes, or floats where some are infinite, that are equal where the values are; what is missing is missing."""
        return self.codes if self.known[:-1].all() else self[:]

    def counts(self) -> npt.NDArray[np.int64]:
        """How often each of `values` is there, `[k + 1]`."""
        return np.roll(np.bincount(self.codes + 1, minlength=len(self.values)), -1)


@dataclass(frozen=True)
class Columns:
    """A table, column by column: text of which a value is on two rows or more on average as codes, all else as it is.

    Args:
        by_name: column name -> `[rows]`.
        rows: how many there are.
    """

    by_name: Mapping[Any, Column]
    rows: int

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Columns:
        """The columns of a frame, whose index is left out."""
        frame = frame.reset_index(drop=True)
        return cls({name: _compact(frame[name]) for name in frame.columns}, len(frame))

    @classmethod
    def of_arrow(cls, table: pa.Table) -> Columns:
        """The columns of a table as Arrow reads it, encoded on as many threads as Arrow uses."""
        with ThreadPoolExecutor(pa.cpu_count()) as pool:
            made = pool.map(_compact_arrow, table.columns, table.column_names)
            return cls(dict(zip(table.column_names, made, strict=True)), table.num_rows)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.by_name)

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __getitem__(self, name: Any) -> Column:
        return self.by_name[name]

    def plain(self, name: Any) -> pd.Series[Any]:
        """A column with a value in each row."""
        column = self.by_name[name]
        return column.plain() if isinstance(column, Coded) else column

    def coded(self, name: Any) -> Coded:
        """A column as codes."""
        column = self.by_name[name]
        return column if isinstance(column, Coded) else Coded.of(column)

    def frame(self, names: Sequence[Any] | None = None, rows: npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
        """The table as it was given, or these columns and rows of it."""
        chosen = Columns({name: self[name] for name in (self if names is None else names)}, self.rows)
        chosen = chosen if rows is None else chosen.take(rows)
        return pd.DataFrame({name: chosen.plain(name) for name in chosen}, index=pd.RangeIndex(chosen.rows))

    def take(self, rows: npt.NDArray[np.int64]) -> Columns:
        """These rows of every column."""
        return Columns({name: take(column, rows) for name, column in self.by_name.items()}, len(rows))

    def with_columns(self, columns: Mapping[str, Column]) -> Columns:
        """The table with these columns in place of those of the same names, or after all others."""
        return Columns({**self.by_name, **columns}, self.rows)

    def stripped(self, names: set[str]) -> Columns:
        """These columns without space around their text; blank text is missing."""
        found: dict[str, Column] = {}
        for name in names & set(self):
            column = self.by_name[name]
            if isinstance(column, Coded):
                found[name] = column.change(_strip)
            elif pd.api.types.is_string_dtype(column):
                found[name] = _strip(column)
        return self.with_columns(found)


def distinct(texts: npt.NDArray[np.str_]) -> list[str]:
    """The different ones of some texts, sorted; soon done where all are one, above all where that takes no room.

    >>> distinct(np.array(["b", "a", "b"])), distinct(np.broadcast_to(np.array("a"), 10**9))
    (['a', 'b'], ['a'])
    """
    if len(texts) and (texts.strides == (0,) or (texts == texts[0]).all()):
        return [str(texts[0])]
    return sorted(map(str, pd.unique(texts.astype(object))))


def count_codes(codes: Array) -> int:
    """How many different ones there are among codes from 0; below 0 is missing.

    >>> count_codes(np.array([4, 0, -1, 4]))
    2
    """
    return int(np.count_nonzero(mark_codes(codes, int(codes.max(initial=-1)) + 1)))


def rank_numbers(numbers: npt.NDArray[np.int64], span: int) -> npt.NDArray[np.int64]:
    """Codes 0, 1, ... without gaps in the order of numbers from 0 to less than `span`: `[rows]`.

    Where number and row fit into one integer, these are sorted, which is faster than to rank the numbers.

    >>> rank_numbers(np.array([70, 5, 70]), 71).tolist()
    [1, 0, 1]
    """
    bits = len(numbers).bit_length()
    if span > 2 ** (62 - bits):
        return np.unique(numbers, return_inverse=True)[1].astype(np.int64)
    sorted_ = (numbers << bits) | np.arange(len(numbers))
    sorted_.sort()
    rows = sorted_ & ((1 << bits) - 1)
    sorted_ >>= bits
    codes = np.empty(len(numbers), np.int64)
    codes[rows[:1]] = 0
    codes[rows[1:]] = np.cumsum(sorted_[1:] != sorted_[:-1])
    return codes


def mark_codes(codes: Array, number: int) -> npt.NDArray[np.bool_]:
    """Which of so many codes are there, bool `[number]`; -1 is missing.

    >>> mark_codes(np.array([2, -1, 2]), 3).tolist()
    [False, False, True]
    """
    there = np.zeros(number + 1, np.bool_)
    there[codes] = True  # the last is that of missing ones
    return there[:-1]


def texts_of(column: Column, rows: npt.NDArray[np.int64]) -> pa.LargeStringArray:
    """What stands in these rows, none of it missing, as text, without a Python object for each.

    >>> texts_of(Coded.of(pd.Series(["b", "a", "b"])), np.array([2, 1])).to_pylist()
    ['b', 'a']
    """
    values = column.values if isinstance(column, Coded) else column.iloc[rows]
    texts = arrow_texts(values.astype("str"))
    return texts.take(pa.array(column.codes[rows])) if isinstance(column, Coded) else texts


def take(column: Column, rows: npt.NDArray[np.int64]) -> Column:
    """These rows of a column."""
    return column.take(rows) if isinstance(column, Coded) else column.iloc[rows].reset_index(drop=True)


def release_unused() -> None:
    """Give back to the system what Arrow held while it read, which is several times what stays."""
    pa.default_memory_pool().release_unused()


def _compact(series: pd.Series[Any]) -> Column:
    if not isinstance(series.dtype, pd.StringDtype) or not _repeats(series.iloc[:LOOKED].nunique(), len(series)):
        return series
    coded = Coded.of(series)
    return coded if 2 * len(coded.values) <= len(series) else series


def _compact_arrow(column: pa.ChunkedArray, name: str) -> Column:
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return _plain(column, name)
    if _repeats(pc.count_distinct(column.slice(0, LOOKED)).as_py(), len(column)):
        coded = Coded.of_arrow(column, name)
        if 2 * len(coded.values) <= len(column):
            return coded
    return _plain(column, name)


def _repeats(different: int, rows: int) -> bool:
    """Whether it is worth looking for values that repeat, by how many of the first rows are different."""
    return different < min(rows, LOOKED)


def _plain(column: pa.ChunkedArray, name: str) -> pd.Series[Any]:
    """As pandas holds it; whole numbers as text where some are missing and a float would lose the last digits."""
    if pa.types.is_integer(column.type) and column.null_count:
        ends = pc.min_max(column).as_py()
        if max(-(ends["min"] or 0), ends["max"] or 0) >= EXACT:
            column = column.cast(pa.string())
    return pa.table({name: column}).to_pandas(ignore_metadata=True)[name]  # type: ignore[no-any-return]


def _series(values: pa.Array, name: str) -> pd.Series[Any]:
    return _plain(pa.chunked_array([values]), name)


def _codes_of(encoded: pa.DictionaryArray) -> Array:
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return narrow(codes, len(encoded.dictionary))


def narrow(codes: Array, number: int) -> Array:
    """Codes of so many values, -1 among them, in as few bytes as hold them.

    >>> narrow(np.array([0, -1, 130]), 131).dtype
    dtype('int16')
    """
    kinds = (np.int8, np.int16, np.int32, np.int64)
    return codes.astype(next(kind for kind in kinds if number <= np.iinfo(kind).max), copy=False)


def _strip(series: pd.Series[Any]) -> pd.Series[Any]:
    stripped = series.str.strip()
    if stripped.equals(series) and not (stripped == "").any():
        return series
    return stripped.mask(stripped == "")
