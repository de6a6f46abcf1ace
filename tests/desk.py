"""What the commands of the pages find before them, made small: a cohort, a run, folders to scan, starts from a hub."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import torch
import yaml

import bolus
from bids_tree import write_small_bids
from dicom_tree import Tree, noise, radiograph, write_export
from image_trees import write_images
from test_starts_families import FAMILIES, save
from test_starts_timm import weights

SMALL = ("images.size=16", "training.max_steps=1", "training.health_epochs=null")
LESS = {
    "comprer": (
        "encoder={backbone: vit_tiny}",
        "sampling={participants: 4, batch_size: 16}",
        "training.activation_checkpointing=false",
        "training.precision=fp32",
    ),
    "comprer_bilateral": ("sampling={participants: 4, batch_size: 16}", "encoder.backbone=r18w32"),
    "mlvicx": (
        "encoder.backbone=r18w32",
        "objectives.global.width=16",
        "objectives.levels.width=16",
        "objectives.levels.level_channels=8",
    ),
    "vicreg": ("encoder.backbone=r18w32", "objectives.global.width=16"),
    **dict.fromkeys(("gcl", "gcl_patient", "gcl_position", "gcl_phase", "pcl"), ("encoder.backbone=unet8",)),
}
"""Recipe -> keys that make it small, beside `SMALL`; of others, a small encoder and batch."""
HUB = {
    r"facebook/dinov2-base|\bdinov2_base\b|FOLDER_OR_HUB_NAME": "dinov2",
    r"facebook/dinov3-[\w-]+": "dinov3_vit",
    r"facebook/vit-mae-base": "vit_mae",
    r"facebook/convnext-[\w-]+": "convnext",
    r"microsoft/swin-[\w-]+": "swin",
    r"(?<==)resnet50\b": "resnet",
}
"""What stands for the name of a start on the hub -> the family of the small folder that takes its place."""


def furnish(desk: Path) -> None:
    """Fill an empty folder; a run of two steps and one head are in it."""
    _write_cohorts(desk)
    write_export(desk / "export")
    digital = "1.2.840.10008.5.1.4.1.1.1.1"
    windowed = radiograph("DX", "21800101", "PA", "CHEST", WindowCenter=500, WindowWidth=1000)
    new = Tree(desk / "new").write("1/a/a/1", digital, windowed, noise(1))
    shutil.move(new, desk / "new.dcm")
    write_small_bids(desk / "bids")
    (desk / "labels.csv").write_text("patient,date,Finding\nMRN-00001,2180-03-03,mass\nMRN-00002,2180-02-01,none\n")
    trees = [f"{finding}/M{n}/a{k}.png" for finding in ("mass", "none") for n in range(8) for k in range(2)]
    trees += [f"P{n}_{v}_{side}.png" for n in range(6) for v in (1, 2) for side in ("L", "R")]
    trees += [f"clips/C{n}/s{n}/frame{k}.png" for n in range(6) for k in range(4)]
    write_images(desk / "tree", *trees)
    for family in HUB.values():
        save(desk / "hub" / family, FAMILIES[family].model(FAMILIES[family].config))
    torch.save({"model": weights(), "args": argparse.Namespace()}, desk / "RETFound_cfp_weights.pth")
    keys = [*SMALL, "encoder.backbone=r18w32", "sampling.batch_size=16"]
    run = bolus.pretrain(desk / "cohort.yaml", recipe="simclr", out=desk / "runs" / "a", overrides=keys, quiet=True)
    shutil.copytree(run.folder, desk / "runs" / "b")
    for label in ("pneumonia", "disease"):
        bolus.evaluate(run.folder, desk / "cohort.yaml", target=label, probes=("linear",), draws=20)


def _write_cohorts(desk: Path) -> None:
    """table.csv with cohort.yaml, other.yaml, clips.yaml and new.csv, all of one phantom of 40 patients."""
    table = bolus.make_phantom(desk, num_patients=40, size=16)
    stated = yaml.safe_load((desk / "cohort.yaml").read_text(encoding="utf-8"))
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    frame["pneumonia"], frame["group"] = frame["disease"], frame["patient"]
    frame.to_csv(table, index=False)
    roles = {**stated["roles"], "label:pneumonia": "pneumonia"}
    part = frame.groupby("patient").head(4)
    clips = frame.assign(series=frame["patient"] + "-" + frame["visit"])
    clips["order"] = clips.groupby("series").cumcount()
    constant = ["image", "patient", "visit", "severity", "series", "order"]
    clips = clips[constant].assign(severity=clips["patient"].str[-1] + ".5")
    clips["severity"] = clips["severity"].where(clips["visit"] == "1", "5")
    clips.to_csv(desk / "clips.csv", index=False)
    part[["image", "patient"]].to_csv(desk / "new.csv", index=False)
    of_clips = {"roles": {"score:severity": "severity"}, "split": stated["split"]}
    for name, spec in {
        "cohort": {**stated, "roles": roles},
        "other": {**stated, "roles": roles, "namespace": "other"},
        "clips": {"table": "clips.csv", **of_clips},
    }.items():
        (desk / f"{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    (desk / "bolus-demo").mkdir()
    (desk / "bolus-demo" / "cohort").symlink_to(desk, target_is_directory=True)


def copy(desk: Path, folder: Path) -> Path:
    """A desk to work at, whose images are those of the first."""
    target = folder / "desk"
    shutil.copytree(desk, target, copy_function=_copy, symlinks=True)
    demo = target / "bolus-demo" / "cohort"
    demo.unlink()
    demo.symlink_to(target, target_is_directory=True)
    return target


def _copy(source: str, target: str) -> None:
    """Images are many and stay as they are; of the rest, which commands write over, everyone has their own."""
    (os.link if source.endswith(".png") else shutil.copyfile)(source, target)


def make_room(words: list[str]) -> None:
    """Put away what a command would refuse to write over: a reader has none of it yet."""
    for option in ("-o", "--out"):
        if words[1] in ("scan", "plan", "pretrain", "ablate") and option in words and "--resume" not in words:
            _remove(Path(words[words.index(option) + 1]))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def stand_in(line: str) -> str:
    """A command with what the desk has in place of names that need a network or stand for the reader's own."""
    for name, family in HUB.items():
        line = re.sub(name, f"hub/{family}", line)
    folder = "export" if "--join" in line or "--pattern" not in line else "tree"
    return re.sub(r"\b(FOLDER|EXPORT)\b", folder, line)


