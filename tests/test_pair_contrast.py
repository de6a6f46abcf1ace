"""Contrast between the values of a role (symmetric CLIP, any number of values) against naive loops; a learnt scale."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features, FeatureShape
from bolus.errors import RecipeError
from bolus.objectives import build_objectives
from bolus.objectives.base import Loss
from bolus.objectives.contrasts.contrast import Contrast
from bolus.recipe import Recipe

SHAPE = FeatureShape(dim=6, grid_channels=6, grid_stride=32)
ACROSS = {"same": ["patient", "visit", "laterality"], "differ": ["modality"]}
NAN = math.nan

Columns = dict[str, list[Any]]  # role -> value of each sample

# Fifteen samples of four patients and of unknown ones. Patient 0 has two visits, the second with two of modality 1;
# patient 1 has three modalities of the left eye and a right eye without a partner; patient 2 lacks a visit; patient 3
# has modalities 0 and 2 only.
COHORT: Columns = {
    "patient": [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, -1, -1],
    "visit": [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, NAN, 0.0, 0.0, 0.0, 0.0, 0.0],
    "laterality": [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0],
    "modality": [0, 1, 0, 1, 1, 0, 1, 2, 0, 0, 1, 2, 0, 0, 1],
}


def make_batch(columns: Columns) -> Batch:
    """As the loss sees it: columns only, samples not numbered from 0."""
    num = len(next(iter(columns.values())))
    found = {
        role: torch.tensor(values, dtype=torch.float64 if role in ("visit", "time") else torch.int64)
        for role, values in columns.items()
    }
    return Batch({}, {}, {"sample": torch.arange(num).flip(0) + 10, **found})


def unit(num: int, views: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(views, num, 5, generator=generator, dtype=torch.float64), dim=-1)
    return z.requires_grad_()


def clip(**changes: Any) -> Contrast:
    return Contrast(SHAPE, **{"relation": ACROSS, "between": "modality", "temperature": 0.3, **changes})


def pairs(num: int) -> Columns:
    """So many patients with one image of each of two modalities, side by side."""
    return {"patient": [i // 2 for i in range(2 * num)], "modality": [0, 1] * num}


def only(columns: Columns, keep: list[int]) -> Columns:
    return {role: [values[i] for i in keep] for role, values in columns.items()}


def missing(value: float) -> bool:
    return value == -1 or math.isnan(value)


def partners(columns: Columns, i: int, j: int, same: list[str], differ: list[str]) -> bool:
    for role in same + differ:
        if missing(columns[role][i]) or missing(columns[role][j]):
            return False
    return all(columns[role][i] == columns[role][j] for role in same) and all(
        columns[role][i] != columns[role][j] for role in differ
    )


def naive(
    z: Tensor,
    columns: Columns,
    *,
    between: str = "modality",
    same: list[str] = ACROSS["same"],
    differ: list[str] = ACROSS["differ"],
    other_patients: bool = False,
    temperature: float = 0.3,
) -> tuple[Tensor, int, int]:
    """Value, anchors and terms, row by row and pair by pair as METHODS writes the loss."""
    num_views, num = z.shape[:2]
    values = sorted({value for value in columns[between] if not missing(value)})
    total, num_anchors, terms = 0 * z.sum(), 0, 0

    def similarity(row: tuple[int, int], other: tuple[int, int]) -> Tensor:
        return (z[row] * z[other]).sum() / temperature

    def related(row: tuple[int, int], other: tuple[int, int]) -> bool:
        return partners(columns, row[1], other[1], same, differ)

    def absent(row: tuple[int, int], other: tuple[int, int]) -> bool:
        mine, theirs = columns["patient"][row[1]], columns["patient"][other[1]]
        return other_patients and mine != -1 and mine == theirs

    def towards(anchors: list[tuple[int, int]], others: list[tuple[int, int]]) -> Tensor:
        losses = []
        for row in anchors:
            near = [similarity(row, other) for other in others if related(row, other)]
            far = [similarity(row, other) for other in others if not related(row, other) and not absent(row, other)]
            everything = torch.stack([s.exp() for s in near + far]).sum()
            losses.append(torch.stack([-(s.exp() / everything).log() for s in near]).sum() / len(near))
        return torch.stack(losses).sum() / len(losses)

    for a, b in combinations(values, 2):
        rows = [
            [(view, i) for view in range(num_views) for i in range(num) if columns[between][i] == value]
            for value in (a, b)
        ]
        left = [row for row in rows[0] if any(related(row, other) for other in rows[1])]
        right = [row for row in rows[1] if any(related(row, other) for other in rows[0])]
        if min(len({i for _, i in side}) for side in (left, right)) >= 2:  # samples, in however many views
            total = total + (towards(left, right) + towards(right, left)) / 2
            num_anchors += len(left) + len(right)
            terms += 1
    return total, num_anchors, terms


def gradient(value: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(value, z)[0]


def assert_same(loss: Loss, z: Tensor, expected: tuple[Tensor, int, int]) -> None:
    value, num_anchors, terms = expected
    assert (loss.num_anchors, loss.counts) == (num_anchors, {"terms": terms})
    torch.testing.assert_close(loss.value, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(loss.value, z), gradient(value, z), rtol=1e-9, atol=1e-12)


# The loss


@pytest.mark.parametrize("negatives", ["all", "other_patients"])
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("num_modalities", [2, 3])
def test_value_and_gradient_equal_naive_loops(num_modalities: int, num_views: int, negatives: Any) -> None:
    keep = [i for i, modality in enumerate(COHORT["modality"]) if modality < num_modalities]
    columns = only(COHORT, keep)
    z = unit(len(keep), num_views)
    expected = naive(z, columns, other_patients=negatives == "other_patients")
    assert_same(clip(negatives=negatives).loss({"z": z}, make_batch(columns)), z, expected)
    # By hand: {0, 1} has 0-1, 2-3, 2-4 and 5-6; {0, 2} has 5-7 and 12-11; {1, 2} has 6-7 alone, hence no term.
    sizes = {2: (3 + 4,), 3: (3 + 4, 2 + 2)}[num_modalities]
    assert expected[1:] == (num_views * sum(sizes), len(sizes))


@pytest.mark.parametrize("num_patients", [2, 5])
def test_one_pair_a_patient_is_clip(num_patients: int) -> None:
    """Cross-entropy of picking one's partner, averaged over both directions."""
    z = unit(2 * num_patients)
    relation = {"same": "patient", "differ": "modality"}
    loss = clip(relation=relation, temperature=0.07).loss({"z": z}, make_batch(pairs(num_patients)))
    logits = z[0, ::2] @ z[0, 1::2].T / 0.07
    target = torch.arange(num_patients)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert_same(loss, z, (expected, 2 * num_patients, 1))


