"""From a folder to a judged encoder by the commands that each step prints, nothing else typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image as PillowImage

from bids_tree import write_bids_cohort
from bolus.data.cohort.cohort import Cohort
from dicom_tree import PLANTED as PLANTED_IN_DICOM
from dicom_tree import write_export
from image_trees import write_video
from test_docs import README, commands

Call = Callable[..., tuple[int, str]]
PLANTED = re.compile("|".join([r"MRN77|mrn77|ZEBULON|sub-\d|201[015]-|201[01]0\d1\d", *PLANTED_IN_DICOM]))
IN_FILES = re.compile("|".join(["MRN77|mrn77|ZEBULON|sub-\\d\\d", *PLANTED_IN_DICOM]).encode())
FEW_STEPS = {"segment": ("--labelled-patients", "1", "--repeats", "1", "--steps", "10")}


def write_picture(path: Path, *, sick: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(40, 120, (24, 24))
    pixels[6:13, 6:13] += 90 * sick
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(pixels.astype(np.uint8)).save(path)


def label_patient_image(root: Path) -> list[str]:
    for n in range(24):
        for k in range(3):
            label = ("well", "sick")[n % 2]
            write_picture(root / label / f"MRN77{n:02d}" / f"im{k}.png", sick=n % 2 == 1, seed=10 * n + k)
    return []


def patient_visit_image(root: Path) -> list[str]:
    """With visits as dates, and a table of labels some days from them."""
    lines = ["PatientID;Date;Finding;Name"]
    for n in range(24):
        for k in range(2):
            day = f"201{k}-0{n % 8 + 1}-1{n % 10}"
            write_picture(root / f"MRN77{n:02d}" / day.replace("-", "") / "a.png", sick=n % 2 == 1, seed=10 * n + k)
            lines.append(f"MRN77{n:02d};{day[:-1]}9;{('well', 'sick')[n % 2]};ZEBULON{n:02d}")
    table = root.parent / "labels.csv"
    table.write_text("\n".join(["sep=;", *lines]) + "\n")
    return ["--join", str(table), "--within", "30", "--take", "label:finding=Finding"]


def flat_names(root: Path) -> list[str]:
    for n in range(24):
        for k in range(4):
            name = f"MRN77{n:02d}_V{k // 2 + 1}_{('OD', 'OS')[k % 2]}.png"
            write_picture(root / name, sick=n % 2 == 1, seed=10 * n + k)
    lines = ["patient,Finding", *(f"mrn77{n:02d}".upper() + f",{('well', 'sick')[n % 2]}" for n in range(24))]
    (root.parent / "labels.csv").write_text("\n".join(lines) + "\n")
    return ["--join", str(root.parent / "labels.csv"), "--on", "patient", "--take", "label:finding=Finding"]


def videos(root: Path) -> list[str]:
    for n in range(24):
        write_video(root / ("well", "sick")[n % 2] / f"MRN77{n:02d}" / f"c{n:02d}.mp4", frames=6, size=48)
    return ["--pattern", "{label:finding}/{patient}/{image}"]


def bids(root: Path) -> list[str]:
    write_bids_cohort(root, subjects=24)
    return ["--take", "label:group=group"]


def bids_masks(root: Path) -> list[str]:
    write_bids_cohort(root, subjects=24)
    return []


def dicom(root: Path) -> list[str]:
    write_export(root)
    return []


OF_DICOM = {"mask", "visit", "time", "modality", "laterality", "view_position", "region", "series", "order", "site",
            "slice_position", "attribute:sex", "attribute:age", "attribute:scanner"}  # fmt: skip
OF_BIDS = {"visit", "time", "modality", "mask", "series", "order", "attribute:sex", "attribute:age"}

# What is written, and what the table must say: rows, patients, unit, roles beside image and patient; the question.
TREES: dict[str, tuple[Callable[[Path], list[str]], int, int, str, set[str], str]] = {
    "label_patient_image": (label_patient_image, 72, 24, "image", {"label:finding"}, "classify"),
    "patient_visit_image": (patient_visit_image, 48, 24, "image", {"visit", "time", "label:finding"}, "classify"),
    "flat_names": (flat_names, 96, 24, "image", {"visit", "laterality", "label:finding"}, "classify"),
    "videos": (videos, 24, 24, "clip", {"label:finding"}, "classify"),
    "bids": (bids, 160, 24, "slice", {*OF_BIDS, "label:group"}, "classify"),
    "bids_masks": (bids_masks, 160, 24, "slice", OF_BIDS, "segment"),
    "dicom": (dicom, 26, 12, "image", OF_DICOM, "regress"),
}


@pytest.fixture
def scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_bolus: Call
) -> Callable[[str], tuple[str, list[list[str]]]]:
    """Writes a tree and scans it: what was printed, and the commands that it says come next."""

    def scan(name: str) -> tuple[str, list[list[str]]]:
        key = tmp_path / "home" / "key"  # always the same one, and so is who is in the test
        key.parent.mkdir()
        key.touch(mode=0o600)
        key.write_text("a key for tests, which is none")
        monkeypatch.setenv("BOLUS_KEY", str(key))
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        options = TREES[name][0](tmp_path / "export")
        code, shown = call_bolus("scan", tmp_path / "export", "-o", "cohort.yaml", *options)
        assert code == 0, shown
        return shown, commands_in(shown)

    return scan


def texts_of(path: Path) -> bytes:
    """What a file holds; of weights only names and remarks: four letters are somewhere in so many numbers."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            return file.read(int.from_bytes(file.read(8), "little"))
        return file.read()