def smaller(verb: str, words: list[str]) -> list[str]:
    """What a command is given besides, so that it takes a second and not an hour."""
    if verb == "evaluate segment":
        return ["--steps", "1", "--repeats", "1"]
    if verb.startswith("evaluate"):
        return ["--epochs", "1"] if "finetune" in " ".join(words) else []
    if verb == "plan":
        return (
            [] if "encoder." in " ".join(words) else ["encoder.backbone=r18w32", "encoder.pretrained=false"]
        )  # no weights
    if verb == "bench":
        return ["--seconds", "0.1", "encoder.backbone=r18w32", "images.size=16", "sampling.batch_size=8"]
    if verb not in ("pretrain", "ablate"):
        return []
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else ""
    named = any(word.startswith("encoder.backbone=") for word in words)
    less = LESS.get(recipe, ("encoder.backbone=r18w32",) if recipe != "recipe.yaml" else ())
    keys = [*SMALL, *(key for key in less if not (named and key.startswith("encoder")))]
    if not any("participants" in key for key in keys):
        keys.append("sampling.batch_size=8")
    if named:  # a start of patches of 8 pixels, or one that halves its maps often
        keys.append("images.size=32")
    if verb == "ablate":
        task = ["--steps", "1", "--repeats", "1", "--labelled-patients", "1"] if "segment" in words else []
        keys = ["--seeds", "1", "--passes", "64", *task, *(key for key in keys if "max_steps" not in key)]
    return keys
