"""bolus against lightly: two libraries train one network on the same files, end to end, each in its usual way.

    python benchmarks/race.py                  # needs lightly and torchvision in the same environment

Both sides train on the same JPEG photographs of odir, decoded from disk, with the same network, batch, views,
augmentations (the share of the picture, mirroring, brightness, contrast, saturation, blur), loss and optimiser. lightly
decodes and augments in two workers of a DataLoader, as its documentation does; bolus decodes once, then reads its
cache and augments whole batches. Each side runs in a process of its own, the cache of bolus is empty, and the clock
starts with the process: imports and decoding count. Memory is the largest sum over the process and its workers until
they have trained, what they share counted once. Afterwards both say how well 20 nearest neighbours know class D of
test patients.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grid import DATA, RESULTS, run_grid

VIEWS, NEIGHBORS, TESTED = 2, 20, 1200
CROP, TURN = (0.3, 1.0), {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2}
JITTER, MIRROR, BLUR, SIGMA = 0.8, 0.5, 0.5, (0.1, 2.0)
LR, DECAY, WIDTH = 3e-4, 1e-4, 2048
Vectors = npt.NDArray[np.float32]


def open_side(side: str, images: int) -> Any:
    """The training or the test images of odir by patient: so many of them, drawn from a seed."""
    from bolus.data.cohort.cohort import Cohort

    keys: dict[str, Any] = {"roles": {"patient": "group"}, "split": {"test": 0.4}}
    whole = Cohort.open(DATA / "odir" / "meta.csv", **keys)
    drawn = np.random.default_rng(0).permutation(len(whole))
    rows = np.sort(drawn[whole.split[drawn] == side][: images if side == "train" else TESTED])
    table = whole.table.iloc[rows].reset_index(drop=True).assign(split=side)
    roles = {"image": "image", "patient": "group", "split": "split"}
    return Cohort.open(table, roles=roles, root=str(DATA / "odir"))


def paths_of(cohort: Any) -> list[str]:
    """The files of a side."""
    return [str(path) for path in cohort.table["image"]]


def diabetes(cohort: Any) -> npt.NDArray[np.int64]:
    """Class D of a side, 0 or 1."""
    return np.asarray(cohort.table["D"].astype(int))


def of_bolus(method: str, backbone: str, size: int, batch: int, epochs: int, images: int, work: Path) -> Any:
    """Times of the epochs, and a function that embeds."""
    from bolus import open_encoder, pretrain

    objective = {
        "simclr": {"kind": "contrast", "relation": "views", "temperature": 0.1, "dim": 128, "hidden": 512},
        "vicreg": {"kind": "varcov", "source": "pooled", "width": WIDTH, "last_norm": False},
    }[method]
    cohort = open_side("train", images)
    recipe = {
        "name": "race",
        "encoder": {"backbone": backbone, "in_channels": 3},
        "images": {
            "size": size,
            "views": VIEWS,
            "augment": {
                "preset": "none", "crop_scale": list(CROP), "crop_ratio": [0.75, 4 / 3], "flip_horizontal": MIRROR,
                **TURN, "jitter": JITTER, "blur": BLUR, "blur_sigma": list(SIGMA),
            },
        },
        "sampling": {"batch_size": batch, "partners": 0},
        "objectives": {"views": objective},
        "optimizer": {"kind": "adamw", "lr": LR, "weight_decay": DECAY},
        "schedule": {"kind": "cosine", "warmup_epochs": 0, "final": 0},
        "training": {"epochs": epochs, "health_epochs": None, "log_steps": len(cohort) // batch},
    }  # fmt: skip
    run, ends, over = work / "run", list[float](), threading.Event()

    def watch() -> None:
        """Note the time at which each epoch's line of metrics is there."""
        while not over.wait(0.02):
            found = (run / "metrics.jsonl").read_bytes().count(b'"train"') if (run / "metrics.jsonl").exists() else 0
            ends.extend([time.time()] * (found - len(ends)))

    watching = threading.Thread(target=watch)
    watching.start()
    pretrain(cohort, recipe=recipe, out=run, cache=work / "cache", quiet=True)
    over.set()
    watching.join()

    def embed(side: str) -> Vectors:
        from bolus.embedding.opening import open_store, samples_of
        from bolus.embedding.vectors import embed_samples

        opened = open_encoder(run)
        samples = samples_of(opened, open_side(side, images))
        store = open_store(opened, samples.cohort, cache=work / "cache")
        return embed_samples(opened.encoder, store, samples, np.arange(len(samples)))

    return ends, embed


