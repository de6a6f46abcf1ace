"""What cache folders hold of the rows of a cohort, and the store made of it; ranges are resolved some at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.data.cohort.coding import distinct
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.volumes import series_codes
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shards import RECORD, Manifest, are_alike
from bolus.data.images.store import Content, ImageStore, Quarantined
from bolus.data.pixels.greys import Ranges, is_final, refuse_unknown, resolve_ranges
from bolus.errors import CohortError, name_rows

NAMED_REASONS = 3  # of a file whose frames are lost for several


@dataclass(frozen=True)
class Found:
    """What one cache folder holds of some rows.

    Args:
        rows: int64 `[items]`.
        file: int64 `[items]`, which file an item is of.
        manifest: of the folder.
        digests: uint64 `[files, 2]`, of their content.
        frame: int32 `[items]`, -1 for a file that is one image.
        entries: int32 `[items]`, where in the manifest; -1 where it is lacking.
        unread: item -> why it is lacking.
        decoded: images that were decoded now.
        contract: 64 bits of what the folder is for, uint64.
    """

    rows: npt.NDArray[np.int64]
    file: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint64]
    frame: npt.NDArray[np.int32]
    manifest: Manifest
    entries: npt.NDArray[np.int32]
    unread: dict[int, str]
    decoded: int
    contract: np.uint64


def joined(parts: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts one after the other; a single one as it is."""
    several = list(parts)
    return several[0] if len(several) == 1 else np.concatenate(several)


def open_found(
    cohort: Cohort,
    preprocessing: Preprocessing,
    found: list[Found],
    quarantined: list[Quarantined],
) -> ImageStore:
    """The store of the images that were found.

    Images that bring their range are resolved some at a time; of the others, whose range may be that of the series or
    the cohort, everything is looked at together.
    """
    number, files = len(cohort), 0
    gain, bias = np.ones(number, np.float32), np.zeros(number, np.float32)
    shard, offset = np.full(number, -1, np.int32), np.zeros(number, np.int32)
    file, frame, folder = np.zeros(number, np.int32), np.zeros(number, np.int32), np.zeros(number, np.int16)
    crc, arrays, names = np.zeros(number, np.uint32), list[npt.NDArray[Any]](), set[str]()
    waiting = list[tuple[Manifest, npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.void]]]()
    for place, each in enumerate(found):
        there = np.flatnonzero(each.entries >= 0)
        rows, entries = each.rows[there], each.entries[there]
        used = np.bincount(each.manifest.shard[entries], minlength=len(each.manifest.arrays)) > 0
        shard[rows] = len(arrays) + (np.cumsum(used) - 1)[each.manifest.shard[entries]]
        arrays += [array for array, needed in zip(each.manifest.arrays, used, strict=True) if needed]
        offset[rows] = each.manifest.offset[entries]
        file[rows], frame[rows], folder[rows] = files + each.file[there], each.frame[there], place
        files += len(each.digests)
        for places, records in each.manifest.read(entries):
            here = rows[places]
            crc[here] = records["crc"]
            if len(cohort.modalities) == 1 and are_alike(records) and is_final(records["grey"][:1]).all():
                resolved = resolve_found(
                    cohort, preprocessing, here[:1], records[:1]
                )  # what holds for one holds for all
                gain[here], bias[here] = lines_of(resolved, records[:1])
                names.update(distinct(resolved.names))
                continue
            final = is_final(records["grey"])
            if not final.all():
                waiting.append((each.manifest, entries[places[~final]], here[~final], records[~final]))
                here, records = here[final], records[final]
            resolved = resolve_found(cohort, preprocessing, here, records)
            gain[here], bias[here] = lines_of(resolved, records)
            names.update(distinct(resolved.names))
    rows = np.concatenate([np.empty(0, np.int64), *(each[2] for each in waiting)])
    records = np.concatenate([np.empty(0, RECORD), *(each[3] for each in waiting)])
    starts = np.cumsum([0, *(len(each[2]) for each in waiting)])

    def quantiles(at: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        parts = [
            manifest.quantiles_of(entries[at[(at >= start) & (at < start + len(entries))] - start])
            for (manifest, entries, _, _), start in zip(waiting, starts, strict=False)
        ]
        return np.concatenate(parts)  # positions rise, and so do the parts

    resolved = resolve_found(cohort, preprocessing, rows, records, quantiles)
    gain[rows], bias[rows] = lines_of(resolved, records)
    names.update(distinct(resolved.names))
    seen = np.zeros(int(cohort.origin.max(initial=-1)) + 1, np.bool_)
    for each in found:
        seen[cohort.origin[each.rows]] = True
    if seen[cohort.origin].all():
        refuse_unknown(cohort.spec.ranges, names, cohort.modalities)
    digests = np.concatenate([np.empty((0, 2), np.uint64), *(each.digests for each in found)])
    return ImageStore(
        preprocessing=replace(preprocessing, ranges=resolved.ranges, rules=resolved.rules),
        quarantined=quarantined,
        out_of_range=np.unique(cohort.origin[rows[resolved.beyond]]).tolist(),
        _shards=arrays,
        _shard=shard,
        _offset=offset,
        _gain=gain,
        _bias=bias,
        _content=Content(digests, np.array([each.contract for each in found], np.uint64), file, frame, folder),
        _crc=crc,
    )


def resolve_found(
    cohort: Cohort,
    preprocessing: Preprocessing,
    rows: npt.NDArray[np.int64],
    records: npt.NDArray[np.void],
    quantiles: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]] | None = None,
) -> Ranges:
    """Black and white of the images of these rows; without quantiles, of such as are of no series."""
    grey = records["grey"]
    series = np.zeros(len(rows), np.int64)
    if quantiles is not None:
        series = series_codes(cohort, rows, grey["series"], records["digest"][:, 0])
    return resolve_ranges(
        grey, quantiles or _no_quantiles, cohort.modality_of(rows), series,
        ranges=preprocessing.ranges, stated=preprocessing.stated, rules=preprocessing.rules,
    )  # fmt: skip


