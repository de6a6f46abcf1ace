"""What a plan allows, recommends and refuses, and that its counts are those of a loop."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bolus.data.batches.columns import TrainingColumns
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec, SplitSpec
from bolus.errors import CohortError, RecipeError, UsageError
from bolus.phantom.images import make_phantom
from bolus.planning.offers.offers import Offer
from bolus.planning.offers.pairs import count_pairs
from bolus.planning.planner import Plan, plan
from bolus.training.assembly import resolve
from bolus.training.loop import pretrain
from bolus.training.rehearsal import dry_run


def table(num_patients: int = 60, **columns: Any) -> dict[str, Any]:
    """Four images of each patient."""
    rows = 4 * num_patients
    return {"image": [f"{row}.png" for row in range(rows)], "patient": np.repeat(np.arange(num_patients), 4), **columns}


def planned(columns: dict[str, Any], roles: dict[str, str] | None = None, **keywords: Any) -> Plan:
    spec = CohortSpec(table="t.csv", roles=roles or {}, split=SplitSpec(val=0.1, test=0.2))
    return plan(Cohort(pd.DataFrame(columns).astype(str), spec), **keywords)


def verdicts(found: Plan) -> dict[str, str]:
    return {offer.name: offer.verdict for offer in found.offers}


def offer(found: Plan, name: str) -> Offer:
    return next(each for each in found.offers if each.name == name)


def test_a_bare_table_of_images_gives_views_and_patients_of_several() -> None:
    found = planned(table())
    assert found.recipe is not None
    assert list(found.recipe.objectives) == ["views", "patient"]
    assert found.recipe.objectives["views"].parameters["negatives"] == "other_patients"
    single = planned({name: values[::4] for name, values in table().items()})
    assert single.recipe is not None
    assert list(single.recipe.objectives) == ["views"]
    assert verdicts(single)["patient"] == "impossible"


def test_each_column_brings_its_objective() -> None:
    rng = np.random.default_rng(0)
    rows = 240
    sides, visits = np.tile(["L", "R", "L", "R"], 60), np.tile([1, 1, 2, 2], 60)
    modality = np.tile(["MR", "MR", "XR", "XR"], 60)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"laterality": sides}, "bilateral"),
        ({"visit": visits}, "temporal"),
        ({"time": visits * 100}, "temporal"),
        ({"modality": modality}, "modality"),
        ({"phase": np.tile(["ED", "ES"], rows // 2)}, "phase"),
        ({"region": rng.integers(0, 5, rows)}, "region"),
        ({"slice": np.tile([1, 2, 3, 4], 60), "pos": np.tile([0.1, 0.4, 0.6, 0.9], 60)}, "position"),
        ({"age": rng.integers(20, 80, rows)}, "measures"),
        ({"sex": rng.choice(["F", "M"], rows)}, "measures"),
    ]
    for columns, name in cases:
        found = planned(table(**columns))
        assert verdicts(found)[name] == "recommended", (name, offer(found, name).reasons)
        assert found.recipe is not None
        assert name in found.recipe.objectives
        without = planned(table())
        assert verdicts(without)[name] in ("impossible", "refused"), name


def test_a_patient_label_gives_way_to_finer_pairs() -> None:
    sides = np.tile(["L", "R", "L", "R"], 60)
    assert verdicts(planned(table(laterality=sides)))["patient"] == "possible"
    assert verdicts(planned(table()))["patient"] == "recommended"


def test_too_few_patients_with_pairs_are_possible_and_none_is_impossible() -> None:
    sides = np.tile(["L", "L", "L", "L"], 60).astype(object)
    sides[:20:4] = "R"
    found = planned(table(laterality=sides))
    counted = int(offer(found, "bilateral").reasons[0].split(" ")[0])
    expected = sum(
        found.samples.cohort.split[row] == "train" for row in range(0, 20, 4)
    )  # five patients have a right side
    assert counted == expected
    assert verdicts(found)["bilateral"] in ("possible", "impossible")
    assert verdicts(planned(table(laterality=["L"] * 240)))["bilateral"] == "impossible"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), differ=st.booleans())
def test_pairs_are_those_of_a_loop(seed: int, differ: bool) -> None:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(2, 30))
    patients = rng.integers(0, 8, number).astype(str)
    sides = rng.choice(["left", "right", ""], number)
    sides_of = {patient: rng.choice(["train", "test"], p=[0.7, 0.3]) for patient in np.unique(patients)}
    sides_of[patients[0]] = "train"
    frame = pd.DataFrame(
        {
            "image": [f"{row}.png" for row in range(number)],
            "patient": patients,
            "laterality": sides,
            "split": [sides_of[patient] for patient in patients],
        }
    )
    columns = TrainingColumns(Cohort(frame, CohortSpec(table="t.csv")).samples("image"))
    relation = {"same": ["patient"], "differ": ["laterality"]} if differ else {"same": ["patient"]}
    train = [row for row in range(number) if sides_of[patients[row]] == "train"]
    pairs = [
        (a, b)
        for a, b in combinations(train, 2)
        if patients[a] == patients[b] and (not differ or (sides[a] and sides[b] and sides[a] != sides[b]))
    ]
    found = count_pairs(relation, columns)
    assert found.pairs == len(pairs)
    assert found.patients == len({patients[a] for a, _ in pairs})


def test_only_training_patients_are_counted() -> None:
    columns = table(split=np.repeat(["train"] * 30 + ["test"] * 30, 4))
    found = planned(columns)
    assert "120 of 30 training patients" in offer(found, "views").reasons[0]


def test_a_score_of_few_values_is_contrasted_and_a_continuous_one_predicted() -> None:
    rng = np.random.default_rng(0)
    ordinal = planned(table(severity=rng.integers(0, 4, 240)), {"score:severity": "severity"})
    assert verdicts(ordinal)["score"] == "recommended"
    entry = offer(ordinal, "score").entry
    assert entry is not None
    assert (entry["kind"], entry["target"], entry["threshold"]) == ("score_contrast", "score:severity", 0.0)
    age = planned(table(years=rng.uniform(20, 80, 240)), {"score:age": "years"})
    assert (verdicts(age)["score"], verdicts(age)["supremix"], verdicts(age)["measures"]) == (
        "possible",
        "possible",
        "recommended",
    )


def test_a_column_under_two_roles_is_predicted_once() -> None:
    rng = np.random.default_rng(0)
    found = planned(table(age=rng.integers(20, 80, 240)), {"score:age": "age", "attribute:years": "age"})
    assert offer(found, "measures").entry == {"kind": "predict", "targets": ["score:age"], "hidden": 256}


def test_a_label_is_kept_to_judge_by() -> None:
    found = planned(table(sick=np.random.default_rng(0).integers(0, 2, 240)), {"label:sick": "sick"})
    assert verdicts(found)["labels"] == "possible"
    assert found.recipe is not None
    assert "labels" not in found.recipe.objectives


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom"), num_patients=120, size=16, missing=0.05).parent


def with_column(phantom: Path, role: str, values: Any) -> Cohort:
    """The phantom with a column planted."""
    clean = Cohort.open(phantom / "cohort.yaml")
    frame = clean.table.assign(planted=values(clean))
    return Cohort(frame, clean.spec.model_copy(update={"roles": {**clean.roles, role: "planted"}}), clean.folder)


def test_a_planted_leak_and_a_planted_shortcut_are_refused_by_name_and_taught_by_nothing(phantom: Path) -> None:
    rng = np.random.default_rng(0)

    def leak(cohort: Cohort) -> Any:
        return np.where(cohort.split == "train", 8.0, 2.0) + rng.normal(0, 1, len(cohort))

    def shortcut(cohort: Cohort) -> Any:
        disease = cohort.encoded("label:disease")
        return np.where(rng.random(len(cohort)) < 0.02, "a", np.where(disease == 1, "b", "a"))

    for role, make, kind in (("score:dose", leak, "leak"), ("attribute:corner", shortcut, "shortcut")):
        found = plan(with_column(phantom, role, make))
        [hazard] = [each for each in found.hazards if each.role == role]
        assert hazard.refuses
        assert hazard.kind == kind
        assert role in hazard.sentence
        assert found.recipe is not None
        assert role not in found.recipe.objectives["measures"].parameters["targets"]
        taught = str({name: each.parameters for name, each in found.recipe.objectives.items()})
        assert role not in taught


def test_everything_that_the_phantom_has_is_composed_and_trains(phantom: Path, tmp_path: Path) -> None:
    found = plan(
        phantom / "cohort.yaml",
        overrides=["encoder.backbone=r18w32", "images.size=16", "training.max_steps=2", "sampling.batch_size=16"],
    )
    assert found.recipe is not None
    expected = {"views", "modality", "temporal", "bilateral", "position", "phase", "measures"}
    assert set(found.recipe.objectives) == expected
    assert found.recipe.bins == {"slice_position": 4}
    run = pretrain(phantom / "cohort.yaml", recipe=found.recipe, out=tmp_path / "run", cache=tmp_path / "c", quiet=True)
    losses = [line for line in run.metrics() if line["kind"] == "train"][-1]["losses"]
    assert set(losses) == expected
    assert all(np.isfinite(loss) for loss in losses.values())


def test_no_negative_of_a_planned_objective_is_a_positive_of_another(phantom: Path) -> None:
    recipe = plan(phantom / "cohort.yaml").recipe
    assert recipe is not None
    contrasts = [each for each in recipe.objectives.values() if each.kind == "contrast"]
    assert len(contrasts) == 6
    assert all(each.parameters["negatives"] == "other_patients" for each in contrasts)


def test_views_weigh_half_of_pairs_and_predictions_most(phantom: Path) -> None:
    recipe = plan(phantom / "cohort.yaml").recipe
    assert recipe is not None
    weights = {name: each.weight for name, each in recipe.objectives.items()}
    pairs = {weights[name] for name in ("modality", "temporal", "bilateral", "position", "phase")}
    assert pairs == {2 * weights["views"]}
    assert weights["measures"] == 1.0 > max(pairs)


def test_units_follow_the_columns() -> None:
    slices = planned(table(slice=np.tile([1, 2, 3, 4], 60)))
    assert slices.samples.unit == "slice"
    clips = planned(table(video=np.repeat(np.arange(120), 2), frame=np.tile([1, 2], 120)))
    assert clips.samples.unit == "clip"
    assert len(clips.samples) == 120
    assert planned(table()).samples.unit == "image"
    with pytest.raises(CohortError, match="slice"):
        planned(table(), unit="slice")


def test_one_training_patient_teaches_nothing() -> None:
    columns = table(3, split=np.repeat(["train", "test", "test"], 4))
    found = planned(columns)
    assert found.recipe is None
    assert not [each for each in found.offers if each.verdict == "recommended"]


def test_overrides_come_last_and_are_checked() -> None:
    found = planned(table(), overrides=["training.epochs=7"])
    assert found.recipe is not None
    assert found.recipe.training.epochs == 7
    with pytest.raises(RecipeError, match="unknown key"):
        planned(table(), overrides=["trainig.epochs=7"])


def test_a_plan_is_the_same_twice(phantom: Path) -> None:
    first, second = (plan(phantom / "cohort.yaml").recipe for _ in range(2))
    assert first is not None
    assert second is not None
    assert resolve(first).digest == resolve(second).digest


def written(folder: Path, frames: int, rows: int = 60) -> list[str]:
    """Small grey files of so many pages each."""
    pages = [Image.fromarray(np.full((20, 20), 40 * number, np.uint8)) for number in range(frames)]
    for row in range(rows):
        pages[0].save(folder / f"{row}.tif", save_all=True, append_images=pages[1:])
    return [f"{row}.tif" for row in range(rows)]


@pytest.mark.parametrize(("frames", "unit"), [(1, "image"), (3, "clip")])
@pytest.mark.parametrize("numbered", [False, True])
def test_files_of_their_own_are_clips_where_they_have_frames(
    tmp_path: Path, frames: int, unit: str, numbered: bool
) -> None:
    columns = {"image": written(tmp_path, frames), "patient": np.arange(60).astype(str)}
    if numbered:  # as DICOM does it
        columns |= {"SeriesInstanceUID": [f"1.2.{row}" for row in range(60)], "InstanceNumber": ["1"] * 60}
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    found = plan(tmp_path / "t.csv", overrides=["encoder.backbone=r18w32", "images.size=16", "sampling.batch_size=4"])
    assert found.recipe is not None
    assert found.samples.unit == found.recipe.images.unit == unit
    steps = dry_run(tmp_path / "t.csv", recipe=found.recipe, cache=tmp_path / "c").steps
    assert dict(found.choices)["training.epochs"] == f"About {steps:,} steps."


def test_radiographs_that_are_numbered_are_neither_frames_nor_slices() -> None:
    numbers = np.tile([1, 2, 3, 4], 60)
    for modality, first, second in (("DX", "image", "image"), ("CT", "slice", "clip")):
        numbered = planned(table(modality=[modality] * 240, InstanceNumber=numbers))
        series = np.repeat(np.arange(60), 4)
        in_series = planned(table(modality=[modality] * 240, InstanceNumber=numbers, SeriesInstanceUID=series))
        assert (numbered.samples.unit, in_series.samples.unit) == (first, second)
        assert verdicts(numbered)["position"] == ("impossible" if modality == "DX" else "recommended")


def test_a_unit_that_does_not_open_names_the_way_out() -> None:
    columns = table(InstanceNumber=[1] * 240, SeriesInstanceUID=np.repeat(np.arange(60), 4))
    with pytest.raises(CohortError, match="one value twice") as caught:
        planned(columns)
    assert "--unit image" in str(caught.value)
    assert planned(columns, unit="image").samples.unit == "image"


def test_two_units_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="asks for another unit than image"):
        planned(table(), unit="image", overrides=["images.unit=clip"])


def test_reasons_follow_what_is_asked_for() -> None:
    columns = table(severity=np.random.default_rng(0).integers(0, 4, 240), phase=np.tile(["ED", "ES"], 120))
    for overrides, keys in (([], 4), (["sampling.batch_size=8", "images.views=1", "objectives.views=null"], 4),
                            (["objectives.score=null"], 3), (["training.accumulate=2"], 4),
                            (["objectives.more={kind: contrast}"], 4),  # views, as is its default
                            (["objectives.more={kind: rank_n_contrast}"], 4),
                            (["objectives.more={kind: pixel_contrast, relation: laterality}"], 5)):  # fmt: skip
        found = planned(columns, {"score:severity": "severity"}, overrides=overrides)
        assert found.recipe is not None
        samples, anchors = int(found.facts[0].split(" of ")[1].split(": ")[1]), found.recipe.sampling.batch_size // keys
        steps = -(-found.recipe.training.epochs * -(-samples // anchors) // found.recipe.training.accumulate)
        said = dict(found.choices)
        assert said["training.epochs"].startswith(f"About {steps:,} steps.")
    one = planned(columns, overrides=["images.views=1", "objectives.views=null"])
    assert dict(one.choices)["sampling.batch_size"].startswith("images, each in one view;")


def test_a_modality_without_a_preset_of_its_own_is_a_guess() -> None:
    assert (
        "By the modality column" in dict(planned(table(modality=["CT", "MR"] * 120)).choices)["images.augment.preset"]
    )
    said = dict(planned(table(modality=["OCT", "fundus"] * 120)).choices)["images.augment.preset"]
    assert said.startswith("A guess, from several kinds of image")


def test_a_number_that_is_the_same_for_all_is_said_once() -> None:
    assert "A training patient has 4 images; 40 of 40 have more than one." in planned(table()).facts[1]


def test_sides_that_leak_are_not_paired() -> None:
    rng = np.random.default_rng(0)
    side = np.repeat(["train"] * 80 + ["test"] * 40, 4)
    left = rng.random(480) < np.where(side == "train", 0.9, 0.1)
    found = planned(table(120, split=side, laterality=np.where(left, "L", "R")))
    assert [(each.role, each.kind) for each in found.hazards] == [("laterality", "leak")]
    assert verdicts(found)["bilateral"] == "refused"
    assert found.recipe is not None
    assert "laterality" not in str(found.recipe.model_dump())


def test_heights_that_give_one_bin_are_no_meta_label() -> None:
    places = np.zeros(240)
    places[::9] = np.arange(27) / 30 + 0.05
    found = planned(table(slice=np.tile([1, 2, 3, 4], 60), slice_position=places))
    assert verdicts(found)["position"] == "impossible"
    assert "Nearly all" in offer(found, "position").reasons[0]


def test_times_pair_what_visits_do_not() -> None:
    found = planned(table(visit=np.repeat(np.arange(60) % 3, 4), time=np.tile([0, 100, 200, 300], 60)))
    assert offer(found, "temporal").entry["relation"]["differ"] == ["time"]  # type: ignore[index]
    both = planned(table(visit=np.tile([1, 1, 2, 2], 60), time=np.tile([0, 100, 200, 300], 60)))
    assert offer(both, "temporal").entry["relation"]["differ"] == ["visit"]  # type: ignore[index]


def test_a_category_that_is_unique_to_every_image_is_no_meta_label() -> None:
    found = planned({**table(2), "split": ["train"] * 8, "region": list("abcdefgh")})
    assert verdicts(found)["region"] == "impossible"
    assert "unique to every training sample" in offer(found, "region").reasons[0]


def test_an_infinite_score_has_no_part_in_the_window() -> None:
    values = np.random.default_rng(0).uniform(0, 100, 240)
    values[3] = np.inf
    found = planned(table(dose=values), {"score:dose": "dose"})
    assert offer(found, "supremix").entry["window"] == 5.0  # type: ignore[index]


def test_a_score_that_is_refused_is_not_said_to_be_unknown() -> None:
    side = np.repeat(["train"] * 40 + ["test"] * 20, 4)
    dose = np.random.default_rng(0).uniform(0, 100, 240) + np.where(side == "train", 200, 0)
    found = planned(table(split=side, dose=dose.round(1)), {"score:dose": "dose"})
    assert offer(found, "score").reasons == ("No score that may be learnt is known of enough training patients.",)
    assert "No score is known" in offer(planned(table()), "score").reasons[0]


def test_a_clip_of_many_frames_is_judged_once() -> None:
    """A patient's long clip and short ones: what the test decides is that of a table with a row a clip."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 120)
    dose, clips = rng.normal(50, 10, 120).round(2), np.repeat(np.arange(120), lengths)
    columns = {
        "image": [f"{row}.png" for row in range(len(clips))], "patient": clips // 2, "video": clips,
        "frame": np.concatenate([np.arange(length) for length in lengths]), "dose": dose[clips],
        "split": np.where(clips < 60, "train", "test"),
    }  # fmt: skip
    found = planned(columns, {"score:dose": "dose"})
    assert found.samples.unit == "clip"
    once = planned({name: np.asarray(values)[np.unique(clips, return_index=True)[1]] for name, values in columns.items()
                    if name not in ("video", "frame")}, {"score:dose": "dose"})  # fmt: skip
    assert found.resolutions == once.resolutions


@pytest.mark.slow
@pytest.mark.data
def test_plans_of_public_cohorts_are_those_of_the_docs(shared_data: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "plans.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0, (
        "run benchmarks/plans.py"
    )
