"""Messages name the likely cause and the way out: tables, image paths, and batches that leave nothing to compare."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bolus.data.batches.batch import Batch
from bolus.data.checks.checking import check
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.table import read_table
from bolus.data.images.file_names import SUBFOLDERS
from bolus.data.images.missing_files import LOOKED_AT, likely_cause, where_sought
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import CohortError, RecipeError
from bolus.objectives import OBJECTIVES, build_objectives
from bolus.objectives.base import Objective, check_batch
from bolus.recipe import Recipe, recipe_names
from bolus.run import Run
from bolus.training.loop import pretrain
from bolus.training.rehearsal import dry_run
from bolus.training.window import find_idle

TABLE = "image,patient,score\na.png,Müller1,61\nb.png,Surname2,5\n"
SEMICOLONS = TABLE.replace(",", ";")
TABS = TABLE.replace(",", "\t")


# Tables


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("t.csv", SEMICOLONS, "by ';', expected ','; save the table with ',' .*, or write the line sep=; above"),
        ("t.csv", SEMICOLONS.replace("61", "61,5"), "separated by ';', expected ','"),
        ("t.csv", "\ufeff" + SEMICOLONS, "separated by ';', expected ','"),
        ("t.csv", SEMICOLONS.replace("score", "score, of 100").replace("61", "61,5,0"), "separated by ';'"),
        ("t.csv", TABS, "by tabs, expected ','; .* or rename it to end in .tsv"),
        ("t.txt", TABS, "by tabs, expected ','; .* or rename it to end in .tsv"),
        ("t.csv", TABLE.replace(",", "|"), r"by '\|', expected ','; .* write the line sep=\| above"),
        ("t.tsv", TABLE, "by ',', expected tabs; .* or rename it to end in .csv"),
        ("t.tsv", SEMICOLONS, "by ';', expected tabs; .* write the line sep=; above"),
        ("t.csv", "sep=,\n" + SEMICOLONS, "by ';', expected ','; its first line must be sep=;"),
        ("t.csv", "sep=;\n" + TABS, "by tabs, expected ';'; its first line must be sep= and a tab"),
    ],
)
def test_a_wrong_separator_is_named_with_the_way_out(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CohortError, match=expected) as error:
        Cohort.open(tmp_path / name)
    assert "Surname" not in str(error.value)
    assert "Müller" not in str(error.value)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("first", "text"),
    [("sep=,", TABLE), ("sep=;", SEMICOLONS), ('"sep=;"', SEMICOLONS), ("SEP=\t", TABS), ("sep=,,,", TABLE)],
)
def test_a_first_line_with_the_separator_is_read_as_excel_reads_it(
    tmp_path: Path, first: str, text: str, mark: str, newline: str
) -> None:
    (tmp_path / "t.csv").write_text(mark + f"{first}\n{text}".replace("\n", newline), encoding="utf-8", newline="")
    (tmp_path / "plain.csv").write_text(TABLE, encoding="utf-8")
    assert read_table(tmp_path / "t.csv").equals(read_table(tmp_path / "plain.csv"))


def test_the_way_out_of_a_wrong_separator_works(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=;\n" + SEMICOLONS, encoding="utf-8")
    assert Cohort.open(tmp_path / "t.csv").num_patients == 2
    (tmp_path / "t.tsv").write_text(TABS, encoding="utf-8")
    assert Cohort.open(tmp_path / "t.tsv").num_patients == 2


def test_rows_are_counted_below_the_header_wherever_it_stands(tmp_path: Path) -> None:
    rows = 'a.png;"P\n1";1\nb.png;P2;3;4\nc.png;P3;5\nd.png\n'
    for first in ("", "sep=;\n"):
        name = "t.csv" if first else "t.tsv"
        text = first + "image;patient;score\n" + rows
        (tmp_path / name).write_text(text if first else text.replace(";", "\t"))
        with pytest.raises(CohortError, match="expected 3 values in each row, found another number in rows 2, 4"):
            read_table(tmp_path / name)


def test_a_header_is_never_cut_by_what_is_not_its_separator(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,patient,findings (a;b;c;d;e)\na.png,P1,a;b\nb.png,P2,\n")
    assert len(read_table(tmp_path / "t.csv").columns) == 3
    (tmp_path / "one.csv").write_text("image\na;b.png\n")
    assert read_table(tmp_path / "one.csv")["image"].tolist() == ["a;b.png"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TABLE.encode("utf-16"), "expected UTF-8 text, found UTF-16; save it as UTF-8 .*iconv -f UTF-16 -t UTF-8"),
        (TABLE.encode("utf-16-le"), "found zero bytes, as of UTF-16; .*iconv -f UTF-16LE"),
        (TABLE.encode("utf-16-be"), "found zero bytes, as of UTF-16; .*iconv -f UTF-16BE"),
        (TABLE.encode("latin-1"), "found another encoding, first on line 2 of the file; .*iconv -f WINDOWS-1252"),
        (TABLE.replace("score", "größe").encode("latin-1"), "first on line 1 of the file"),
        (("sep=,\n" + TABLE).encode("latin-1"), "first on line 3 of the file"),
        ((TABLE.replace("Müller", "M") + "c.png,P,1\n" * 200_000 + "d.png,Ü,1\n").encode("latin-1"), "line 200004 of"),
        (b"PK\x03\x04 and so on", "found an Excel workbook or another zip file; save its sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0 and so on", "an old Excel workbook; save its sheet as CSV UTF-8"),
        (b"PAR1 and so on", "a Parquet file; rename it to end in .parquet"),
    ],
)
def test_what_is_no_utf8_text_is_named_with_the_way_out(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(CohortError, match=f"t.csv: not a readable table: .*{expected}") as error:
        read_table(tmp_path / "t.csv")
    assert "ller" not in str(error.value)


# Image files that are not there

NAMES = [f"images/p{number}/a{number}.png" for number in range(5)]


def made(folder: Path, names: list[str]) -> Path:
    """A folder that holds empty files of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def cause(root: Path, written: list[str]) -> str:
    found = likely_cause([root / text for text in written], root)
    shown = found.replace(str(root.parent), "ABOVE")
    assert not any(part in shown for part in ("p0", "a0", "images", root.name)), "names may be identifiers"
    return found


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda name: name.replace("/", "\\"), "with / in place of the backslashes of Windows: write / in the paths"),
        (
            lambda name: "C:\\p0\\" + name.replace("/", "\\"),
            "with / in place of the backslashes of Windows, and without the drive and the first folder of",
        ),
        (
            lambda name: "\\\\host\\share\\" + name.replace("/", "\\"),
            "with / in place of the backslashes of Windows, and without the drive of the paths: ",
        ),
        (lambda name: name.removesuffix(".png"), "with the extension .png added: add the extension"),
        (lambda name: name.replace(".png", ".PNG"), "with the extension .png in place of .PNG: write the extension"),
        (lambda name: name.replace(".png", ".jpeg"), "with the extension .png in place of .jpeg"),
        (lambda name: name.replace("/p", "/P"), "with other capital and small letters: spell the paths"),
        (lambda name: f'"{name}"', "without quotation marks around them: take the quotation marks out"),
        (
            lambda name: name.removeprefix("images/"),
            "in one subfolder: give the full path of that subfolder with --root",
        ),
        (lambda name: Path(name).name, "in subfolders that the paths lack: write the subfolder into each path"),
        (lambda name: f"study/{name}", "from the folder above: add --root /"),
        (lambda name: f"/home/p0/{name}", "without the leading / and the first 2 folders of the paths: leave"),
        (
            lambda name: name.replace("/", "\\").replace("images", "IMAGES").removesuffix(".png"),
            "with / in place of the backslashes of Windows, with other capital and small letters, and with the",
        ),
    ],
)
def test_missing_files_that_are_spelled_otherwise(tmp_path: Path, write: Callable[[str], str], expected: str) -> None:
    root = made(tmp_path / "study", NAMES)
    assert cause(root, NAMES) == ""  # none is missing
    assert cause(root, [write(name) for name in NAMES]).startswith(f"all are found {expected}")
    assert cause(root, [write(name) for name in NAMES[:1]]).startswith("it is found ")
    some = [write(NAMES[0]), write(NAMES[1]), "gone.png"]
    assert cause(root, some).startswith("2 of 3 are found ")