@pytest.mark.parametrize("relation", [{"same": "patient"}, {"same": "patient", "differ": "modality"}])
def test_the_role_may_be_left_free(relation: dict[str, str]) -> None:
    """Whether the relation repeats that the two sides differ makes no difference."""
    columns = only(COHORT, [0, 1, 2, 3, 4, 5, 6, 7, 11, 12])
    z = unit(10)
    expected = naive(z, columns, same=["patient"], differ=[])
    assert_same(clip(relation=relation).loss({"z": z}, make_batch(columns)), z, expected)


def test_visits_are_sides_as_modalities_are() -> None:
    """Temporal contrast within a modality: three visits are three pairs; a missing visit takes no part."""
    columns: Columns = {
        "patient": [0, 0, 0, 1, 1, 2, 2, 3, 3],
        "visit": [0.0, 1.0, 2.0, 0.0, 1.0, 0.0, 2.0, NAN, 0.0],
        "modality": [0, 0, 0, 0, 0, 0, 0, 0, 0],
    }
    z = unit(9)
    objective = clip(relation={"same": ["patient", "modality"], "differ": ["visit"]}, between="visit")
    expected = naive(z, columns, between="visit", same=["patient", "modality"], differ=["visit"])
    assert expected[1:] == (8, 2)  # {0, 1}: patients 0 and 1; {0, 2}: 0 and 2; {1, 2}: patient 0 alone
    assert_same(objective.loss({"z": z}, make_batch(columns)), z, expected)


