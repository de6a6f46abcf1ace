"""Pictures are checked while they are decoded: the same pixels as before, and nothing that is missing is filled up."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from bolus.data.pixels.codestreams import decode_checked
from bolus.data.readers import intact
from bolus.data.readers.readers import read_image
from bolus.errors import ImageError

NOISE = np.random.default_rng(3).integers(0, 256, (37, 51, 3), np.uint8)
KINDS: dict[int, tuple[str, int, np.dtype[Any]]] = {  # colour type -> mode, samples, type
    0: ("L", 1, np.dtype(np.uint8)),
    2: ("RGB", 3, np.dtype(np.uint8)),
    3: ("P", 1, np.dtype(np.uint8)),
    4: ("LA", 2, np.dtype(np.uint8)),
    6: ("RGBA", 4, np.dtype(np.uint8)),
}


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {"quality": 30}),
        ("L", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1, "quality": 95}),
        ("RGB", {"subsampling": 2, "progressive": True}),
        ("RGB", {"keep_rgb": True}),
    ],
)
def test_a_jpeg_is_decoded_to_the_bits_that_pillow_gives(mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    PIL.Image.fromarray(NOISE).convert(mode).save(tmp_path / "a.jpg", **options)
    expected = np.asarray(PIL.Image.open(tmp_path / "a.jpg"))
    decoded = decode_checked((tmp_path / "a.jpg").read_bytes(), mode)
    assert decoded is not None
    assert np.array_equal(decoded, expected)
    read = read_image(tmp_path / "a.jpg")
    assert np.array_equal(np.moveaxis(read.array, 0, -1).squeeze(), expected)
    assert read.notes == ()


def test_a_jpeg_that_the_decoder_complains_of_is_refused_as_before(tmp_path: Path) -> None:
    PIL.Image.fromarray(NOISE).save(tmp_path / "a.jpg", quality=90)
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[:-200])
    with pytest.raises(ImageError, match="damaged: "):
        read_image(tmp_path / "a.jpg")


def png(
    colour: int, rows: int, *, columns: int = 20, value: bytes = b"\0", height: int = 16, deep: bool = False
) -> bytes:
    """A PNG with right checksums and as many rows as are asked for, each of one colour."""
    body = zlib.compress((b"\0" + value * columns) * rows)
    header = struct.pack(">IIBBBBB", columns, height, 16 if deep else 8, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", bytes(768)), (b"IDAT", body), (b"IEND", b"")]
    if colour != 3:
        del parts[1]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("colour", [*KINDS, "deep"])
def test_a_png_without_its_last_rows_is_refused_and_one_of_the_marks_colour_is_read(
    colour: int | str, tmp_path: Path
) -> None:
    deep, kind = colour == "deep", 0 if isinstance(colour, str) else colour
    mark = intact._MARKS["I;16" if deep else KINDS[kind][0]]
    marked = struct.pack(">H", mark) if deep else bytes(np.atleast_1d(np.array(mark, np.uint8)))
    for value in (bytes(len(marked)), marked):
        for rows in (0, 9, 15):
            (tmp_path / "a.png").write_bytes(png(kind, rows, value=value, deep=deep))
            with pytest.raises(ImageError, match=r"damaged: \S+ bytes of pixels are missing"):
                read_image(tmp_path / "a.png")
        for rows in (16, 17):
            (tmp_path / "a.png").write_bytes(png(kind, rows, value=value, deep=deep))
            pixels = read_image(tmp_path / "a.png").array
            expected = np.asarray(PIL.Image.open(io.BytesIO(png(kind, rows, value=value, deep=deep))).convert(
                {"P": "RGB", "LA": "L", "RGBA": "RGB"}.get(KINDS[kind][0], KINDS[kind][0]) if not deep else "I;16"
            ))  # fmt: skip
            assert np.array_equal(np.moveaxis(pixels, 0, -1).squeeze(), expected)


def test_the_rows_of_a_png_are_not_unpacked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(intact._Unpacking, "add", lambda self, piece: seen.append(len(piece)))
    monkeypatch.setattr(intact._Unpacking, "end", lambda self: None)
    for mode in ("L", "RGB", "RGBA", "P"):
        PIL.Image.fromarray(NOISE).convert(mode).save(tmp_path / "a.png")
        read_image(tmp_path / "a.png")
    assert not seen
    PIL.Image.fromarray(NOISE).convert("1").save(tmp_path / "a.png")
    read_image(tmp_path / "a.png")
    assert seen, "of a mode without a mark they are"