def commands_in(shown: str) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^ *bolus (.*)$", shown, flags=re.MULTILINE)]


@pytest.mark.parametrize("name", [*sorted({*TREES} - {"videos"}), pytest.param("videos", marks=pytest.mark.slow)])
def test_scan_check_and_plan(name: str, scanned: Callable[..., tuple[str, list[list[str]]]], call_bolus: Call) -> None:
    _, rows, patients, unit, roles, question = TREES[name]
    shown, (check, plan, pretrain, evaluate) = scanned(name)
    cohort = Cohort.open("cohort.yaml")
    assert (len(cohort), cohort.num_patients) == (rows, patients)
    assert set(cohort.roles) == {"image", "patient", *roles}
    for words, verb in ((check, "check"), (plan, "plan")):
        code, said = call_bolus(*words)
        assert words[0] == verb
        assert code == 0, said
        shown += said
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    assert recipe["images"]["unit"] == unit
    assert pretrain[0] == "pretrain"
    assert evaluate[:2] == ["evaluate", question]
    assert pretrain in commands_in(said)  # plan goes on with the same words
    written = "".join(path.read_text() for path in Path().iterdir() if path.is_file())
    for text in (shown, written):
        assert not re.search(PLANTED, text)


def test_labels_are_joined_with_their_images(scanned: Callable[..., tuple[str, list[list[str]]]]) -> None:
    shown, _ = scanned("patient_visit_image")
    assert "labels.csv: 48 of 48 rows belong to an image, by patient and date within 30 days." in shown
    table = pd.read_csv("cohort.csv")
    assert table["label:finding"].value_counts().to_dict() == {"well": 24, "sick": 24}
    assert set(table["time"]) == {0, 365}
    assert (table.groupby("patient")["label:finding"].nunique() == 1).all()


def test_readme_shows_what_a_scan_prints(scanned: Callable[..., tuple[str, list[list[str]]]]) -> None:
    """The commands that are copied from there are those that the last test of this file runs."""
    shown = [[*verb.split(), *words] for verb, words in commands(README)]
    first = shown.index(["scan", "EXPORT", "-o", "cohort.yaml"])
    assert shown[first + 1 : first + 5] == scanned("dicom")[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_all_commands_as_they_are_printed(
    name: str, scanned: Callable[..., tuple[str, list[list[str]]]], call_bolus: Call
) -> None:
    """Only the recipe that plan wrote is edited, and segmenters learn in few steps, so that training takes seconds."""
    for words in scanned(name)[1]:
        code, said = call_bolus(*words, *FEW_STEPS.get(words[1], ()))
        assert code == 0, f"{' '.join(words)}\n{said}"
        assert not PLANTED.search(said)
        if words[0] == "plan":
            recipe = Path("recipe.yaml")
            recipe.write_text(re.sub(r"^( +epochs: )\d+", r"\g<1>2", recipe.read_text(), flags=re.MULTILINE))
    assert list(Path("runs").rglob("*.jsonl"))
    for path in Path().rglob("*"):
        if path.is_file():
            assert not IN_FILES.search(texts_of(path)), path.name
