"""Images a second of the whole training step, over those of the same network alone on a batch in memory.

    python benchmarks/step.py                       # every recipe at 64 pixels and 32 samples: for a CPU
    python benchmarks/step.py --size 224 --batch 16
    python benchmarks/step.py --size 224 --batch 256 --precision bf16 --recipes simclr,mlvicx     # for a GPU

What either is stands at `bolus.measuring.step.measure_step`. Both are measured in turn, round by round, in one process;
the ratio is taken round by round. Augmentation and data wait are shares of the whole step. Every recipe is as it is
shipped, but for the encoder, which a CPU can train, for images in place of clips and for targets that a phantom has.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from bolus.data.cohort.cohort import Cohort
from bolus.measuring.step import measure_step
from bolus.phantom.images import make_phantom
from bolus.recipe import Recipe, recipe_names
from grid import RESULTS, run_grid

AGE = "targets=[score:age]"
SLICES = "images.unit=image"
TRANSFORMER = "encoder={backbone: dinov2_small, in_channels: 1, pretrained: false, mean: null, std: null}"
KEYS: dict[str, tuple[str, ...]] = {
    "chronocon": ("objectives.chronocon.same=[patient, laterality, modality]",),
    "comprer": (TRANSFORMER, "objectives.measures.targets=[attribute:sex]"),
    "comprer_bilateral": (TRANSFORMER, f"objectives.measures.{AGE}"),
    "gcl": (SLICES,),
    "gcl_patient": (SLICES,),
    "gcl_phase": (SLICES,),
    "gcl_position": (SLICES,),
    "learner": (
        SLICES, "encoder.temporal_shift=null", f"objectives.score.{AGE}", "objectives.contrast.target=score:age",
    ),
    "pcl": (SLICES,),
    "rank_n_contrast": (f"objectives.rank_n_contrast.{AGE}",),
    "supcon": ("objectives.supcon.relation=label:disease",),
    "supervised": ("objectives.predict.targets=[score:age, label:disease]",),
    "supremix": (f"objectives.supremix.{AGE}",),
}  # fmt: skip
"""Recipe -> what the phantom asks for."""


def backbone_of(recipe: str) -> str:
    """The encoder of the recipe's kind that two cores can train."""
    shipped = Recipe.load(recipe).encoder.backbone
    return "dinov2_small" if "dino" in shipped else "unet16" if "unet" in shipped else "resnet18"


def side_of(backbone: str, size: int) -> int:
    """The size, or the next one that divides into the patches of a DINOv2.

    >>> side_of("dinov2_small", 64)
    70
    """
    return -(-size // 14) * 14 if "dino" in backbone else size


def measure(recipe: str, backbone: str, size: int, batch: int, precision: str, device: str) -> dict[str, Any]:
    """One cell: medians over nine rounds, or as many as begin within 40 seconds."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # A phantom of chest-radiograph-like grey images, larger than the encoder's input.
        table = make_phantom(work / "cohort", num_patients=max(60, batch // 2), size=max(96, size))
        cohort = Cohort.open(table.parent / "cohort.yaml")
        given = Recipe.load(recipe).override(list(KEYS.get(recipe, ())))
        people = given.sampling.participants
        fewer = [] if people is None else [f"sampling.participants={batch * people // given.sampling.batch_size}"]
        keys = [f"encoder.backbone={backbone}", f"images.size={size}", f"sampling.batch_size={batch}", *fewer]
        whole = given.override([*keys, f"training.precision={precision}"])
        cost = measure_step(cohort, whole, seconds=40.0, cache=work / "cache")
    assert cost.efficiency is not None
    median, lowest, highest = (round(share, 4) for share in cost.efficiency)
    return {
        "images_per_second_whole": round(cost.images_per_second, 1),
        "ratio": median,
        "ratio_min": lowest,
        "ratio_max": highest,
        "augmentation_share": round(cost.augmentation, 4),
        "data_wait_share": round(cost.data_wait, 5),
        "rounds": cost.rounds,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure each recipe at one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", help="one for all recipes")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--recipes", default=",".join(name for name in recipe_names() if not name.endswith("_3d")))
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    cells = []
    for recipe in arguments.recipes.split(","):
        backbone = arguments.backbone or backbone_of(recipe)
        sizes = {"size": side_of(backbone, arguments.size), "batch": arguments.batch}
        cells.append(
            {"recipe": recipe, "backbone": backbone, **sizes, "precision": arguments.precision, "device": device}
        )
    for line in run_grid(RESULTS / "step.jsonl", cells, measure):
        print(line["cell"]["recipe"], line["cell"]["size"], line["result"])


if __name__ == "__main__":
    main()
