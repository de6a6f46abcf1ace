"""The files of a cache folder of volumes: one compressed array a volume, read in parts, and what is known of it.

`KEY-ID.b2nd` is a Blosc2 array `[C, D, H, W]` of integers, compressed block by block (Zstandard after a byte shuffle),
so that a window costs the blocks that it touches. `KEY-ID.records`, written after it, says what it holds, with a
checksum of that file and one of the voxels. KEY is of the content of the volume's files. Each is written under a
temporary name and renamed when whole, none is ever changed, and what is torn is as if it were absent.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bolus.checksums import load_array, save_array
from bolus.data.images.shrinking import Shrunk
from bolus.data.pixels.greys import GREY
from bolus.data.pixels.quantiles import LEVELS
from bolus.data.volumes.cache.windows import Voxels
from bolus.errors import require
from bolus.files import replacing

CHUNK, BLOCK = 64, 32  # voxels along each axis: what lies together in the file, and what is unpacked at least
READ = 2**20  # bytes of a file read at once
ENDING, FACTS = ".b2nd", ".records"

# What a file holds. Values are `stored * gain + bias`; `crc` is the CRC-32 of the voxels, `file` that of the file.
RECORD = np.dtype(
    [
        ("digest", "u8", (2,)),
        ("gain", "f8"),
        ("bias", "f8"),
        ("grey", GREY),
        ("crc", "u4"),
        ("file", "u4"),
        ("shape", "i8", (4,)),
        ("bits", "u1"),
        ("spacing", "f8", (3,)),
        ("quantiles", "f4", (len(LEVELS),)),
    ]
)


def write_volume(folder: Path, digest: npt.NDArray[np.uint64], volume: Shrunk, spacing: Sequence[float]) -> None:
    """Keep a volume under the content of its files.

    Args:
        folder: of the cache.
        digest: uint64 `[2]`.
        volume: as it is stored, its array `[C, D, H, W]`.
        spacing: mm (D, H, W) of its voxels, NaN where it is not known.

    Raises:
        MissingPackageError: no package blosc2.
    """
    packed = pack(volume.array)
    path = folder / f"{name_of(digest)}-{uuid.uuid4().hex[:12]}{ENDING}"
    with replacing(path) as temporary:  # plain bytes, so that a full disk is an error
        temporary.write_bytes(packed)
    record = np.zeros(1, RECORD)
    for name, value in (
        ("digest", digest), ("gain", volume.gain), ("bias", volume.bias), ("grey", volume.grey),
        ("crc", zlib.crc32(np.ascontiguousarray(volume.array).data)), ("file", zlib.crc32(packed)),
        ("shape", volume.array.shape), ("bits", 8 * volume.array.itemsize), ("spacing", spacing),
        ("quantiles", volume.quantiles),
    ):  # fmt: skip
        record[name][0] = value
    save_array(path.with_suffix(FACTS), record)


def pack(array: npt.NDArray[Any]) -> bytes:
    """Integers `[C, D, H, W]` as the bytes of a Blosc2 file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.b2nd")
    ...     _ = path.write_bytes(pack(np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)))
    ...     read_part(path, (1, 1, 2), (1, 2, 2)).ravel().tolist()
    [18, 19, 22, 23]
    """
    blosc2 = require("blosc2", "volumes")
    chunks = tuple(min(CHUNK, side) for side in array.shape[1:])
    blocks = tuple(min(BLOCK, side) for side in chunks)
    made = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(1, *chunks),
        blocks=(1, *blocks),
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
    )
    return bytes(made.to_cframe())


def read_part(path: Path, start: Voxels, size: Voxels) -> npt.NDArray[Any]:
    """A box of a volume, `[C, d, h, w]`; it must lie within the volume.

    Opened for each reading, so that threads do not meet.
    """
    blosc2 = require("blosc2", "volumes")
    array = blosc2.open(str(path), mode="r", mmap_mode="r")
    box = tuple(slice(int(first), int(first) + int(side)) for first, side in zip(start, size, strict=True))
    part: npt.NDArray[Any] = array[(slice(None), *box)]
    return part


def find_volumes(folder: Path, wanted: Collection[str]) -> dict[str, tuple[Path, npt.NDArray[np.void]]]:
    """The volumes of some contents that are there: name of the content, as `name_of` has it -> file and record.

    A record is `[1]` of dtype `RECORD`; one that is torn, or of another version, is as if it were absent.
    """
    found = {}
    for path in sorted(folder.glob(f"*-*{FACTS}")):
        name, voxels = path.name.partition("-")[0], path.with_suffix(ENDING)
        record = load_array(path) if name in wanted and name not in found and voxels.is_file() else None
        if record is not None and record.dtype == RECORD and record.shape == (1,):
            found[name] = (voxels, record)
    return found


def is_whole(path: Path, crc: int) -> bool:
    """Whether a file has this checksum; it is read through once."""
    found = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(READ):
                found = zlib.crc32(piece, found)
    except OSError:
        return False
    return found == crc


def forget(path: Path) -> None:
    """Let a damaged volume count as absent from now on; a cache that may only be read stays as it is."""
    with suppress(OSError):
        path.with_suffix(FACTS).unlink(missing_ok=True)


def name_of(digest: npt.NDArray[np.uint64]) -> str:
    """32 hexadecimal digits of a content.

    >>> name_of(np.array([1, 255], np.uint64))
    '000000000000000100000000000000ff'
    """
    return "".join(f"{int(part):016x}" for part in digest)
