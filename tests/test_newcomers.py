"""The mistakes of a first day: each ends in one message that says what to do; and what holds of every verb."""

from __future__ import annotations

import ast
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image as PillowImage

import bolus
from bolus.cli import app, main, speaking
from bolus.device import VARIABLE
from bolus.errors import BolusError

SMALL = ["encoder.backbone=r18w32", "images.size=24", "sampling.batch_size=8", "training.max_steps=1"]
SECONDS = 20.0  # in which a mistake is told, on a busy machine; it is well below one on an idle one


def shapes(folder: Path) -> None:
    """A table of 48 images of 24 patients, a cohort.yaml, and tables with something wrong."""
    rng, rows = np.random.default_rng(0), []
    for name in ("img", "mask"):
        (folder / name).mkdir()
    for number in range(48):
        patient, visit = divmod(number, 2)
        pixels = rng.integers(40, 90, (24, 24)) + 90 * (patient % 2)
        PillowImage.fromarray(pixels.astype(np.uint8)).save(folder / f"img/{number}.png")
        PillowImage.fromarray(np.kron([[0, 1], [1, 0]], np.ones((12, 12))).astype(np.uint8)).save(
            folder / f"mask/{number}.png"
        )
        rows.append(
            (
                f"img/{number}.png",
                f"Surname{patient:02d}",
                visit,
                "ny"[patient % 2],
                patient % 2 + visit / 4,
                f"F{visit}",
            )
        )
    table = pd.DataFrame(rows, columns=["image", "patient", "visit", "sick", "severity", "sex"])
    table["mask"] = table["image"].str.replace("img", "mask")
    roles = "roles: {'label:sick': sick, 'score:severity': severity}\nsplit: {val: 0.2, test: 0.3}\n"
    for name, changed in {
        "table": table,
        "no_patient": table.drop(columns="patient"),
        "constant": table.assign(sick="y"),
        "both_sides": table.assign(split=["train", "test"] * 24),
        "lost": table.assign(image="x" + table["image"]),
    }.items():
        changed.to_csv(folder / f"{name}.csv", index=False)
    for name in ("table", "constant"):
        (folder / f"{name}.yaml").write_text(f"table: {name}.csv\n{roles}")
    (folder / "other_split.yaml").write_text(f"table: table.csv\n{roles}".replace("test: 0.3", "test: 0.7"))
    (folder / "gone.yaml").write_text("table: gone.csv\n")
    (folder / "torn.yaml").write_text("table: table.csv\nroles: {time: days\n")
    (folder / "empty.csv").write_text("")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as of a first day: tables, a finished run and one that stopped."""
    folder = tmp_path_factory.mktemp("desk")
    shapes(folder)
    bolus.pretrain(
        folder / "table.yaml", recipe="simclr", out=folder / "run", overrides=SMALL, cache=folder / "cache", quiet=True
    )
    bolus.evaluate(
        folder / "run", folder / "table.yaml", target="sick", probes=("linear",), draws=20, cache=folder / "cache"
    )
    shutil.copytree(folder / "run", folder / "stopped", ignore=shutil.ignore_patterns("encoder"))
    return folder


@pytest.fixture
def call(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process and that folder: words -> exit code, standard output, standard error."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("BOLUS_CACHE", str(desk / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv(VARIABLE, "cpu")  # what --device sets ends with the test
    monkeypatch.setattr(speaking, "manner", speaking.Everywhere())

    def told(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["bolus", *words])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return told


MISTAKES: dict[str, tuple[str, int, list[str]]] = {
    # with a table and a folder of images
    "a folder in place of the table": ("check img", 1, ["found a folder", "make a table"]),
    "a mistyped table": ("check tabel.csv", 1, ["no such cohort or table", "did you mean 'table.csv'?"]),
    "an empty table": ("check empty.csv", 1, ["names of the columns", "found an empty file"]),
    "no column of patients": ("check no_patient.csv", 1, ["role 'patient'", "--role patient=COLUMN"]),
    "a mistyped column": ("check table.csv --role label:sick=sik", 1, ["no column 'sik'", "did you mean 'sick'?"]),
    "a mistyped role": ("check table.csv --role lable:sick=sick", 1, ["unknown", "did you mean 'label:sick'?"]),
    "role and column exchanged": ("check table.csv --role sick=label:sick", 1, ["write label:sick=sick"]),
    "one role twice": ("check table.csv --role patient=sex --role patient=patient", 2, ["names patient twice"]),
    "the table as output": ("check table.csv -o table.csv", 2, ["ends in .yaml or .yml", "found 'table.csv'"]),
    "the table as report": ("check table.csv --report table.csv", 2, ["ends in .json", "found 'table.csv'"]),
    "a mistyped share": ("check table.csv --split tset=0.5", 1, ["split.tset", "did you mean 'test'?"]),
    "a share above one": ("check table.csv --split test=1.5", 1, ["split.test", "less than 1", "found '1.5'"]),
    "a patient on two sides": ("check both_sides.csv", 1, ["give all rows of a patient one side", "rows 1, 2"]),
    "a cohort without its table": ("check gone.yaml", 1, ["gone.yaml", "no such table: gone.csv"]),
    "YAML that is torn": ("check torn.yaml", 1, ["torn.yaml: not YAML: line 3"]),
    "images that are not there": (
        "pretrain lost.csv --recipe simclr sampling.batch_size=8",
        1,
        ["48 of 48 images cannot be read", "rows 1, 2, 3, 4, 5 and 43 more: "],
    ),
    "predictions over the table": (
        "predict run table.csv --head sick -o table.csv",
        2,
        ["table.csv is the table, which is never written over"],
    ),
    "embeddings over the cohort": ("embed run table.yaml -o table.yaml", 2, ["ends in .parquet", "'table.yaml'"]),
    "a folder that cannot be made": ("demo --out table.csv", 2, ["expected a folder, found the file table.csv"]),
    # pretraining, evaluation, ablation
    "a mistyped key": ("pretrain table.yaml --recipe mlvicx training.epoch=3", 1, ["did you mean 'epochs'?"]),
    "a mistyped recipe": ("pretrain table.yaml --recipe mlvix", 1, ["no recipe named", "did you mean 'mlvicx'?"]),
    "a cohort as recipe": ("pretrain table.yaml --recipe table.yaml", 1, ["found a cohort", "bolus plan table.yaml"]),
    "a recipe as cohort": ("pretrain run/recipe.yaml --recipe simclr", 1, ["found a recipe", "with --recipe"]),
    "an image as recipe": ("pretrain table.yaml --recipe img/0.png", 1, ["expected a recipe in YAML"]),
    "a rate that is no number": (
        "pretrain table.yaml --recipe simclr optimizer.lr=nan",
        1,
        ["optimizer.lr", "greater than 0", "found 'nan'"],
    ),
    "a batch larger than the cohort": (
        "pretrain table.yaml --recipe simclr",
        1,
        ["only", "samples to train on", "set sampling.batch_size to at most"],
    ),
    "an encoder that does not exist": (
        "pretrain table.yaml --recipe simclr --out new encoder.backbone=resnet19 sampling.batch_size=8",
        1,
        ["no encoder 'resnet19'", "did you mean 'resnet18'?"],
    ),
    "a file as run folder": ("pretrain table.yaml --recipe simclr --out table.csv", 1, ["table.csv is a file"]),
    "an option that is gone": ("pretrain table.yaml --planned", 2, ["No such option: --planned", "--help"]),
    "no question": ("evaluate run table.yaml --target sick", 2, ["needs a question first, one of classify, regress"]),
    "a score for classify": ("evaluate classify run table.yaml --target severity", 1, ["which regress reads"]),
    "a label for regress": ("evaluate regress run table.yaml --target sick", 1, ["which classify reads"]),
    "an attribute for classify": ("evaluate classify run table.yaml --target sex", 1, ["the role label:sex"]),
    "a label of one class": ("evaluate classify run constant.yaml --target sick", 1, ["nothing can be told apart"]),
    "a share of ten": (
        "evaluate classify run table.yaml --target sick --fractions 10",
        2,
        ["fractions above 0 and at most 1", "the fractions 10.0"],
    ),
    "a mistyped task": ("ablate table.yaml --recipe mlvicx --task clasify --target sick", 2, ["mean 'classify'?"]),
    "a side that is not judged": ("ablate table.yaml --recipe mlvicx --target sick --on train", 2, ["found 'train'"]),
    # looking at evidence
    "a run that has not finished": ("embed stopped table.yaml", 1, ["training has not ended", "--resume"]),
    "patients of the training": (
        "evaluate classify run other_split.yaml --target sick",
        1,
        ["expected no patient of the pretraining", "judge on rows that were held out"],
    ),
    "encoder and cohort exchanged": ("embed table.yaml run", 2, ["the encoder first", "write run table.yaml"]),
    "a folder without an encoder": ("embed img table.yaml", 1, ["(run.json)", "(encoder.json)", "(config.json)"]),
    "a head that was never fitted": ("predict run table.yaml --head severity", 1, ["no head 'severity'", "sick"]),
    "results in place of a file": (
        "evaluate classify run table.yaml --target sick -o table.csv",
        2,
        ["expected a folder, found the file table.csv"],
    ),
    "a cache that is a file": (
        "evaluate classify run table.yaml --target sick --cache table.csv",
        2,
        ["cache: expected a folder, found the file table.csv"],
    ),
    "a place that cannot be written": ("check table.csv -o table.csv/c.yaml", 1, ["table.csv", "choose another path"]),
}


@pytest.mark.parametrize(("words", "code", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message_that_says_what_to_do(
    call: Any, desk: Path, words: str, code: int, said: list[str]
) -> None:
    table, cohort = (desk / "table.csv").read_bytes(), (desk / "table.yaml").read_bytes()
    began = time.monotonic()
    found, out, error = call(*words.split())
    assert time.monotonic() - began < SECONDS
    assert found == code, error
    assert len(re.findall("^error: ", error, flags=re.MULTILINE | re.IGNORECASE)) == 1, error
    assert [part for part in said if part not in error] == [], error
    assert "Traceback" not in out + error
    assert "Surname" not in out + error, "patient identifiers are never shown"
    assert len(error.splitlines()) < 40, "a short list"
    assert (desk / "table.csv").read_bytes() == table, "what a person has is never written over"
    assert (desk / "table.yaml").read_bytes() == cohort


def frame() -> pd.DataFrame:
    return pd.DataFrame({"image": ["img/0.png", "img/1.png"], "patient": ["Surname00", "Surname01"], "sick": [0, 1]})


IN_PYTHON: dict[str, tuple[Callable[[], object], str]] = {
    "one text as overrides": (
        lambda: bolus.pretrain("table.yaml", recipe="mlvicx", out="new", overrides="training.epochs=1"),
        "overrides: expected a list of key=value, or a mapping of keys, found 'training.epochs=1'",
    ),
    "a mapping with a wrong key": (
        lambda: bolus.pretrain("table.yaml", recipe="mlvicx", out="new", overrides={"training": {"epoch": 1}}),
        "unknown key 'training.epoch'; did you mean 'epochs'",
    ),
    "a number among the overrides": (
        lambda: bolus.pretrain("table.yaml", recipe="mlvicx", out="new", overrides=[3]),  # type: ignore[list-item]
        "expected key=value, found 3",
    ),
    "no recipe": (
        lambda: bolus.pretrain("table.yaml", recipe=None, out="new"),  # type: ignore[arg-type]
        "expected a recipe as .* found NoneType",
    ),
    "plan as a recipe": (lambda: bolus.pretrain("table.yaml", recipe="plan", out="new"), "bolus plan COHORT"),
    "no cohort": (
        lambda: bolus.check(None),  # type: ignore[arg-type]
        "expected a cohort.yaml, .* found NoneType",
    ),
    "a DataFrame without patients": (lambda: bolus.check(frame().drop(columns="patient")), "role 'patient'"),
    "roles as a list": (
        lambda: bolus.Cohort.open(frame(), roles=["patient"]),  # type: ignore[arg-type]
        "roles: expected a mapping, found list",
    ),
    "a share as the split": (lambda: bolus.Cohort.open(frame(), split=0.2), "split: expected a mapping, found float"),
    "one probe as text": (
        lambda: bolus.evaluate("run", "table.yaml", target="sick", probes="linear"),
        "probes: expected a list, such as .'linear'., found 'linear'",
    ),
    "one share as a number": (
        lambda: bolus.evaluate("run", "table.yaml", target="sick", fractions=0.1),  # type: ignore[arg-type]
        "fractions: expected a list, such as .0.1., found 0.1",
    ),
    "one group as text": (
        lambda: bolus.evaluate_audit("run", "table.yaml", target="sick", by="sex"),
        "by: expected a list of roles, such as .'sex'., found 'sex'",
    ),
    "a run that has not finished": (lambda: bolus.load_encoder(Path("stopped")), "training has not ended"),
    "a run that is not there": (
        lambda: bolus.Run(Path("nowhere")).record,
        "no run in nowhere: expected run.json there",
    ),
}


@pytest.mark.parametrize(("act", "said"), IN_PYTHON.values(), ids=IN_PYTHON)
def test_a_mistake_in_python_is_an_error_of_bolus(
    act: Callable[[], object], said: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    with pytest.raises(BolusError, match=said) as caught:
        act()
    assert "Surname" not in str(caught.value)


# What holds of every verb


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, each in inner.items():
        yield from verbs(each, (*path, name))


VERBS = dict(verbs(typer.main.get_command(app)))
OTHERS = {
    "--help": "every command has it, of typer",
    "--yes": "an example of a pair of flags in a docstring",
    "--no": "an example of a pair of flags in a docstring",
    "--side": "of the script in an ONNX export, which stands without bolus",
    "--test": "likewise",
}
"""Options that the source names and no verb declares."""


def test_every_option_that_the_source_names_is_one_of_a_verb() -> None:
    known = {option for each in VERBS.values() for part in each.params for option in (*part.opts, *part.secondary_opts)}
    known |= {"--version", *OTHERS}
    named: dict[str, str] = {}
    for path in sorted(Path(bolus.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value):
                    named.setdefault(option, f"{path.name}:{node.lineno}")
    assert {option: where for option, where in named.items() if option not in known} == {}
    assert len(set(named) & known) > 30, "the scan finds options"


ARGUMENTS: dict[tuple[str, ...], str] = {
    ("scan",): "img --pattern {patient} --key OUT/key -o OUT/c/c.yaml",
    ("check",): "table.yaml -o OUT/c.yaml",
    ("plan",): "table.yaml -o OUT/r.yaml",
    ("pretrain",): f"table.yaml --recipe simclr --out OUT/run {' '.join(SMALL)}",
    ("embed",): "run table.yaml -o OUT/e.parquet",
    ("predict",): "run table.yaml --head HEAD -o OUT/p.csv",
    ("export",): "run --to torch -o OUT/x",
    ("strip",): "run -o OUT/s",
    ("report",): "run -o OUT/r.html",
    ("recipes",): "",
    ("bench",): f"table.yaml --seconds 0.1 -o OUT/b.json {' '.join(SMALL)}",
    ("demo",): "--out OUT/demo",
    ("ablate",): "table.yaml --recipes simclr,vicreg --target sick --probes linear --seeds 1 --passes 16 --out OUT/ab "
    + " ".join(SMALL[:-1]),
    ("evaluate", "classify"): "run table.yaml --target sick --probes linear -o OUT/e",
    ("evaluate", "regress"): "run table.yaml --target severity --probes linear -o OUT/e",
    ("evaluate", "change"): "run table.yaml --target severity --probes linear -o OUT/e",
    ("evaluate", "retrieve"): "run table.yaml --across visit -o OUT/e",
    ("evaluate", "segment"): "run table.yaml --role mask=mask --steps 1 --labelled-patients 1 --repeats 1 -o OUT/e",
}
SLOW = {("ablate",), ("demo",)}
QUIET_OR_JSON = [
    pytest.param(verb, marks=pytest.mark.slow) if verb in SLOW else verb for verb in ARGUMENTS if verb != ("demo",)
]


def test_every_verb_is_called_here() -> None:
    assert set(ARGUMENTS) == set(VERBS)


@pytest.mark.parametrize("verb", ARGUMENTS, ids=" ".join)
@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("banana", "--device: expected cpu, cuda, cuda:N or mps, found 'banana'"),
        ("cuda:99", "--device: there is no cuda:99 here; found cpu"),
    ],
)
def test_a_device_that_is_not_here_is_told_before_any_work(
    call: Any, verb: tuple[str, ...], device: str, said: str, tmp_path: Path
) -> None:
    words = ARGUMENTS[verb].replace("OUT", str(tmp_path / "out")).split()
    code, out, error = call(*verb, *words, "--device", device)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {said}")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(verb, marks=pytest.mark.slow) if verb[-1] in ("regress", "change", "segment") else verb
        for verb in QUIET_OR_JSON
    ],
    ids=" ".join,
)
def test_quiet_prints_nothing_and_json_one_line(call: Any, desk: Path, verb: tuple[str, ...], tmp_path: Path) -> None:
    for number, flags in enumerate((["--quiet"], ["--json", "--device", "cpu"])):
        head = next((desk / "run" / "evaluations").glob("*/head-sick-linear.safetensors"))
        words = ARGUMENTS[verb].replace("OUT", str(tmp_path / str(number))).replace("HEAD", str(head)).split()
        code, out, error = call(*verb, *words, *flags)
        assert code == 0, error
        if flags == ["--quiet"]:
            assert (out, error) == ("", "")
        else:
            assert out.count("\n") == 1, out
            assert isinstance(json.loads(out), dict)


def test_json_of_what_has_errors_is_json_still(call: Any, tmp_path: Path) -> None:
    code, out, error = call("check", "lost.csv", "-o", str(tmp_path / "c.yaml"), "--json")
    assert code == 1
    assert json.loads(out)["findings"][0]["severity"] == "error"
    assert error == ""


@pytest.mark.slow
def test_the_demo_is_quiet_and_speaks_json(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bolus.cli import demo

    few = (*demo.OVERRIDES["mlvicx"][:-1], "training.max_steps=2", "sampling.batch_size=8")
    monkeypatch.setattr(demo, "NUM_PATIENTS", 24)
    monkeypatch.setattr(demo, "OVERRIDES", {"mlvicx": few})
    code, out, error = call("demo", "--out", str(tmp_path / "a"), "--json")
    assert code == 0, error
    assert set(json.loads(out)) == {"folder", "run"}
    assert call("demo", "--out", str(tmp_path / "b"), "--quiet") == (0, "", "")
