"""`bolus scan` of DICOM: every row of an export, why every other file was left out, and the commands that go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pydicom
import pytest
from pydicom.data import get_testdata_file

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.errors import CohortError
from bolus.scanning.dicom.finder import find_dicom
from bolus.scanning.dicom.headers import read_header, read_headers
from bolus.scanning.dicom.reading import PART, read_columns, read_parts
from bolus.scanning.dicom.stacks import FEWEST, stack
from bolus.scanning.dicom.words import guess_side
from bolus.scanning.files import walk
from bolus.scanning.parts import Asked, find_parts
from bolus.scanning.scanning import scan
from dicom_tree import PLANTED, Tree, noise, person, radiograph, slice_tags, write_export

# file, patient, visit, time, modality, laterality, view_position, region, order, slice_position, sex, age, burned_in
ROWS = """
1/0/a/0 |1 |1|0  |XR|.    |PA|chest|.|.    |M|51 |no
1/1/a/0 |1 |2|56 |XR|.    |PA|chest|.|.    |M|51 |no
1/2/a/0 |1 |3|366|XR|.    |PA|chest|.|.    |M|51 |no
2/0/a/0 |2 |1|0  |XR|.    |PA|chest|.|.    |F|52 |no
2/0/a/1 |2 |1|0  |XR|.    |LL|chest|.|.    |F|52 |no
3/0/a/0 |3 |1|0  |XR|left |AP|hand |.|.    |M|53 |no
3/0/b/0 |3 |1|0  |XR|right|AP|hand |.|.    |M|53 |no
4/0/a/0 |4 |1|0  |XR|.    |PA|chest|.|.    |F|54 |no
4/1/a/0 |4 |2|10 |XR|.    |PA|chest|.|.    |F|54 |no
5/0/a/0 |5 |1|0  |US|.    |. |.    |0|.    |M|55 |yes
5/0/a/0 |5 |1|0  |US|.    |. |.    |1|.    |M|55 |yes
5/0/a/0 |5 |1|0  |US|.    |. |.    |2|.    |M|55 |yes
6/0/a/4 |6 |1|0  |CT|.    |. |chest|0|0.125|F|56 |.
6/0/a/3 |6 |1|0  |CT|.    |. |chest|1|0.375|F|56 |.
6/0/a/2 |6 |1|0  |CT|.    |. |chest|2|0.625|F|56 |.
6/0/a/1 |6 |1|0  |CT|.    |. |chest|3|0.875|F|56 |.
7/0/a/1 |7 |1|0  |CT|.    |. |chest|0|0.167|M|57 |.
7/0/a/2 |7 |1|0  |CT|.    |. |chest|1|0.5  |M|57 |.
7/0/a/3 |7 |1|0  |CT|.    |. |chest|2|0.833|M|57 |.
8/0/a/0 |8 |1|0  |XR|.    |AP|knee |.|.    |F|58 |no
9/0/a/0 |9 |1|0  |XR|.    |AP|.    |.|.    |M|0.5|no
10/0/a/0|10|1|0  |XR|.    |AP|knee |.|.    |F|90 |no
11/0/a/0|11|1|0  |XR|.    |AP|foot |.|.    |M|61 |no
12/0/a/1|12|1|0  |CT|.    |. |chest|0|0.167|F|62 |.
12/0/a/2|12|1|0  |CT|.    |. |chest|1|0.5  |F|62 |.
12/0/a/3|12|1|0  |CT|.    |. |chest|2|0.833|F|62 |.
"""
COLUMNS = ["file", "patient", "visit", "time", "modality", "laterality", "view_position", "region", "order",
           "slice_position", "sex", "age", "burned_in"]  # fmt: skip
LEFT_OUT = {
    "files beside DICOM files that are none; images among them are taken where --pattern says what their paths mean": 2,
    "empty files": 1,
    "series of fewer than 3 slices": 2,
    "copies of another file (the same SOPInstanceUID)": 1,
    "copies of another image (the same pixels under another SOPInstanceUID)": 1,
    "damaged files": 1,
    "directories of media (DICOMDIR)": 1,
    "files of the operating system": 1,
    "images FOR PROCESSING of which there is one FOR PRESENTATION": 1,
    "images without a patient identifier": 1,
    "localizers (scouts)": 1,
    "radiotherapy plans, structures, doses and records": 1,
    "secondary captures that are derived: screenshots, montages, scanned paper": 1,
    "selections of key objects": 1,
    "structured reports, measurements and encapsulated documents": 1,
    "waveforms and sound (ECG and the like)": 1,
}

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return write_export(tmp_path_factory.mktemp("pacs") / "MRN-0-export")


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the key of a scan will lie."""
    path = tmp_path / "private" / "key"
    monkeypatch.setenv("BOLUS_KEY", str(path))
    return path


