"""A plan as advice, as a commented recipe, and on the command line."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.main import get_command

from bolus.cli import app
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec, SplitSpec
from bolus.errors import CohortError, UsageError
from bolus.planning.advice import recommended, render
from bolus.planning.hazards.hazard import Hazard
from bolus.planning.offers.offers import Offer
from bolus.planning.planner import Plan, plan
from bolus.planning.resolution import Resolution, find_resolutions
from bolus.planning.writing import recipe_text, save_recipe
from bolus.recipe import Recipe, recipe_names
from bolus.run import Run
from bolus.terminal import WIDTH
from bolus.training.assembly import resolve


def a_cohort(num_patients: int = 400) -> Cohort:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(2 * num_patients)],
            "patient": [f"SECRET{i // 2:04d}" for i in range(2 * num_patients)],
            "laterality": ["left", "right"] * num_patients,
            "ill": rng.integers(0, 2, 2 * num_patients).astype(str),
            "rare": (np.arange(2 * num_patients) < 40).astype(int).astype(str),
            "severity": rng.normal(5, 2, 2 * num_patients).round(2).astype(str),
        }
    )
    roles = {"label:ill": "ill", "label:rare": "rare", "score:severity": "severity"}
    return Cohort(frame, CohortSpec(table="some/table.csv", roles=roles))


CONTRAST = {"kind": "contrast", "relation": "views", "negatives": "other_patients"}
BILATERAL = {"kind": "contrast", "relation": {"same": ["patient"]}, "between": "laterality", "hidden": 0}
BATCH = "label:batch tells training from test patients (Cramer's V 0.97): it leaks the split"
OFFERS = (
    Offer("views", "SimCLR", "two views of one image", "recommended", ("560 images of 280 patients.",), CONTRAST),
    Offer("bilateral", "COMPRER", "both sides of one person", "recommended",
          ("280 of 280 training patients have both sides (560 pairs).", BATCH), BILATERAL),
    Offer("levels", "MLVICX", "every level of the encoder", "possible", ("Its heads are large.",),
          {"kind": "varcov", "source": "levels", "width": 64}),
    Offer("position", "GCL", "slices at one height", "possible", ("Quarters of the volume.",),
          {"kind": "contrast", "relation": "bin:slice_position", "head": "image"}, {"slice_position": 4}),
    Offer("batch", "GCL", "images of one batch", "refused", (BATCH,), None),
    Offer("marker", "GCL", "images with a marker", "refused", ("A marker is set by hand",), None),
    Offer("modality", "COMPRER", "two modalities", "impossible", ("All images are of one modality.", "More."), None),
    Offer("phase", "GCL", "images of one phase", "impossible", ("No column says the phase",), None),
    Offer("phase_pixel", "GCL", "pixels of one phase", "impossible", ("No column says the phase",), None),
)  # fmt: skip
HAZARDS = (
    Hazard("label:batch", "leak", BATCH, True),
    Hazard("label:ill", "shortcut", "label:ill follows site: 85 % of north, 12 % of south", False),
)
CHOICES = (
    ("images.size", "files are 1024 x 1024 pixels, and findings are large"),
    ("sampling", "pairs fill half of a batch"),
    ("combiner.kind", "two objectives that need not pull apart"),
)


def a_plan(**changes: Any) -> Plan:
    cohort = a_cohort()
    recipe = Recipe.load(
        {"name": "planned", "images": {"size": 96}, "objectives": {"views": CONTRAST, "bilateral": BILATERAL}}
    )
    found = Plan(
        cohort=cohort,
        samples=cohort.samples("image"),
        facts=("800 images of 400 patients.", "Every patient has two sides"),
        offers=OFFERS,
        hazards=HAZARDS,
        resolutions=tuple(find_resolutions(cohort)),
        recipe=recipe,
        choices=CHOICES,
    )
    return replace(found, **changes)


def section(text: str, title: str) -> str:
    return next(part for part in text.split("\n\n") if part.startswith(title))


def commands(text: str) -> list[list[str]]:
    joined = text.replace(" \\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line.startswith("    bolus ")]


def uncomment(text: str) -> str:
    """As an editor does it, from the first section on: the header is no recipe."""
    header = re.match(r"(# .*\n)+", text)
    assert header
    return re.sub(r"^( *)# ", r"\1", text[header.end() :], flags=re.MULTILINE)


def test_advice_says_what_to_learn_what_to_leave_and_what_can_be_decided() -> None:
    text = render(a_plan())
    titles = [part.splitlines()[0] for part in text.split("\n\n")]
    assert titles == [
        "The cohort",
        "Recommended: 2 objectives, trained together",
        "The start",
        "Possible, left out",
        "Refused: learn from none of these",
        "Take care",
        "Not possible here",
        "What the test patients can decide",
        "Next",
    ]
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "800 images of 400 patients. Every patient has two sides." in section(text, "The cohort")
    chosen = section(text, "Recommended")
    assert "bilateral (COMPRER): both sides of one person\n    280 of 280 training patients" in chosen
    assert "resnet18 at 96 x 96 pixels, 64 images a batch, 2 views each, 100 epochs" in " ".join(chosen.split())
    refused = section(text, "Refused")
    assert " ".join(refused.split()).count("it leaks the split") == 1
    assert "marker (GCL): A marker is set by hand." in refused
    assert "Hence no batch (GCL)." in refused
    assert "leaks" not in text.replace(refused, ""), "a refusal is told once"
    assert "follows site" in section(text, "Take care")
    missing = section(text, "Not possible").splitlines()
    assert missing[1:] == [
        "  - modality (COMPRER): All images are of one modality.",
        "  - phase (GCL), phase_pixel (GCL): No column says the phase.",
    ]
    decided = section(text, "What the test")
    assert decided.index("label:ill:") < decided.index("score:severity:") < decided.index("label:rare: cannot")
    assert decided.count("undecided") == decided.count("Four times") == 1
    assert "SECRET" not in text


def test_the_commands_of_the_advice_are_accepted_and_ask_what_can_be_decided() -> None:
    text = render(a_plan(), cohort=["my cohort.yaml", "--missing", "ill=?"], recipe="r.yaml")
    found = commands(text)
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for words in found:
        verb, rest = verbs[words[1]], words[2:]
        if words[1] == "evaluate":
            verb, rest = verb.commands[rest[0]], rest[1:]
        verb.make_context(words[1], rest)  # a wrong option or value raises
        assert words[1] == "pretrain" or "my cohort.yaml" in words
    asked = [" ".join(words[2:]) for words in found if words[1] == "evaluate"]
    common = "runs/a my cohort.yaml --missing ill=?"
    assert asked == [
        f"classify {common} --target ill",
        f"regress {common} --target severity",
        f"retrieve {common} --across laterality",
        f"classify {common} --target ill --audit",  # it follows the site
    ]
    ablate = next(words for words in found if words[1] == "ablate")
    assert ablate[-6:] == ["--task", "classify", "--target", "ill", "--on", "validation"]
    temporal = {**CONTRAST, "relation": {"same": ["patient"], "differ": ["visit"]}}
    visits = render(a_plan(offers=(*OFFERS, replace(OFFERS[0], name="temporal", entry=temporal))))
    assert "bolus evaluate retrieve" in visits
    assert "--across visit" in visits
    assert ["bolus", "check", "t.csv", "-o", "cohort.yaml"] in commands(render(a_plan(), cohort=["t.csv"]))


def test_an_ablation_is_on_validation_patients_where_they_can_decide() -> None:
    def split(num_validation: int) -> Plan:
        cohort = a_cohort()
        place = np.arange(len(cohort)) // 2  # two images a patient
        side = np.where(place < 100, "test", np.where(place < 100 + num_validation, "val", "train"))
        cohort = Cohort(cohort.table.assign(split=side), CohortSpec(table="t.csv", roles=cohort.roles))
        return a_plan(cohort=cohort, samples=cohort.samples("image"), resolutions=tuple(find_resolutions(cohort)))

    for num, on in ((100, ["--on", "validation"]), (10, ["--target", "ill"]), (0, ["--target", "ill"])):
        text = render(split(num))
        assert next(words for words in commands(text) if words[1] == "ablate")[-2:] == on
        assert ("too few are in validation" in text) == (num < 100)


def test_what_is_not_there_is_not_spoken_of() -> None:
    one = a_plan(
        offers=OFFERS[:1],
        hazards=(),
        resolutions=(),
        recipe=Recipe.load({"name": "one", "objectives": {"v": CONTRAST}}),
    )
    text = render(one)
    assert "Recommended: one objective" in text
    assert not re.search("Refused|Take care|Not possible|Possible|ablate|evaluate", text)
    assert "no column is a label, a score or a mask" in text
    few = tuple(find_resolutions(a_cohort(30)))
    assert "None of it yet" in render(a_plan(resolutions=few))
    assert "Four times" not in render(a_plan(resolutions=few))


def test_columns_without_a_role_are_named() -> None:
    cohort = a_cohort()
    assert "no role" not in render(a_plan())
    frame = cohort.table.assign(keywords="x")
    text = render(a_plan(cohort=Cohort(frame, cohort.spec)))
    assert "1 column has no role (keywords); a label or a score among them: --role" in " ".join(text.split())
    frame = frame.assign(**{f"c{i}": "x" for i in range(8)})
    text = render(a_plan(cohort=Cohort(frame, cohort.spec)))
    assert "9 columns have no role (keywords, c0, c1, c2, c3, c4 and 3 more)" in " ".join(text.split())


def test_a_column_that_is_refused_is_not_judged_by() -> None:
    text = render(a_plan(hazards=(Hazard("label:ill", "leak", "label:ill tells the split", True),)))
    assert "label:ill" not in section(text, "What the test")
    assert "--target ill" not in text


def test_targets_that_are_refused_are_not_said_to_be_absent() -> None:
    hazards = tuple(Hazard(role, "leak", f"{role} tells the split", True)
                    for role in ("label:ill", "label:rare", "score:severity"))  # fmt: skip
    decided = section(render(a_plan(hazards=hazards)), "What the test")
    assert "no label, score or mask can be asked for" in decided
    assert "no column" not in decided


def test_masks_of_clips_are_not_judged_by() -> None:
    mask = Resolution("mask", "segment", "dice", 40, None, 0.02, 0.03, "mask: a difference of 0.02 Dice can be found")
    found = a_plan(resolutions=(mask,))
    assert "--task segment" in render(found)
    text = render(replace(found, samples=replace(found.samples, unit="clip")))
    assert "segment" not in text
    assert "Dice" not in text


def test_a_larger_test_is_asked_for_where_shares_make_it() -> None:
    few = a_cohort(30)
    for side, site, said in ((None, None, "(--split test=0.4)"), ("test", None, "which column side says"),
                             (None, "north", "put more patients on the test side, or")):  # fmt: skip
        frame = few.table.assign(
            side=np.where(np.arange(60) < 30, "train", "test"), site=["north", "north", "south", "south"] * 15
        )
        roles = {**few.roles, **({"split": "side"} if side else {})}
        spec = CohortSpec(table="t.csv", roles=roles, split=SplitSpec(leave_out_site=site))
        cohort = Cohort(frame, spec)
        decided = section(render(a_plan(cohort=cohort, resolutions=tuple(find_resolutions(few)))), "What the test")
        assert said in " ".join(decided.split())


def test_a_long_command_goes_on_with_an_option_and_its_value_on_one_line() -> None:
    words = ["cohort.yaml", *(word for i in range(9) for word in ("--role", f"label:a long name {i}=column {i}"))]
    text = render(a_plan(), cohort=words)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert not re.search(r"--\w+ \\\n", text)
    assert all(command[3:].count("--role") == 9 for command in commands(text))
    assert all(words[-1] in command for command in commands(text))


def test_an_objective_that_an_override_drops_is_left_out_and_said() -> None:
    found = a_plan()
    assert found.recipe is not None
    found = replace(found, recipe=found.recipe.override(["objectives.bilateral=null"]))
    assert "Not in it, as asked: bilateral (COMPRER)." in " ".join(render(found).split())
    text = recipe_text(found)
    assert Recipe.load(yaml.safe_load(text)) == found.recipe
    assert "recommended, left out. COMPRER: both sides" in text
    assert "bilateral" in Recipe.load(yaml.safe_load(uncomment(text))).objectives


def test_many_columns_of_one_hazard_are_named_in_one_line() -> None:
    hazards = tuple(Hazard(f"attribute:a{i}", "missing", f"attribute:a{i} has no value", True) for i in range(30))
    refused = section(render(a_plan(hazards=hazards)), "Refused")
    assert refused.count("has no value") == 1
    assert all(re.search(rf"attribute:a{i}\b", refused) for i in range(30))


def test_nothing_to_recommend_is_said_and_no_recipe_is_made(tmp_path: Path) -> None:
    found = a_plan(offers=OFFERS[4:], recipe=None, choices=())
    text = render(found)
    assert "Recommended: nothing" in text
    assert "pretrain" not in text
    assert "--role" in text
    with pytest.raises(CohortError, match="nothing to train on"):
        save_recipe(found, tmp_path / "r.yaml")
    assert not list(tmp_path.iterdir())


def test_the_recipe_is_read_back_equal_with_a_reason_at_every_choice() -> None:
    found = a_plan()
    text = recipe_text(found)
    assert Recipe.load(yaml.safe_load(text)) == found.recipe
    assert max(map(len, text.splitlines())) <= WIDTH
    assert re.search(r"size: 96  # files are 1024 x 1024 pixels", text)
    assert re.search(r"## pairs fill half of a batch\nsampling:\n  batch_size: 64", text)
    assert re.search(r"kind: sum  # two objectives", text), "a choice is written though it is the default"
    assert re.search(r"## COMPRER: both sides of one person\. 280 of 280 .*\n  bilateral:", text)
    for key in ("backbone", "preset", "batch_size", "epochs", "seed"):
        assert re.search(rf"^ +{key}:", text, flags=re.MULTILINE)
    assert "trust" not in text, "what is the default and nobody edits is left out"
    assert "refused: marker (GCL): A marker" in text
    assert found.cohort.split_hash in text
    assert "SECRET" not in text


def test_what_is_left_out_can_be_uncommented() -> None:
    found = a_plan()
    text = uncomment(recipe_text(found))
    made = Recipe.load(yaml.safe_load(text))
    assert made.objectives.keys() == {"views", "bilateral", "levels", "position"}
    assert dict(made.bins) == {"slice_position": 4}
    assert made.objectives["position"].head == "image"
    resolve(made)  # the parameters are those of the objectives
    assert "refused" in text
    with_bins = a_plan(recipe=Recipe.load({**found.recipe.model_dump(mode="json"), "bins": {"visit": 3}}))  # type: ignore[union-attr]
    assert dict(Recipe.load(yaml.safe_load(recipe_text(with_bins))).bins) == {"visit": 3}
    assert dict(Recipe.load(yaml.safe_load(uncomment(recipe_text(with_bins)))).bins) == {
        "visit": 3,
        "slice_position": 4,
    }


@pytest.mark.parametrize("name", recipe_names())
def test_any_recipe_is_read_back_equal(name: str) -> None:
    for recipe in (Recipe.load(name), resolve(Recipe.load(name))):
        text = recipe_text(
            a_plan(recipe=recipe, choices=(("optimizer.lr", "theirs"), ("schedule", "\x85 odd\n# text")))
        )
        back = Recipe.load(yaml.safe_load(text))
        assert back == recipe
        assert back.digest == recipe.digest


def test_a_modality_keeps_what_equals_a_default_but_not_the_rest() -> None:
    data = {
        "name": "two",
        "summary": "yes: # no",
        "encoder": {"backbone": "vit_tiny", "in_channels": 3},
        "encoders": "per_modality",
        "images": {"augment": {"preset": "mri", "blur": 0.5}},
        "modalities": {"XR": {"encoder": {"backbone": "resnet18"}, "augment": {"preset": "xray"}}, "1": {"size": 64}},
        "objectives": {"views": CONTRAST},
    }
    recipe = Recipe.load(data)
    back = Recipe.load(yaml.safe_load(recipe_text(a_plan(recipe=recipe))))
    assert back == recipe
    assert back.encoder_of("XR").in_channels == 1


def test_planned_in_a_line_an_objective() -> None:
    assert recommended(a_plan()) == [
        "planned: 2 objectives, trained together",
        "  views (SimCLR): two views of one image",
        "  bilateral (COMPRER): both sides of one person",
        "refused: label:batch; bolus plan says why",
    ]


@pytest.fixture
def bolus(monkeypatch: pytest.MonkeyPatch, call_bolus: Any, tmp_path: Path) -> Any:
    monkeypatch.setenv("BOLUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str]:
        code, shown = call_bolus(*words)
        assert not re.search(r"P0\d\d|Traceback", shown)
        return code, shown

    return call


def test_plan_advises_writes_and_does_not_write_over(bolus: Any, tiny_cohort: Path, tmp_path: Path) -> None:
    path = tmp_path / "made" / "recipe.yaml"
    code, out = bolus("plan", tiny_cohort, "images.size=24", "-o", path)
    assert code == 0, out
    assert f"bolus pretrain {shlex.quote(str(tiny_cohort))}" in out.replace(" \\\n      ", " ")
    assert f"wrote {path}" in out
    made = plan(Cohort.open(tiny_cohort), overrides=["images.size=24"])
    assert made.recipe is not None
    assert Recipe.load(path) == made.recipe
    assert made.recipe.images.size == 24
    assert "size: 24  # As asked for." in path.read_text()
    assert bolus("plan", tiny_cohort, "images.size=24", "-o", path)[0] == 0, "the same recipe again"
    path.write_text(path.read_text() + "# mine\n")
    code, out = bolus("plan", tiny_cohort, "images.size=24", "-o", path)
    assert code == 2
    assert "--force" in out
    assert path.read_text().endswith("# mine\n")
    assert bolus("plan", tiny_cohort, "images.size=24", "-o", path, "--force")[0] == 0
    for words in ((), ("--force",)):
        code, out = bolus("plan", tiny_cohort, "-o", path.parent, *words)
        assert code == 2
        assert "is a folder" in out
    assert not path.read_text().endswith("# mine\n")


def test_every_recipe_that_is_planned_can_be_read_changed_and_trained(bolus: Any, tiny_cohort: Path) -> None:
    found = plan(Cohort.open(tiny_cohort))
    text = recipe_text(found)
    assert Recipe.load(yaml.safe_load(text)) == found.recipe
    everything = Recipe.load(yaml.safe_load(uncomment(text)))
    assert set(everything.objectives) == {offer.name for offer in found.offers if offer.entry is not None}
    resolve(everything)
    assert max(map(len, render(found).splitlines())) <= WIDTH


def test_the_unit_is_asked_for_by_option_or_key(shared_data: Path) -> None:
    clips = Cohort.open(shared_data / "lus_blues" / "meta.csv")
    for found in (plan(clips, unit="image"), plan(clips, overrides=["images.unit=image"])):
        assert found.recipe is not None
        assert found.recipe.images.unit == found.samples.unit == "image"
    assert plan(clips).samples.unit == "clip"


def test_mistakes_of_plan(bolus: Any, tiny_cohort: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.csv"
    lonely.write_text("image,patient\na.png,P001\nb.png,P001\n")
    code, out = bolus("plan", lonely)
    assert code == 1
    assert "nothing to train on can be recommended" in out
    assert not (tmp_path / "recipe.yaml").exists()
    code, out = bolus("pretrain", lonely, "--recipe", "plan", "--out", tmp_path / "run")
    assert code == 1
    assert "nothing to train on can be recommended" in out
    assert not (tmp_path / "run").exists()
    code, out = bolus("plan", tiny_cohort, "imags.size=24")
    assert code == 1
    assert "did you mean 'images'" in out
    assert bolus("plan", tiny_cohort, "--unit", "voxel")[0] == 2
    code, out = bolus("pretrain", tiny_cohort)
    assert code == 2
    assert "mlvicx" in out
    assert f"bolus plan {tiny_cohort} -o recipe.yaml" in out
    assert "--recipe plan" in out


SMALL = ("encoder.backbone=r18w32", "images.size=24", "sampling.batch_size=8", "training.max_steps=2")


def test_pretrain_planned(bolus: Any, tiny_cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = plan(Cohort.open(tiny_cohort), overrides=SMALL)
    assert found.recipe is not None
    code, out = bolus("pretrain", tiny_cohort, *SMALL, "--recipe", "plan", "--dry-run", "--out", run)
    assert code == 0, out
    assert "2 steps" in out
    assert not run.exists()
    changed = ["objectives.mine={kind: varcov, source: pooled, width: 16}", "objectives.views=null"]
    words = ["pretrain", tiny_cohort, *SMALL, *changed, "--recipe", "plan", "--out", run]
    code, out = bolus(*words)
    assert code == 0, out
    told = plan(Cohort.open(tiny_cohort), overrides=[*SMALL, *changed])
    assert "\n".join(recommended(told)) in out
    assert recommended(told)[:2] == ["planned: one objective", "  mine"]
    assert (run / "plan.txt").read_text() == recipe_text(told)
    assert told.recipe == found.recipe.override(changed)
    assert Run.open(run).recipe == resolve(told.recipe)
    (run / "plan.txt").unlink()
    assert bolus(*words)[0] == 1, "the folder holds a run"
    code, out = bolus(*words, "--resume")
    assert code == 0, out
    assert not (run / "plan.txt").exists(), "a run that was there before is left alone"


def test_a_planned_run_goes_on_with_its_own_recipe(
    bolus: Any, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, words = tmp_path / "run", ["pretrain", tiny_cohort, *SMALL, "--recipe", "plan", "--out", tmp_path / "run"]
    assert bolus(*words, "training.checkpoint_steps=1", "training.max_hours=1.0e-9", "training.log_steps=1")[0] == 0
    assert Run.open(run).status == "stopped"
    assert (run / "plan.txt").is_file()

    def another(*_: Any, **__: Any) -> Any:
        raise UsageError("planned anew")

    monkeypatch.setattr("bolus.planning.planned.plan", another)
    code, out = bolus(
        *words, "training.checkpoint_steps=1", "training.max_hours=null", "training.log_steps=1", "--resume"
    )
    assert code == 0, out
    assert Run.open(run).status == "finished"
