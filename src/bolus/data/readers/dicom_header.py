"""What a DICOM file says before its pixels: opened with a bound, how many frames, and what decoding them would hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.pixels.packed import check_plausible, unpacked_length
from bolus.data.readers.room import check_size, limit
from bolus.errors import MissingDecoderError, require

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax whose elements are packed


def open_dataset(path: Path, **options: Any) -> Any:
    """A DICOM file as pydicom reads it, but that deflated elements unpack to no more than there is room for.

    Raises:
        ImageError: a deflated file that is damaged; TooLargeError: one that unpacks to more.
        MissingDecoderError: pydicom is not installed.
    """
    pydicom = require("pydicom", "DICOM files", MissingDecoderError)
    with path.open("rb") as stream:
        if _DEFLATED in stream.read(4096):
            from pydicom.filereader import _read_file_meta_info, read_preamble

            stream.seek(0)
            read_preamble(stream, force=True)
            _read_file_meta_info(stream)
            length = unpacked_length(stream, limit() // 3)  # held packed, unpacked and in elements
            check_size(3 * length, "deflated elements")
    return pydicom.dcmread(path, force=True, **options)


def count_dicom_frames(path: Path) -> int:
    """How many frames a file says it has.

    Raises:
        ImageError: the file cannot hold as many.
    """
    names = ["NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated"]
    header = open_dataset(path, stop_before_pixels=True, specific_tags=names)
    number = max(1, int(header.get("NumberOfFrames") or 1))
    if number > 1:
        syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
        packed = syntax is not None and syntax.is_encapsulated
        bits = samples_of(header) * int(header.get("BitsAllocated") or 8)
        check_plausible(
            path, number * (8 if packed else max(1, bits // 8)), f"{number} frames", packed=_is_deflated(header)
        )
    return number


def numbers_of(item: Any, name: str) -> list[float]:
    """The values of an element, empty if it is absent or empty."""
    value = item.get(name)
    if value is None or value == "":
        return []
    return [float(number) for number in np.atleast_1d(value)]


def group_of(header: Any, frame: int, name: str) -> Any:
    """The item of a functional group that holds for a frame, or None: the frame's own before the shared one."""
    own, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in ([own[frame]] if own and frame < len(own) else []) + list(shared or [])[:1]:
        if groups.get(name):
            return groups.get(name)[0]
    return None


def decoded_size(path: Path, header: Any, frames: int) -> tuple[int, str]:
    """Bytes that decoding so many frames holds at most, as the header says, and of what; for a `Claim`."""
    rows, columns, samples = int(header.Rows), int(header.Columns), samples_of(header)
    word = max(1, -(-int(header.BitsAllocated) // 8))
    held = samples * (3 * word + 4)  # as the decoder gives it, in words, of their bits; as float32
    photometric = str(header.PhotometricInterpretation).upper()
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated:
        held += 4 * samples  # OpenJPEG's own
    if photometric == "PALETTE COLOR":
        held += 48  # places in three tables, and entries, of 8 bytes
    elif photometric.startswith("YBR"):
        held += 8 * samples
    elif samples == 1 and not _is_plain(header):
        held += 20  # float64 or int64, and one more on the way
    whole = path.stat().st_size if frames == int(header.get("NumberOfFrames") or 1) else 0
    what = f"{columns} x {rows} pixels"
    return rows * columns * frames * held + whole, what if frames == 1 else f"{frames} frames of {what}"


def _is_plain(header: Any) -> bool:
    """Whether grey values are shown as they are stored: no slope, no table, no curve."""
    tables = ("ModalityLUTSequence", "VOILUTSequence", "SharedFunctionalGroupsSequence", "DoseGridScaling")
    return (
        not any(header.get(name) for name in tables)
        and header.get("VOILUTFunction", "LINEAR") != "SIGMOID"
        and numbers_of(header, "RescaleSlope") in ([], [1.0])
        and numbers_of(header, "RescaleIntercept") in ([], [0.0])
    )


def samples_of(header: Any) -> int:
    """Samples of a pixel; 1 where it is not said."""
    return int(header.get("SamplesPerPixel") or 1)


def _is_deflated(header: Any) -> bool:
    syntax = getattr(header, "file_meta", {}).get("TransferSyntaxUID")
    return syntax is not None and syntax.is_deflated
