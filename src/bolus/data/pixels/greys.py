"""What images say of their numbers, and which of their values become black and white in a cohort.

`measure` looks at one image; `resolve_ranges` at all of them together, since a range may be that of a series or of the
cohort. The cache and the check both ask here, so that a person is shown what the encoder will see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.coding import distinct
from bolus.data.cohort.roles import DEFAULT_MODALITY
from bolus.data.pixels.image import Image, covering_range
from bolus.data.pixels.quantiles import LEVELS, pooled, sketch
from bolus.data.pixels.range_rules import HAS_AIR, NUMBERS, Bounds, RangeRule, rule_of, ruled_name
from bolus.errors import CohortError, ImageError, suggest

# What one image says of its numbers. `low` and `high` are its extremes, `shown_*` what its file suggests as black and
# white, by `rule`; all in the unit of its values, padding left out.
GREY = np.dtype(
    [
        *((name, "f8") for name in ("low", "high", "shown_low", "shown_high")),
        ("rule", "S12"),
        ("bits", "u1"),
        ("inverted", "?"),
        ("modality", "S16"),
        ("series", "u8"),
        ("pixels", "i8"),
    ]
)
_FINAL = (b"window", b"voi_lut", b"unit", b"stated")  # the file's own word; cohort and series have none to add
_STORED = (b"container", b"bits_stored")

Integers = npt.NDArray[np.int64]


def measure(image: Image) -> tuple[Any, ...]:
    """What an image says of its numbers, in the order of `GREY`.

    Raises:
        ImageError: values that are not finite, or beyond what the bits of the file hold.
    """
    low, high = image.extremes
    if not np.isfinite([low, high]).all():
        raise ImageError("expected finite values, found NaN or infinite ones")
    shown = image.range
    slack = 1e-6 * max(abs(shown.low), abs(shown.high))  # the rounding of float32
    if shown.rule.encode() in _STORED and (low < shown.low - slack or high > shown.high + slack):
        raise ImageError(
            f"expected values from {shown.low:g} to {shown.high:g} (rule {shown.rule}), found {low:g} to {high:g}"
        )
    uid = hashlib.blake2b(image.series.encode(), digest_size=8).digest()
    series = int.from_bytes(uid, "little") | 1 if image.series else 0
    modality = image.modality.encode("ascii", "replace")[:16]
    pixels = image.counted[0].size
    rule, bits = shown.rule.encode(), min(image.bits, 255)
    return low, high, shown.low, shown.high, rule, bits, image.inverted, modality, series, pixels


def sketch_of(image: Image) -> npt.NDArray[np.float32]:
    """The quantiles of an image's values, padding left out: float32 `[len(LEVELS)]`."""
    counted = image.counted
    return sketch(counted) if counted.size else np.zeros(len(LEVELS), np.float32)


