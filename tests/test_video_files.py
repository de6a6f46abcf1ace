"""Video files: exact pixels from every container, counts without decoding, and nothing read from a torn file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image as PillowImage

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Preprocessing, build_store
from bolus.data.images.clips import open_samples
from bolus.data.readers import frames, readers
from bolus.data.readers.readers import count_frames, read_image
from bolus.errors import ImageError

GREY = np.random.default_rng(0).integers(0, 256, (7, 16, 24), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (7, 16, 24, 3), dtype=np.uint8)
DEEP = np.random.default_rng(2).integers(0, 65536, (7, 16, 24), dtype=np.uint16)

EXACT = {  # file -> codec, pixel format, pixels, and how PyAV calls these
    "grey.avi": ("ffv1", "gray", GREY, "gray"),
    "grey.mkv": ("ffv1", "gray", GREY, "gray"),
    "deep.mkv": ("ffv1", "gray16le", DEEP, "gray16le"),
    "colour.mkv": ("ffv1", "bgr0", COLOUR, "rgb24"),
    "colour.avi": ("rawvideo", "bgr24", COLOUR, "rgb24"),
    "colour.mov": ("rawvideo", "rgb24", COLOUR, "rgb24"),
}
LOSSY = {"phone.mp4": "mpeg4", "web.webm": "libvpx", "old.mpg": "mpeg2video", "stream.ts": "mpeg2video"}


def write_video(
    path: Path, pixels: np.ndarray[Any, Any], codec: str, kept_as: str, given_as: str, **options: str
) -> Path:
    """A video of `[T, H, W]` or `[T, H, W, 3]`, ten frames a second."""
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], kept_as
        for picture in pixels:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=given_as)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def write_exact(folder: Path, name: str) -> tuple[Path, np.ndarray[Any, Any]]:
    codec, kept_as, pixels, given_as = EXACT[name]
    path = write_video(folder / name, pixels, codec, kept_as, given_as)
    return path, pixels[None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 0)


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_exact_and_channels_those_of_the_file(name: str, tmp_path: Path) -> None:
    path, expected = write_exact(tmp_path, name)
    image = read_image(path)
    np.testing.assert_array_equal(image.array, expected)
    bits = 16 if name == "deep.mkv" else 8
    assert (image.bits, image.range.low, image.range.high, image.range.rule) == (bits, 0, 2**bits - 1, "container")
    assert image.array.dtype == np.float32
    assert image.spacing is None
    assert count_frames(path) == 7
    one = read_image(path, frame=4)
    np.testing.assert_array_equal(one.array, expected[:, 4])
    with pytest.raises(ImageError, match=f"^{name}: expected a frame from 0 to 6, found 7$"):
        read_image(path, frame=7)


@pytest.mark.parametrize("name", LOSSY)
def test_other_containers_by_content_whatever_their_name(name: str, tmp_path: Path) -> None:
    still = np.repeat(np.full((1, 16, 32, 3), (200, 40, 90), np.uint8), 12, axis=0)
    path = write_video(tmp_path / name, still, LOSSY[name], "yuv420p", "rgb24").rename(tmp_path / "no_suffix")
    image = read_image(path)
    assert count_frames(path) == 12
    assert image.array.shape == (3, 12, 16, 32)
    np.testing.assert_allclose(image.array.mean((1, 2, 3)), (200, 40, 90), atol=6)


def test_one_frame_is_an_image_and_a_window_is_taken(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", GREY[:1], "ffv1", "gray", "gray")
    image = read_image(path, window=(100, 50))
    assert image.array.shape == (1, 16, 24)
    assert (image.range.low, image.range.high, image.range.rule) == (75, 125, "window")
    assert count_frames(path) == 1


@pytest.mark.parametrize(
    ("name", "codec", "kept_as", "options"),
    [
        ("a.avi", "ffv1", "bgr0", {}),
        ("a.mkv", "ffv1", "bgr0", {}),
        ("a.mov", "rawvideo", "rgb24", {}),
        ("a.mp4", "mpeg4", "yuv420p", {"movflags": "faststart"}),
        ("a.webm", "libvpx", "yuv420p", {}),
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_a_torn_file_gives_not_one_frame(
    name: str, codec: str, kept_as: str, options: dict[str, str], share: float, tmp_path: Path
) -> None:
    path = write_video(tmp_path / name, np.concatenate([COLOUR] * 3), codec, kept_as, "rgb24", **options)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for read in (read_image, lambda path: read_image(path, frame=0)):
        with pytest.raises(ImageError, match=f"^{name}: ") as caught:
            read(path)
        assert str(tmp_path) not in str(caught.value)
    found = list(frames.read_frames(path, range(21)))
    assert all(isinstance(each, ImageError) for each in found)


def test_what_holds_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(400))
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))
    (tmp_path / "c.avi").write_bytes(b"a subtitle is no video, though PyAV opens it\n" * 20)
    with av.open(str(tmp_path / "d.mp4"), "w") as container:
        sound: Any = container.add_stream("aac", rate=8000)
        for packet in [*sound.encode(silence()), *sound.encode(None)]:
            container.mux(packet)
    for name, message in (
        ("a.mp4", "not a video that can be read"),
        ("b.heic", "found none of these"),
        ("c.avi", "found none of these"),
        ("d.mp4", "expected a video, found a file without one"),
        ("absent.mp4", "no such file"),
    ):
        for read in (read_image, count_frames):
            with pytest.raises(ImageError, match=f"^{name}: .*{message}"):
                read(tmp_path / name)


def silence() -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.rate = 8000
    return frame


@pytest.mark.parametrize("name", ["grey.avi", "colour.mkv"])
def test_frames_of_a_video_are_decoded_once_in_whatever_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = write_exact(tmp_path, name)
    original, decoded = readers.iterate_video, []
    monkeypatch.setattr(readers, "iterate_video", lambda path: decoded.append(path) or original(path))
    for asked in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 2, 9, 0]):
        decoded.clear()
        for frame, image in zip(asked, frames.read_frames(path, asked), strict=True):
            if frame > 6:
                assert isinstance(image, ImageError)
                assert "expected a frame from 0 to 6" in str(image)
            else:
                assert not isinstance(image, ImageError)
                np.testing.assert_array_equal(image.array, expected[:, frame])
        assert len(decoded) == 1


@pytest.mark.parametrize(
    ("name", "codec", "kept_as", "reason"),
    [
        ("a.avi", "mjpeg", "yuvj420p", "after 4 of 7 frames"),
        ("a.mkv", "mpeg2video", "yuv420p", "frame 4 of 7 is damaged"),  # whose decoder drops it without a word
    ],
)
def test_frames_after_a_damaged_one_are_lost_and_those_before_it_are_not(
    name: str, codec: str, kept_as: str, reason: str, tmp_path: Path
) -> None:
    path = write_video(tmp_path / name, COLOUR, codec, kept_as, "rgb24")
    whole, data = read_image(path).array, bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        at, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][4]
    data[at + 30 : at + min(size, 230)] = bytes(min(size, 230) - 30)
    path.write_bytes(data)
    found = list(frames.read_frames(path, range(7)))
    for frame, image in enumerate(found[:4]):
        assert not isinstance(image, ImageError)
        np.testing.assert_array_equal(image.array, whole[:, frame])
    assert all(isinstance(error, ImageError) and reason in str(error) for error in found[4:])
    with pytest.raises(ImageError, match=reason):
        read_image(path)


def test_a_video_is_a_clip_of_its_frames_and_torn_ones_are_quarantined(tmp_path: Path) -> None:
    names = [write_exact(tmp_path, name)[0].name for name in ("grey.avi", "colour.mov", "deep.mkv")]
    whole = (tmp_path / "deep.mkv").read_bytes()
    (tmp_path / "torn.mkv").write_bytes(whole[: len(whole) // 2])
    PillowImage.fromarray(GREY[0]).save(tmp_path / "still.png")
    lines = [f"{name},P{index}" for index, name in enumerate([*names, "torn.mkv", "still.png"])]
    (tmp_path / "t.csv").write_text("image,patient\n" + "\n".join(lines) + "\n")
    samples = open_samples(Cohort.open(tmp_path / "t.csv"), "clip")
    assert samples.num_rows.tolist() == [7, 7, 7, 3, 1]  # as many as the torn one still has packets
    store = build_store(samples.cohort, Preprocessing(16, fit="stretch", frames=4), folder=tmp_path / "cache")
    assert [(item.row, item.reason) for item in store.quarantined] == [
        (3, "the file is torn: it ends before its own end")
    ]
    assert samples.readable(store.readable).tolist() == [True, True, True, False, True]
    first = store.gather(samples.rows_of(0)).unit()
    assert first.shape == (7, 1, 20, 20)
    np.testing.assert_allclose(first.mean((1, 2, 3)), GREY.mean((1, 2)) / 255, atol=0.01)


def test_frames_that_an_edit_list_cuts_off_are_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", np.concatenate([COLOUR] * 3), "mpeg4", "yuv420p", "rgb24")
    whole, trimmed = read_image(path).array, tmp_path / "trimmed.mp4"
    with av.open(str(path)) as source, av.open(str(trimmed), "w", options={"avoid_negative_ts": "0"}) as target:
        stream = source.streams.video[0]
        copied, cut = target.add_stream_from_template(stream), int(0.5 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, copied
                target.mux(packet)
    np.testing.assert_array_equal(read_image(trimmed).array, whole[:, 5:])
    assert count_frames(path) == whole.shape[1] == 21
    assert count_frames(trimmed) == 16
    (tmp_path / "t.csv").write_text("image,patient\ntrimmed.mp4,P\n")
    samples = open_samples(Cohort.open(tmp_path / "t.csv"), "clip")
    store = build_store(samples.cohort, Preprocessing(16, frames=4), folder=tmp_path / "cache")
    assert (samples.num_rows.tolist(), store.quarantined) == ([16], [])


def test_pixels_that_are_not_square_are_noted(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(COLOUR[0], format="rgb24")), *stream.encode(None)]:
            container.mux(packet)
    image = read_image(tmp_path / "a.mp4")
    assert image.notes == ("pixels are not square (height/width 0.75): resampled to square",)
    assert image.aspect == 0.75  # the file says width to height
