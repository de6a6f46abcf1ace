"""Many frames of one file, read at once: a packed volume or a long header costs as much for one frame as for all."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from bolus.data.pixels.greys import wants_values
from bolus.data.pixels.image import Image, take_frame
from bolus.data.readers.own import NONE, Readers, suffix_of
from bolus.data.readers.readers import count_frames, iterate_frames, naming, read_image
from bolus.data.readers.room import Claim, Room, limit
from bolus.data.readers.video import is_video
from bolus.errors import BolusError, ImageError

__all__ = ["all_frames", "count_frames", "read_frames", "reason_without_name"]

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GZIP = b"\x1f\x8b"
_PATH = re.compile(r"\S*(?:\S[/\\]|[/\\]\S|\0)\S*?(?=[,;:]?(?:\s|$))")  # also one already cut out, now a \0


def read_frames(
    path: Path, frames: Sequence[int | None], *, voi: bool | None = None, readers: Readers = NONE
) -> Generator[Image | BolusError]:
    """The images of one file in the order asked for, or for each why it cannot be read.

    The pixels are those of `read_image(path, frame=frame)`, but what it finds over all that it read, the range of a
    series or the like, may be that of the whole file. Files with several frames are decoded once, whole; except
    for pages of a TIFF, which are found at once and may differ in depth, for files that need more memory than one image
    may take (then slower, but in little memory), and for files of which some frame is damaged; unless they are packed
    by gzip, of which all frames are read or none. A video is decoded once, and held in memory only frame by frame where
    frames are asked for in order. A reader of one's own reads a file once.

    Args:
        path: the file.
        frames: numbers from 0; None for a file that is one image.
        voi: as `read_image`.
        readers: as `read_image`.
    """
    several = sum(frame is not None for frame in frames) > 1
    if suffix_of(path.name, readers) is not None:
        yield from _read_own(path, frames, voi, readers)
        return
    head = _head(path) if several else b""
    if is_video(head):
        yield from _read_video(path, frames)
        return
    with Room() as room:
        whole = _read_whole(path, voi, room.claim) if several and not head.startswith(_TIFF) else None
        if isinstance(whole, Image):
            yield from _take_frames(whole, frames)
            return
        if whole is not None and head.startswith(_GZIP):  # of which each frame would have to be unpacked from the start
            yield from [whole] * len(frames)
            return
    for frame in frames:
        with Room() as room:
            try:
                yield read_image(path, frame=frame, voi=voi, claim=room.claim)
            except BolusError as error:
                yield error


def read_as(
    path: Path, frames: Sequence[int | None], reading: str, readers: Readers = NONE
) -> Iterator[Image | BolusError]:
    """The images of one file as `read_frames` gives them, without window and VOI LUT where the reading wants values.

    Args:
        path: the file.
        frames: as of `read_frames`, at least one.
        reading: as of `bolus.data.pixels.greys.reading_of`.
        readers: as `read_image`.
    """
    images = read_frames(path, frames, readers=readers)
    first = next(images)
    if isinstance(first, Image) and wants_values(first, reading):
        images.close()  # and with it the lock that a large file holds
        yield from read_frames(path, frames, voi=False, readers=readers)
        return
    yield first
    yield from images


def all_frames(path: Path, readers: Readers = NONE) -> list[int | None]:
    """What to ask `read_frames` for to have all of a file: frame numbers, or one None for an image.

    Where frames cannot be counted, that is None too, and reading it will say why.

    >>> from pydicom.data import get_testdata_file
    >>> len(all_frames(Path(get_testdata_file("rtdose.dcm", download=False)))), all_frames(Path("absent.mp4"))
    (15, [None])
    """
    try:
        number = count_frames(path, readers)
    except BolusError:
        number = 1
    return [None] if number == 1 else list(range(number))


def reason_without_name(error: BolusError, path: Path) -> str:
    """Why an image cannot be read, without its file or folders, which often hold the patient's identifier.

    >>> reason_without_name(BolusError("p17_left.png: the file is empty"), Path("images/p17_left.png"))
    'the file is empty'
    >>> reason_without_name(BolusError("torn, see p17/left.png and /mnt/p17/log"), Path("images/p17/left.png"))
    'torn, see the file and the file'
    """
    reason, resolved = str(error).removeprefix(f"{path.name}: "), Path(os.path.realpath(str(path).replace("\0", "")))
    spellings = {str(Path(*whole.parts[start:])) for whole in (path, resolved) for start in range(len(whole.parts))}
    spellings |= {str(folder) for whole in (path, resolved) for folder in whole.parents if len(folder.parts) > 1}
    for spelling in sorted(spellings, key=len, reverse=True):
        reason = reason.replace(spelling, "\0")
    return _PATH.sub("the file", reason)


def reason_without_names(error: BolusError, paths: Iterable[Path]) -> str:
    """The same of what is read from several files."""
    for path in dict.fromkeys(paths):
        error = BolusError(reason_without_name(error, path))
    return str(error)


def _read_own(
    path: Path, frames: Sequence[int | None], voi: bool | None, readers: Readers
) -> Iterator[Image | BolusError]:
    """Frames of a file that is read whole by a reader of one's own."""
    with Room() as room:
        try:
            with naming(path, readers):  # 16 bits take twice as much as float32; what is packed, more
                room.claim(min(2 * path.stat().st_size, limit()), "a file")
            whole = read_image(path, voi=voi, readers=readers)
        except BolusError as error:
            yield from [error] * len(frames)
            return
        yield from _take_frames(whole, frames)


def _take_frames(whole: Image, frames: Sequence[int | None]) -> Iterator[Image | BolusError]:
    for frame in frames:
        try:
            yield take_frame(whole, frame)
        except BolusError as error:
            yield error


def _read_video(path: Path, frames: Sequence[int | None]) -> Iterator[Image | BolusError]:
    """Frames of a video in one pass; those before their turn wait, and all after a damaged one share its error."""
    wanted = Counter(frames)
    held: dict[int | None, Image] = {}
    failed: BolusError | None = None
    decoder, number = iterate_frames(path), 0
    for frame in frames:
        while failed is None and frame is not None and number <= frame:
            try:
                image = next(decoder)
                if number in wanted:
                    held[number] = image
                number += 1
            except StopIteration:
                failed = ImageError(f"{path.name}: expected a frame from 0 to {number - 1}")
            except BolusError as error:
                failed = error
        if frame is None:  # a file with rows for its frames and one for itself
            yield ImageError(f"{path.name}: expected a frame number")
        elif frame in held:
            yield held[frame]
        else:
            yield failed or ImageError(f"{path.name}: expected a frame from 0, found {frame}")
        wanted[frame] -= 1
        if not wanted[frame]:
            held.pop(frame, None)
    decoder.close()


def _head(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read, which is said again by whoever reads it."""
    try:
        with naming(path), path.open("rb") as file:
            return file.read(352)
    except BolusError:
        return b""


def _read_whole(path: Path, voi: bool | None, claim: Claim) -> Image | BolusError:
    try:
        return read_image(path, voi=voi, claim=claim)
    except BolusError as error:
        return error
