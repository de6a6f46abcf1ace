"""Reading image files: what a file is, its first bytes say; `dicom`, `nifti` and `raster` each read their own.

The pixels are right by default: 16 bits stay 16 bits, rescale slopes and lookup tables are applied, orientation is
honoured, and what cannot be read rightly is an `ImageError` that names the file without its folders.
"""

from __future__ import annotations

import gzip
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bolus.data.dicom import read_dicom
from bolus.data.image import Image, Range
from bolus.data.nifti import read_nifti
from bolus.data.raster import read_raster
from bolus.errors import ImageError, UsageError


def read_image(path: str | Path, *, window: tuple[float, float] | None = None, frame: int | None = None) -> Image:
    """Read one image file; safe to call from many threads.

    A single frame gives `[C, H, W]`; several frames, the pages of a TIFF or the slices of a volume give
    `[C, T, H, W]`, and `frame` picks one of them. DICOM values are after the modality LUT or rescale, and all frames
    of a file have one range. NIfTI volumes are axial slices, see `bolus.data.nifti`.

    Args:
        path: the file.
        window: (center, width) in modality units, in place of any the file states. In a DICOM file as its own window
            would be read (PS3.3 C.11.2.1.2: LINEAR, 1 shorter than its width, unless the file says LINEAR_EXACT); in
            other files exactly center - width/2 to center + width/2.
        frame: which frame, page or slice, from 0; only this one is decoded where the format allows.

    Raises:
        ImageError: no such file, no image, damaged, or of a kind that cannot be read rightly (16-bit colour PNG and
            TIFF, 4-D NIfTI). The message has the file's name without its folders.
        MissingDecoderError: the message says what to install.
        UsageError: a window whose width is not positive.

    Example:
        >>> import tempfile, numpy as np, PIL.Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PIL.Image.fromarray(np.array([[0, 65535]], np.uint16)).save(Path(folder) / "a.png")
        ...     image = read_image(Path(folder) / "a.png")
        >>> image.array.tolist(), image.range.rule, image.bits
        ([[[0.0, 65535.0]]], 'container', 16)
    """
    path = Path(path)
    if window is not None and not (math.isfinite(window[0]) and math.isfinite(window[1]) and window[1] > 0):
        raise UsageError(f"window: expected (center, width) with width > 0, found {window}")
    kind = "image"
    try:
        with _quiet():
            kind = _kind(path)
            if kind == "DICOM":
                image = read_dicom(path, window=window, frame=frame)
            elif kind == "NIfTI":
                image = read_nifti(path, frame=frame)
            else:
                image = read_raster(path, kind, frame=frame)
    except ImageError as error:
        raise type(error)(f"{path.name}: {error}") from error
    except UsageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path.name}: no such file") from None
    except Exception as error:  # whatever a decoder throws at a damaged file
        reason = str(error).strip() or type(error).__name__
        for spelling in {str(path), repr(str(path))[1:-1], str(path.resolve())}:
            reason = reason.replace(spelling, path.name)
        reason = reason.splitlines()[0][:200]
        raise ImageError(f"{path.name}: damaged, or not a {kind} file that can be read: {reason}") from error
    if window is not None and image.range.rule != "window":
        image.range = Range(window[0] - window[1] / 2, window[0] + window[1] / 2, "window")
    return image


def _kind(path: Path) -> str:
    """What a file is, from its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(352)
    if not head:
        raise ImageError("the file is empty")
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        with gzip.open(path) as stream:
            head = stream.read(352)
    if _is_nifti(head):
        return "NIfTI"
    if packed:
        raise ImageError("a gzip file that holds no NIfTI: unpack it first")
    if head[128:132] == b"DICM":
        return "DICOM"
    starts = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}
    starts |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF")
    for start, kind in starts.items():
        if head.startswith(start):
            return kind
    # An old DICOM file begins with no mark; an instance UID as the name leaves a number where a suffix would be.
    if path.suffix.lower() in ("", ".dcm", ".dicom") or path.suffix[1:].isdigit():
        return "DICOM"
    raise ImageError("expected a DICOM, NIfTI, PNG, JPEG, TIFF or BMP file, found none of these")


def _is_nifti(head: bytes) -> bool:
    """Whether a header of 352 bytes is one of NIfTI-1 or 2, in either byte order."""
    size = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if (348 in size and head[344:348] == b"ni1\0") or (540 in size and head[4:8] == b"ni2\0"):
        raise ImageError("a NIfTI header apart from its voxels: convert the pair of files to one .nii")
    return (348 in size and head[344:348] == b"n+1\0") or (540 in size and head[4:8] == b"n+2\0")


_LIBRARIES = r"(pydicom|PIL|nibabel|pylibjpeg|openjpeg)(\.|$)"  # that decode, and warn of what is handled here
_lock = threading.Lock()
_num_inside = 0
_restore: Any = None


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings or logs of the libraries that decode, and of those only; from the first thread in to the last out.

    `warnings.catch_warnings` changes the process, so threads that each entered it on their own would undo one another.
    """
    global _num_inside, _restore  # noqa: PLW0603
    printing, passing_on = logging.getLogger("nibabel.global"), logging.getLogger("pydicom")
    with _lock:
        if _num_inside == 0:
            caught = warnings.catch_warnings()
            _restore = (caught, printing.disabled, passing_on.propagate)
            caught.__enter__()
            warnings.filterwarnings("ignore", module=_LIBRARIES)
            printing.disabled, passing_on.propagate = True, False  # their messages hold whole paths
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                caught, printing.disabled, passing_on.propagate = _restore
                caught.__exit__(None, None, None)
