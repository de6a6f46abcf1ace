"""Retrieval: ranks against loops, chance where there is nothing to find, pairs that share what they should."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.errors import EvaluationError, UsageError
from bolus.evaluation.retrieval.ranking import (
    ndcg,
    ranks,
    recall_at,
    relevance_by_chance,
    relevance_by_position,
    top_k,
)
from bolus.evaluation.retrieval.retrieve import evaluate_retrieve
from bolus.evaluation.retrieval.scores import judge_retrieval, weighted_mean, weighted_median
from bolus.evaluation.retrieval.sides import Sides, find_sides, shared_roles
from bolus.evaluation.settings import Judging, Origin
from bolus.evaluation.statistics.metrics import RETRIEVAL, higher_is_better
from bolus.evaluation.statistics.results import Result, read_results, write_results
from bolus.phantom.images import make_phantom
from bolus.recipe import EncoderSpec

# --- ranks and Top-K


def cosine(a: Any, b: Any) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    length = math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(y) ** 2 for y in b))
    return dot / length if length else 0.0


def naive_ranks(u: torch.Tensor, v: torch.Tensor) -> list[float]:
    """By two loops; similarities are compared to twelve digits, so that duplicates are ties."""
    found = []
    for i in range(len(u)):
        own, rank = cosine(u[i], v[i]), 1.0
        for j in range(len(v)):
            other = cosine(u[i], v[j])
            if j != i:
                rank += 0.5 if abs(other - own) < 1e-12 else float(other > own)
        found.append(rank)
    return found


def pair_of(
    seed: int, n: int = 23, d: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(n, d, generator=generator, dtype=dtype)
    return u, u + torch.randn(n, d, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_those_of_two_loops(seed: int, dtype: torch.dtype) -> None:
    u, v = pair_of(seed, dtype=dtype)
    v[5], v[6], v[11] = v[4], 3 * v[4], v[0]  # duplicates, and one of another length
    u[7], v[9] = 0, 0
    expected = naive_ranks(u, v)
    assert ranks(u, v).tolist() == expected
    assert any(rank % 1 for rank in expected)
    for k in (1, 3, 10):
        assert top_k(u, v, k) == pytest.approx(np.mean([rank <= k for rank in expected]), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_without_information_every_rank_is_the_middle_one(n: int) -> None:
    u, _ = pair_of(0, n)
    for v in (torch.ones(n, 4), torch.zeros(n, 4), torch.full((n, 4), -0.3)):
        assert ranks(u, v).tolist() == [(n + 1) / 2] * n
    assert top_k(u, torch.ones(n, 4), max(1, n // 2 - 1)) == float(n == 1)


def test_length_does_not_matter() -> None:
    u, v = pair_of(1, 40)
    lengths = torch.logspace(-12, 12, 40)[:, None]
    assert torch.equal(ranks(u, v), ranks(lengths * u, lengths.flip(0) * v))
    assert ranks(1e-42 * torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [1, 1, 1]])).tolist() == [2.0, 1.0]


def test_the_order_of_the_pairs_does_not_matter() -> None:
    u, v = pair_of(2, 40)
    v[3] = v[4]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ranks(u, v)[order], ranks(u[order], v[order]))
    assert not torch.equal(ranks(u, v), ranks(v, u)), "the directions are two questions"


def test_blocks_are_the_whole() -> None:
    u, v = pair_of(3, 37, 96)
    v[20:30] = v[3]
    whose = torch.arange(37) % 11
    whole = relevance_by_position(u, v, whose, whose, block_size=1000)
    for size in (1, 5, 36, 37):
        assert torch.equal(ranks(u, v, block_size=size), ranks(u, v, block_size=1000))
        parts = relevance_by_position(u, v, whose, whose, block_size=size)
        assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


def test_what_is_identical_is_found() -> None:
    u, _ = pair_of(4, 60, 8)
    assert top_k(u, u, 1) == top_k(u, 7 * u, 1) == 1.0
    assert top_k(u, -u, 59) == 0.0


@pytest.mark.parametrize("k", [1, 5, 10, 100])
def test_random_vectors_find_k_of_n(k: int) -> None:
    n = 1000
    found = top_k(*(torch.randn(n, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1)), k)
    assert abs(found - k / n) < 4 * math.sqrt(k / n * (1 - k / n) / n)


def test_what_cannot_be_ranked_is_refused() -> None:
    u, v = pair_of(0, 6)
    spoilt = u.clone()
    spoilt[[1, 4]] = torch.nan
    for wrong, said in (
        (lambda: ranks(u, v[:5]), r"found \[6, 4\] and \[5, 4\]"),
        (lambda: ranks(u[:0], v[:0]), "one shape"),
        (lambda: ranks(u[:, 0], v[:, 0]), "one shape"),
        (lambda: ranks(spoilt, v), "queries: rows 2, 5 of the embeddings are not finite"),
        (lambda: ranks(u, spoilt * math.inf), "gallery: rows 1, 2, 3, 4, 5 and 1 more"),
        (lambda: top_k(u, v, 0), "k of at least 1, found 0"),
        (lambda: relevance_by_position(u, v, torch.arange(6), torch.arange(5)), "a participant for each row"),
        (lambda: relevance_by_position(u, v[:0], torch.arange(6), torch.arange(0)), "that fit"),
    ):
        with pytest.raises(EvaluationError, match=said):
            wrong()


def test_no_gradient_is_kept_and_nothing_is_changed() -> None:
    u, v = (each.requires_grad_() for each in pair_of(0))
    before = u.detach().clone()
    assert not ranks(u, v).requires_grad
    assert torch.equal(u.detach(), before)


# --- full galleries


def naive_lists(u: Any, v: Any, whose_u: Any, whose_v: Any, k: int) -> tuple[list[float], list[float]]:
    """Recall@k and NDCG@k by sorting each gallery; no ties."""
    recalls, gains = [], []
    for i in range(len(u)):
        order = sorted(range(len(v)), key=lambda j: -cosine(u[i], v[j]))
        relevant = [bool(whose_v[j] == whose_u[i]) for j in order]
        found = sum(relevant[:k])
        gain = sum(1 / math.log2(place + 2) for place in range(min(k, len(v))) if relevant[place])
        best = sum(1 / math.log2(place + 2) for place in range(min(k, sum(relevant))))
        recalls.append(found / sum(relevant))
        gains.append(gain / best)
    return recalls, gains


@pytest.mark.parametrize(("m", "k"), [(30, 1), (30, 5), (30, 10), (4, 10)])
def test_recall_and_ndcg_are_those_of_loops(m: int, k: int) -> None:
    generator = torch.Generator().manual_seed(m + k)
    u, v = torch.randn(12, 3, generator=generator), torch.randn(m, 3, generator=generator)
    whose_u, whose_v = torch.arange(12) % 3, torch.arange(m) % 3
    relevance, number = relevance_by_position(u, v, whose_u, whose_v, positions=k)
    recalls, gains = naive_lists(u, v, whose_u, whose_v, k)
    np.testing.assert_allclose(recall_at(relevance, number, k), recalls, atol=1e-12)
    np.testing.assert_allclose(ndcg(relevance, number), gains, atol=1e-12)


def test_ties_count_as_the_mean_over_their_orders() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(5, 3, generator=generator), torch.randn(14, 3, generator=generator)
    v[2:9] = v[2]  # seven of one direction, some lengths
    v[3:5] *= 4
    whose_u, whose_v = torch.arange(5), torch.arange(14) % 5
    relevance, number = relevance_by_position(u, v, whose_u, whose_v)
    sums = torch.zeros_like(relevance)
    for seed in range(400):
        jitter = 1e-6 * torch.randn(14, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        sums += relevance_by_position(u.double(), v.double() * (1 + jitter), whose_u, whose_v)[0]
    np.testing.assert_allclose(relevance, sums / 400, atol=0.12)
    assert ((relevance > 0) & (relevance < 1)).any()
    assert torch.equal(number, torch.tensor([3, 3, 3, 3, 2]))


@pytest.mark.parametrize("m", [3, 10, 11, 200])
def test_an_encoder_that_tells_nothing_is_at_chance(m: int) -> None:
    whose_u, whose_v = torch.arange(7), torch.arange(m) % 7
    relevance, number = relevance_by_position(torch.ones(7, 4), torch.ones(m, 4), whose_u, whose_v)
    torch.testing.assert_close(relevance, relevance_by_chance(number, m))
    known = number > 0
    assert torch.isnan(recall_at(relevance, number, 5)[~known]).all()
    assert torch.isnan(ndcg(relevance, number)[~known]).all()
    torch.testing.assert_close(recall_at(relevance, number, 5)[known], torch.full((7,), min(5 / m, 1)).double()[known])


def test_random_galleries_are_near_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(800, 32, generator=generator), torch.randn(300, 32, generator=generator)
    relevance, number = relevance_by_position(u, v, torch.arange(800) % 30, torch.arange(300) % 30)
    expected = relevance_by_chance(number, 300)
    for metric in (lambda gains: recall_at(gains, number, 10), lambda gains: ndcg(gains, number)):
        assert abs(float(metric(relevance).mean() - metric(expected).mean())) < 0.005


# --- who is on the sides


def samples_of(columns: dict[str, list[Any]], roles: dict[str, str] | None = None) -> Any:
    n = len(columns["patient"])
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(n)], "split": ["test"] * n} | columns)
    return Cohort(frame, CohortSpec(table="t.csv", roles=roles or {})).samples("image")


def sides_of(columns: dict[str, list[Any]], across: str, **options: Any) -> tuple[list[Sides], list[str]]:
    samples = samples_of(columns, options.pop("roles", None))
    return find_sides(samples, np.arange(len(samples)), across, **options)


def test_a_pair_agrees_in_everything_but_the_role() -> None:
    r = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {
        "patient": [f"p{i}" for i in r.integers(0, 25, 400)],
        "eye": r.choice(["L", "R", ""], 400).tolist(),
        "modality": r.choice(["CFP", "OCT"], 400).tolist(),
        "visit": r.choice(["1", "2", ""], 400).tolist(),
        "view": r.choice(["AP", ""], 400).tolist(),
        "split": ["train"] * 400,
    }
    columns["split"] = ["test" if int(name[1:]) % 2 else "train" for name in columns["patient"]]
    (sides,), notes = sides_of(columns, "laterality")
    table = pd.DataFrame(columns)
    one, other = (table.iloc[sides.pairs[:, side]].reset_index(drop=True) for side in (0, 1))
    assert set(one["eye"]) == {"L"}
    assert set(other["eye"]) == {"R"}
    shared = ["patient", "modality", "visit", "view", "split"]
    assert one[shared].equals(other[shared]), "what is missing is a value of its own"
    assert (one["visit"] == "").any()
    assert set(one["split"]) == {"test"}
    assert one["patient"].is_unique
    by_loop = set()
    for a in table.query("split == 'test' and eye == 'L'").itertuples():
        for b in table.query("split == 'test' and eye == 'R'").itertuples():
            if (a.patient, a.modality, a.visit, a.view) == (b.patient, b.modality, b.visit, b.view):
                by_loop.add(a.patient)
    assert set(one["patient"]) == by_loop
    assert len(by_loop) > 5
    for side, value in enumerate("LR"):
        assert sides.members[side].tolist() == table.query(f"eye == '{value}' and split == 'test'").index.tolist()
    missing = len(table.query("eye == '' and split == 'test'"))
    assert notes == [f"{missing} test images have no laterality and are on neither side"]


def test_the_choice_of_a_pair_is_seeded_and_of_its_participant_alone() -> None:
    columns = {"patient": list("pppppqqqqqrr"), "eye": list("LLLRRLLLRRLR")}
    pairs = [sides_of(columns, "laterality", seed=seed)[0][0].pairs for seed in range(30)]
    assert len({tuple(each[0]) for each in pairs}) == 6, "every pair can be drawn"
    assert sides_of(columns, "laterality", seed=3)[0][0].pairs.tolist() == pairs[3].tolist()
    samples = samples_of(columns)
    fewer = find_sides(samples, np.array([0, 1, 2, 3, 4, 10, 11]), "laterality", seed=3)[0][0].pairs
    assert fewer.tolist() == [pairs[3][0].tolist(), [5, 6]]


def test_every_two_values_are_searched_and_those_without_pairs_are_named() -> None:
    columns = {"patient": list("ppqqrrs"), "modality": ["CT", "MR", "MR", "CT", "MR", "XR", "XR"]}
    (sides,), notes = sides_of(columns, "modality")
    assert sides.names == ("CT", "MR")
    assert sides.pairs.tolist() == [[0, 1], [3, 2]]
    assert notes == [
        "CT and XR: 0 test patients have a pair, left out",
        "MR and XR: 1 test patients have a pair, left out",
    ]


def test_a_modality_without_eyes_is_a_partner_of_either_eye_but_eyes_must_not_differ() -> None:
    columns = {
        "patient": list("ppqqrr"),
        "modality": ["CFP", "carotid"] * 3,
        "eye": ["L", "", "R", "", "L", "R"],
    }
    (sides,), _ = sides_of(columns, "modality")
    assert sides.pairs.tolist() == [[0, 1], [2, 3]]


def test_earlier_and_later_are_two_times_of_a_patient() -> None:
    columns = {
        "patient": list("ppppqqqrrs"),
        "visit": ["2", "1", "3", "1", "1", "1", "4", "1", "1", ""],
        "modality": ["A"] * 6 + ["A", "A", "A", "A"],
    }
    found = [sides_of(columns, "visit", seed=seed) for seed in range(30)]
    visit = np.array([2, 1, 3, 1, 1, 1, 4, 1, 1, 0])
    for (sides,), notes in found:
        assert sides.names == ("earlier", "later")
        assert len(sides.pairs) == 2
        assert (visit[sides.pairs[:, 0]] < visit[sides.pairs[:, 1]]).all()
        assert [members.tolist() for members in sides.members] == [[1, 3, 4, 5, 7, 8], [0, 2, 6]]
        assert notes == ["1 test images have no visit and are on neither side"]
    assert len({tuple(sides.pairs[0]) for (sides,), _ in found}) == 5


def test_times_of_one_day_are_one_time() -> None:
    days = {"patient": list("ppqqrr"), "days": ["0", "0.4", "0", "1", "5", "9"]}
    (sides,), _ = sides_of(days, "time")
    assert sides.pairs.tolist() == [[2, 3], [4, 5]]
    assert [members.tolist() for members in sides.members] == [[0, 1, 2, 4], [3, 5]]
    (sides,), _ = sides_of({**days, "eye": list("LRLRLR")} | {"days": ["0", "0.4", "0", "0", "5", "9"]}, "laterality")
    assert sides.pairs.tolist() == [[0, 1], [2, 3]]


def test_what_is_shared_depends_on_the_role_that_differs() -> None:
    columns = {"patient": list("pq"), "eye": list("LR"), "visit": ["1", "2"], "days": ["1", "2"], "site": list("ab"),
               "modality": list("AB"), "scanner": list("xy")}  # fmt: skip
    cohort = samples_of(columns).cohort
    assert shared_roles(cohort, "laterality") == ["modality", "visit"]
    assert shared_roles(cohort, "modality") == ["laterality", "visit"]
    for free in ("visit", "time", "site", "attribute:scanner"):
        assert shared_roles(cohort, free) == ["modality", "laterality"]


def test_a_question_without_an_answer_says_what_was_found() -> None:
    columns = {"patient": list("ppqrrs"), "eye": list("LRLLLR"), "age": list("123456"), "visit": list("111112")}
    for across, said in (
        ("lateralty", "no column has this role; did you mean 'laterality'"),
        (
            "laterality",
            r"images of two values of one visit, found 1; values found: left \(3 test patients\), right \(2 test",
        ),
        ("visit", "images of two times of one laterality, found 0; of 4 test patients 0 have several values of visit"),
        ("attribute:age", "this one holds numbers"),
        ("patient", "expected a role whose values are sides"),
        ("split", "another kind"),
    ):
        with pytest.raises(EvaluationError, match=said):
            sides_of(columns, across)


# --- results


def test_medians_and_means_are_those_of_the_rows_repeated() -> None:
    r = np.random.default_rng(0)
    values, weights = r.integers(1, 9, (3, 15)) / 2, r.integers(0, 4, (40, 15))
    for mine, theirs in ((weighted_median, np.median), (weighted_mean, np.mean)):
        expected = [[theirs(np.repeat(row, weight)) for weight in weights] for row in values]
        np.testing.assert_allclose(mine(values, weights), expected)


def made(n: int = 50, seed: int = 0) -> tuple[dict[str, np.ndarray], list[Sides], np.ndarray]:
    """n participants with one image on the left and two on the right; `good` knows them, `random-init` does not."""
    r = np.random.default_rng(seed)
    who = np.repeat(np.arange(n), 3)
    place = np.arange(3 * n).reshape(n, 3)
    sides = Sides(("left", "right"), place[:, :2], (place[:, 0], place[:, 1:].ravel()))
    good = r.normal(size=(n, 12))[who] + 0.6 * r.normal(size=(3 * n, 12))
    return {"good": good, "random-init": r.normal(size=(3 * n, 12))}, [sides], who


def test_results_stand_beside_chance_and_the_twin() -> None:
    embeddings, sides, who = made()
    results, table = judge_retrieval(
        embeddings, sides, who, across="laterality", judging=Judging(draws=300), origin=Origin(recipe_hash="r")
    )
    assert [r.metric for r in results if r.encoder == "good" and not r.baseline] == 2 * list(RETRIEVAL)
    assert {r.target for r in results} == {"laterality: left to right", "laterality: right to left"}
    keyed = {(r.target, r.metric, r.encoder, r.baseline): r for r in results}
    assert len(keyed) == len(results) == 2 * 9 * 3
    chance = {"top_1": 0.02, "top_5": 0.1, "top_10": 0.2, "top_1_percent": 0.02, "median_rank": 25.5}
    for (target, metric, encoder, baseline), r in keyed.items():
        assert r.task == "retrieve"
        assert (r.chance is None) == bool(baseline)
        assert (r.recipe_hash == "r") == (encoder == "good")
        if metric in chance:
            assert (r.num_samples, r.num_patients) == (50, 50)
            assert baseline or r.chance == pytest.approx(chance[metric])
            assert any("chance of Top-K is K / 50" in note for note in r.notes)
        elif not baseline:
            assert (r.num_samples, r.num_patients) == ((50, 50) if "left to" in target else (100, 50))
        if baseline:
            mine, theirs = keyed[target, metric, "good", ""], keyed[target, metric, "random-init", ""]
            assert r.estimate == pytest.approx(mine.estimate - theirs.estimate)
            assert (r.ci_low > 0) if higher_is_better(metric) else (r.ci_high < 0)
        elif encoder == "random-init":
            spread = 10.0 if metric == "median_rank" else 4 * math.sqrt(r.chance / 50)
            assert abs(r.estimate - r.chance) < spread
        else:
            assert r.ci_low <= r.estimate <= r.ci_high
    assert keyed["laterality: left to right", "recall_10", "good", ""].chance == pytest.approx(10 / 100)
    u = torch.from_numpy(embeddings["good"])
    expected = ranks(u[sides[0].pairs[:, 1]], u[sides[0].pairs[:, 0]])
    found = table.query("encoder == 'good' and direction == 'laterality: right to left'")
    assert found["rank"].tolist() == expected.tolist()
    assert found["query"].tolist() == sides[0].pairs[:, 1].tolist()


def test_queries_without_a_partner_are_left_out_and_counted() -> None:
    embeddings, (sides,), who = made(30)
    less = Sides(sides.names, sides.pairs[:20], (sides.members[0], sides.members[1][:40]))
    results, _ = judge_retrieval(embeddings, [less], who, across="laterality", judging=Judging(draws=20))
    there = [r for r in results if r.metric == "ndcg_10" and r.target.endswith("left to right")]
    back = [r for r in results if r.metric == "ndcg_10" and r.target.endswith("right to left")]
    assert {(r.num_samples, r.num_patients) for r in there} == {(20, 20)}
    assert all("10 images whose patient has none on the other side are no queries" in r.notes for r in there)
    assert {(r.num_samples, r.num_patients) for r in back} == {(40, 20)}
    assert not any("no queries" in note for r in back for note in r.notes)


def test_few_patients_decide_nothing() -> None:
    embeddings, sides, who = made(8)
    results, _ = judge_retrieval(embeddings, sides, who, across="laterality", judging=Judging(draws=50))
    for r in results:
        assert ("only 8 test patients where a finding needs 20" in r.notes) == bool(r.baseline)
    assert next(r for r in results if r.metric == "top_10").chance == 1.0


def test_chance_survives_the_file(tmp_path: Path) -> None:
    plain = Result("retrieve", "t", "top_1", 0.5, 0.4, 0.6, 9, 9, chance=0.1)
    write_results(tmp_path / "r.jsonl", [plain, Result("classify", "t", "auroc", 0.5, 0.4, 0.6, 9, 9)])
    assert [each.chance for each in read_results(tmp_path / "r.jsonl")] == [0.1, None]
    line = json.loads(plain.to_json())
    del line["chance"]
    (tmp_path / "old.jsonl").write_text(json.dumps(line) + "\n")
    assert read_results(tmp_path / "old.jsonl")[0].chance is None


# --- from images to files


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom"), num_patients=40, size=32, seed=0).parent / "cohort.yaml"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "enc"
    made = build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=3)
    save_encoder(made, folder, preprocessing={"size": 32, "ranges": {"MR": (0, 4095)}})
    return folder


def test_an_evaluation_writes_its_files(encoder: Path, phantom: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"across": "laterality", "draws": 60, "cache": tmp_path / "cache"}
    found = evaluate_retrieve(encoder, phantom, out=tmp_path / "out", **options)
    assert sorted(path.name for path in found.folder.iterdir()) == ["notes.json", "ranks.parquet", "results.jsonl"]
    assert read_results(found.folder / "results.jsonl") == found.results
    assert {r.encoder for r in found.results} == {"enc", "random-init"}
    cohort, table = Cohort.open(phantom), pd.read_parquet(found.folder / "ranks.parquet")
    assert table.columns.tolist() == ["row", "partner_row", "rank", "encoder", "direction"]
    one, other = table["row"].to_numpy() - 1, table["partner_row"].to_numpy() - 1
    assert set(cohort.split[one]) == {"test"}
    for role in ("patient", "modality", "visit", "phase"):
        assert (cohort.encoded(role)[one] == cohort.encoded(role)[other]).all()
    assert (cohort.encoded("laterality")[one] + cohort.encoded("laterality")[other] == 1).all()
    pairs = [list(zip(part["row"], part["partner_row"], strict=True))
             for _, part in table.groupby(["direction", "encoder"], sort=False)]  # fmt: skip
    assert pairs[0] == pairs[1], "every encoder is asked the same"
    assert [pair[::-1] for pair in pairs[0]] == pairs[2]
    notes = json.loads((found.folder / "notes.json").read_text(encoding="utf-8"))
    assert notes["general"] == found.notes
    assert list(notes["targets"]) == ["laterality: left to right", "laterality: right to left"]
    number = len(pairs[0])
    assert any(f"{number} pairs, one a test patient, so that chance of Top-K is K / {number}" in n for n in found.notes)
    shared = "both images of a pair have the same modality and phase and visit, of which the N partners have any"
    assert shared in found.notes
    assert any(note.startswith("laterality, left and right: an embedding that told only") for note in found.notes)
    text = (found.folder / "notes.json").read_text() + (found.folder / "results.jsonl").read_text()
    assert not any(name in text for name in set(cohort.values("patient")))
    again = evaluate_retrieve(encoder, phantom, out=tmp_path / "again", **options)
    assert again.results == found.results
    shown = found.summary().splitlines()
    assert shown[1] == "laterality: left to right"
    assert shown[4].split()[:2] == ["chance", f"{1 / number:.3f}"]
    assert shown[-2].startswith("laterality: left to right: ")
    assert shown[-1].startswith("laterality: right to left: ")


@pytest.mark.parametrize(
    ("across", "names"), [("modality", "MR to XR"), ("visit", "earlier to later"), ("time", "earlier to later")]
)
def test_other_roles_and_a_baseline(encoder: Path, phantom: Path, tmp_path: Path, across: str, names: str) -> None:
    small = build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False), seed=5)
    save_encoder(small, tmp_path / "other", preprocessing={"size": 24, "ranges": {"MR": (0, 4095)}})
    found = evaluate_retrieve(
        encoder, phantom, across=across, out=tmp_path / "out", draws=20, cache=tmp_path / "cache",
        baselines=[tmp_path / "other"],
    )  # fmt: skip
    assert found.results[0].target == f"{across}: {names}"
    assert {r.baseline for r in found.results} == {"", "random-init", "other"}
    assert {r.encoder for r in found.results} == {"enc", "random-init", "other"}
    assert all(r.chance is not None for r in found.results if not r.baseline)


def test_wrong_questions_are_refused(encoder: Path, phantom: Path, tmp_path: Path) -> None:
    for changes, error, said in (
        ({"across": "eye"}, EvaluationError, "no column has this role"),
        ({"across": "site"}, EvaluationError, r"values found: north \(\d+ test patients\), south"),
        ({"across": "visit", "draws": 0}, UsageError, "draws must be a whole number of at least 1"),
        ({"across": "visit", "seed": -1}, UsageError, "seed must be a whole number of at least 0"),
    ):
        with pytest.raises(error, match=said):
            evaluate_retrieve(encoder, phantom, out=tmp_path / "out", cache=tmp_path / "cache", **changes)
    assert not (tmp_path / "out").exists()
    spec = yaml.safe_load(phantom.read_text())
    spec |= {"table": str(phantom.parent / "table.csv"), "split": {"val": 0.1, "test": 0.0}}
    (tmp_path / "cohort.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(EvaluationError, match="values found: none"):
        evaluate_retrieve(encoder, tmp_path / "cohort.yaml", across="modality", cache=tmp_path / "cache")