def test_missing_files_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, here = made(tmp_path / "study", []), made(tmp_path / "here", NAMES)
    assert cause(root, NAMES) == ""
    monkeypatch.chdir(here)
    assert cause(root, NAMES) == 'all are found from the current folder: add --root "$PWD"'


@pytest.mark.parametrize(
    ("written", "table", "where"),
    [
        ("tiny/img/", "table.csv", "from the folder above"),
        ("tiny/img/", "deep/table.csv", "from the folder two above"),
        ("", "table.csv", "in one subfolder"),
    ],
)
def test_the_root_to_add_finds_the_files(tiny_cohort: Path, written: str, table: str, where: str) -> None:
    folder = tiny_cohort.parent
    if not written:
        (folder / "img").rename(folder / "all images")
    text = (folder / "table.csv").read_text().replace("img/", written)
    (folder / "deep").mkdir()
    (folder / table).write_text(text)
    (finding,) = (each for each in check(folder / table).errors if each.kind == "missing_file")
    assert f"all are found {where}: add --root " in finding.message
    _, root = shlex.split(finding.message[finding.message.index("--root") :])
    assert not check(Cohort.open(folder / table, root=root)).errors


def test_a_subfolder_of_one_patient_is_not_named(tmp_path: Path) -> None:
    root = made(tmp_path / "study", ["Surname/1.png", "Surname/2.png"])
    paths = [root / "1.png", root / "2.png"]
    assert "Surname" not in likely_cause(paths, root, [0, 0]) + likely_cause(paths, root)
    assert likely_cause(paths, root, [0, 1]).endswith(f"in one subfolder: add --root {root}/Surname")