def of_lightly(method: str, backbone: str, size: int, batch: int, epochs: int, images: int, work: Path) -> Any:
    """Times of the epochs, and a function that embeds."""
    import torch
    import torchvision
    from lightly.loss import NTXentLoss, VICRegLoss
    from lightly.models.modules.heads import SimCLRProjectionHead, VICRegProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Pictures(Dataset[Any]):
        def __init__(self, paths: list[str], transform: Callable[[Any], Any]) -> None:
            self.paths, self.transform = paths, transform

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            return self.transform(Image.open(DATA / "odir" / self.paths[index]).convert("RGB"))

    views = SimCLRTransform(
        input_size=size, cj_prob=JITTER, cj_strength=1.0, cj_bright=TURN["brightness"], cj_contrast=TURN["contrast"],
        cj_sat=TURN["saturation"], cj_hue=0.0, min_scale=CROP[0], random_gray_scale=0.0, gaussian_blur=BLUR,
        sigmas=SIGMA, hf_prob=MIRROR,
    )  # fmt: skip
    training = Pictures(paths_of(open_side("train", images)), views)
    loader = DataLoader(
        training, batch_size=batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    torch.manual_seed(0)
    network, dim = network_of(backbone)
    criterion: nn.Module
    if method == "simclr":
        head, criterion = SimCLRProjectionHead(dim, 512, 128), NTXentLoss(temperature=0.1)
    else:
        head, criterion = VICRegProjectionHead(dim, WIDTH, WIDTH, 3), VICRegLoss()
    model = nn.Sequential(network, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    ends = []
    for _ in range(epochs):
        for one, other in loader:
            loss = criterion(model(one), model(other))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        ends.append(time.time())

    def embed(side: str) -> Vectors:
        plain = transforms.Compose([
            transforms.Resize((size, size)), transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ])  # fmt: skip
        network.eval()
        with torch.inference_mode():
            found = [
                network(each) for each in DataLoader(Pictures(paths_of(open_side(side, images)), plain), batch_size=256)
            ]
        return torch.cat(found).numpy()

    assert torchvision.__version__
    return ends, embed


def network_of(backbone: str) -> tuple[Any, int]:
    """The network as a module from images to features: torchvision's, or where it has none, bolus's."""
    import torchvision
    from torch import nn

    if backbone == "resnet18":
        network = torchvision.models.resnet18()
        network.fc = nn.Identity()
        return network, 512
    from bolus.encoders.building import build_encoder
    from bolus.recipe import EncoderSpec

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = build_encoder(EncoderSpec(backbone=backbone, in_channels=3), seed=0)

        def forward(self, images: Any) -> Any:
            return self.encoder(images).pooled

    pooled = Pooled()
    return pooled, pooled.encoder.shape.dim


SIDES = {"bolus": of_bolus, "lightly": of_lightly}


def run_side(side: str, cell: dict[str, Any], began: float, out: Path) -> dict[str, Any]:
    """Train one side, in this process, and judge it; the file is there, empty, once it has trained."""
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    with tempfile.TemporaryDirectory() as folder:
        ends, embed = SIDES[side](**cell, work=Path(folder))
        trained = time.time()
        out.touch()  # what follows is not training
        x, y, tested = (
            normalize(embed("train")),
            *(diabetes(open_side(side, cell["images"])) for side in ("train", "test")),
        )
        neighbors = KNeighborsClassifier(NEIGHBORS, weights="distance", metric="cosine").fit(x, y)
        p = neighbors.predict_proba(normalize(embed("test")))[:, 1]
    marks = np.array([began, *ends])
    return {
        "epoch_seconds": np.diff(marks).round(2).tolist(),
        "trained_at": trained - began,
        "passes": len(x) // cell["batch"] * cell["batch"] * VIEWS,
        "auroc": round(float(roc_auc_score(tested, p)), 4),
        "p": p.tolist(),
    }


def memory_of(process: int) -> int:
    """Bytes of a process and its descendants; what they share is counted once."""
    total, left = 0, [process]
    while left:
        each = left.pop()
        try:
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            left += [int(child) for child in Path(f"/proc/{each}/task/{each}/children").read_text().split()]
        except OSError:  # it has ended
            continue
    return 1024 * total


def measure(rounds: int, **cell: Any) -> dict[str, Any]:
    """Both sides in turn, so many times."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            with tempfile.TemporaryDirectory() as folder:
                answer, began, peak = Path(folder) / "answer.json", time.time(), 0
                words = [sys.executable, __file__, "--side", side, "--cell", json.dumps(cell), "--out", str(answer)]
                child = subprocess.Popen([*words, "--began", str(began)])
                while child.poll() is None:
                    peak = peak if answer.exists() else max(peak, memory_of(child.pid))
                    time.sleep(3)  # the sum takes a tenth of a second of a core
                if child.returncode:
                    raise SystemExit(f"{side} ended with exit code {child.returncode}")
                found[side].append({**json.loads(answer.read_text()), "peak_gib": round(peak / 2**30, 3)})
    return compared(found)


def compared(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Images a second of each side, and ratios; and how far ahead the AUROC is."""
    said: dict[str, Any] = {}
    for side, runs in found.items():
        later = [seconds for run in runs for seconds in run["epoch_seconds"][1:]]
        passes, all_seconds = runs[0]["passes"], [sum(run["epoch_seconds"]) for run in runs]
        two = [sum(run["epoch_seconds"][:2]) for run in runs]
        said[side] = {
            "warm": round(passes / float(np.median(later)), 1),
            "cold": round(2 * passes / float(np.median(two)), 1),
            "whole": round(passes * len(runs[0]["epoch_seconds"]) / float(np.median(all_seconds)), 1),
            "epoch_seconds": [run["epoch_seconds"] for run in runs],
            "peak_gib": max(run["peak_gib"] for run in runs),
            "auroc": [run["auroc"] for run in runs],
        }
    ours, theirs = said["bolus"], said["lightly"]
    ratios = {what: round(ours[what] / theirs[what], 3) for what in ("cold", "warm", "whole")}
    ahead = [ahead_of(*(np.array(found[side][number]["p"]) for side in SIDES)) for number in range(len(found["bolus"]))]
    return {**said, "ratios": ratios, "auroc_ahead": ahead}


def ahead_of(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> list[float]:
    """AUROC of class D less the other's, and its interval over 1,000 draws of test patients."""
    from bolus.evaluation.statistics.metrics import auroc

    cohort = open_side("test", 0)
    y, patients = diabetes(cohort), cohort.encoded("patient")
    people, place = np.unique(patients, return_inverse=True)
    weights = np.random.default_rng(0).multinomial(len(people), np.full(len(people), 1 / len(people)), 1000)[:, place]
    drawn = auroc(y, ours, weights) - auroc(y, theirs, weights)
    values = [auroc(y, ours) - auroc(y, theirs), *np.quantile(drawn, [0.025, 0.975])]
    return [round(float(value), 4) for value in values]


SMALL = {"size": 64, "batch": 64, "images": 2048, "rounds": 1}
LARGE = {"size": 224, "batch": 32, "images": 256, "epochs": 3, "rounds": 1}
CELLS: list[dict[str, Any]] = [
    {"method": "simclr", "backbone": "resnet18", **SMALL, "epochs": 3},
    {"method": "simclr", "backbone": "r18w32", **SMALL, "epochs": 6},
    {"method": "simclr", "backbone": "resnet18", **LARGE},
    {"method": "vicreg", "backbone": "resnet18", **SMALL, "epochs": 3},
    {"method": "vicreg", "backbone": "r18w32", **SMALL, "epochs": 6},
    {"method": "vicreg", "backbone": "resnet18", **LARGE},
]


def main() -> None:
    """Every cell; or, in a process of its own, one side of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for word in ("--side", "--cell", "--out", "--began"):
        parser.add_argument(word, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        answer = run_side(given.side, json.loads(given.cell), float(given.began), Path(given.out))
        Path(given.out).write_text(json.dumps(answer))
        return
    for line in run_grid(RESULTS / "race.jsonl", CELLS, measure):
        print(line["cell"], line["result"]["ratios"], {side: line["result"][side]["auroc"] for side in SIDES})


if __name__ == "__main__":
    main()
