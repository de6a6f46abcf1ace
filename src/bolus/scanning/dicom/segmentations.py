"""DICOM segmentations (SEG) as masks of the images that their frames name (PS3.3 A.51)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from bolus.data.readers.dicom_header import open_dataset
from bolus.data.readers.readers import quiet
from bolus.scanning.dicom.kinds import SEGMENTATION
from bolus.scanning.files import LeftOut

FRACTIONAL = "segmentations (SEG) of probabilities or shares, which are no masks"
APART = "segmentations (SEG) that name no image of the table, or images of another size"
AGAIN = "segmentations (SEG) of images that an earlier one has masks of"
UNREAD = "segmentations (SEG) that cannot be read"

Labels = npt.NDArray[np.uint8]


@dataclass
class Masks:
    """What segmentations say of images.

    Args:
        paths: image -> its mask, a PNG of segment numbers.
        used: how many segmentations.
        segments: their numbers.
        overlaps: how many images have pixels of several segments, where the highest number stands.
    """

    paths: dict[str, str] = field(default_factory=dict)
    used: int = 0
    segments: set[int] = field(default_factory=set)
    overlaps: int = 0


def make_masks(
    files: Sequence[Path], images: Mapping[str, tuple[str, int, int]], folder: Path, left_out: LeftOut
) -> Masks:
    """Write the masks of images.

    An image that a segmentation refers to and of which it has no frame is empty, since empty frames may be left out.

    Args:
        files: SEG, sorted.
        images: SOPInstanceUID -> path, rows and columns, of files with one frame.
        folder: that takes the masks.
        left_out: takes segmentations that are of no use, with the reason.
    """
    found = Masks()
    for path in files:
        try:
            with quiet():
                dataset = open_dataset(path)
                labels, overlaps, reason = _read(dataset, images)
        except Exception:  # whatever pydicom raises of bytes that mean nothing
            labels, overlaps, reason = {}, 0, UNREAD
        if not reason and any(images[uid][0] in found.paths for uid in labels):
            reason = AGAIN
        if reason:
            left_out[reason].append(path)
            continue
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for uid, mask in labels.items():
            image = images[uid][0]
            name = hashlib.blake2b(image.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
            place = folder / f"{name}.png"
            PIL.Image.fromarray(mask).save(place)
            found.paths[image] = str(place)
            found.segments |= {int(number) for number in np.unique(mask)} - {0}
        found.used += 1
        found.overlaps += overlaps
    left_out.pop(SEGMENTATION, None)
    return found


def _read(dataset: Any, images: Mapping[str, tuple[str, int, int]]) -> tuple[dict[str, Labels], int, str]:
    """SOPInstanceUID -> labels `[H, W]`; how many of these overlap; and why there are none."""
    if str(dataset.get("SegmentationType", "")).upper() != "BINARY":
        return {}, 0, FRACTIONAL
    shape = int(dataset.Rows), int(dataset.Columns)
    frames = np.atleast_3d(dataset.pixel_array) if dataset.pixel_array.ndim == 3 else dataset.pixel_array[None]
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    labels: dict[str, Labels] = {}
    for uid in _referred(dataset):
        if uid in images and images[uid][1:] == shape:
            labels[uid] = np.zeros(shape, np.uint8)
    overlapping, there = set[str](), False
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(_item(groups, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        source = _item(groups, shared, "DerivationImageSequence").SourceImageSequence[0]
        uid = str(source.ReferencedSOPInstanceUID)
        if uid not in images or images[uid][1:] != shape:
            continue
        there = True
        mask = labels.setdefault(uid, np.zeros(shape, np.uint8))
        inside = frame > 0
        if (mask[inside] > 0).any():
            overlapping.add(uid)
        mask[inside] = np.maximum(mask[inside], number)
    return (labels, len(overlapping), "") if there else ({}, 0, APART)


def _item(groups: Any, shared: Sequence[Any], name: str) -> Any:
    """The item of a functional group of a frame, or of all frames."""
    return next(each.get(name)[0] for each in (groups, *shared) if each.get(name))


def _referred(dataset: Any) -> list[str]:
    return [
        str(image.ReferencedSOPInstanceUID)
        for series in dataset.get("ReferencedSeriesSequence") or []
        for image in series.get("ReferencedInstanceSequence") or []
    ]
