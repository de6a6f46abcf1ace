"""How fast the cache is filled, beside the decoders alone: images of 1024 x 1024 pixels, made from a seed.

python benchmarks/cache.py

`bare` only decodes (Pillow; pydicom with pylibjpeg-openjpeg), in one thread. `alone` reads, checks and makes square in
one thread; `cache` fills a cache with all cores. Rates are per second and, behind `cpu`, per second of processor time,
which other programs of a machine hardly change. `of_bare` is the cache's rate over that of the bare decoder on every
core, and `of_threads` over that of one thread of ours on every core: what threads lose by waiting for each other. The
processor time of decoders that run in processes of their own (`bolus.data.pixels.apart`) is not in `cpu`.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
import torch
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import build_store
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.images.shrinking import shrink
from bolus.data.readers.readers import read_image
from grid import RESULTS, run_grid

SIDE, IMAGES, SIZE = 1024, 96, 224  # pixels of a file, files, and pixels that an encoder sees
KINDS = ("jpeg grey", "jpeg colour", "png grey", "png 16", "png colour", "dicom jpeg2000")


def measure(kind: str) -> dict[str, Any]:
    """One format."""
    torch.set_num_threads(1)
    ending = {"jpeg": "jpg", "png": "png", "dicom": "dcm"}[kind.split(maxsplit=1)[0]]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = [folder / f"{number}.{ending}" for number in range(IMAGES)]
        for number, path in enumerate(paths):
            path.write_bytes(_file(kind, number))
        lines = [f"{path.name},{number}" for number, path in enumerate(paths)]
        (folder / "table.csv").write_text("\n".join(["image,patient", *lines]))
        contract = Preprocessing(SIZE)
        bare = _rate(len(paths), lambda: [_decode(path) for path in paths])
        alone = _rate(len(paths), lambda: [shrink(read_image(path), contract) for path in paths])
        cohort, caches = Cohort.open(folder / "table.csv"), iter(range(1000))
        cached = _rate(len(paths), lambda: build_store(cohort, contract, folder=folder / f"cache{next(caches)}"))
        kib = sum(path.stat().st_size for path in paths) / 1024 / len(paths)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "kib": round(kib),
        "cores": cores,
        "bare": bare,
        "alone": alone,
        "cache": cached,
        "of_bare": round(cached["rate"] / (cores * bare["rate"]), 3),
        "of_bare_cpu": round(cached["cpu"] / bare["cpu"], 3),
        "of_threads": round(cached["rate"] / (cores * alone["rate"]), 3),
        "of_threads_cpu": round(cached["cpu"] / alone["cpu"], 3),
    }


def _rate(images: int, work: Callable[[], object]) -> dict[str, float]:
    """Images per second and per second of processor time, the better of two times."""
    found = []
    for _ in range(2):
        began, spent = time.perf_counter(), time.process_time()
        work()
        found.append((images / (time.perf_counter() - began), images / (time.process_time() - spent)))
    return {"rate": round(max(rate for rate, _ in found), 1), "cpu": round(max(cpu for _, cpu in found), 1)}


def _decode(path: Path) -> Any:
    if path.suffix == ".dcm":
        return pydicom.dcmread(path).pixel_array
    with PIL.Image.open(path) as opened:
        return np.asarray(opened)


def _file(kind: str, seed: int) -> bytes:
    """Smooth shapes with the grain of a detector."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.random((9, 9), np.float32)).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    shown = np.clip(np.asarray(coarse) + rng.normal(0, 0.012, (SIDE, SIDE)), 0, 1)
    if kind == "dicom jpeg2000":
        return _dicom((shown * 4095).astype(np.uint16))
    grey = (shown * 255).astype(np.uint8)
    colour = np.stack([grey, np.roll(grey, 5, 0), np.roll(grey, 5, 1)], -1)
    pixels = {"png 16": (shown * 65535).astype(np.uint16)}.get(kind, colour if "colour" in kind else grey)
    stream = io.BytesIO()
    options = {"quality": 92} if kind.startswith("jpeg") else {}
    PIL.Image.fromarray(pixels).save(stream, kind.split(maxsplit=1)[0].upper(), **options)
    return stream.getvalue()


def _dicom(pixels: np.ndarray[Any, Any]) -> bytes:
    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"  # digital X-ray
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.Modality, made.PhotometricInterpretation = "DX", "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape
    made.SamplesPerPixel, made.PixelRepresentation = 1, 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OW"
    made.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


CELLS: list[dict[str, Any]] = [{"kind": kind} for kind in KINDS]

if __name__ == "__main__":
    for line in run_grid(RESULTS / "cache.jsonl", CELLS, measure):
        print(line["cell"], json.dumps(line["result"]))
