"""Files that an attacker, a torn download or a failing disk could leave, of every format that is read, from a seed.

`make_files` makes them, `tests/hostile_reading.py` reads them in processes of their own and measures.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import PIL.Image
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

ROWS, COLUMNS = 96, 80
TRUNCATIONS, FLIPS, BLOCKS = (0.02, 0.3, 0.6, 0.9, 0.999), 10, 4
SPECIAL = ("folder", "pipe", "device", "loop", "nothing")


class Hostile(NamedTuple):
    """One file: where it lies, what was done to which intact one, and where that lies; empty where there is none."""

    path: Path
    kind: str
    attack: str
    intact: str = ""


def make_files(folder: Path, *, seed: int = 0, bombs: bool = True) -> list[Hostile]:
    """All hostile files in an empty folder, some 400; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    made = []

    def put(kind: str, attack: str, data: bytes, intact: str = "") -> None:
        suffix = {"nifti": ".nii", "nifti-gz": ".nii.gz", "dicom": ".dcm"}.get(kind.partition(" ")[0], ".img")
        path = folder / f"{len(made):03d}{suffix}"
        path.write_bytes(data)
        made.append(Hostile(path, kind, attack, intact))

    for kind, data in intact_files(rng).items():
        put(kind, "intact", data)
        original = str(made[-1].path)
        for share in TRUNCATIONS:
            put(kind, "truncated", data[: int(len(data) * share)], original)
        for number in range(FLIPS):
            put(kind, "flipped", _flip(data, rng, 1 + number % 3, 0 if number < 3 else len(data) // 3), original)
        for _ in range(BLOCKS):
            put(kind, "zeroed", _zero(data, rng), original)
        start = 140 if kind.startswith("dicom") else 8
        put(kind, "magic", bytes(rng.integers(0, 256, start, np.uint8)) + data[start:])
    for kind, attack, data in (*lies(rng), *(list(make_bombs()) if bombs else [])):
        put(kind, attack, data)
    for name in SPECIAL if os.name == "posix" else ():
        path = folder / f"{name}.png"
        _special(name, path)
        made.append(Hostile(path, "path", name))
    return made


def picture(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth picture with noise, `[ROWS, COLUMNS]`."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    smooth = np.sin(x / 17) * 60 + np.cos(y / 23) * 50 + 128
    return (smooth + rng.normal(0, 6, (ROWS, COLUMNS))).clip(0, 255).astype(np.uint8)


def intact_files(rng: np.random.Generator) -> dict[str, bytes]:
    """Kind -> a file that is read."""
    grey = picture(rng)
    deep, colour = grey.astype(np.uint16) * 16, np.stack([grey, grey[::-1], grey[:, ::-1]], -1)
    volume = np.stack([deep.T + 10 * number for number in range(5)], -1).astype(np.int16)
    nifti = nibabel.Nifti1Image(volume, np.diag([1, 1, 5, 1])).to_bytes()
    files = {
        "png": _saved(grey, "PNG"),
        "png 16": _saved(deep, "PNG"),
        "png colour": _saved(colour, "PNG"),
        "jpeg": _saved(grey, "JPEG", quality=90),
        "jpeg progressive": _saved(grey, "JPEG", progressive=True),
        "jpeg colour": _saved(colour, "JPEG"),
        "bmp": _saved(grey, "BMP"),
        "nifti": nifti,
        "nifti-gz": gzip.compress(nifti, mtime=0),
    }
    for packing in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"tiff {packing or 'raw'}"] = _saved(grey if packing != "tiff_lzw" else deep, "TIFF", compression=packing)
    for name, syntax in (
        ("explicit", ExplicitVRLittleEndian),
        ("implicit", ImplicitVRLittleEndian),
        ("deflated", DeflatedExplicitVRLittleEndian),
        ("rle", RLELossless),
        ("jpeg", JPEGBaseline8Bit),
        ("jpeg2000", JPEG2000Lossless),
    ):
        files[f"dicom {name}"] = dicom_bytes(grey if name == "jpeg" else deep, syntax)
    files["dicom frames"] = dicom_bytes(np.stack([deep, deep + 1, deep + 2]), ExplicitVRLittleEndian)
    return files


def dicom_bytes(pixels: np.ndarray[Any, Any], syntax: str, **elements: Any) -> bytes:
    """A CT image, or a clip, in this transfer syntax; elements overwrite what the header says."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    dataset.PatientID, dataset.Modality = "A1", "OT"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.tobytes()
    if syntax == JPEGBaseline8Bit:
        dataset.PixelData = encapsulate([_saved(pixels, "JPEG", quality=95)])
    elif syntax in (RLELossless, JPEG2000Lossless):
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    for name, value in elements.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def lies(rng: np.random.Generator) -> Iterator[tuple[str, str, bytes]]:
    """Headers that say something else than what is there: kind, attack, file."""
    files, grey = intact_files(rng), picture(rng)
    deep = grey.astype(np.uint16) * 16
    for rows, columns in ((70_000, COLUMNS), (ROWS, 70_000), (65_000, 65_000), (0, COLUMNS)):
        yield "png", "lie", _png(columns, rows, zlib.compress(bytes(ROWS * (COLUMNS + 1))))
        yield "bmp", "lie", _patched(files["bmp"], 18, struct.pack("<ii", columns, rows))
        for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            yield "tiff", "lie", _retagged(files[f"tiff {packing}"], {256: columns, 257: rows})
        at = files["jpeg"].index(b"\xff\xc0") + 5
        yield "jpeg", "lie", _patched(files["jpeg"], at, struct.pack(">HH", min(rows, 65535), min(columns, 65535)))
        for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless):
            size = {"Rows": min(rows, 65535), "Columns": min(columns, 65535)}
            yield "dicom", "lie", dicom_bytes(deep, syntax, **size)
    yield "tiff", "lie", _retagged(files["tiff raw"], {278: 2**31})
    yield "tiff", "lie", _retagged(files["tiff raw"], {273: 2**31})
    for name, value in (
        ("NumberOfFrames", 2**31 - 1),
        ("NumberOfFrames", 100),
        ("RescaleSlope", "1e300"),
        ("RescaleSlope", "1e-300"),
        ("RescaleSlope", "nan"),
        ("WindowWidth", "1e308"),
        ("BitsAllocated", 64),
        ("SamplesPerPixel", 3),
    ):
        more = {"RescaleIntercept": "0"} if name == "RescaleSlope" else {}
        more |= {"WindowCenter": "1e308"} if name == "WindowWidth" else {}
        try:
            yield "dicom", f"lie: {name}", dicom_bytes(deep, ExplicitVRLittleEndian, **{name: value}, **more)
        except (ValueError, OverflowError):
            continue
    larger = pydicom.dcmread(io.BytesIO(dicom_bytes(np.zeros((3000, 3000), np.uint16), JPEG2000Lossless)))
    yield "dicom", "lie: larger codestream", _saved_again(larger, Rows=ROWS, Columns=COLUMNS)
    for shape in ((32767, 32767, 32767), (-5, 80, 5), (0, 80, 5), (80, 96, 30_000)):
        header = _patched(files["nifti"], 42, struct.pack("<hhh", *shape))
        yield "nifti", "lie", header
        yield "nifti-gz", "lie", gzip.compress(header, mtime=0)
    for slope in (1e38, float("nan"), float("inf")):
        yield "nifti", "lie: slope", _patched(files["nifti"], 112, struct.pack("<f", slope))
    plain, depth = dicom_bytes(deep, ExplicitVRLittleEndian), 5000
    begin = b"\x00\x52\x29\x92SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    at = plain.index(b"\xe0\x7f\x10\x00")
    yield "dicom", "nested", plain[:at] + begin * depth + end * depth + plain[at:]


def make_bombs() -> Iterator[tuple[str, str, bytes]]:
    """Small files that stand for very many pixels: kind, attack, file."""
    for side in (13_000, 30_000):
        yield "png", f"bomb of {side}", _png(side, side, _packed(side * (side + 1)))
    blank = PIL.Image.new("L", (13_000, 13_000))
    yield "tiff", "bomb of 13000", _of(blank, "TIFF", compression="tiff_adobe_deflate")
    yield "jpeg", "bomb of 13000", _of(blank, "JPEG")
    small = dicom_bytes(np.zeros((ROWS, COLUMNS), np.uint16), ExplicitVRLittleEndian)
    start = small.index(b"\xe0\x7f\x10\x00")
    for gib in (1, 3):
        body = small[_end_of_meta(small) : start + 8] + struct.pack("<I", gib * 2**30 - 2)
        packed = _packed(gib * 2**30, head=body, wbits=-15)
        yield "dicom", f"bomb of {gib} GiB", _deflated_meta() + packed
        voxels = _packed(gib * 2**30 + 352, head=_nifti_header(1024, 1024, 512 * gib), wbits=31)
        yield "nifti-gz", f"bomb of {gib} GiB", voxels
    yield "nifti-gz", "bomb behind the voxels", _packed(2**31, head=_nifti_header(8, 8, 8), wbits=31)


def _flip(data: bytes, rng: np.random.Generator, bits: int, start: int) -> bytes:
    made = bytearray(data)
    for place in rng.integers(start, len(made), bits):
        made[place] ^= 1 << int(rng.integers(8))
    return bytes(made)


def _zero(data: bytes, rng: np.random.Generator) -> bytes:
    length = max(1, min(512, len(data) // 8))
    start = int(rng.integers(len(data) // 3, len(data) - length))
    return data[:start] + bytes(length) + data[start + length :]


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _retagged(data: bytes, tags: dict[int, int]) -> bytes:
    """A little-endian TIFF with other values of some tags, as 32-bit numbers."""
    at = struct.unpack_from("<I", data, 4)[0]
    made = bytearray(data)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in tags:
            struct.pack_into("<HHII", made, entry, tag, 4, 1, tags[tag])
    return bytes(made)


def _png(width: int, height: int, body: bytes) -> bytes:
    """An 8-bit grey PNG, with right checksums."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _packed(length: int, *, head: bytes = b"", wbits: int = 15) -> bytes:
    """`head` and then zeros up to a length, deflated; within gzip, with a wrong checksum."""
    packing, block = zlib.compressobj(9, zlib.DEFLATED, -15), 2**22
    first = packing.compress(head) + packing.flush(zlib.Z_FULL_FLUSH)
    zeros = packing.compress(bytes(block)) + packing.flush(zlib.Z_FULL_FLUSH)  # stands for itself
    number, rest = divmod(length - len(head), block)
    body = first + zeros * number + packing.compress(bytes(rest)) + packing.flush()
    if wbits == -15:
        return body
    if wbits == 31:
        return b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + body + struct.pack("<II", 0, length % 2**32)
    return b"\x78\x9c" + body + struct.pack(">HH", length % 65521, 1)  # Adler-32 of zeros


def _saved(pixels: np.ndarray[Any, Any], kind: str, **options: Any) -> bytes:
    return _of(PIL.Image.fromarray(pixels), kind, **options)


def _of(image: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _saved_again(dataset: pydicom.Dataset, **elements: Any) -> bytes:
    for name, value in elements.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def _nifti_header(*shape: int) -> bytes:
    made = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).to_bytes()[:352]
    return _patched(made, 42, struct.pack("<hhh", *shape))


def _end_of_meta(data: bytes) -> int:
    return 144 + int(struct.unpack_from("<I", data, 140)[0])


def _deflated_meta() -> bytes:
    data = dicom_bytes(np.zeros((2, 2), np.uint16), DeflatedExplicitVRLittleEndian)
    return data[: _end_of_meta(data)]


def _special(name: str, path: Path) -> None:
    """What stands at a path and is no file."""
    make: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "nothing": path.touch,
    }
    make[name]()
