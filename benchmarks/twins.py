"""Near copies across patients: eight kinds of leak at 20 plants each on six public cohorts, and the search at 100,000.

python benchmarks/twins.py    # a line a cohort or size in results/twins.jsonl; can be stopped
"""

from __future__ import annotations

import argparse
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image as Pillow
from scipy.ndimage import gaussian_filter

from bolus.data.copies.near import NearCopies, find_near_copies
from bolus.data.copies.seen import remember_images
from bolus.data.copies.thumbnails import standardised, thumbnail_of
from grid import DATA, RESULTS, run_grid

COHORTS = {
    "nih1000": "patient", "cxr": "group", "acdc": "patient", "lus_blues": "patient", "odir": "group",
    "ham10000": "lesion_id",
}  # fmt: skip
SERIES = {"acdc": (["patient", "phase"], "slice"), "lus_blues": (["video"], "frame")}  # columns of one volume or clip
PLANTED = 20
SIZES = (10_000, 30_000, 100_000)
Picture = np.ndarray


def resized(image: Picture, rng: np.random.Generator) -> Picture:
    """To .6, .8, 1.25 or 1.6 of the sides."""
    height, width = image.shape[:2]
    share = float(rng.choice([0.6, 0.8, 1.25, 1.6]))
    size = (round(width * share), round(height * share))
    return np.asarray(Pillow.fromarray(image).resize(size, Pillow.Resampling.BICUBIC))


def encoded(image: Picture, rng: np.random.Generator) -> Picture:
    """As JPEG of quality 50 to 89."""
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, "JPEG", quality=int(rng.integers(50, 90)))
    return np.asarray(Pillow.open(file))