def rows_of(table: pd.DataFrame, tree: Tree, links: Path) -> list[list[str]]:
    """Cells as the expected table has them; files by short names, patients by those of their files, all sorted."""
    files = [tree.name_of((links / name).readlink()) for name in table["image"]]
    people: dict[str, set[str]] = {}
    for name, patient in zip(files, table["patient"], strict=True):
        people.setdefault(patient, set()).add(name.partition("/")[0])
    assert all(len(each) == 1 for each in people.values())
    assert len({next(iter(each)) for each in people.values()}) == len(people)

    def cell(value: Any) -> str:
        if pd.isna(value):
            return "."
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    made = table.assign(file=files, patient=[next(iter(people[each])) for each in table["patient"]])
    return sorted([cell(value) for value in row] for row in made[COLUMNS].itertuples(index=False))


def test_every_row_of_the_table(export: Tree, key: Path, tmp_path: Path) -> None:
    found = scan(export.root, tmp_path / "out" / "cohort.yaml", processes=1)
    table = pd.read_csv(found.table)
    expected = [[cell.strip() for cell in line.split("|")] for line in ROWS.strip().splitlines()]
    assert rows_of(table, export, key.with_name("key.links")) == sorted(expected)
    assert found.left_out == LEFT_OUT
    assert (found.rows, found.patients, found.visits, found.images) == (26, 12, 15, 24)
    assert found.modalities == {"XR": 13, "CT": 10, "US": 3}
    assert set(table) == {"image", "mask", "series", "site", "scanner", "spacing_row", "spacing_column", *COLUMNS[1:]}
    assert table["series"].notna().sum() == 3 + 4 + 3 + 3  # single images have none
    assert set(table.loc[table["modality"] == "XR", "spacing_row"]) == {0.2}


def test_every_file_is_a_row_a_mask_or_left_out(export: Tree, tmp_path: Path) -> None:
    found = find_dicom(export.root, masks=tmp_path / "masks", processes=1)
    piles = [Path(path) for path in found.table["image"].unique()]
    piles += [path for paths in found.left_out.values() for path in paths]
    assert sorted([*piles, export.files["12/0/s/0"]]) == walk(export.root)


def test_a_segmentation_becomes_masks_of_its_slices(export: Tree, key: Path, tmp_path: Path) -> None:
    found = scan(export.root, tmp_path / "out" / "cohort.yaml", processes=1)
    cohort = Cohort.open(found.cohort)
    masks = {}
    for row in np.flatnonzero(cohort.values("mask").notna()).tolist():
        place = cohort.root / str(cohort.values("mask").iloc[row])
        masks[export.name_of(cohort.image_path(row).readlink())] = np.asarray(PIL.Image.open(place))
    assert sorted(masks) == ["12/0/a/1", "12/0/a/2", "12/0/a/3"]
    assert masks["12/0/a/1"].max() == 0
    assert masks["12/0/a/2"].sum() == 3 * 4
    assert (masks["12/0/a/2"][2:5, 2:6] == 1).all()
    assert masks["12/0/a/3"].sum() == 2 * 2 * 2


def test_notes_tell_what_disagrees(export: Tree) -> None:
    notes = " ".join(find_dicom(export.root, processes=1).notes)
    for sentence in (
        "CR and DX are XR",
        "1 files name two sides in two fields; it is missing there",
        "1 files name it in descriptions only; --guess takes it from there",
        "region: 1 files have another text than DICOM's codes",
        "burned_in: 1 files may show text",
        "of 1 series by InstanceNumber",
    ):
        assert sentence in notes