def test_several_modalities_are_the_sum_over_their_pairs() -> None:
    z, objective = unit(15, 2), clip()
    whole = objective.loss({"z": z}, make_batch(COHORT))
    parts = []
    for two in combinations(range(3), 2):
        keep = [i for i, modality in enumerate(COHORT["modality"]) if modality in two]
        parts.append(objective.loss({"z": z[:, keep]}, make_batch(only(COHORT, keep))))
    assert [part.counts["terms"] for part in parts] == [1, 1, 0]
    value = torch.stack([part.value for part in parts]).sum()
    assert_same(whole, z, (value, sum(part.num_anchors for part in parts), 2))


@pytest.mark.parametrize("num_views", [1, 2])
def test_what_the_sides_are_called_does_not_matter(num_views: int) -> None:
    z, objective = unit(15, num_views), clip(negatives="other_patients")
    one = objective.loss({"z": z}, make_batch(COHORT))
    renamed = {**COHORT, "modality": [[7, 4, 0][code] for code in COHORT["modality"]]}
    other = objective.loss({"z": z}, make_batch(renamed))
    assert_same(other, z, (one.value, one.num_anchors, one.counts["terms"]))


def test_order_of_the_rows_does_not_matter() -> None:
    z, objective = unit(15, 2), clip()
    one = objective.loss({"z": z}, make_batch(COHORT))
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3)).tolist()
    other = objective.loss({"z": z[:, order]}, make_batch(only(COHORT, order)))
    assert_same(other, z, (one.value, one.num_anchors, one.counts["terms"]))


# Missing partners


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("negatives", ["all", "other_patients"])
def test_rows_without_a_partner_change_nothing(negatives: Any, num_views: int) -> None:
    """Neither anchors nor negatives: with them the loss and its gradients are those without them, and theirs are 0."""
    complete: Columns = {
        "patient": [0, 0, 1, 1, 2, 2],
        "visit": [0.0] * 6,
        "laterality": [0] * 6,
        "modality": [0, 1, 0, 1, 0, 1],
    }
    lonely: Columns = {  # no other image; another visit; another eye; patient, visit, eye or modality unknown
        "patient": [3, 2, 2, -1, 2, 2, 2],
        "visit": [0.0, 5.0, 0.0, 0.0, NAN, 0.0, 0.0],
        "laterality": [0, 0, 1, 0, 0, -1, 0],
        "modality": [0, 1, 1, 0, 1, 1, -1],
    }
    both = {role: complete[role] + lonely[role] for role in complete}
    objective, z = clip(negatives=negatives), unit(13, num_views)
    alone = objective.loss({"z": z[:, :6]}, make_batch(complete))
    joined = objective.loss({"z": z}, make_batch(both))
    assert (alone.num_anchors, joined.num_anchors) == (6 * num_views, 6 * num_views)
    assert alone.counts == joined.counts == {"terms": 1}
    torch.testing.assert_close(joined.value, alone.value, rtol=1e-12, atol=1e-12)
    ours, expected = gradient(joined.value, z), gradient(alone.value, z)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    assert expected[:, :6].abs().amax(dim=-1).min() > 0
    assert torch.equal(ours[:, 6:], torch.zeros(num_views, 7, 5, dtype=torch.float64))


def test_a_row_with_a_partner_elsewhere_is_no_negative_where_it_has_none() -> None:
    """Patient 2 has modalities 0 and 2: it stands in that pair, and is not seen between 0 and 1."""
    columns: Columns = {"patient": [0, 0, 1, 1, 2, 2, 0], "modality": [0, 1, 0, 1, 0, 2, 2]}
    relation, z = {"same": "patient", "differ": "modality"}, unit(7)
    loss = clip(relation=relation).loss({"z": z}, make_batch(columns))
    first = clip(relation=relation).loss({"z": z[:, :4]}, make_batch(only(columns, [0, 1, 2, 3])))
    second = clip(relation=relation).loss({"z": z[:, [0, 4, 5, 6]]}, make_batch(only(columns, [0, 4, 5, 6])))
    assert first.value > 0 < second.value
    assert_same(loss, z, (first.value + second.value, 8, 2))


