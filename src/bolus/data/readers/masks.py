"""Label maps: read without touching a label, moved into the square that the cache keeps of their image, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn import functional as F

from bolus.data.pixels.image import check_frame, take_frame
from bolus.data.pixels.square import Fit, canvas
from bolus.data.readers.intact import check_intact
from bolus.data.readers.nifti import read_nifti
from bolus.data.readers.own import NONE, Readers
from bolus.data.readers.raster import decoded_size, find_pages
from bolus.data.readers.readers import naming, quiet
from bolus.data.readers.room import Claim, Room
from bolus.errors import ImageError, UsageError

IntArray = npt.NDArray[np.int64]

_SAVE_AS = "save the labels as PNG, TIFF or NIfTI"
_EXACT = 2**24  # up to here float32 holds every integer
_TIE = 1e-5  # shares of two classes that differ by less are equal: the rounding of float32 sums


def read_labels(path: Path, *, frame: int | None = None, readers: Readers = NONE) -> IntArray:
    """The label map in a PNG, TIFF, BMP or NIfTI file: the numbers that are stored, never what they are shown as.

    A palette image gives its indices, an image of 1, 2 or 4 bits the numbers 0 to 1, 3 or 15. Orientation is as in
    `data.readers.readers.read_image` (EXIF of images, axial slices of `data.readers.nifti.read_nifti`), so that a mask
    made for an image lies on it.

    Args:
        path: the file.
        frame: which page or axial slice, from 0.
        readers: of one's own, as `read_image`; the labels are their first channel.

    Returns:
        int64 `[H, W]`, or `[T, H, W]` of several pages or slices.

    Raises:
        ImageError: what `read_image` raises; colour or alpha; JPEG, also within TIFF, which loses labels; values that
            are not integers; DICOM, whose segmentation objects are not read yet; pages of several sizes. The message
            has the file's name without its folders.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     picture = PIL.Image.fromarray(np.array([[0, 2], [1, 0]], np.uint8), "P")
        ...     picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        ...     picture.save(Path(folder) / "a.png")
        ...     read_labels(Path(folder) / "a.png").tolist()
        [[0, 2], [1, 0]]
    """
    path = Path(path)
    with quiet(), Room() as room, naming(path, readers) as kind:
        if kind in readers:
            return _as_integers(take_frame(readers[kind].read(path), frame).array[0])
        if kind == "DICOM":
            raise ImageError(f"a DICOM file as a mask: DICOM segmentation objects (SEG) are not read yet; {_SAVE_AS}")
        if kind == "JPEG":
            raise ImageError(f"JPEG is lossy and changes labels at their edges; {_SAVE_AS}")
        if kind == "video":
            raise ImageError(f"expected a label map, found a video; {_SAVE_AS}")
        if kind == "NIfTI":
            return _as_integers(read_nifti(path, frame=frame, claim=room.claim).array[0])
        return _read_raster(path, kind, frame, room.claim)


def to_square(labels: npt.NDArray[Any], *, fit: Fit, size: int, aspect: float = 1.0) -> IntArray:
    """Labels in the square that the cache keeps of their image, by the same padding, cropping or stretching.

    Each class is resampled as its cached image is (bilinear, antialiased), and a pixel takes the class with the largest
    share of it; of equal shares the lower label wins. Padding is 0.

    Args:
        labels: integers `[H, W]`.
        fit: `Preprocessing.fit` of the image.
        size: side S of the square in pixels, `Preprocessing.cached_size` of the image.
        aspect: `Image.aspect` of the image.

    Returns:
        int64 `[S, S]`; only labels that occur in `labels`, and 0.

    Raises:
        UsageError: labels that are not integers `[H, W]`, or an unknown fit.

    Example:
        >>> to_square(np.array([[3, 3, 0, 0], [3, 3, 0, 0]]), fit="pad", size=4).tolist()
        [[0, 0, 0, 0], [3, 3, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0]]
        >>> to_square(np.array([[3, 3, 0, 0], [3, 3, 0, 0]]), fit="stretch", size=2).tolist()
        [[3, 0], [3, 0]]
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise UsageError(f"labels: expected integers [H, W], found {labels.dtype} {list(labels.shape)}")
    labels = labels.astype(np.int64)
    rows, columns = _place(labels.shape, fit, aspect)
    native = np.zeros((rows.side, columns.side), np.int64)
    native[rows.square, columns.square] = labels[rows.image, columns.image]
    square = np.zeros((size, size), np.int64)
    largest = torch.full((size, size), -1.0)
    for label in np.unique(native):  # ascending, so that an equal share does not displace a lower label
        member = torch.from_numpy((native == label).astype(np.float32))
        share = _resample(member[None, None], (size, size))[0, 0]
        more = share > largest + _TIE
        largest = torch.where(more, share, largest)
        square[more.numpy()] = label
    return square


