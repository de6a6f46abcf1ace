"""The images that an export is checked on: rows of a cohort, or made ones where there is none."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.images.called import Called
from bolus.data.images.clips import open_samples, rows_are_files
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.views.samples import whole_views
from bolus.embedding.opening import Judged
from bolus.errors import BolusError, CohortError

WANTED, TRIED = 8, 64  # samples that are looked at, and those that are tried for them


@dataclass(frozen=True)
class Shown:
    """Images as an encoder sees them.

    Args:
        images: float32 `[n, C, S, S]`, `[n, C, T, S, S]` of clips, or `[n, C, D, H, W]` of volumes, in [0, 1].
        frame_mask: of clips, bool `[n, T]`; else None.
        origin: what they are, in words.
    """

    images: Tensor
    frame_mask: Tensor | None
    origin: str

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the exported model takes."""
        return (self.images,) if self.frame_mask is None else (self.images, self.frame_mask)


def made_rows(contract: Preprocessing, number: int, *, seed: int = 0, why: str = "") -> Shown:
    """Soft random pictures or volumes in the shape that an encoder sees; of clips, some frames are not real.

    Args:
        contract: of the encoder.
        number: how many.
        seed: of the pictures.
        why: none of a cohort is taken, in words.

    >>> made_rows(Preprocessing(16, frames=3), 2).frame_mask.tolist()
    [[True, True, True], [True, True, False]]
    """
    generator = torch.Generator().manual_seed(seed)
    if contract.volume is not None:
        coarse = torch.rand(number, contract.channels, 5, 5, 5, generator=generator)
        volumes = torch.nn.functional.interpolate(coarse, contract.volume.size, mode="trilinear")
        return Shown(volumes, None, f"{number} made volumes{f' ({why})' if why else ''}")
    frames = contract.frames or 1
    coarse = torch.rand(number * frames, contract.channels, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (contract.size, contract.size), mode="bilinear")
    origin = f"{number} made images{f' ({why})' if why else ''}"
    if contract.frames is None:
        return Shown(images, None, origin)
    clips = images.view(number, frames, *images.shape[1:]).transpose(1, 2).contiguous()
    real = torch.ones(number, frames, dtype=torch.bool)
    real[1::2, max(1, frames - 1) :] = False
    return Shown(clips, real, origin)


def rows_of(
    judged: Judged,
    cohort: Cohort | None,
    modality: str | None,
    contract: Preprocessing,
    why: str,
    *,
    but: Collection[str] = (),
) -> Shown:
    """Some readable samples of a cohort, spread over it, as this encoder sees them; made ones where there are none.

    Of volumes it is windows of them.

    Args:
        judged: whose contract reads them.
        cohort: its table; None: none is at hand.
        modality: only of these samples; None: of any.
        contract: of the samples that are wanted.
        why: there is no cohort, in words.
        but: modalities whose samples are not taken, since other models are for them.
    """
    if cohort is None:
        return made_rows(contract, WANTED, why=why)
    found: list[tuple[Tensor, Tensor | None]] = []
    failed = ""
    try:
        opened = _samples(judged, cohort)
    except CohortError as error:
        reason = error.violations[0] if error.violations else str(error).partition("\n")[0]
        return made_rows(contract, WANTED, why=f"the cohort holds no {contract.unit}s: {reason}")
    for item, called in _items(judged, opened, modality, but):
        try:
            store, samples = judged.read([item], called)
        except BolusError as error:
            failed = failed or str(error).partition("\n")[0].removeprefix("image 1 of 1: ")
            continue
        first = np.zeros(1, np.int64)
        found += whole_views(contract, store, samples, first, step=1, device=torch.device("cpu"))
        if len(found) >= WANTED:
            found = found[:WANTED]
            break
    if not found:
        named = f" of modality {modality}" if modality else " of another modality" if but else ""
        return made_rows(contract, WANTED, why=f"no row{named} of the cohort was read{f': {failed}' if failed else ''}")
    masks = [mask for _, mask in found if mask is not None]
    what = {"image": "images", "clip": "clips", "volume": "windows of volumes"}[contract.unit]
    origin = f"{len(found)} {what} of the cohort"
    return Shown(torch.cat([images for images, _ in found]), torch.cat(masks) if masks else None, origin)


def _samples(judged: Judged, cohort: Cohort) -> Samples:
    """The cohort's samples, where a clip file is one row.

    Raises:
        CohortError: rows that are not what the encoder is for.
    """
    unit = judged.preprocessing.unit
    if unit == "clip" and ("series" not in cohort.roles or rows_are_files(cohort)):
        return cohort.samples("image")
    return open_samples(cohort, unit)


def _items(
    judged: Judged, samples: Samples, modality: str | None, but: Collection[str]
) -> Iterator[tuple[Any, Called]]:
    """Samples as they are given to `Judged.read`, one by one, with what the table says of each."""
    cohort, volumes = samples.cohort, judged.preprocessing.volume is not None
    names = cohort.modality[samples.first_row]
    wanted = ~np.isin(names, list(but)) if modality is None else names == modality
    places = np.flatnonzero(wanted)
    steps = np.linspace(0, len(places) - 1, min(TRIED, len(places))).astype(int)
    for place in places[np.unique(steps)]:
        rows = samples.rows_of(int(place))
        parts: list[Any] = [cohort.image_path(int(row)) if volumes else _part(cohort, int(row)) for row in rows]
        first = int(rows[0])
        side = None
        if judged.preprocessing.mirror is not None:
            sides = cohort.sides
            side = [None if sides is None or sides[first] < 0 else ("left", "right")[sides[first]]]
        named = None if "modality" not in cohort.roles else str(cohort.modality[first])
        called = Called(named, None, side, cohort.spec.ranges or None, cohort.spec.readers or None)
        several = samples.unit == "clip" or len(parts) > 1
        yield (parts if several else parts[0]), called


def _part(cohort: Cohort, row: int) -> Path | tuple[Path, int]:
    path, frame = cohort.image_path(row), cohort.frame(row)
    return path if frame is None else (path, frame)