def test_other_images_of_a_patient_are_negatives_only_on_request() -> None:
    """With `all` two visits of one patient are told apart; with `other_patients` there is nobody to tell from."""
    columns: Columns = {
        "patient": [0, 0, 0, 0],
        "visit": [0.0, 0.0, 1.0, 1.0],
        "laterality": [0] * 4,
        "modality": [0, 1, 0, 1],
    }
    z, batch = unit(4), make_batch(columns)
    everybody, others = (clip(negatives=choice).loss({"z": z}, batch) for choice in ("all", "other_patients"))
    assert everybody.value > 0
    assert (others.value.item(), gradient(others.value, z).abs().max().item()) == (0.0, 0.0)
    unknown: Columns = {**columns, "patient": [-1] * 4}  # visit and eye agree; who it is is not known
    by_visit = clip(relation={"same": "visit", "differ": "modality"}, negatives="other_patients")
    z = unit(4)
    assert_same(
        by_visit.loss({"z": z}, make_batch(unknown)),
        z,
        naive(z, unknown, same=["visit"], other_patients=True),
    )
    assert by_visit.loss({"z": z}, make_batch(unknown)).value > 0


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"patient": [0, 1, 2, 3], "modality": [0, 1, 0, 1]}, id="no pair"),
        pytest.param({"patient": [0, 0, 1, 2], "modality": [0, 1, 0, 1]}, id="one pair"),
        pytest.param({"patient": [0, 0, 0], "modality": [0, 1, 1]}, id="one anchor on one side, two on the other"),
        pytest.param({"patient": [0, 0, 1, 1], "modality": [0, 0, 0, 0]}, id="one modality"),
        pytest.param({"patient": [0, 0, 1, 1], "modality": [-1, -1, -1, -1]}, id="modality missing"),
        pytest.param({"patient": [-1, -1, -1, -1], "modality": [0, 1, 0, 1]}, id="patient missing"),
        pytest.param({"patient": [0, 0, 1, 1], "modality": [0, -1, -1, 1]}, id="every partner missing"),
        pytest.param({"patient": [0], "modality": [0]}, id="one row"),
    ],
)
@pytest.mark.parametrize("negatives", ["all", "other_patients"])
@pytest.mark.parametrize("learnable", [False, True])
def test_nothing_to_do_is_exactly_zero_with_zero_gradients(columns: Columns, negatives: Any, learnable: bool) -> None:
    relation = {"same": "patient", "differ": "modality"}
    objective = clip(relation=relation, negatives=negatives, learnable=learnable)
    z = unit(len(columns["patient"]))
    loss = objective.loss({"z": z}, make_batch(columns))
    assert (loss.value.item(), loss.num_anchors, loss.counts) == (0.0, 0, {"terms": 0})
    assert loss.value.shape == ()
    assert torch.equal(gradient(loss.value, z), torch.zeros_like(z))


def test_a_term_with_too_few_does_not_dilute_the_others() -> None:
    columns: Columns = {"patient": [0, 0, 1, 1, 0], "modality": [0, 1, 0, 1, 2]}
    z, objective = unit(5), clip(relation={"same": "patient", "differ": "modality"})
    alone = objective.loss({"z": z[:, :4]}, make_batch(only(columns, [0, 1, 2, 3])))
    assert_same(objective.loss({"z": z}, make_batch(columns)), z, (alone.value, 4, 1))


def test_extreme_similarities_stay_finite() -> None:
    z = torch.ones(1, 4, 5, dtype=torch.float32).div(math.sqrt(5)).requires_grad_()
    loss = clip(relation={"same": "patient", "differ": "modality"}, temperature=1e-3).loss(
        {"z": z}, make_batch(pairs(2))
    )
    assert loss.value.item() == pytest.approx(math.log(2), rel=1e-3)
    assert gradient(loss.value, z).isfinite().all()