def cropped(image: Picture, rng: np.random.Generator) -> Picture:
    """95 % of each side, anywhere."""
    height, width = (round(0.95 * side) for side in image.shape[:2])
    top, left = rng.integers(0, image.shape[0] - height + 1), rng.integers(0, image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


def brighter(image: Picture, rng: np.random.Generator) -> Picture:
    """Contrast around mid grey times .8 to 1.2 and up to 20 levels more or less, cut at 0 and 255."""
    changed = (image - 128.0) * rng.uniform(0.8, 1.2) + 128 + rng.uniform(-20, 20)
    return changed.clip(0, 255).astype(np.uint8)


def one_pixel(image: Picture, _: np.random.Generator) -> Picture:
    """The one in the middle, inverted."""
    changed = image.copy()
    changed[image.shape[0] // 2, image.shape[1] // 2] ^= 255
    return changed


KINDS: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "byte copy": lambda image, _: image,
    "resized": resized,
    "re-encoded": encoded,
    "flipped": lambda image, rng: image[:, ::-1] if rng.random() < 0.7 else image[::-1],
    "cropped to 95 %": cropped,
    "brightness": brighter,
    "one grey level": lambda image, _: np.minimum(image, 254) + np.uint8(1),
    "one pixel": one_pixel,
}


def read(path: Path) -> Picture:
    """Grey or RGB."""
    image = Pillow.open(path)
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def thumbnail(image: Picture) -> np.ndarray:
    """As `bolus check` makes it."""
    array = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return thumbnail_of(array.astype(np.float32))


def of_cohort(name: str) -> dict[str, Any]:
    """What is found in a cohort, as it is and with 20 images of one kind planted under new patients."""
    table = pd.read_csv(DATA / name / "meta.csv", dtype=str)
    patients = pd.factorize(table[COHORTS[name]])[0]
    paths, spent, made = [DATA / name / path for path in table["image"]], 0.0, []
    for path in paths:
        image = read(path)
        began = time.process_time()
        made.append(thumbnail(image))
        spent += time.process_time() - began
    images, number = np.stack(made), len(made)
    began = time.process_time()
    plain = find_near_copies(images, patients)
    searched = time.process_time() - began
    own = {tuple(pair) for pair in plain.pairs.tolist()}
    rng = np.random.default_rng(0)
    chosen = rng.choice(number, PLANTED, replace=False)
    planted = {
        kind: np.stack([thumbnail(change(read(paths[row]), rng)) for row in chosen]) for kind, change in KINDS.items()
    }
    found = {}
    for kind, copies in planted.items():
        both = np.concatenate([images, copies])
        whose = np.append(patients, patients.max() + 1 + np.arange(PLANTED))
        pairs = {tuple(pair) for pair in find_near_copies(both, whose).pairs.tolist()}
        expected = [(int(row), number + place) for place, row in enumerate(chosen)]
        others = {pair for pair in pairs - own if max(pair) < number}
        found[kind] = {
            "found": len(pairs & set(expected)),
            "planted_images_found": sum(any(pair[1] == number + place for pair in pairs) for place in range(PLANTED)),
            "new_pairs_of_others": len(others),
        }
    return {
        "images": number,
        "patients": int(patients.max()) + 1,
        **shown(plain, patients),
        "kinds": found,
        "remembered": of_encoder(images, patients, chosen, planted),
        **({"neighbours": of_series(images, patients, table, *SERIES[name])} if name in SERIES else {}),
        "cpu_ms_thumbnail": 1000 * spent / number,
        "cpu_ms_search": 1000 * searched / number,
    }


def shown(found: NearCopies, patients: np.ndarray) -> dict[str, Any]:
    """Pairs that are reported where nothing is planted, by rows from 1."""
    return {
        "threshold": found.threshold,
        "strangers": found.strangers,
        "pairs": len(found.pairs),
        "patient_pairs": len({tuple(sorted(pair)) for pair in patients[found.pairs].tolist()}),
        "likeness": found.likeness[:40].round(3).tolist(),
        "rows": (found.pairs[:40] + 1).tolist(),
    }


def of_encoder(
    images: np.ndarray, patients: np.ndarray, chosen: np.ndarray, planted: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the bits of an encoder recognise: 60 % of the patients, those of the plants among them, were trained on."""
    rng = np.random.default_rng(1)
    codes = rng.permutation(np.setdiff1d(patients, patients[chosen]))
    number = max(0, round(0.6 * (patients.max() + 1)) - len(np.unique(patients[chosen])))
    training = np.isin(patients, np.append(patients[chosen], codes[:number]))
    seen = remember_images(images[training], patients[training], "benchmark")
    held = np.flatnonzero(~training)[:2000]
    began = time.process_time()
    again = seen.recognise(images[held], "benchmark")
    spent = time.process_time() - began
    return {
        "training_images": int(training.sum()),
        "bytes_an_image": seen.bits.nbytes / max(1, len(seen.bits)),
        "threshold": seen.threshold,
        "found": {kind: int(seen.recognise(copies, "benchmark").sum()) for kind, copies in planted.items()},
        "held_out_images": len(held),
        "held_out_recognised": (held[again] + 1).tolist(),
        "cpu_ms_an_image": 1000 * spent / max(1, len(held)),
    }


def of_series(
    images: np.ndarray, patients: np.ndarray, table: pd.DataFrame, series: list[str], order: str
) -> dict[str, Any]:
    """Every other slice or frame of 20 volumes or clips filed as another patient: how many of these are reported."""
    groups = [group.index.to_numpy() for _, group in table.assign(order=table[order].astype(int)).groupby(series)]
    groups = [rows[np.argsort(table.loc[rows, order].astype(int))] for rows in groups if len(rows) > 3]
    chosen = np.random.default_rng(2).choice(len(groups), PLANTED, replace=False)
    whose, moved = patients.copy(), []
    for place, group in enumerate(chosen):
        whose[groups[group][1::2]] = patients.max() + 1 + place
        moved += groups[group][1::2].tolist()
    found = find_near_copies(images, whose)
    reported = set(found.pairs.ravel().tolist())
    volumes = sum(bool(reported & set(groups[group][1::2].tolist())) for group in chosen)
    return {
        "images_moved": len(moved),
        "images_found": len(reported & set(moved)),
        "volumes": PLANTED,
        "volumes_found": volumes,
        "threshold": found.threshold,
    }


def of_size(size: int) -> dict[str, Any]:
    """The search among made images, with 20 copies."""
    rng = np.random.default_rng(0)
    images = np.empty((size, 32, 32), np.float32)
    shared = 3 * gaussian_filter(rng.normal(size=(32, 32)), 3)
    for start in range(0, size, 5000):
        noise = rng.normal(size=(min(5000, size - start), 32, 32))
        images[start : start + 5000] = standardised((shared + gaussian_filter(noise, (0, 1.5, 1.5))).astype(np.float32))
    images[-PLANTED:] = images[:PLANTED] + 0.05 * rng.normal(size=(PLANTED, 32, 32))
    began, cpu = time.monotonic(), time.process_time()
    found = find_near_copies(images, np.arange(size))
    expected = {(place, size - PLANTED + place) for place in range(PLANTED)}
    pairs = {tuple(pair) for pair in found.pairs.tolist()}
    return {
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - cpu,
        "found": len(pairs & expected),
        "others": len(pairs - expected),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Measure every cell that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="these cohorts, or sizes")
    given = parser.parse_args()
    cells: list[dict[str, Any]] = [{"cohort": name} for name in COHORTS] + [{"size": size} for size in SIZES]
    wanted = [cell for cell in cells if not given.only or str(next(iter(cell.values()))) in given.only]

    def measure(cohort: str = "", size: int = 0) -> dict[str, Any]:
        return of_cohort(cohort) if cohort else of_size(size)

    run_grid(RESULTS / "twins.jsonl", wanted, measure)


if __name__ == "__main__":
    main()
