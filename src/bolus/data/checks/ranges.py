"""What the encoder will see of each modality: black and white, how much between them is used, and what stands out."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.checks.report import Finding, Severity
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.volumes import series_codes
from bolus.data.pixels.greys import GREY, Ranges, refuse_unknown, resolve_ranges
from bolus.data.pixels.image import covering_range
from bolus.data.pixels.quantiles import LEVELS, pooled, share_up_to

SATURATED_BRIGHT = 0.5  # share of the pixels at the bright end of the range, above which an image is saturated
SATURATED_EITHER = 0.95  # likewise at either end; much black is common, so the dark end alone is allowed more
NEAR_CONSTANT = 0.01  # standard deviation of values in [0, 1], below which an image shows nothing
SMELLS = 0.5  # share of a modality's images above which the range is suspected, not the images
NARROW = 0.1  # of [0, 1], within which lie the middle 98 % of a modality's pixels if its range is too wide
APART = 0.02  # share of an image's pixels of one extreme value, far from all others, above which it is padding
STEPS = 1e-6  # of a range: values that close to an end are at it

Floats = npt.NDArray[np.float64]


def black_and_white(cohort: Cohort, seen: pd.DataFrame) -> Ranges:
    """Black and white of the images that were looked at, as the cache will find them.

    Args:
        cohort: whose images.
        seen: one line an image, with `row`, `grey` and `quantiles`; see `bolus.data.checks.pixels`.

    Raises:
        CohortError: a range is stated for a modality of which there is no image.
    """
    rows = seen["row"].to_numpy(np.int64)
    grey = np.array(seen["grey"].tolist(), GREY)
    quantiles = np.stack(seen["quantiles"].tolist())
    files = cohort.files[rows].astype(np.uint64)
    found = resolve_ranges(
        grey,
        lambda at: quantiles[at],
        cohort.modality[rows],
        series_codes(cohort, rows, grey["series"], files),
        ranges={**cohort.spec.cohort_ranges, **cohort.spec.ranges},
        stated=tuple(cohort.spec.ranges),
    )
    refuse_unknown(cohort.spec.ranges, found.names, cohort.modality)
    return found


def lone_series(cohort: Cohort, seen: pd.DataFrame, found: Ranges) -> list[Finding]:
    """Images whose range is that of a series, of which nobody knows the series though a patient has several."""
    if "series" in cohort.roles:
        return []
    rows = seen["row"].to_numpy(np.int64)
    unknown = np.array([grey[-2] == 0 for grey in seen["grey"]]) & (found.by == "series")
    alone = rows[unknown & (seen["frames"] == 1).to_numpy() & ~cohort.shared_file[rows]]
    patients = cohort.encoded("patient")[alone]
    several = alone[np.bincount(patients, minlength=1)[patients] > 1]
    if not len(several):
        return []
    message = (
        f"{count(several, 'image', 'images')} of patients with several: no column has the role series and no file "
        "names its own, so that each has a range to itself; where they are slices of one volume, name it with "
        "--role series=COLUMN"
    )
    return [Finding("note", "no_series", message, numbers(several))]


def look_at_ranges(seen: pd.DataFrame, found: Ranges, findings: list[Finding]) -> list[dict[str, Any]]:
    """The record of each modality (see `CheckReport`); what a person should know of its grey goes to `findings`."""
    grey, quantiles = np.array(seen["grey"].tolist(), GREY), np.stack(seen["quantiles"].tolist())
    rows, records = seen["row"].to_numpy(np.int64), []
    for name in np.unique(found.names).tolist():
        here = np.flatnonzero(found.names == name)
        one = _Modality(
            name, grey[here], quantiles[here], rows[here], found.low[here], found.high[here], found.by[here]
        )
        findings += one.ranges(found.beyond[here]) + one.exposure() + one.padding()
        records.append(one.record(sorted({int(each) for each in seen["channels"].iloc[here]})))
    return records


class _Modality:
    """The images of one modality, as arrays of one length.

    Args:
        name: of the modality.
        grey: of dtype `GREY`.
        quantiles: as of `bolus.data.pixels.quantiles.sketch`.
        rows: of the table.
        low: the values that become 0.
        high: the values that become 1.
        by: what black and white stand on, as of `Ranges.by`.
    """

    def __init__(
        self,
        name: str,
        grey: npt.NDArray[Any],
        quantiles: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        low: Floats,
        high: Floats,
        by: npt.NDArray[np.str_],
    ) -> None:
        self.name, self.grey, self.quantiles, self.rows = name, grey, quantiles, rows
        self.low, self.high, self.by = low, high, by
        unit = np.clip((quantiles - low[:, None]) / (high - low)[:, None], 0, 1)
        self.unit = np.where(grey["inverted"][:, None], 1 - unit[:, ::-1], unit)  # the quantiles of what is seen

    def record(self, channels: list[int]) -> dict[str, Any]:
        """The modality in a line of the report."""
        dark, bright = self._middle(self.unit)
        alike = len(np.unique(self.low)) == len(np.unique(self.high)) == 1
        rules = np.where(self.by == "file", self.grey["rule"].astype(str), self.by)
        return {
            "modality": self.name,
            "images": len(self.rows),
            "minimum": float(self.grey["low"].min()),
            "maximum": float(self.grey["high"].max()),
            "bits": sorted({int(bits) for bits in self.grey["bits"]}),
            "rule": sorted(set(rules.tolist())),
            "low": float(self.low[0]) if alike else None,
            "high": float(self.high[0]) if alike else None,
            "used": round(bright - dark, 4),
            "channels": channels,
        }

    def ranges(self, beyond: npt.NDArray[np.bool_]) -> list[Finding]:
        """Ranges that are too wide, that differ between files, or that some images exceed."""
        found, name = [], self.name
        waiting, deep = self.by == "cohort", self.grey["bits"] > 8
        if waiting.any():
            low, high = float(self.low[waiting][0]), float(self.high[waiting][0])
            container = (self.grey["rule"][waiting] == b"container").all()
            if container and low == 0 and high <= 255:
                message = f"{name}: no value above 255 in files of {self.grey['bits'][waiting].max()} bits, as if 8-bit"
                message += f" images had been saved anew; their range is 0 to {high:g}"
                found.append(Finding("note", "shallow", message))
            if beyond.any():
                covers = (low, high) == _covering(low, high)  # any other range is one that somebody chose
                severity: Severity = "warning" if covers else "note"
                message = f"{name}: values beyond the cohort's range of {low:g} to {high:g}, which are clipped"
                found.append(Finding(severity, "beyond_range", message, numbers(self.rows[beyond])))
            stored = np.unique(self.grey["bits"][waiting & (self.grey["rule"] == b"bits_stored")])
            if len(stored) > 1:
                fewest = waiting & (self.grey["bits"] < stored[-1])
                message = (
                    f"{name}: files store {', '.join(map(str, stored[:-1]))} and {stored[-1]} bits and state no "
                    f"window: one range holds for all, {low:g} to {high:g}, so that brightness may differ by scanner"
                )
                found.append(Finding("warning", "differing_bits", message, numbers(self.rows[fewest])))
        if len(set(self.by.tolist())) > 1:
            usual = max(set(self.by.tolist()), key=lambda rule: int((self.by == rule).sum()))
            others = self.by != usual
            message = (
                f"{name}: some files state their range and some do not, so that equal tissue may differ in brightness"
            )
            found.append(Finding("warning", "mixed_ranges", message, numbers(self.rows[others])))
        found += self._windows((self.by == "file") & deep)
        dark, bright = self._middle(self.unit)
        if bright - dark < NARROW:
            low, high = self._middle(self.quantiles)
            advice = f"--range {name}={low:.4g}:{high:.4g} would use all of it" if low < high else "is it empty?"
            message = (
                f"{name}: 98 % of the pixels are seen between {dark:.3f} and {bright:.3f} of [0, 1], a narrow part; "
                f"{advice}"
            )
            found.append(Finding("warning", "narrow_range", message))
        return found

    def _windows(self, here: npt.NDArray[np.bool_]) -> list[Finding]:
        """Files whose window is not that of most, or that windows are many."""
        windows = pd.Series(list(zip(self.low[here].tolist(), self.high[here].tolist(), strict=True)))
        counts = windows.value_counts()
        if len(counts) < 2:
            return []
        if counts.iloc[0] > len(windows) / 2:
            (low, high), others = counts.index[0], self.rows[here][(windows != counts.index[0]).to_numpy()]
            message = (
                f"{self.name}: the window of most files is {low:g} to {high:g}, and others have another range, so that "
                "equal tissue may differ in brightness"
            )
            return [Finding("warning", "differing_windows", message, numbers(others))]
        message = f"{self.name}: windows differ from file to file, {len(counts)} of them in {len(windows)} files"
        return [Finding("note", "differing_windows", message)]

    def exposure(self) -> list[Finding]:
        """Images that show nothing, and images with most pixels at an end of the range."""
        weights = np.diff(LEVELS)
        middles = (self.unit[:, 1:] + self.unit[:, :-1]) / 2
        mean = middles @ weights
        squares = (self.unit[:, 1:] ** 2 + self.unit[:, 1:] * self.unit[:, :-1] + self.unit[:, :-1] ** 2) / 3
        flat = np.sqrt(np.maximum(squares @ weights - mean**2, 0)) < NEAR_CONSTANT
        width = (self.high - self.low) * STEPS
        at_low = share_up_to(self.low + width, self.quantiles)
        at_high = 1 - share_up_to(self.high - width, self.quantiles)
        dark, bright = np.where(self.grey["inverted"], (at_high, at_low), (at_low, at_high))
        saturated = ((bright > SATURATED_BRIGHT) | (np.maximum(dark, bright) > SATURATED_EITHER)) & ~flat
        smells = (flat | saturated).mean() > SMELLS
        findings = []
        for kind, here, what in (
            ("near_constant", flat, f"nearly constant (standard deviation below {NEAR_CONSTANT:g} of the range)"),
            (
                "saturated",
                saturated,
                f"saturated (over {SATURATED_BRIGHT:.0%} at the bright end, or {SATURATED_EITHER:.0%} at one end)",
            ),
        ):
            if here.any():
                rows = numbers(self.rows[here])
                are = "is" if len(rows) == 1 else "are"
                message = f"{self.name}: {count(rows, 'image', 'images')} of {len(flat)} {are} {what}"
                message += "; so many suggest a wrong range (see the intensities)" if smells else ""
                findings.append(Finding("error" if smells else "warning", kind, message, rows))
        return findings

    def padding(self) -> list[Finding]:
        """Images with many pixels of one extreme value, far from all others, which widens the range they share."""
        q = self.quantiles.astype(np.float64)
        alike = (q == q[:, :1]).sum(1)
        share, after = LEVELS[alike - 1], q[np.arange(len(q)), np.minimum(alike, q.shape[1] - 1)]
        rest = q[:, -1] - after
        far = (share >= APART) & (after - q[:, 0] > rest) & (rest > 0) & np.isin(self.by, ("cohort", "series"))
        far &= q[:, 0] < 0  # a background of 0 is black in any case
        if not far.any():
            return []
        rows = numbers(self.rows[far])
        value = f"{q[far, 0].min():g}"
        message = (
            f"{self.name}: {count(rows, 'image has', 'images have')} many pixels of {value}, far below all others: "
            "padding that the files do not declare? It widens the range; state one with --range"
        )
        return [Finding("warning", "undeclared_padding", message, rows)]

    def _middle(self, quantiles: npt.NDArray[np.floating]) -> tuple[float, float]:
        """The middle 98 % of all pixels."""
        one = np.zeros(len(quantiles), np.int64)
        pixels = np.maximum(self.grey["pixels"], 1)
        low, high = pooled(quantiles.astype(np.float32), pixels, one, [0.01, 0.99])[0]
        return float(low), float(high)


def numbers(rows: Iterable[int]) -> tuple[int, ...]:
    """Rows as a person counts them."""
    return tuple(sorted(int(row) + 1 for row in rows))


def count(things: int | Sized, one: str, many: str) -> str:
    """How many, with the noun.

    >>> count(1, "image", "images"), count([4, 5], "image", "images")
    ('1 image', '2 images')
    """
    number = things if isinstance(things, int) else len(things)
    return f"{number} {one if number == 1 else many}"


def _covering(low: float, high: float) -> tuple[float, float]:
    covering = covering_range(high, min(low, 0.0))
    return covering.low, covering.high