def test_linear_weighting_weights_the_positives() -> None:
    """Visits within a year, closer counts more: sample 0 has two partners, at 0 and at 182.5 days."""
    columns: Columns = {"patient": [0, 0, 0, 1, 1], "time": [0.0, 0.0, 182.5, 0.0, 73.0], "modality": [0, 1, 1, 0, 1]}
    relation = {"same": "patient", "within": {"time": 365}, "weighting": "linear"}
    z = unit(5)
    s = z[0] @ z[0].T / 0.3
    weight = {(0, 1): 1.0, (0, 2): 0.5, (3, 4): 0.8}

    def towards(anchors: list[int], others: list[int]) -> Tensor:
        losses = []
        for i in anchors:
            near = {j: weight[min(i, j), max(i, j)] for j in others if (min(i, j), max(i, j)) in weight}
            log_all = s[i, others].logsumexp(0)
            terms = torch.stack([w * (log_all - s[i, j]) for j, w in near.items()])
            losses.append(terms.sum() / sum(near.values()))
        return torch.stack(losses).sum() / len(losses)

    expected = (towards([0, 3], [1, 2, 4]) + towards([1, 2, 4], [0, 3])) / 2
    assert_same(clip(relation=relation).loss({"z": z}, make_batch(columns)), z, (expected, 5, 1))


def test_partners_too_far_apart_in_time_are_none() -> None:
    """Two images of a patient 400 days apart take no part where partners lie within a year."""
    columns: Columns = {
        "patient": [0, 0, 1, 1, 2, 2],
        "time": [0.0, 365.0, 10.0, 0.0, 0.0, 400.0],
        "modality": [0, 1, 0, 1, 0, 1],
    }
    z, objective = unit(6), clip(relation={"same": "patient", "within": {"time": 365}})
    alone = naive(z[:, :4], only(columns, [0, 1, 2, 3]), same=["patient"])
    assert alone[1:] == (4, 1)
    assert_same(objective.loss({"z": z}, make_batch(columns)), z, alone)
    assert objective.needs.roles == {"patient", "time", "modality"}


def test_nothing_is_drawn_at_random() -> None:
    """Neither the seed of the step nor the global random state matters, and the latter is left as it was."""
    z, objective, columns = unit(15), clip(), make_batch(COHORT).columns
    before = torch.get_rng_state()
    first = objective.loss({"z": z}, Batch({}, {}, columns, seed=0)).value
    assert torch.equal(torch.get_rng_state(), before)
    assert first == objective.loss({"z": z}, Batch({}, {}, columns, seed=1)).value


# Kept apart


@pytest.mark.parametrize("num_views", [1, 2])
def test_among_adds_the_terms_of_each_value(num_views: int) -> None:
    """Visits of a patient, each modality for itself, are the sum of what each modality alone would give."""
    columns: Columns = {
        "patient": [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3],
        "visit": [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0],
        "modality": [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, -1, -1],
    }
    relation = {"same": "patient", "differ": "visit"}
    z = unit(13, num_views)
    objective = clip(relation=relation, between="visit", among="modality")
    whole, parts = objective.loss({"z": z}, make_batch(columns)), []
    for modality in (0, 1):
        keep = [i for i, value in enumerate(columns["modality"]) if value == modality]
        alone = only(columns, keep)
        parts.append(naive(z[:, keep], alone, between="visit", same=["patient"], differ=["visit"]))
    value = torch.stack([part[0] for part in parts]).sum()
    assert [part[1] for part in parts] == [6 * num_views, 4 * num_views]
    assert_same(whole, z, (value, 10 * num_views, 2))
    assert objective.needs.roles == {"patient", "visit", "modality"}
    with pytest.raises(RecipeError, match="modality"):
        clip(among="modality")


def test_among_alone_is_the_plain_contrast_of_each_value() -> None:
    keep = [i for i, patient in enumerate(COHORT["patient"]) if patient != -1]
    columns, z = only(COHORT, keep), unit(13)
    plain: dict[str, Any] = {"relation": {"same": "patient"}, "between": None}
    whole = clip(**plain, among="modality").loss({"z": z}, make_batch(columns))
    parts = []
    for modality in (0, 1, 2):
        rows = [i for i, value in enumerate(columns["modality"]) if value == modality]
        parts.append(clip(**plain).loss({"z": z[:, rows]}, make_batch(only(columns, rows))))
    assert [part.num_anchors for part in parts] == [4, 3, 0]  # of patients 0 and 1; of patient 0; none
    value = torch.stack([part.value for part in parts]).sum()
    assert whole.num_anchors == 7
    torch.testing.assert_close(whole.value, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(whole.value, z), gradient(value, z), rtol=1e-9, atol=1e-12)


