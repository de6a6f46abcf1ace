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

from bolus.assembly import resolve
from bolus.data.cohort import Cohort, CohortSpec, SplitSpec
from bolus.data.columns import TrainingColumns
from bolus.data.phantom import make_phantom
from bolus.errors import CohortError, RecipeError
from bolus.planning.offers import Offer
from bolus.planning.pairs import count_pairs
from bolus.planning.planner import Plan, plan
from bolus.training import pretrain


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
    assert found.samples == len({row for pair in pairs for row in pair})
    assert found.patients == len({patients[a] for a, _ in pairs})


def test_only_training_patients_are_counted() -> None:
    columns = table(split=np.repeat(["train"] * 30 + ["test"] * 30, 4))
    found = planned(columns)
    assert "120 of 30 training patients" in offer(found, "views").reasons[0]


def test_a_score_of_few_values_is_contrasted_and_a_continuous_one_predicted() -> None:
    rng = np.random.default_rng(0)
    ordinal = planned(table(severity=rng.integers(0, 4, 240)), {"score:severity": "severity"})
    assert verdicts(ordinal)["score"] == "recommended"
    assert offer(ordinal, "score").entry == {"kind": "score_contrast", "target": "score:severity", "threshold": 0.0}
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


def test_meta_labels_that_cross_are_reconciled_at_the_features() -> None:
    crossing = planned(table(phase=np.tile(["ED", "ES"], 120)))
    assert crossing.recipe is not None
    assert (crossing.recipe.combiner.kind, crossing.recipe.combiner.scope) == ("grad_mitigator", "features")
    alone = planned(table())
    assert alone.recipe is not None
    assert alone.recipe.combiner.kind == "sum"


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


@pytest.mark.data
def test_plans_of_public_cohorts_are_those_of_the_docs(shared_data: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "plans.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0, (
        "run benchmarks/plans.py"
    )