def test_a_file_without_a_cause_has_the_option_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,patient\nSurname/a_1.png,Surname\n")
    (finding,) = (each for each in check(tmp_path / "t.csv").errors if each.kind == "missing_file")
    sought = f"row 1 was looked for as {tmp_path}/aaaaaaa/a_9.aaa (a for letters, 9 for digits)"
    assert finding.message.endswith(f"{sought}; if the paths are relative to another folder, add --root FOLDER")
    assert where_sought("/mnt/a1/b.png", tmp_path).startswith("/aaa/a9/a.aaa (")
    assert "aaa... (" in where_sought("a" * 50, tmp_path)


def test_letters_that_are_composed_otherwise(tmp_path: Path) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "bilder/größe.png") for form in ("NFC", "NFD"))
    for there, asked, form in ((composed, taken_apart, "NFC"), (taken_apart, composed, "NFD")):
        root = made(tmp_path / form, [there])
        if (root / asked).exists():
            pytest.skip("this file system knows no difference")
        assert f"(Unicode {form})" in likely_cause([root / asked], root)


def test_missing_files_without_a_cause(tmp_path: Path) -> None:
    root = made(tmp_path / "study", NAMES)
    assert cause(root, []) == ""
    assert cause(root, ["gone.png"]) == ""
    assert cause(root, ["a" * 5000, "zero\0byte.png"]) == ""
    assert cause(root, ["D:\\gone.png"]).startswith("it is on a drive or network share of Windows, not on this")
    assert cause(root, ["/gone/a.tif"]).startswith("it is at a full path whose folder is not on this computer: write")
    assert cause(root, ["x\\gone.png"]).startswith(
        "it is written with the backslashes of Windows, and not there with /"
    )
    assert "does not exist: give one that does with --root" in cause(tmp_path / "absent", ["b.png"])


def test_looking_for_missing_files_is_bounded(tmp_path: Path) -> None:
    root = made(tmp_path / "study", [f"images/{number}.png" for number in range(5 * LOOKED_AT)])
    found = cause(root, [f"images/{number}" for number in range(5 * LOOKED_AT)])
    assert found.startswith(f"all {LOOKED_AT} that were looked at are found with the extension .png added")
    wide = made(tmp_path / "wide", [f"{number}/x.png" for number in range(SUBFOLDERS + 100)])
    assert cause(wide, ["x.png"]) == ""  # in more than one


def test_the_check_says_why_files_are_missing(tiny_cohort: Path) -> None:
    table = tiny_cohort.with_name("table.csv")
    table.write_text(table.read_text().replace("img/", "img\\"))
    (finding,) = (each for each in check(tiny_cohort).errors if each.kind == "missing_file")
    way_out = "write / in the paths of the table"
    with_slash = f"all are found with / in place of the backslashes of Windows: {way_out}"
    sought = f"row 1 was looked for as {table.parent}/aaa\\a9_9.aaa (a for letters, 9 for digits)"
    assert finding.message == f"60 image files do not exist; {sought}; {with_slash}"
    assert len(finding.rows) == 60


# Batches that leave nothing to compare

SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32, inputs={"XR": (1, 32)})
NUMBERS = {"score:any": np.arange(5.0), "visit": np.arange(5.0)}
PER_SAMPLE = {"predict", "reconstruct"}


