"""Processor time and memory of a step of encoders of volumes: layouts, and activations kept or computed again.

    python benchmarks/volume_steps.py                          # 32 voxels, small nets, for a CPU
    python benchmarks/volume_steps.py --size 96 --batch 32 --nets resnet18_3d,unet3d32

A step is a forward and a backward pass in training; prints the least of three, in seconds of processor time for each
volume, and what is kept for the way back, in MiB for each volume.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.recipe import EncoderSpec

NETS = "r18w16_3d,unet3d8,swin_unetr12"


@contextmanager
def layout(beside: bool) -> Iterator[None]:
    """Channels beside each other, as the encoder has them, or voxels."""
    if beside:
        yield
        return
    with (
        patch("bolus.encoders.backbone.channels_beside", Tensor.contiguous),
        patch("bolus.encoders.backbone.lay_out", lambda module: None),
    ):
        yield


def kept_by(encoder: Encoder, volumes: Tensor) -> int:
    """Bytes that a forward keeps for the way back, weights and the volumes aside."""
    ours = {each.untyped_storage().data_ptr() for each in [*encoder.parameters(), *encoder.buffers(), volumes]}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pooled = encoder(volumes).pooled
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in ours)
    del pooled
    return found


def step(encoder: Encoder, volumes: Tensor) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    encoder(volumes).pooled.square().mean().backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=NETS)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    volumes = torch.rand(given.batch, 1, *[given.size] * 3)
    print("net, channels beside (s/volume), voxels beside, computed again; MiB kept a volume, computed again")
    for name in given.nets.split(","):
        times, kept = [], []
        for beside, again in ((True, False), (False, False), (True, True)):
            with layout(beside):
                encoder = build_encoder(EncoderSpec(backbone=name), seed=0)
                if again:
                    encoder.checkpoint_activations()
                step(encoder, volumes)
                times.append(min(step(encoder, volumes) for _ in range(3)) / given.batch)
                if beside:
                    kept.append(kept_by(encoder, volumes) / given.batch / 2**20)
        print(name, *(f"{each:.3f}" for each in times), *(f"{each:.1f}" for each in kept), sep=", ", flush=True)


if __name__ == "__main__":
    main()
