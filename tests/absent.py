"""Python as it is where optional packages are not installed, and bolus is on the path but not installed either."""

from __future__ import annotations

import os
from pathlib import Path

import bolus

OPTIONAL = (
    "av", "nibabel", "monai", "pydicom", "pylibjpeg", "openjpeg", "simplejpeg", "highdicom",
    "efficientnet_lite_pytorch", "matplotlib", "onnx", "onnxruntime", "onnxscript", "tensorboard", "mlflow",
    "wandb", "trackio", "timm", "torchvision", "torchjd", "blosc2", "hypothesis",
    "pytorch_metric_learning", "pytest",
)  # fmt: skip

_HIDE = """
import sys

ABSENT = {absent!r}


class Without:
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        found = () if name.partition(".")[0] in ABSENT else self.finders
        return next((spec for each in found if (spec := each.find_spec(name, path, target))), None)

    def find_distributions(self, *context):
        for each in self.finders:
            if hasattr(each, "find_distributions"):
                found = each.find_distributions(*context)
                yield from (one for one in found if _name(one) not in (*ABSENT, "bolus"))


def _name(distribution):
    return (distribution.metadata["Name"] or "").lower().replace("-", "_")


sys.meta_path[:] = [Without(list(sys.meta_path))]
"""


def environment(folder: Path, *, there: tuple[str, ...] = (), **more: str) -> dict[str, str]:
    """Variables for a Python that lacks the packages of `OPTIONAL` but for some; writes a file into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HIDE.format(absent=tuple(name for name in OPTIONAL if name not in there)))
    path = os.pathsep.join(map(str, (folder, Path(bolus.__file__).parents[1])))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}