def objectives_of(recipe: Recipe) -> dict[str, Objective]:
    narrow = [f"objectives.{name}.width=8" for name, spec in recipe.objectives.items() if spec.kind == "varcov"]
    shape = replace(SHAPE, levels=SHAPE.levels)
    return build_objectives(recipe.override(narrow), shape, NUMBERS, seed=0)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_refuse_a_batch_of_one_unless_they_work_sample_by_sample(name: str) -> None:
    recipe = Recipe.load(name)
    objectives = objectives_of(recipe) if name != "mlvicx" else objectives_of(Recipe.load("vicreg"))
    check_batch(objectives, recipe)
    alone = recipe.override(["sampling.batch_size=1", "sampling.participants=null"])
    if {spec.kind for spec in recipe.objectives.values()} <= PER_SAMPLE:
        check_batch(objectives, alone)
    else:
        with pytest.raises(RecipeError, match=r"batch_size: objectives\.\w+ compares samples .* found 1; set"):
            check_batch(objectives, alone)


def test_every_kind_says_how_many_samples_it_needs() -> None:
    for kind, constructor in OBJECTIVES.items():
        recipe = Recipe.load({"name": "one", "objectives": {"one": {"kind": kind}}})
        if kind == "predict":
            recipe = recipe.override(["objectives.one.targets=score:any"])
        (objective,) = build_objectives(recipe, SHAPE, NUMBERS, seed=0).values()
        assert type(objective) is constructor
        assert (objective.needs.samples == 1) == (kind in PER_SAMPLE)


COMPARING: list[dict[str, Any]] = [
    {"kind": "chronocon"},
    {"kind": "contrast"},
    {"kind": "contrast", "relation": "region", "form": "in"},
    {"kind": "contrast", "relation": {"same": "region", "differ": "visit"}},
    {"kind": "contrast", "relation": {"far": {"score:any": 1}}},
    {"kind": "contrast", "relation": "region", "between": "visit"},
    {"kind": "contrast", "relation": "region", "between": "visit", "among": "modality"},
    {"kind": "rank_n_contrast"},
    {"kind": "score_contrast", "threshold": 0.0},
    {"kind": "supremix", "window": 3.0},
    {"kind": "varcov", "width": 4},
]


@pytest.mark.parametrize("spec", COMPARING)
def test_with_fewer_samples_than_needed_nothing_beats_a_collapse_and_with_enough_something_does(
    spec: dict[str, Any],
) -> None:
    recipe = Recipe.load({"name": "one", "objectives": {"one": spec}})
    (objective,) = build_objectives(recipe, SHAPE, NUMBERS, seed=0).values()
    generator = torch.Generator().manual_seed(0)

    def gains(num_samples: int) -> list[float]:
        """How much lower the loss of random features is than that of equal ones, for random columns."""
        found = []
        for _ in range(200):
            columns = {"sample": torch.arange(num_samples)}
            columns |= {role: torch.zeros(num_samples, dtype=torch.int64) for role in ("modality", "patient")}
            for role in ("region", "visit"):
                columns[role] = torch.randint(2, (num_samples,), generator=generator)
            columns["score:any"] = torch.randint(4, (num_samples,), generator=generator).double()
            batch = Batch({}, {}, columns)
            random = torch.randn(1, num_samples, 6, generator=generator) + 0.1 * torch.randn(
                2, num_samples, 6, generator=generator
            )
            collapsed, spread = (
                objective.loss(objective.embed(Features(pooled), batch), batch).value.item()
                for pooled in (torch.ones_like(random), random)
            )
            found.append(collapsed - spread)
        return found

    least = objective.needs.samples
    assert all(max(gains(fewer)) < 1e-5 for fewer in range(1, least))
    assert max(gains(least)) > 1e-2


def test_accumulation_and_processes_do_not_make_up_for_samples() -> None:
    recipe = Recipe.load("simclr").override(["sampling.batch_size=1", "training.accumulate=8"])
    objectives = objectives_of(recipe)
    with pytest.raises(RecipeError, match=r"set sampling.batch_size=2 or more \(the batches that training.accumulate"):
        check_batch(objectives, recipe)
    recipe = recipe.override(["sampling.batch_size=4"])
    check_batch(objectives, recipe, processes=2)
    with pytest.raises(
        RecipeError, match=r"4 for 4 processes is one sample each, .* set sampling.batch_size=8 or more"
    ):
        check_batch(objectives, recipe, processes=4)
    # Without normalisation in the head the gathered batch is compared as in one process.
    plain = recipe.override(["objectives.views.hidden_norm=false"])
    check_batch(objectives_of(plain), plain, processes=4)


