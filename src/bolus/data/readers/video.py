"""Video files through PyAV: frames one after another, exactly as many as the file announces, never fewer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bolus.data.pixels.image import Image, Range, check_frame
from bolus.data.pixels.packed import check_plausible
from bolus.data.pixels.square import find_aspect, oblong_notes
from bolus.data.readers.room import check_size
from bolus.errors import ImageError, MissingDecoderError, require

if TYPE_CHECKING:
    import av

_MATROSKA, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # the first element, and that of all the rest
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide")  # of which one begins an MP4 or MOV file


def is_video(head: bytes) -> bool:
    r"""Whether a file is a video in a common container, from its first bytes (at least 189 for MPEG-TS).

    MP4, MOV and 3GP (not the still images HEIC and AVIF), AVI, Matroska and WebM, ASF (WMV), FLV, MPEG-1 and -2.

    >>> is_video(b"RIFF\x00\x00\x00\x00AVI LIST"), is_video(b"RIFF\x00\x00\x00\x00WAVEfmt ")
    (True, False)
    """
    if head[4:8] == b"ftyp":
        return head[8:12] not in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    if head[:1] == b"\x47" and head[188:189] == b"\x47":
        return True
    starts = (_MATROSKA, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"FLV\x01", b"\0\0\x01\xba", b"\0\0\x01\xb3")
    return head.startswith(starts) or head[4:8] in _BOXES


def count_video_frames(path: Path) -> int:
    """How many frames of a video will be shown: as its header announces, else by its packets; nothing is decoded.

    The packets are counted too where an edit list may cut frames off, which a header counts as well (MP4, MOV, 3GP).

    Raises:
        ImageError: no video in the file, or none of its frames is there.
    """
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            number = _announced(container, stream) or sum(
                1 for packet in container.demux(stream) if packet.size and not packet.is_discard
            )
    except av.FFmpegError as error:
        raise ImageError(_torn(error)) from error
    if not number:
        raise ImageError("a video without frames")
    check_plausible(path, int(number), f"{number} frames")
    return int(number)


def read_video(path: Path, *, frame: int | None = None) -> Image:
    """One video file; `bolus.data.readers.readers.read_image` adds its name to errors.

    Args:
        path: the file.
        frame: which frame, from 0, as `iterate_video` counts them; those before it are decoded too.

    Returns:
        Image with float32 `[C, T, H, W]`, or `[C, H, W]` of one frame; see `iterate_video`.

    Raises:
        ImageError: as `iterate_video`; frames of several sizes; TooLargeError: more than one image may take.
    """
    images = []
    for number, image in enumerate(iterate_video(path)):
        if number == frame:
            return image
        if frame is None:
            images.append(image)
            check_size(2 * len(images) * image.array.nbytes, f"{len(images)} or more frames of {_size_of(image)}")
    if frame is not None:
        check_frame(frame, number + 1)
    if len({(image.array.shape, image.bits) for image in images}) > 1:
        raise ImageError(f"expected frames of one size and type, found several among {len(images)}")
    first, notes = images[0], dict.fromkeys(note for image in images for note in image.notes)
    array = first.array if len(images) == 1 else np.stack([image.array for image in images], axis=1)
    return Image(array, None, first.range, first.bits, False, tuple(notes), aspect=first.aspect)


def iterate_video(path: Path) -> Iterator[Image]:
    """The frames of a video's first video stream, in the order in which they are shown.

    Grey pixel formats give one channel of the depth they have; all others RGB of 8 bits, deeper ones with a note. The
    range is what the container holds. The rotation that a telephone notes beside its pictures is not applied, which
    has a note. Frames that an edit list cuts off are left out.

    A file that is torn is an error before its first frame: fewer packets than its header announces, a cut-off packet,
    or less of an MP4, MOV, Matroska or WebM file than it says. MPEG streams announce nothing, so there a missing tail
    is not seen; nor is damage that a decoder conceals. Where a frame in the middle cannot be decoded, it and those
    after it are an error.

    Yields:
        Images with float32 `[C, H, W]`, C = 1 or 3, and no spacing.

    Raises:
        ImageError: no video in the file, torn, or damaged; TooLargeError: frames larger than one image may be.
    """
    av = _pyav()
    times, number = _check_whole(path), 0
    later = set(times)
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            check_size(24 * stream.width * stream.height, f"frames of {stream.width} x {stream.height} pixels")
            ratio = stream.sample_aspect_ratio  # width to height of a pixel; 0 or None where it is unknown
            aspect = find_aspect(ratio.denominator, ratio.numerator) if ratio else 1.0
            for decoded in container.decode(stream):
                # Some decoders drop a frame that they cannot decode without a word: then this one is a later one.
                dropped = number < len(times) and decoded.pts != times[number] and decoded.pts in later
                if decoded.is_corrupt or dropped:
                    raise ImageError(f"frame {number} of {len(times)} is damaged")
                yield _as_image(decoded, aspect)
                number += 1
    except av.FFmpegError as error:
        raise ImageError(f"{_torn(error)} (after {number} of {len(times)} frames)") from error
    if number != len(times):
        raise ImageError(f"expected {len(times)} frames, as the file announces, found {number} that can be decoded")


def _size_of(image: Image) -> str:
    return f"{image.array.shape[-1]} x {image.array.shape[-2]} pixels"


def _pyav() -> Any:
    return require("av", "video files", MissingDecoderError)


def _check_whole(path: Path) -> list[int | None]:
    """The times of all frames that will be shown, in order, as far as known; an ImageError where some are not there."""
    if _is_short(path):
        raise ImageError("the file is torn: it ends before its own end")
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            announced, packets, times = _announced(container, stream), 0, []
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_corrupt:
                    raise ImageError(f"the file is torn or damaged at frame {packets}")
                packets += 1
                if not packet.is_discard:
                    times.append(packet.pts)
    except av.FFmpegError as error:
        raise ImageError(_torn(error)) from error
    if announced and packets != announced:
        raise ImageError(f"the file is torn: expected {announced} frames, as it announces, found {packets}")
    if not times:
        raise ImageError("a video without frames")
    known = [time for time in times if time is not None]
    return sorted(known) if len(set(known)) == len(times) else [None] * len(times)


def _announced(container: Any, stream: Any) -> int:
    """Frames by the header; 0 where it does not say."""
    # An MP4 or MOV file also announces frames that its edit list cuts off, of which some are in no packet.
    return 0 if container.format.name.startswith("mov") else int(stream.frames)


def _video_stream(container: Any) -> Any:
    """The first video stream that is not a cover picture."""
    attached = _pyav().stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & attached]
    if not streams:
        raise ImageError("expected a video, found a file without one")
    return streams[0]


def _as_image(decoded: Any, aspect: float) -> Image:
    kind, notes = decoded.format, oblong_notes(aspect)
    bits = max((component.bits for component in kind.components), default=8)
    if kind.name.startswith("gray") and not kind.name.startswith("grayf"):
        array = np.asarray(decoded.to_ndarray())[None]
    else:
        if bits > 8:
            notes.append(f"{bits}-bit colour read as 8 bits")
        array, bits = np.moveaxis(np.asarray(decoded.to_ndarray(format="rgb24")), -1, 0), 8
    if decoded.rotation:
        notes.append(f"rotation by {decoded.rotation} degrees noted in the file is not applied")
    value_range = Range(0.0, float(2**bits - 1), "container")
    array = np.ascontiguousarray(array, np.float32)
    return Image(array, None, value_range, bits, False, tuple(notes), aspect=aspect)


def _torn(error: av.FFmpegError) -> str:
    return f"damaged, or not a video that can be read: {error.strerror}"


def _is_short(path: Path) -> bool:
    """Whether an MP4, MOV, Matroska or WebM file says that it is longer than it is."""
    with path.open("rb") as stream:
        head, length = stream.read(64), path.stat().st_size
        if not head.startswith(_MATROSKA):
            return head[4:8] in _BOXES and _boxes_end(stream) > length
    width, size = _element_size(head[4:12])
    at = 4 + width + (size or 0)
    if size is None or head[at : at + 4] != _SEGMENT:
        return False
    width, size = _element_size(head[at + 4 : at + 12])
    return size is not None and length < at + 4 + width + size


def _boxes_end(stream: BinaryIO) -> int:
    """Where the last whole or torn box of an MP4 or MOV file ends, by what it says."""
    at = 0
    while True:
        stream.seek(at)
        head = stream.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or size < 8:  # the end, or a box that goes on to it
            return at
        at += size


def _element_size(data: bytes) -> tuple[int, int | None]:
    r"""The length of an EBML element: the bytes that state it, and what they state; None for an unknown one.

    >>> _element_size(b"\x82"), _element_size(b"\x40\x02"), _element_size(b"\xff")
    ((1, 2), (2, 2), (1, None))
    """
    width = 9 - data[0].bit_length() if data and data[0] else 1
    value = int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)
    return width, None if value == (1 << 7 * width) - 1 else value
