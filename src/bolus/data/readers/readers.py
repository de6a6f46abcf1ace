"""Reading image files: what a file is, its first bytes say; a module for each kind reads its own.

The pixels are right by default: 16 bits stay 16 bits, rescale slopes and lookup tables are applied, orientation is
honoured, and what cannot be read rightly is an `ImageError` that names the file without its folders.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image

from bolus.data.pixels.image import Image, Range, take_frame
from bolus.data.readers.dicom import read_dicom
from bolus.data.readers.dicom_header import count_dicom_frames
from bolus.data.readers.nifti import count_slices, read_nifti
from bolus.data.readers.own import NONE, Readers, suffix_of
from bolus.data.readers.raster import find_pages, read_raster
from bolus.data.readers.room import Claim, check_size
from bolus.data.readers.video import count_video_frames, is_video, iterate_video, read_video
from bolus.errors import ImageError, UsageError
from bolus.files import NotRegularError, check_regular


def read_image(
    path: str | Path,
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    voi: bool | None = None,
    readers: Readers = NONE,
    claim: Claim = check_size,
) -> Image:
    """Read one image file; safe to call from many threads.

    A single frame gives `[C, H, W]`; several frames, the pages of a TIFF or the slices of a volume give
    `[C, T, H, W]`, and `frame` picks one of them. DICOM values are after the modality LUT or rescale, and all frames
    of a file have one range. NIfTI volumes are axial slices, see `bolus.data.readers.nifti`; videos are those that
    `bolus.data.readers.video.is_video` knows, and a telephone's rotation of one is not applied.

    Args:
        path: the file.
        window: (center, width) in modality units, in place of any the file states. In a DICOM file as its own window
            would be read (PS3.3 C.11.2.1.2: LINEAR, 1 shorter than its width, unless the file says LINEAR_EXACT); in
            other files exactly center - width/2 to center + width/2.
        frame: which frame, page or slice, from 0; only this one is decoded where the format allows.
        voi: of DICOM, whether the window, VOI LUT or SIGMOID of the file is used. None: as is usual for the modality,
            see `bolus.data.readers.dicom.read_dicom`; True: it is; False: it is not.
        readers: of one's own, see `bolus.data.readers.own`; they win over all of this.
        claim: room in memory, see `bolus.data.readers.room`; called before anything is decoded, but not for readers of
            one's own.

    Raises:
        ImageError: no such file, no image, damaged, or of a kind that cannot be read rightly (16-bit colour PNG and
            TIFF, 4-D NIfTI). The message has the file's name without its folders.
        TooLargeError: decoding would take more memory than one image may.
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
    with quiet(), naming(path, readers) as kind:
        if kind in readers:
            image = take_frame(readers[kind].read(path, window=voi is not False), frame)
        elif kind == "DICOM":
            image = read_dicom(path, window=window, frame=frame, voi=voi, claim=claim)
        elif kind == "NIfTI":
            image = read_nifti(path, frame=frame, claim=claim)
        elif kind == "video":
            image = read_video(path, frame=frame)
        else:
            image = read_raster(path, kind, frame=frame, claim=claim)
    if window is not None and (kind in readers or image.range.rule != "window"):
        image.range = Range(window[0] - window[1] / 2, window[0] + window[1] / 2, "window")
    return image


def count_frames(path: Path, readers: Readers = NONE) -> int:
    """How many frames, pages or axial slices `read_image` finds in a file, from its header; no pixel is decoded.

    A video that announces none, or in which an edit list may cut some off (MP4, MOV), has its packets counted, for
    which the whole file is read; so has a file for which there is a reader of one's own.

    Raises:
        ImageError: as `read_image`, as far as a header shows it.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> count_frames(Path(get_testdata_file("rtdose.dcm", download=False)))
        15
    """
    with quiet(), naming(path, readers) as kind:
        if kind in readers:
            array = readers[kind].read(path).array
            return array.shape[1] if array.ndim == 4 else 1
        if kind == "DICOM":
            return count_dicom_frames(path)
        if kind == "NIfTI":
            return count_slices(path)
        if kind == "video":
            return count_video_frames(path)
        with path.open("rb") as stream, PIL.Image.open(stream, formats=(kind,)) as opened:
            return len(find_pages(opened))


def iterate_frames(path: Path) -> Generator[Image]:
    """The frames of a video one after another, decoded once; nothing from any other file.

    Raises:
        ImageError: as `read_image`.
    """
    with naming(path) as kind:
        if kind == "video":
            yield from iterate_video(path)


@contextmanager
def naming(path: Path, readers: Readers = NONE) -> Iterator[str]:
    """What a file is; whatever a decoder throws at it becomes an ImageError with its name, without its folders.

    Where there is a reader of one's own for a file, it is of the kind of that suffix.
    """
    kind = "image"
    try:
        if not check_regular(path).st_size:
            raise ImageError("the file is empty")
        kind = suffix_of(path.name, readers) or _kind(path)
        yield kind
    except ImageError as error:
        raise type(error)(f"{path.name}: {error}") from error
    except UsageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path.name}: no such file") from None
    except NotRegularError as error:
        raise ImageError(f"{path.name}: {error}") from None
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, OSError) and error.errno:  # whose text has the path
            reason = os.strerror(error.errno)
        for spelling in {str(path), repr(str(path))[1:-1], os.path.realpath(path)}:
            reason = reason.replace(spelling, path.name)
        reason = reason.splitlines()[0][:200]
        if kind in readers:
            said = f"{type(error).__name__}: {reason}"
            raise ImageError(f"{path.name}: the reader {readers[kind].name} failed: {said}") from error
        raise ImageError(f"{path.name}: damaged, or not a {kind} file that can be read: {reason}") from error


def _kind(path: Path) -> str:
    """What a file is, from its first bytes."""
    with path.open("rb") as stream:
        head = stream.read(352)
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
    if is_video(head):
        return "video"
    # An old DICOM file begins with no mark; an instance UID as the name leaves a number where a suffix would be.
    if path.suffix.lower() in ("", ".dcm", ".dicom") or path.suffix[1:].isdigit():
        return "DICOM"
    raise ImageError(
        "expected a DICOM, NIfTI, PNG, JPEG, TIFF, BMP or video file, found none of these; "
        "readers in cohort.yaml name functions that read other files"
    )


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
def quiet() -> Iterator[None]:
    """No warnings or logs of the libraries that decode, and of those only; from the first thread in to the last out.

    `warnings.catch_warnings` changes the process, so threads that each entered it on their own would undo one another.
    """
    global _num_inside, _restore  # noqa: PLW0603
    printing, passing_on = logging.getLogger("nibabel.global"), logging.getLogger("pydicom")
    with _lock:
        if _num_inside == 0:
            caught = warnings.catch_warnings()
            _restore = (caught, printing.disabled, passing_on.propagate, PIL.Image.MAX_IMAGE_PIXELS)
            caught.__enter__()
            warnings.filterwarnings("ignore", module=_LIBRARIES)
            printing.disabled, passing_on.propagate = True, False  # their messages hold whole paths
            PIL.Image.MAX_IMAGE_PIXELS = None  # bolus has a limit of its own, in bytes
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                caught, printing.disabled, passing_on.propagate, PIL.Image.MAX_IMAGE_PIXELS = _restore
                caught.__exit__(None, None, None)