def test_a_run_and_a_dry_run_refuse_it_before_anything_is_written(
    tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path, call_bolus: Callable[..., tuple[int, str]]
) -> None:
    alone = ["sampling.batch_size=1"]
    with pytest.raises(RecipeError, match=r"objectives.global compares samples"):
        pretrain(tiny_cohort, recipe=small_recipe, overrides=alone, out=tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(RecipeError, match=r"objectives.global compares samples"):
        dry_run(tiny_cohort, recipe=small_recipe, overrides=alone, cache=tmp_path / "cache")
    words = ["encoder.backbone=r18w32", "images.size=24", *alone]
    code, shown = call_bolus("pretrain", tiny_cohort, *words, "--recipe", "simclr", "--dry-run")
    assert (code, "set sampling.batch_size=2 or more" in " ".join(shown.split())) == (1, True)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


PREDICT: dict[str, Any] = {
    "name": "predict",
    "encoder": {"backbone": "r18w32", "stem_pool": False},
    "images": {"size": 24, "views": 1},
    "sampling": {"batch_size": 1},
    "objectives": {"predict": {"kind": "predict", "targets": "label:sick"}},
    "training": {"epochs": 1, "max_steps": 2, "log_steps": 1, "health_epochs": None},
}


def test_prediction_works_sample_by_sample(tiny_cohort: Path, tmp_path: Path) -> None:
    run = pretrain(tiny_cohort, recipe=PREDICT, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    assert all(line["loss"] > 0 for line in run.metrics() if line["kind"] == "train")


def with_training_images(tiny_cohort: Path, patients: dict[str, int]) -> Path:
    """The tiny cohort with a fixed split: of these patients so many images are trained on, the last five validate."""
    lines = tiny_cohort.with_name("table.csv").read_text().splitlines()
    kept, left = [f"{lines[0]},split"], dict(patients)
    for line in lines[1:]:
        patient = line.split(",")[1]
        if left.get(patient, 0):
            left[patient] -= 1
            kept.append(f"{line},train")
        elif patient >= "P015":
            kept.append(f"{line},val")
    tiny_cohort.with_name("few.csv").write_text("\n".join(kept) + "\n")
    return tiny_cohort.with_name("few.csv")


def test_too_few_training_samples_to_compare(tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    table = with_training_images(tiny_cohort, {"P000": 1})
    with pytest.raises(CohortError, match="at least 2 samples with each other, and training patients have 1 that can"):
        pretrain(table, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(CohortError, match="at least 2 samples"):
        dry_run(table, recipe=small_recipe, cache=tmp_path / "cache")


def test_a_run_that_compared_nothing_is_not_called_healthy(tiny_cohort: Path, tmp_path: Path) -> None:
    table = with_training_images(tiny_cohort, {"P000": 3})  # one patient: no row has a negative
    overrides = ["sampling.batch_size=2", "objectives.views.negatives=other_patients", "images.size=24"]
    overrides += ["encoder.backbone=r18w32", "training.epochs=2", "training.log_steps=1"]
    run = pretrain(table, recipe="simclr", overrides=overrides, out=tmp_path / "run", cache=tmp_path / "cache")
    sentences = said(run)
    assert sentences[0].startswith("views compared nothing: its loss was 0.0 at every step, and no batch held anything")
    assert not any("no collapse" in sentence for sentence in sentences)
    assert any("as the encoder began, since nothing was compared" in sentence for sentence in sentences)


def said(run: Run) -> list[str]:
    """The sentences of a run's last look at its health."""
    (*_, last) = (line for line in run.metrics() if line["kind"] == "health")
    return [finding["sentence"] for finding in last["findings"]]


def test_only_a_loss_that_never_was_is_idle() -> None:
    def line(loss: float | None, anchors: float) -> dict[str, Any]:
        counts = {"one": {"anchors": anchors}, "other": {"anchors": 4.0}}
        return {"kind": "train", "losses": {"one": loss, "other": 1.0}, "counts": counts}

    assert find_idle([]) == []
    assert find_idle([{"kind": "health"}, line(0.0, 0.0), line(0.2, 4.0)]) == []
    assert find_idle([line(None, 4.0)]) == []  # not finite
    (found,) = find_idle([line(0.0, 0.0), {"kind": "health"}, line(0.0, 0.0)])
    assert (found.name, found.good) == ("idle one", False)
    assert "no sample of a batch had a partner" in found.sentence