def _no_quantiles(at: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    raise AssertionError("the quantiles of an image that brings its range were asked for")


def lines_of(
    resolved: Ranges, records: npt.NDArray[np.void]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Gain and bias, float32 `[n]` each, of what is stored with these records to grey in [0, 1]."""
    return resolved.lines(records["gain"], records["bias"], records["grey"]["inverted"])


def list_quarantined(
    origin: npt.NDArray[np.int64], lacking: npt.NDArray[np.bool_], reasons: dict[int, str]
) -> list[Quarantined]:
    """Rows of the table as given that lack an image or frames of a clip file; `origin` and `lacking` are `[items]`."""
    found: dict[int, Counter[str]] = {}
    for item in np.flatnonzero(lacking).tolist():
        found.setdefault(int(origin[item]), Counter())[reasons.get(item, "lost from the cache")] += 1
    of_row, quarantined = np.bincount(origin, minlength=1), []
    for row, counts in sorted(found.items()):
        frames, usual = int(of_row[row]), counts.most_common(NAMED_REASONS)
        said = [reason if number == frames else f"{number} of {frames} frames: {reason}" for reason, number in usual]
        more = len(counts) - len(said)
        said += [f"and {more} more reason{'' if more == 1 else 's'}"] if more else []
        quarantined.append(Quarantined(row, "; ".join(said), counts.total() < frames))
    return quarantined


def refuse_the_larger_part(
    file: npt.NDArray[np.int64],
    lacking: npt.NDArray[np.bool_],
    quarantined: list[Quarantined],
    cause: Callable[[], str],
    noun: str = "images",
) -> None:
    """A CohortError where more than half of the files are lost; each weighs one, and is lost by its share of frames."""
    number = np.bincount(file)
    lost = np.bincount(file, lacking)[number > 0] / number[number > 0]
    if lost.sum() > len(lost) / 2:
        partial = int(((lost > 0) & (lost < 1)).sum())
        in_part = f", and {partial} in part only" if partial else ""
        alike: dict[str, list[int]] = {}
        for each in quarantined:
            alike.setdefault(each.reason, []).append(each.row)
        named = [f"{name_rows(rows)}: {reason}" for reason, rows in alike.items()]
        why = cause()
        message = f"{(lost == 1).sum()} of {len(lost)} {noun} cannot be read{in_part}{f'; {why}' if why else ''}"
        raise CohortError(message, named)