def is_final(grey: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether a file's own range holds where nothing is stated: its window or VOI LUT, and all of eight bits."""
    code, rules = _codes(grey["rule"])
    shallow = np.isin(rules, _STORED)[code] & (grey["bits"] <= 8)
    final: npt.NDArray[np.bool_] = np.isin(rules, _FINAL)[code] | shallow
    return final


def reading_of(name: str, stated: Collection[str]) -> str:
    """How images of a modality are read: `file`, as each file suggests, or `values`, without its window or VOI LUT.

    Where a table does not say the modality, files do, and their windows are left out for the modalities that are named
    after `file`.

    >>> reading_of("DX", []), reading_of("DX", ["DX"]), reading_of("MR", []), reading_of("image", ["DX", "CR"])
    ('file', 'values', 'values', 'file CR DX')
    """
    if name != DEFAULT_MODALITY:
        return "values" if name in stated or rule_of(name) != "display" else "file"
    return "values" if name in stated else " ".join(["file", *sorted(stated)])


def wants_values(image: Image, reading: str) -> bool:
    """Whether an image that was read with its window or VOI LUT must be read again without."""
    if image.range.rule not in ("window", "voi_lut"):
        return False
    return reading == "values" or image.modality in reading.split()[1:]


@dataclass(frozen=True)
class Ranges:
    """Black and white of every image, and what a contract keeps of them.

    Args:
        low: float64 `[n]`, the values that become 0.
        high: float64 `[n]`, the values that become 1; above `low`.
        by: `[n]`, what each stands on: `stated`, `file`, or a rule of `data.pixels.range_rules` but for `display`.
        names: `[n]`, the modality of the table, else of the file, else `image`.
        ranges: modality -> range, those that were given and those of the cohort that were found.
        rules: modality, as `data.pixels.range_rules.RULES` spells it -> rule and its numbers, of those that were used.
        beyond: bool `[n]`, images with values outside a range of the cohort that was given.
    """

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    by: npt.NDArray[np.str_]
    names: npt.NDArray[np.str_]
    ranges: dict[str, Bounds]
    rules: dict[str, tuple[RangeRule, float, float]]
    beyond: npt.NDArray[np.bool_]

    def lines(
        self, gain: npt.NDArray[Any], bias: npt.NDArray[Any], inverted: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Stored integers to [0, 1], bright is high, as one line for each image: gain and bias, float32 `[n]`.

        Args:
            gain: float64 `[n]`, of a stored step, in the unit of the values.
            bias: float64 `[n]`, the value of a stored 0.
            inverted: `[n]`, bright is low.
        """
        width = self.high - self.low
        slope, shift = gain / width, (bias - self.low) / width
        slope, shift = np.where(inverted, -slope, slope), np.where(inverted, 1.0 - shift, shift)
        return slope.astype(np.float32), shift.astype(np.float32)


def resolve_ranges(
    grey: npt.NDArray[Any],
    quantiles: Callable[[Integers], npt.NDArray[np.float32]],
    names: npt.NDArray[np.str_],
    series: Integers,
    *,
    ranges: Mapping[str, Bounds],
    stated: Collection[str] = (),
    rules: Mapping[str, tuple[RangeRule, float, float]] | None = None,
) -> Ranges:
    """Which values of each image become black and white.

    A stated range holds for every image of its modality. Else a file's own word holds for radiographs, ultrasound and
    all that has no rule; CT in HU takes the clinical range, MR the percentiles of its series, and what is left the
    range of the cohort: one that is given, or the one that covers its images.

    Args:
        grey: `[n]` of dtype `GREY`.
        quantiles: positions -> their sketches; asked for only where a series needs them.
        names: `[n]`, the modality as the table says it, `image` where it does not.
        series: int64 `[n]`, which images are of one series, of those whose range is that of a series.
        ranges: modality -> black and white, stated or of an earlier cohort.
        stated: those of `ranges` that a person stated.
        rules: numbers of rules as an earlier contract has them; today's where None or absent.

    Example:
        >>> tissue = np.zeros(2, GREY)
        >>> tissue["rule"], tissue["bits"], tissue["low"], tissue["high"] = b"bits_stored", 16, -1000, 1200
        >>> found = resolve_ranges(tissue, lambda rows: rows, np.array(["CT", "PT"]), np.zeros(2, np.int64), ranges={})
        >>> found.low.tolist(), found.high.tolist(), found.by.tolist()
        ([-1000.0, -2047.0], [1000.0, 2047.0], ['clinical', 'cohort'])
    """
    low, high = grey["shown_low"].astype(np.float64), grey["shown_high"].astype(np.float64)
    table_code, of_table = _codes(names)
    file_code, of_file = _codes(grey["modality"])
    code, kinds = _codes(table_code * len(of_file) + file_code)
    pairs = [(str(of_table[kind // len(of_file)]), of_file[kind % len(of_file)].decode("ascii")) for kind in kinds]
    final, by = is_final(grey), np.full(len(grey), "file", dtype="U8")
    shown, used = list[str](), dict[str, tuple[RangeRule, float, float]]()
    numbers = dict(rules or {})
    for number, (table, file) in enumerate(pairs):
        here = code == number
        unnamed = table == DEFAULT_MODALITY
        name = file if unnamed and file else table
        shown.append(name)
        key = name if name in stated or not (unnamed and table in stated) else table
        if key in stated:
            by[here] = "stated"
            low[here], high[here] = ranges[key]
            continue
        ruled, rule = ruled_name(table, file), rule_of(table, file)
        open_ = here & ~final
        by[open_] = "cohort" if rule == "display" else rule
        if rule == "clinical":
            # Numbers that no header calls HU, such as those of NIfTI, are taken for them where an earlier contract took
            # such for them, or where there is none and some lie below fat.
            untold = open_ & (grey["rule"] != b"clinical")
            signed = untold & (grey["rule"] != b"container")
            are_hu = ruled in numbers or (name not in ranges and bool((grey["low"][signed] < HAS_AIR).any()))
            by[untold & ~signed if are_hu else untold] = "cohort"
        here = here & (by == rule)
        if rule in NUMBERS and here.any():
            first, second = numbers[ruled][1:] if ruled in numbers else NUMBERS[rule]
            used[ruled] = (rule, float(first), float(second))
            if rule == "clinical":
                low[here], high[here] = first, second
            else:
                low[here], high[here] = _of_series(grey, quantiles, series, np.flatnonzero(here), (first, second))
    found = {name: (float(bounds[0]), float(bounds[1])) for name, bounds in ranges.items()}
    shown_names = np.array(shown, dtype=str)[code]
    waiting = by == "cohort"
    for name in distinct(shown_names[waiting]):
        here = waiting & (shown_names == name)
        given = name if name in found else DEFAULT_MODALITY
        if given not in found or (given != name and not (names[here] == DEFAULT_MODALITY).all()):
            covering = covering_range(float(grey["high"][here].max()), min(0.0, float(grey["low"][here].min())))
            found[name], given = (covering.low, covering.high), name
        low[here], high[here] = found[given]
    beyond = waiting & ((grey["high"] > high) | (grey["low"] < low))
    return Ranges(low, np.where(high > low, high, low + 1), by, shown_names, found, used, beyond)


def _codes(values: npt.NDArray[Any]) -> tuple[Integers, npt.NDArray[Any]]:
    """A number for each value, and what it stands for; soon done where all are one."""
    if len(values) and (values == values[0]).all():
        return np.zeros(len(values), np.int64), values[:1]
    kinds, inverse = np.unique(values, return_inverse=True)
    return inverse.astype(np.int64), kinds


def refuse_unknown(stated: Collection[str], names: Collection[str], table: Collection[str]) -> None:
    """Raise CohortError where a range is stated for a modality of which there is no image.

    Args:
        stated: modalities.
        names: those of `Ranges.names` of all images.
        table: the modalities that the table says, `image` where it does not.
    """
    known = {*names, *table}
    for name in sorted(set(stated) - known):
        raise CohortError(f"ranges: no image of modality {name!r}; {suggest(name, known)}")


def _of_series(
    grey: npt.NDArray[Any],
    quantiles: Callable[[Integers], npt.NDArray[np.float32]],
    series: Integers,
    at: Integers,
    percentiles: Bounds,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The percentiles of the series of some images, `[len(at)]` each."""
    group = np.unique(series[at], return_inverse=True)[1].astype(np.int64)
    ends = pooled(quantiles(at), np.maximum(grey["pixels"][at], 1), group, np.array(percentiles) / 100)
    return ends[group, 0], ends[group, 1]