def test_what_is_asked_for(export: Tree) -> None:
    apart = find_dicom(export.root, keep_modalities=True, guess=True, keep_captures=True, processes=1).table
    assert set(apart["modality"]) == {"CR", "DX", "CT", "US"}
    assert apart.loc[apart["image"] == str(export.files["10/0/a/0"]), "laterality"].tolist() == ["left"]
    assert str(export.files["2/0/w/0"]) in set(apart["image"])
    clips = find_dicom(export.root, modalities=["us"], processes=1)
    assert clips.table["image"].tolist() == [str(export.files["5/0/a/0"])]
    assert "series" not in clips.table
    frames = find_dicom(export.root, modalities=["us"], unit="image", processes=1)
    assert frames.table["order"].tolist() == [0, 1, 2]


def test_scan_check_and_plan_by_the_commands_that_each_prints(
    export: Tree, key: Path, tmp_path: Path, call_bolus: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    code, shown = call_bolus("scan", export.root, "-o", "out/cohort.yaml", "--processes", "1")
    assert code == 0
    commands = [line.split() for line in shown.splitlines() if line.startswith("  bolus ")]
    assert [words[1] for words in commands] == ["check", "plan", "pretrain", "evaluate"]
    said = shown
    for words in commands[:2]:
        code, shown = call_bolus(*words[1:])
        assert code == 0, shown
        said += shown
    assert "0 errors" in said
    assert "26 images of 12 patients" in said
    assert (tmp_path / "out" / "recipe.yaml").is_file()
    texts = [said, *(path.read_bytes().decode("utf-8", "replace") for path in walk(tmp_path / "out"))]
    assert len(texts) >= 6
    for planted in PLANTED:
        assert not [text for text in texts if planted in text], planted
    code, shown = call_bolus("scan", export.root / "none", "-o", "out/other.yaml")
    assert code == 1
    assert not any(planted in shown for planted in PLANTED)
    code, shown = call_bolus("scan", export.root, "-o", "out/cohort.yaml")
    assert code == 2
    assert "--update" in shown


def test_all_files_of_pydicom_are_rows_or_left_out(tmp_path: Path) -> None:
    data_store = pytest.importorskip("data_store")
    places = [Path(pydicom.__file__).parent / "data", Path(data_store.__file__).parent]
    files = [path for place in places for path in walk(place)]
    for number, path in enumerate(files):
        shutil.copy(path, tmp_path / f"{number:04d}")
    found = find_dicom(tmp_path, masks=tmp_path.with_name("masks"), processes=1)
    held = {Path(path) for path in found.table["image"]}
    left = [path for paths in found.left_out.values() for path in paths]
    assert len(files) > 250
    assert len(left) == len(set(left))
    assert not held & set(left)
    assert held | set(left) == set(walk(tmp_path))
    assert len(held) > 15
    assert not (set(found.left_out) & {"", "image"})


def test_headers_are_what_pydicom_reads() -> None:
    fields = {"patient": "PatientID", "modality": "Modality", "instance": "SOPInstanceUID", "rows": "Rows",
              "age": "PatientAge",
              "site": "InstitutionName", "place": "ImagePositionPatient", "study_date": "StudyDate"}  # fmt: skip
    compared = 0
    for path in walk(Path(pydicom.__file__).parent / "data" / "test_files"):
        found = read_header(str(path))
        if found["found"] != "image":
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        for field, name in fields.items():
            raw = header.get(name)
            many = isinstance(raw, pydicom.multival.MultiValue)
            expected = "\\".join(str(getattr(each, "original_string", each)) for each in (raw if many else [raw or ""]))
            assert (found.get(field) or "") == (raw if field == "rows" and raw else expected.strip()), (
                path.name,
                field,
            )
        compared += 1
    assert compared > 130


def test_a_header_ends_before_the_groups_of_frames(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(get_testdata_file("eCT_Supplemental.dcm", download=False))
    frames = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = pydicom.Sequence([frames[0]] * 3000)
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    dataset.save_as(tmp_path / "many")
    began = time.perf_counter()
    found = read_header(str(tmp_path / "many"))
    ours = time.perf_counter() - began
    began = time.perf_counter()
    pydicom.dcmread(tmp_path / "many", stop_before_pixels=True)
    assert (found["modality"], found["frames"], found["pixels"]) == ("CT", "2", 1)
    assert found["spacing"]
    assert ours < (time.perf_counter() - began) / 5


@pytest.mark.parametrize(
    ("places", "numbers", "extra", "order", "by_position", "reason"),
    [
        ([9, 3, 6, 0], [1, 2, 3, 4], {}, [3, 1, 2, 0], True, ""),
        ([0, 0, 3, 3, 6, 6], [1, 2, 3, 4, 5, 6], {"temporal": list("121212")}, [0, 0, 1, 1, 2, 2], True, ""),
        ([0, 0, 0, 0], [4, 3, 2, 1], {}, [3, 2, 1, 0], False, ""),  # one slice over time
        ([0, 3, 3, 6], [1, 2, 3, 4], {}, [0, 1, 2, 3], False, ""),
        ([None] * 3, [1, 1, 2], {}, None, False, "series whose slices have neither"),
        ([0, 3], [1, 2], {}, None, False, "series of fewer than 3 slices"),
    ],
)
def test_slices_are_ordered_by_position_else_by_number(
    places: list[Any], numbers: list[int], extra: dict[str, list[str]], order: Any, by_position: bool, reason: str
) -> None:
    rows = pd.DataFrame({"number": [str(number) for number in numbers], **extra})
    tilted = np.tile([1.0, 0, 0, 0, 0.8, -0.6], (len(rows), 1))  # a tilted gantry
    place = np.array([[7, 0.6 * p, 0.8 * p] if p is not None else [np.nan] * 3 for p in places])
    found = stack(rows, place, tilted)
    assert found.reason.startswith(reason)
    if order is None:
        assert found.reason
    else:
        assert not found.reason
        assert (found.order.tolist(), found.by_position) == (order, by_position)
        assert (found.part.max() > 0) == bool(extra)


def test_planes_that_cross_are_localizers() -> None:
    planes = np.array([[1.0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]])
    found = stack(pd.DataFrame({"number": list("123")}), np.eye(3), planes)
    assert found.reason == "localizers (scouts)"
    assert len(planes) >= FEWEST


def test_a_series_is_a_copy_only_where_all_slices_are(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "tree")
    empty = np.zeros((20, 20), np.uint16)
    for number in range(4):  # two empty slices are no copies of one another
        pixels = empty if number < 2 else noise(number)
        tree.write(
            f"1/0/a/{number}", "1.2.840.10008.5.1.4.1.1.2", person(1) | slice_tags("21800101", number, number), pixels
        )
        tree.write(
            f"2/0/a/{number}", "1.2.840.10008.5.1.4.1.1.2", person(2) | slice_tags("21800101", number, number), pixels
        )
    found = find_dicom(tree.root, processes=1)
    assert len(found.table) == 4
    assert "1 images or series stand under several patients; each was taken once." in found.notes


def test_several_processes_read_what_one_does(tmp_path: Path) -> None:
    files = many_files(tmp_path / "tree", 3 * PART)
    one = read_columns(read_parts(files, processes=1))
    assert read_columns(read_parts(files, processes=2)) == one
    assert len(set(one["instance"])) == len(files)


def test_a_scan_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, state = many_files(tmp_path / "tree", 6 * PART), tmp_path / "state"
    code = (
        "import sys, json\nfrom pathlib import Path\nfrom bolus.scanning.dicom.reading import read_parts\n"
        "for _ in read_parts(json.load(sys.stdin), processes=1, state=Path(sys.argv[1])):\n    print(1, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(bolus.__file__).parents[1])},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(files))
        process.stdin.close()
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    done = sum(not path.name.startswith(".") for path in state.iterdir())
    assert 2 <= done < 6
    read: list[str] = []

    def count(part: list[str]) -> Any:
        read.extend(part)
        return read_headers(part)

    monkeypatch.setattr("bolus.scanning.dicom.reading.read_headers", count)
    again = read_columns(read_parts(files, processes=1, state=state))
    assert len(read) == len(files) - PART * done
    assert again == read_columns(read_parts(files, processes=1))
    Path(files[0]).write_bytes(Path(files[1]).read_bytes())
    read.clear()
    read_columns(read_parts(files, processes=1, state=state))
    assert len(read) == PART
    assert state.stat().st_mode & 0o077 == 0


def many_files(folder: Path, number: int) -> list[str]:
    """Copies of one file with another SOPInstanceUID each, patched in its bytes."""
    tree = Tree(folder)
    first = tree.write(
        "1/0/a/0", "1.2.840.10008.5.1.4.1.1.1", person(1) | radiograph("CR", "21800101", "PA", "CHEST"), noise(1)
    )
    whole = first.read_bytes()
    uid = str(pydicom.dcmread(first).SOPInstanceUID).encode()
    for place in range(number):
        (folder / f"{place:05d}").write_bytes(whole.replace(uid, f"{10 ** (len(uid) - 1) + place}".encode()))
    shutil.rmtree(first.parents[2])
    return [str(path) for path in walk(folder)]


def test_folders_that_are_not_entered_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path / "tree")
    tags = radiograph("CR", "21800101", "PA", "CHEST")
    for n in (1, 2):
        tree.write(f"{n}/0/a/0", "1.2.840.10008.5.1.4.1.1.1", person(n) | tags, noise(n))
    (tmp_path / "elsewhere").mkdir()
    (tree.root / "linked").symlink_to(tmp_path / "elsewhere")
    closed, opened = tree.files["2/0/a/0"].parent, os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_parts(tree.root, Asked(processes=1))
    assert len(found.table) == 1
    assert found.left_out == {
        "links to folders, which are not entered": [tree.root / "linked"],
        "folders that cannot be opened": [closed],
    }
    with pytest.raises(CohortError, match="expected a folder that can be opened, found one that cannot: Permission"):
        walk(closed)


@pytest.mark.parametrize(
    "text",
    [
        *("L SPINE AP", "L-Spine LAT", "L/S SPINE", "L-S spine", "L. Spine", "C/T/L SPINE", "L 5 S1", "R/O fracture"),
        *(
            "LI-RADS liver",
            "RE chest",
            "SINUS",
            "SINGLE",
            "DERIVED",
            "TC sin contraste",
            "MRT der Schulter",
            "DEXA hip",
        ),
        *("dextroscoliosis", "cine R-R", "IRM de l'epaule", "T1 OS sagittal", "R/L", "L & R"),
    ],
)
def test_descriptions_without_a_side(text: str) -> None:
    assert guess_side(text) is None


@pytest.mark.parametrize(
    ("side", "texts"),
    [
        ("left", ("KNEE L 2 VIEWS", "HAND_L", "L-KNEE", "(L) hip", "Knie links", "RODILLA IZQ", "spalla sinistra")),
        ("right", ("R MLO", "HAND-R AP", "FOOT R.", "main droite", "mano derecha", "oculus dexter", "spalla destra")),
    ],
)
def test_descriptions_with_a_side(side: str, texts: tuple[str, ...]) -> None:
    assert [guess_side(text) for text in texts] == [side] * len(texts)


def test_os_and_od_are_sides_of_eyes_alone(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "tree")
    for n, (modality, part) in enumerate((("OPT", ""), ("CR", "CHEST"), ("XC", "EYE")), 1):
        tags = radiograph(modality, "21800101", "", part, ProtocolName="OD macula")
        tree.write(f"{n}/0/a/0", "1.2.840.10008.5.1.4.1.1.1", person(n) | tags, noise(n))
    table = find_dicom(tree.root, guess=True, processes=1).table
    sides = dict(zip(table["modality"], table["laterality"], strict=True))
    assert sides == {"OPT": "right", "XR": None, "XC": "right"}