def from_square(scores: Tensor, shape: tuple[int, int], *, fit: Fit, aspect: float = 1.0) -> IntArray:
    """The class of every pixel of the native image, from class scores in the square that `to_square` makes.

    The scores are resampled (bilinear, antialiased where the native image is smaller), the class is taken after that;
    of equal scores the lower class wins. What `fit` cropped off was not seen and is 0; what it padded is dropped.

    Args:
        scores: `[K, S, S]` or `[N, K, S, S]`, on any device; logits or probabilities, the higher the likelier.
        shape: `(H, W)` of the native image.
        fit: `Preprocessing.fit` of the image.
        aspect: `Image.aspect` of the image.

    Returns:
        int64 in 0..K-1, `[H, W]` or `[N, H, W]`.

    Raises:
        UsageError: scores of another shape, or an unknown fit.

    Example:
        >>> square = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
        >>> from_square(F.one_hot(square).permute(2, 0, 1).float(), (2, 4), fit="pad").tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0]]
    """
    if scores.ndim not in (3, 4) or scores.shape[-1] != scores.shape[-2]:
        raise UsageError(f"scores: expected [K, S, S] or [N, K, S, S], found {list(scores.shape)}")
    rows, columns = _place(shape, fit, aspect)
    batch = scores.detach() if scores.ndim == 4 else scores.detach()[None]
    labels = np.zeros((len(batch), *shape), np.int64)
    for number, one in enumerate(batch):  # one at a time: native images may be far larger than the square
        exact = one if one.dtype == torch.float64 else one.float()
        native = _resample(exact[None], (rows.side, columns.side))[0].argmax(0).cpu().numpy()
        labels[number, rows.image, columns.image] = native[rows.square, columns.square]
    return labels if scores.ndim == 4 else labels[0]


def kept_part(shape: tuple[int, int], *, fit: Fit, aspect: float = 1.0) -> tuple[slice, slice]:
    """The rows and columns of an image that its square has: all of them, unless `fit` crops; args as `from_square`.

    Raises:
        UsageError: an unknown fit.

    Example:
        >>> kept_part((4, 8), fit="crop"), kept_part((4, 8), fit="pad")
        ((slice(0, 4, None), slice(2, 6, None)), (slice(0, 4, None), slice(0, 8, None)))
    """
    rows, columns = _place(shape, fit, aspect)
    return rows.image, columns.image


class _Placing(NamedTuple):
    """Along one axis, before resampling: the square's length, and the part that image and square share, in each."""

    side: int
    image: slice
    square: slice


def _place(shape: tuple[int, int], fit: Fit, aspect: float) -> tuple[_Placing, _Placing]:
    """Of the rows and of the columns; as in `bolus.data.images.preprocessing`."""
    rows, columns = (_placing(*lengths) for lengths in zip(shape, canvas(shape, fit, aspect), strict=True))
    return rows, columns


def _placing(length: int, side: int) -> _Placing:
    """In the middle: the odd pixel of a padding or a margin is the last one."""
    shared, cut, padded = min(length, side), max(length - side, 0) // 2, max(side - length, 0) // 2
    return _Placing(side, slice(cut, cut + shared), slice(padded, padded + shared))


def _resample(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, shape, mode="bilinear", antialias=True, align_corners=False)


def _read_raster(path: Path, kind: str, frame: int | None, claim: Claim) -> IntArray:
    with path.open("rb") as stream, PIL.Image.open(stream, formats=(kind,)) as opened:
        depth = 8
        if kind == "PNG":
            position = stream.tell()
            stream.seek(24)  # in IHDR; Pillow does not keep it
            depth = stream.read(1)[0]
            stream.seek(position)
        pages = find_pages(opened)
        if frame is not None:
            pages = [pages[check_frame(frame, len(pages))]]
        claim(*decoded_size(opened, pages, wide=8))
        check_intact(stream, opened, pages)
        decoded = [_decode_page(opened, page, depth) for page in pages]
    if len({labels.shape for labels in decoded}) > 1:
        raise ImageError(f"expected pages of one size, found several among {len(decoded)}: read them by `frame`")
    return decoded[0] if len(decoded) == 1 else np.stack(decoded)


def _decode_page(opened: PIL.Image.Image, page: int, depth: int) -> IntArray:
    """One page as int64 `[H, W]`; `depth` is the bits of a grey pixel where the format says them outside of a page."""
    unsigned = True
    if opened.format == "TIFF":
        opened.seek(page)
        tags = getattr(opened, "tag_v2", {})
        depth, unsigned = int(np.atleast_1d(tags.get(258, 1))[0]), int(np.atleast_1d(tags.get(339, 1))[0]) == 1
        if opened.info.get("compression") in ("jpeg", "tiff_jpeg"):
            raise ImageError(f"JPEG within TIFF is lossy and changes labels at their edges; {_SAVE_AS}")
        if tags.get(262, 1) == 0 and depth > 1:
            raise ImageError(f"expected 0 to be black, found a TIFF in which it is white (WhiteIsZero); {_SAVE_AS}")
    picture = ImageOps.exif_transpose(opened)
    if picture.mode not in ("1", "L", "P", "I", "F") and not picture.mode.startswith("I;16"):
        raise ImageError(f"expected one label a pixel, found colour or alpha (mode {picture.mode}); {_SAVE_AS}")
    array: npt.NDArray[Any] = np.asarray(picture)
    if picture.mode == "L" and depth in (2, 4):
        array = array // (255 // (2**depth - 1))  # Pillow spreads few bits over 0 to 255
    elif picture.mode == "I" and unsigned and depth == 32:
        array = array.view(np.uint32)
    return _as_integers(array)


def _as_integers(array: npt.NDArray[Any]) -> IntArray:
    if array.dtype.kind == "f":
        odd = ~np.isfinite(array) | (array != np.round(array)) | (np.abs(array) > _EXACT)
        if odd.any():
            example = float(array[odd][0])
            raise ImageError(f"expected integers up to {_EXACT} as labels, found {example:g} and such in {odd.sum()}")
    return array.astype(np.int64)
