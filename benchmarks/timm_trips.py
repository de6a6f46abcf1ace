"""Round trips with timm, which lives in an environment of its own: its torchvision does not go beside every torch.

TIMM_PYTHON=FOLDER/bin/python python benchmarks/timm_trips.py

Weights are random, norms have seen made images, and the features are compared on rows of `cxr` (see grid.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ViTConfig

from bolus.data.images.preprocessing import Preprocessing
from bolus.embedding.fresh import preprocess
from bolus.embedding.opening import Judged
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.exporting.timm_weights import from_timm, write_timm
from bolus.recipe import EncoderSpec
from export import rows_of
from grid import RESULTS, run_grid

RESNET, VIT = "resnet50", "vit_small_patch16_224"
SIZES = {RESNET: 128, VIT: 224}
ROWS = 8
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# In the other environment. `make`: a model with a seed's weights, its state and its features; `open`: a folder's.
THEIRS = """
import sys
import numpy, timm, torch
from safetensors.torch import save_file
task, what, folder = sys.argv[1:]
pixels = torch.from_numpy(numpy.load(f"{folder}/pixels.npy"))
torch.manual_seed(0)
if task == "make":
    model = timm.create_model(what, num_classes=0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.rand_like(value) * (0.1 if value.ndim < 2 else 0.002))
        for _ in range(10):
            model(torch.randn_like(pixels))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f"{folder}/model.safetensors")
else:
    model = timm.create_model(f"local-dir:{what}", pretrained=True)
with torch.no_grad():
    numpy.save(f"{folder}/features.npy", model.eval()(pixels).numpy())
print(timm.__version__, torch.__version__)
"""


def features_of_timm(task: str, what: str | Path, folder: Path, pixels: Tensor) -> tuple[Any, list[str]]:
    """What timm makes of normalised pixels `[n, C, S, S]`; and its version and that of its torch."""
    np.save(folder / "pixels.npy", pixels.numpy())
    words = [os.environ["TIMM_PYTHON"], "-c", THEIRS, task, str(what), str(folder)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return np.load(folder / "features.npy"), said.split()[-2:]


def measure(model: str, to: str) -> dict[str, Any]:
    """One way between the two: the largest difference of features, as a share of the largest value."""
    name, size = model.removeprefix("timm's "), SIZES[model.removeprefix("timm's ")]
    paths = list(rows_of("cxr", ROWS).image)
    with tempfile.TemporaryDirectory() as made, torch.no_grad():
        folder = Path(made)
        if to == "timm":
            encoder = trained(name, folder)
            images = shown(encoder, paths, size)
            write_timm(encoder, folder / "timm", size=size)
            pixels = (images - encoder.mean) / encoder.std
            theirs, versions = features_of_timm("open", folder / "timm", folder, pixels)
        else:
            blank = build_encoder(EncoderSpec(backbone="resnet18", in_channels=3, mean=MEAN, std=STD), seed=0)
            images = shown(blank, paths, size)
            theirs, versions = features_of_timm("make", name, folder, (images - blank.mean) / blank.std)
            if name == VIT:
                spec = EncoderSpec(backbone=str(folder), pretrained=True, in_channels=3, mean=MEAN, std=STD)
                encoder = build_encoder(spec, seed=0).eval()
            else:
                encoder = from_timm(load_file(folder / "model.safetensors"), mean=MEAN, std=STD)
        ours = encoder(images).pooled.numpy()
    away, apart = (float(part.max() / np.abs(ours).max()) for part in (np.abs(ours - theirs), np.ptp(ours, axis=0)))
    facts = {"rows": f"{ROWS} images of the cohort", "timm": versions[0], "torch beside timm": versions[1]}
    return {"difference": away, "between images": apart, **facts}


def trained(name: str, folder: Path) -> Encoder:
    """An encoder of bolus whose weights are not what they start with, in evaluation mode."""
    backbone = name
    if name == VIT:
        config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, layer_norm_eps=1e-6)
        (folder / "config").mkdir()
        (folder / "config" / "config.json").write_text(json.dumps(config.to_dict()))
        backbone = str(folder / "config")
    encoder = build_encoder(EncoderSpec(backbone=backbone, in_channels=3), seed=0)
    generator = torch.Generator().manual_seed(1)
    for value in encoder.parameters():
        value.add_(torch.rand(value.shape, generator=generator) * (0.1 if value.ndim < 2 else 0.002))
    for _ in range(10):
        encoder(torch.rand(8, 3, SIZES[name], SIZES[name], generator=generator))
    return encoder.eval()


def shown(encoder: Encoder, paths: list[str], size: int) -> Tensor:
    """The images as an encoder sees them."""
    return preprocess(paths, Judged("", encoder, Preprocessing(size, 3), None))


if __name__ == "__main__":
    if "TIMM_PYTHON" not in os.environ:
        sys.exit("TIMM_PYTHON: expected the python of an environment with timm and safetensors, found none")
    ways = [(RESNET, "timm"), (VIT, "timm"), (f"timm's {RESNET}", "bolus"), (f"timm's {VIT}", "bolus")]
    cells = [{"model": model, "to": to} for model, to in ways]
    for line in run_grid(RESULTS / "export.jsonl", cells, measure):
        print(line["cell"], line["result"])
