"""Random views of volumes per second: bolus, kornia and MONAI with the same ranges, on one core, in one run.

python benchmarks/volume_views.py

`affine` turns, tilts and scales; `all` also changes brightness and contrast, blurs, adds noise and lowers the
resolution, by the preset `ct` with each of these in every view. kornia has no blur and no low resolution for batches of
volumes, so it runs `affine` alone. MONAI takes a volume after the other. Rates are views per second and, behind `cpu`,
per second of processor time, which other programs of a machine hardly change; the best of a few rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from kornia.augmentation import RandomAffine3D
from torch import Tensor

from bolus.data.views.volumes import augment_volumes
from bolus.recipe import AugmentSpec
from grid import RESULTS, run_grid

SIDE, VIEWS, ROUNDS = 64, 2, 3
TURN, TILT, SHARE = 10.0, 5.0, (0.5, 1.0)  # degrees, degrees, and of the volume
SCALE = (SHARE[0] ** (-1 / 3), 1.0)  # what enlarges as such crops do
SIGMA, NOISE, COARSE, LIGHT = (0.1, 1.0), 0.02, (1.0, 2.0), 0.1
AFFINE = AugmentSpec(
    preset="none", rotation=TURN, tilt=TILT, crop_scale=SHARE, stretch=0.1,
)  # fmt: skip
ALL = AFFINE.model_copy(
    update={
        "brightness": LIGHT, "contrast": LIGHT, "jitter": 1.0, "blur": 1.0, "blur_sigma": SIGMA, "noise": NOISE,
        "low_resolution": 1.0, "low_resolution_factor": COARSE,
    }
)  # fmt: skip


def measure(volumes: int) -> dict[str, Any]:
    """One number of volumes, every way."""
    torch.set_num_threads(1)
    given = torch.rand(volumes, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[int], Tensor]] = {
        "affine bolus": lambda seed: _ours(given, AFFINE, seed),
        "affine kornia": _kornia(given),
        "affine MONAI": _monai(given, everything=False),
        "all bolus": lambda seed: _ours(given, ALL, seed),
        "all MONAI": _monai(given, everything=True),
    }
    return {name: _rate(volumes * VIEWS, way) for name, way in ways.items()}


def _ours(given: Tensor, spec: AugmentSpec, seed: int) -> Tensor:
    return augment_volumes(given, spec, size=(SIDE, SIDE, SIDE), views=VIEWS, seed=seed)


def _kornia(given: Tensor) -> Callable[[int], Tensor]:
    turns = ((-TILT, TILT), (-TILT, TILT), (-TURN, TURN))
    scales = ((1.0, 1 / SCALE[0] + 0.26),) * 3
    one = RandomAffine3D(turns, scale=scales, p=1.0)
    return lambda seed: torch.stack([one(given) for _ in range(VIEWS)])


def _monai(given: Tensor, *, everything: bool) -> Callable[[int], Tensor]:
    from monai.transforms.compose import Compose
    from monai.transforms.intensity import array as intensity
    from monai.transforms.spatial import array as spatial

    radians = torch.pi / 180
    affine = spatial.RandAffine(
        prob=1.0, rotate_range=(TURN * radians, TILT * radians, TILT * radians), scale_range=(0.1, 0.1, 0.1),
        padding_mode="zeros",
    )  # fmt: skip
    steps: list[Any] = [affine]
    if everything:
        steps += [
            intensity.RandScaleIntensityFixedMean(prob=1.0, factors=LIGHT, preserve_range=False),
            intensity.RandScaleIntensity(prob=1.0, factors=LIGHT),
            intensity.RandGaussianSmooth(SIGMA, SIGMA, SIGMA, prob=1.0),
            intensity.RandGaussianNoise(prob=1.0, std=NOISE, sample_std=False),
            spatial.RandSimulateLowResolution(prob=1.0, zoom_range=(1 / COARSE[1], 1 / COARSE[0])),
        ]
    chain = Compose(steps)

    def views(seed: int) -> Tensor:
        chain.set_random_state(seed)
        return torch.stack([torch.stack([chain(each) for each in given]) for _ in range(VIEWS)])

    return views


def _rate(views: int, way: Callable[[int], Tensor]) -> dict[str, float]:
    way(0)
    found = []
    for seed in range(1, ROUNDS + 1):
        began, spent = time.perf_counter(), time.process_time()
        way(seed)
        found.append((views / (time.perf_counter() - began), views / (time.process_time() - spent)))
    return {"rate": round(max(rate for rate, _ in found), 1), "cpu": round(max(cpu for _, cpu in found), 1)}


CELLS: list[dict[str, Any]] = [{"volumes": volumes} for volumes in (2, 4, 8)]

if __name__ == "__main__":
    for line in run_grid(RESULTS / "volume_views.jsonl", CELLS, measure):
        print(line["cell"], json.dumps(line["result"]))