# What it needs, and what it refuses


def test_needs_hold_both_relation_and_sides() -> None:
    needs = clip().needs
    assert needs.views == 1
    assert needs.roles == {"patient", "visit", "laterality", "modality"}
    (relation,) = needs.relations
    assert set(relation.same) == {"patient", "visit", "laterality"}
    assert clip(relation={"same": "region"}).needs.roles == {"region", "modality"}
    other = clip(relation={"same": "region"}, negatives="other_patients")
    assert other.needs.roles == {"region", "modality", "patient"}
    assert clip(relation={"same": "patient", "differ": "visit"}, between="visit").needs.roles == {"patient", "visit"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relation": {"same": ["patient", "modality"]}}, "modality"),
        ({"between": "modalty"}, "modalty"),
        ({"between": "view"}, "view"),
        ({"between": "time"}, "time"),
        ({"between": "score:age"}, "score:age"),
        ({"between": "slice_position"}, "slice_position"),
    ],
)
def test_sides_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        clip(**changes)


def test_a_recipe_names_them() -> None:
    spec = {"kind": "contrast", "relation": ACROSS, "between": "modality", "learnable": True, "temperature": 0.07}
    built = build_objectives(Recipe.load({"name": "mine", "objectives": {"pairs": spec}}), SHAPE, {}, seed=0)["pairs"]
    assert isinstance(built, Contrast)
    assert dict(built.named_parameters())["log_scale"].item() == pytest.approx(math.log(1 / 0.07))
    with pytest.raises(RecipeError, match=r"objectives\.pairs"):
        build_objectives(
            Recipe.load({"name": "mine", "objectives": {"pairs": {**spec, "between": "modalty"}}}), SHAPE, {}, seed=0
        )


# The learnable scale


def features(num: int, views: int = 1) -> Features:
    generator = torch.Generator().manual_seed(4)
    return Features(torch.randn(views, num, 6, generator=generator, dtype=torch.float64).requires_grad_())


