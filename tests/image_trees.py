"""Small pictures, videos and volumes, no two of which are the same file."""

from __future__ import annotations

import zlib
from pathlib import Path

import av
import nibabel
import numpy as np
from PIL import Image as PillowImage


def seed_of(path: Path) -> int:
    return zlib.crc32("/".join(path.parts[-3:]).encode())


def write_image(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed_of(path))  # no two are the same file
    PillowImage.fromarray(rng.integers(0, 255, size[::-1]).astype(np.uint8)).save(path)


def write_images(root: Path, *names: str) -> Path:
    for name in names:
        write_image(root / name)
    return root


def write_video(path: Path, frames: int = 5, size: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        tiles = np.random.default_rng(seed_of(path)).integers(0, 150, (4, 4, 3))
        for number in range(frames):
            blocks = (tiles + 20 * number).repeat(size // 4, axis=0).repeat(size // 4, axis=1)
            frame = av.VideoFrame.from_ndarray(blocks.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_volume(path: Path, depth: int = 3, *, dtype: type = np.int16, step: float = 2.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.full((6, 5, depth), seed_of(path) % 200, dtype)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([step, 1, 4, 1])), path)
