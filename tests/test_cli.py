"""The command line as a person uses it, deliberate mistakes included; exit codes 0, 1 and 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from bolus import __version__
from bolus.recipe import Recipe, recipe_names
from bolus.training.assembly import resolve
from test_judging import other_people


class Result:
    def __init__(self, code: int, out: str) -> None:
        self.code, self.out = code, out


@pytest.fixture
def bolus(monkeypatch: pytest.MonkeyPatch, call_bolus: Any, tmp_path: Path) -> Any:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Result:
        return Result(*call_bolus(*words))

    return call


def test_check_pretrain_embed_evaluate_with_roles_on_the_command_line(
    bolus: Any, tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    table = tiny_cohort.with_name("table.csv")
    roles = ["--role", "label:sick=sick", "--role", "time=days", "--role", "score:severity=severity"]
    split = ["--split", "seed=1", "--split", "val=0.2", "--split", "test=0.3"]
    found = bolus("check", table, *roles, *split, "-o", tmp_path / "cohort.yaml")
    assert found.code == 0, found.out
    assert yaml.safe_load((tmp_path / "cohort.yaml").read_text())["roles"]["label:sick"] == "sick"
    assert json.loads((tmp_path / "cohort-check.json").read_text())

    recipe = tmp_path / "small.yaml"
    recipe.write_text(Recipe.load(small_recipe).to_yaml())
    found = bolus("pretrain", tmp_path / "cohort.yaml", "training.epochs=1", "--recipe", recipe, "--dry-run")
    assert found.code == 0, found.out
    assert re.search(r"\d+ images/s, \d+\.\d+ GiB at the peak, \d+ steps", found.out)
    assert not (tmp_path / "run").exists()

    found = bolus("pretrain", table, "training.epochs=1", "--recipe", recipe, "--out", tmp_path / "run", *roles, *split)
    assert found.code == 0, found.out
    found = bolus("embed", tmp_path / "run", tmp_path / "cohort.yaml", "-o", tmp_path / "e.parquet")
    assert found.code == 0, found.out
    assert "60 embeddings of width 256" in found.out
    assert len(pd.read_parquet(tmp_path / "e.parquet")) == 60
    found = bolus(
        "evaluate", "classify", tmp_path / "run", tmp_path / "cohort.yaml", "--target", "sick", "--fractions", "0.5,1"
    )
    assert found.code == 0, found.out
    assert "random-init" in found.out
    assert "decided" in found.out
    assert list((tmp_path / "run" / "evaluations").glob("classify-sick-??????/results.jsonl"))
    found = bolus("evaluate", "regress", "--encoder", tmp_path / "run" / "encoder", tmp_path / "cohort.yaml",
                  "--target", "severity", "-o", tmp_path / "other")  # fmt: skip
    assert found.code == 0, found.out
    assert "mae" in found.out

    found = bolus("pretrain", table, "training.epochs=1", "--recipe", recipe, "--out", tmp_path / "run", *roles, *split)
    assert found.code == 1
    assert "--resume" in found.out


def test_a_score_is_pretrained_on_judged_and_predicted(bolus: Any, tiny_cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = ["encoder.backbone=r18w32", "images.size=24", "sampling.batch_size=8", "training.epochs=1"]
    found = bolus("pretrain", tiny_cohort, *keys, "--recipe", "supremix", "--out", run)
    assert found.code == 0, found.out
    found = bolus("evaluate", "regress", run, tiny_cohort, "--target", "severity",
                  "--probes", "linear,finetune", "--epochs", "1")  # fmt: skip
    assert found.code == 0, found.out
    assert re.search(r"finetune +1 +run", found.out)
    found = bolus("evaluate", "change", run, tiny_cohort, "--target", "severity", "--tolerance", "0.2",
                  "--adjacent-only", "--probes", "linear")  # fmt: skip
    assert found.code == 0, found.out
    assert "change:severity tolerance 0.2" in found.out
    found = bolus("evaluate", "classify", run, tiny_cohort, "--target", "sick", "--probes", "linear")
    assert found.code == 0, found.out
    found = bolus("predict", run, tiny_cohort, "--head", "sick", "-o", tmp_path / "p.csv")
    assert found.code == 0, found.out
    assert "60 predictions for 60 rows" in found.out
    assert "rows belong to patients that the head was fitted on" in found.out
    found = bolus("predict", run, tiny_cohort, "--head", "finetuned-severity", "-o", tmp_path / "f.csv")
    assert found.code == 0, found.out
    assert "The head is used with its own encoder" in found.out
    assert len(list((run / "evaluations").glob("regress-severity-linear-finetune-??????/finetuned-severity"))) == 1
    frame = pd.read_csv(tmp_path / "p.csv")
    assert frame["probability:1"].between(0, 1).all()
    assert frame["row"].tolist() == list(range(1, 61))


def test_an_encoder_is_asked_for_people_groups_visits_and_another_cohort(
    bolus: Any, tiny_cohort: Path, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", other_people(tiny_cohort)
    keys = ["encoder.backbone=r18w32", "images.size=32", "sampling.batch_size=8", "training.max_steps=1"]
    found = bolus("pretrain", tiny_cohort, *keys, "--recipe", "comprer_temporal", "--out", run)
    assert found.code == 0, found.out
    found = bolus("evaluate", "retrieve", run, tiny_cohort, "--across", "visit", "--baselines",
                  run / "encoder")  # fmt: skip
    assert found.code == 0, found.out
    assert "visit: earlier to later" in found.out
    assert re.search(r"^ +\d+ +encoder +[01]\.", found.out, flags=re.MULTILINE)
    found = bolus("evaluate", "classify", run, tiny_cohort, "--target", "sick", "--audit", "--by", "attribute:sex")
    assert found.code == 0, found.out
    assert "sick, linear: auroc" in found.out
    assert "decode:sex" in found.out
    found = bolus(
        "evaluate", "classify", run, tiny_cohort, "--target", "sick", "--horizon", "next", "--probes", "linear"
    )
    assert found.code == 0, found.out
    assert "present label" in found.out
    found = bolus(
        "evaluate", "classify", run, tiny_cohort, "--target", "sick", "--elsewhere", other, "--probes", "linear"
    )
    assert found.code == 0, found.out
    assert "sick elsewhere" in found.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["check", "absent.csv"], 1, "no such cohort or table"),
        (["check", "TABLE", "--role", "patient"], 2, "expects ROLE=COLUMN"),
        (["check", "TABLE", "--role", "patient=pat"], 1, "did you mean 'patient'"),
        (["check", "TABLE", "--role", "view=sex"], 1, "role 'view': unknown"),
        (["check", "TABLE", "--role", "score:sick=sick"], 1, "is not a number"),
        (["check", "TABLE", "--missing", "sickk=no"], 1, "did you mean 'sick'"),
        (["pretrain", "TABLE"], 2, "--recipe is needed"),
        (["pretrain", "TABLE", "--recipe", "mlvixc"], 1, "did you mean 'mlvicx'"),
        (["pretrain", "TABLE", "trainng.epochs=1", "--recipe", "mlvicx"], 1, "did you mean 'training'"),
        (["pretrain", "TABLE", "training.epochs=0", "--recipe", "mlvicx"], 1, "training.epochs"),
        (["pretrain", "TABLE", "objectives.global.widht=9", "--recipe", "mlvicx"], 1, "did you mean 'width'"),
        (["evaluate", "classify", "TABLE", "--target", "sick"], 2, "run folder"),
        (["evaluate", "nothing", "TABLE", "--target", "sick"], 2, "needs a question first, one of classify, regress"),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--targt", "sick"],
            2,
            "No such option: --targt (Possible options: --root, --target)",
        ),
        (["check", "TABLE", "--recipe", "mlvicx"], 2, "bolus demo, pretrain, ablate and bench have --recipe"),
        (["evaluate", "classify", "nothing", "TABLE"], 2, "--target is needed"),
        (["evaluate", "classify", "nothing", "TABLE", "--target", "age"], 1, "error:"),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--tolerance", "1"],
            2,
            "bolus evaluate change has --tolerance",
        ),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--epochs", "1"],
            2,
            "--epochs is for --probes frozen or",
        ),
        (
            ["evaluate", "regress", "nothing", "TABLE", "--target", "x", "--min-patients", "1"],
            2,
            "bolus evaluate classify has --min-patients",
        ),
        (
            [
                "evaluate",
                "chnge",
                "nothing",
                "TABLE",
                "--target",
                "x",
            ],
            2,
            "did you mean 'change'",
        ),
        (
            ["evaluate", "change", "nothing", "TABLE", "--target", "x", "--epochs", "1"],
            2,
            "bolus evaluate classify and regress have --epochs",
        ),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--overlays", "1"],
            2,
            "bolus evaluate segment has --overlays",
        ),
        (["evaluate", "segment", "nothing", "TABLE", "--class", "x=a"], 2, "--class expects LABEL=NAME"),
        (["evaluate", "segment", "nothing", "absent.csv", "--steps", "0"], 2, "steps must be at least 1"),
        (
            [
                "evaluate",
                "retrieve",
                "nothing",
                "TABLE",
            ],
            2,
            "--across is needed",
        ),
        (
            ["evaluate", "retrieve", "nothing", "TABLE", "--target", "x"],
            2,
            "bolus evaluate classify, regress, change and segment have --target",
        ),
        (["evaluate", "clasify", "nothing", "TABLE", "--target", "x", "--by", "a"], 2, "mean 'classify'"),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--baselines", "a,"],
            2,
            "expected names by commas",
        ),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--across", "visit"],
            2,
            "bolus evaluate retrieve has --across",
        ),
        (["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--by", "site"], 2, "--by is for --audit"),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--elsewhere-target", "y"],
            2,
            "is for --elsewhere",
        ),
        (["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--audit", "--horizon", "next"], 2, "leave out"),
        (["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--horizon", "nxt"], 2, "did you mean 'next'"),
        (
            ["evaluate", "segment", "nothing", "TABLE", "--baselines", "b"],
            2,
            "have --baselines",
        ),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--probes", "liner"],
            2,
            "did you mean 'linear'",
        ),
        (["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--fractions", "0,1"], 2, "fractions above 0"),
        (
            ["evaluate", "classify", "nothing", "TABLE", "--target", "x", "--probes", "frozen", "--epochs", "0"],
            2,
            "epochs must be",
        ),
        (
            ["evaluate", "change", "nothing", "TABLE", "--target", "x", "--probes", "finetune"],
            2,
            "not available for change",
        ),
        (["evaluate", "change", "nothing", "TABLE", "--target", "x", "--tolerance", "-1"], 2, "tolerance"),
        (
            [
                "evaluate",
                "regress",
                "nothing",
                "TABLE",
                "--target",
                "x",
                "--probes",
                "finetune",
                "--class-weights",
                "balanced",
            ],
            2,
            "class weights are for classify",
        ),
        (["predict", "nothing", "TABLE"], 2, "--head is needed"),
        (["pretrain", "TABLE", "--recipe", "supremix"], 1, "the cohort has no role score:NAME"),
        (["pretrain", "TABLE", "--recipe", "supcon"], 1, "label:diagnosis"),
        (["pretrain", "TABLE", "--recipe", "learner", "--role", "score:s=severity"], 1, "role series"),
        (
            ["pretrain", "TABLE", "images.unit=image", "--recipe", "learner", "--role", "score:s=severity"],
            1,
            "encoder.temporal_shift=null",
        ),
        (["embed", "no-such-run", "TABLE"], 1, "no-such-run"),
        (["recipes", "nothing"], 1, "no recipe named"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_mistakes_end_in_one_message_and_an_exit_code(
    bolus: Any,
    tiny_cohort: Path,
    words: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = str(tiny_cohort.with_name("table.csv"))
    found = bolus(*[table if word == "TABLE" else word for word in words])
    assert found.code == code, found.out
    assert said in found.out
    assert "Traceback" not in found.out
    assert "P00" not in found.out, "patient identifiers are never shown"


def test_help_names_every_verb(bolus: Any) -> None:
    found = bolus("--help")
    assert found.code == 0
    for verb in ("demo", "check", "plan", "pretrain", "embed", "evaluate", "predict", "recipes"):
        assert verb in found.out


def test_the_version_is_that_of_the_package(bolus: Any) -> None:
    assert bolus("--version").out == f"bolus {__version__}\n"


def test_recipes_are_listed_and_printed_whole(bolus: Any) -> None:
    found = bolus("recipes")
    assert [line.split()[0] for line in found.out.splitlines() if not line.startswith(" ")] == list(recipe_names())
    for name in recipe_names():
        shown = bolus("recipes", name)
        assert resolve(Recipe.load(yaml.safe_load(shown.out))) == resolve(Recipe.load(name))
        assert "rotation: null" not in shown.out, "every default is filled in"


def test_a_mistyped_key_is_told_before_anything_slow_is_imported() -> None:
    code = (
        "import sys; from bolus.cli import main\n"
        "sys.argv = ['bolus', 'pretrain', 'absent.csv', 'trainng.epochs=1', '--recipe', 'mlvicx']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["1", "False"]
    assert "did you mean 'training'" in shown.stderr