def twins(**changes: Any) -> tuple[Contrast, Contrast]:
    """A contrast of fixed temperature and a learnable one, alike in all else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fixed = clip(dim=4, hidden_norm=False, **changes).double()
        learnable = clip(dim=4, hidden_norm=False, learnable=True, **changes).double()
    learnable.head.load_state_dict(fixed.head.state_dict())
    with torch.no_grad():  # the constructor writes float32
        scale_of(learnable).fill_(-math.log(fixed.temperature))
    return fixed, learnable


def scale_of(objective: Contrast) -> torch.nn.Parameter:
    """The logarithm of 1 / temperature."""
    assert objective.log_scale is not None
    return objective.log_scale


def run(objective: Contrast, found: Features, batch: Batch) -> Tensor:
    return objective.loss(objective.embed(found, batch), batch).value


@pytest.mark.parametrize("between", [None, "modality"])
def test_it_starts_as_the_fixed_temperature(between: str | None) -> None:
    fixed, learnable = twins(between=between)
    found, batch = features(15, 2), make_batch(COHORT)
    one, other = run(fixed, found, batch), run(learnable, found, batch)
    assert one > 0
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, found.pooled)[0] for value in (one, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_the_scale_is_one_parameter_and_only_there_on_request() -> None:
    learnable = clip(learnable=True, temperature=0.07)
    assert isinstance(learnable.log_scale, torch.nn.Parameter)
    assert scale_of(learnable).shape == ()
    assert scale_of(learnable).item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)
    names = {name for name, _ in clip().named_parameters()}
    assert {name for name, _ in learnable.named_parameters()} == names | {"log_scale"}
    assert "log_scale" in learnable.state_dict()


def test_products_of_embeddings_are_the_logits() -> None:
    _, learnable = twins()
    found, batch = features(4), make_batch(only(COHORT, [0, 1, 2, 3]))
    z = learnable.embed(found, batch)["z"][0]
    cosine = F.normalize(learnable.head(found.pooled), dim=-1)[0]
    torch.testing.assert_close(z @ z.T, cosine @ cosine.T / 0.3, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(z.norm(dim=-1) ** 2, torch.full((4,), 1 / 0.3, dtype=torch.float64))


@pytest.mark.parametrize("between", [None, "modality"])
def test_gradient_of_the_scale_by_finite_differences(between: str | None) -> None:
    _, learnable = twins(between=between)
    found, batch = features(15), make_batch(COHORT)
    (exact,) = torch.autograd.grad(run(learnable, found, batch), scale_of(learnable))
    start, step, values = scale_of(learnable).item(), 1e-5, []
    for moved in (start - step, start + step):
        with torch.no_grad():
            scale_of(learnable).fill_(moved)
        values.append(run(learnable, found, batch).item())
    assert abs(exact.item()) > 1e-3
    assert exact.item() == pytest.approx((values[1] - values[0]) / (2 * step), rel=1e-6)


def test_the_scale_reaches_the_loss_through_the_embeddings_alone() -> None:
    """So that gathered embeddings of several processes, each with its own graph, give its whole gradient."""
    _, learnable = twins()
    batch = make_batch(COHORT)
    z = learnable.embed(features(15), batch)["z"].detach().requires_grad_()
    value = learnable.loss({"z": z}, batch).value
    found = torch.autograd.grad(value, [z, scale_of(learnable)], allow_unused=True)
    assert found[0].abs().max() > 0
    assert found[1] is None or found[1] == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [101.0, 1e4, 1e30])
def test_the_scale_is_capped_at_100(scale: float, training: bool) -> None:
    """In evaluation as in training; and from beyond the cap it is not lost, but can fall again."""
    fixed, learnable = twins()
    fixed.temperature = 0.01
    learnable.train(training)
    with torch.no_grad():
        scale_of(learnable).fill_(math.log(scale))
    found, batch = features(15), make_batch(COHORT)
    value = run(learnable, found, batch)
    torch.testing.assert_close(value, run(fixed, found, batch), rtol=1e-9, atol=1e-12)
    (moved,) = torch.autograd.grad(value, found.pooled)
    assert moved.isfinite().all()
    assert moved.abs().max() > 0


def test_from_the_cap_it_falls_where_the_loss_wants_it() -> None:
    """Random embeddings call for a small scale: one step from far above leaves it below 100, not where it was."""
    _, learnable = twins()
    with torch.no_grad():
        scale_of(learnable).fill_(math.log(1e4))
    optimizer = torch.optim.SGD([scale_of(learnable)], lr=1e-3)
    (moved,) = torch.autograd.grad(run(learnable, features(15), make_batch(COHORT)), scale_of(learnable))
    assert moved > 0
    scale_of(learnable).grad = moved
    optimizer.step()
    assert 0 < scale_of(learnable).item() < math.log(100)


def test_below_the_cap_it_moves() -> None:
    _, learnable = twins()
    with torch.no_grad():
        scale_of(learnable).fill_(math.log(99.0))
    (moved,) = torch.autograd.grad(run(learnable, features(15), make_batch(COHORT)), scale_of(learnable))
    assert moved.isfinite()
    assert moved != 0


def test_contrasts_of_one_head_embed_alike_only_at_one_scale() -> None:
    """What the loop embeds once for all of a kind must be the same for all of them."""
    one, other = clip(), clip(temperature=0.1, between=None)
    other.head = one.head
    assert one.embeds_with == other.embeds_with
    learnable, second = clip(learnable=True), clip(learnable=True, temperature=0.05)
    learnable.head = second.head = one.head
    assert len({one.embeds_with, learnable.embeds_with, second.embeds_with}) == 3


def test_half_precision_is_left_in_time() -> None:
    for learnable in (False, True):
        objective = clip(learnable=learnable, dim=4)
        batch = make_batch(COHORT)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embedded = objective.embed(Features(features(15, 2).pooled.float().detach()), batch)
            loss = objective.loss(embedded, batch)
        assert embedded["z"].dtype == loss.value.dtype == torch.float32
        double = objective.loss({"z": embedded["z"].double()}, batch)
        assert loss.value.item() == pytest.approx(double.value.item(), rel=1e-5)
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss.value, list(objective.parameters())))
