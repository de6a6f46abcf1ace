"""An encoder without its context blocks: BatchNorm statistics from the cohort's training images, and from no others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PillowImage
from torch import Tensor, nn

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.preprocessing import Preprocessing
from bolus.embedding.opening import Judged, open_encoder
from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.encoders.parts.norms import estimate_norms, norms_of
from bolus.errors import EncoderError
from bolus.evaluation import ungated
from bolus.evaluation.contract import Task
from bolus.evaluation.elsewhere.elsewhere import evaluate_elsewhere
from bolus.evaluation.preparation import Prepared, embed_all, prepare
from bolus.evaluation.probing.reading import evaluate
from bolus.evaluation.settings import Judging
from bolus.recipe import EncoderSpec

NAME = "gated without context"
SPEC: dict[str, Any] = {"backbone": "r18w32", "stem_pool": False, "context": True}


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def save_gated(folder: Path, *, frames: int | None = None, size: int = 24, **keys: Any) -> Path:
    """An encoder whose running statistics are those of the network with its gates, as after a training."""
    encoder = build_encoder(EncoderSpec(**SPEC, **keys), seed=0)
    estimate_norms(encoder, [(pixels(16, 1, size, size, seed=seed) * 0.5 + 0.2, None) for seed in range(4)])
    save_encoder(encoder.eval(), folder, preprocessing=Preprocessing(size, frames=frames).to_json())
    return folder


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    return save_gated(tmp_path / "gated")


@pytest.fixture
def opened(gated: Path, tiny_cohort: Path, tmp_path: Path) -> Callable[..., Prepared[None]]:
    def open_it(cohort: Path = tiny_cohort) -> Prepared[None]:
        return prepared_for(gated, cohort, tmp_path / "cache")

    return open_it


def prepared_for(source: Path, cohort: Path, cache: Path) -> Prepared[None]:
    return prepare(source, cohort, Task(), lambda samples: None, Judging(cache=cache))


def statistics(encoder: nn.Module) -> list[Tensor]:
    return [each for norm in norms_of(encoder) for each in (norm.running_mean, norm.running_var)]


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(*both) for both in zip(statistics(first), statistics(second), strict=True))


def bare_of(prepared: Prepared[None], source: Path, seed: int = 0) -> Encoder:
    found = replace(prepared, source=source, judging=Judging(seed)).encoders()[NAME]
    assert isinstance(found, Encoder)
    return found


# --- the statistics


def test_statistics_are_the_mean_of_those_of_batches() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(3))
    encoder.double()
    batches = [pixels(4, 1, 8, 8, seed=seed).double() for seed in range(3)]

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = encoder

        def forward(self, images: Tensor, *, frame_mask: Tensor | None = None) -> Tensor:
            found: Tensor = self.inner(images)
            return found

    def naive(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        means = [torch.stack([each[:, c].mean() for c in range(3)]) for each in maps]
        spreads = [torch.stack([each[:, c].var() for c in range(3)]) for each in maps]
        return sum(means) / len(means), sum(spreads) / len(spreads)

    estimate_norms(Called(), [(images, None) for images in batches])
    with torch.no_grad():
        first = [encoder[0](images) for images in batches]
        second = []  # on the batch's own statistics, and without dropout
        for each in first:
            spread = each.var((0, 2, 3), keepdim=True, correction=0)
            second.append(((each - each.mean((0, 2, 3), keepdim=True)) / (spread + 1e-5).sqrt()).relu())
    for norm, maps in ((encoder[1], first), (encoder[4], second)):
        mean, spread = naive(maps)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(norm.running_var, spread, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_only_the_statistics_change(training: bool) -> None:
    encoder = build_encoder(EncoderSpec(**SPEC, unfrozen=1), seed=0).train(training)
    before, modes = copy.deepcopy(encoder), [each.training for each in encoder.modules()]
    state = torch.get_rng_state()
    estimate_norms(encoder, [(pixels(4, 1, 24, 24), None)])
    assert [each.training for each in encoder.modules()] == modes
    assert {norm.momentum for norm in norms_of(encoder)} == {0.1}
    assert torch.equal(state, torch.get_rng_state())
    for (name, ours), theirs in zip(encoder.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not any(torch.equal(*both) for both in zip(statistics(encoder), statistics(before), strict=True))


def test_a_batch_of_one_has_no_statistics() -> None:
    encoder = build_encoder(EncoderSpec(**SPEC), seed=0)
    with pytest.raises(EncoderError, match="at least two images"):
        estimate_norms(encoder, [(pixels(1, 1, 24, 24), None)])
    assert all(norm.momentum == 0.1 for norm in norms_of(encoder))
    twin = copy.deepcopy(encoder)
    estimate_norms(encoder, [(pixels(4, 1, 24, 24), None), (pixels(1, 1, 24, 24, seed=1), None)])
    estimate_norms(twin, [(pixels(4, 1, 24, 24), None)])
    assert same(encoder, twin)


def test_an_encoder_without_norms_stays_and_runs_nothing() -> None:
    estimate_norms(build_encoder(EncoderSpec(backbone="vit_tiny"), seed=0), iter([("no images", None)]))


# --- in an evaluation


def test_features_without_context_are_of_the_order_of_those_with(
    gated: Path, opened: Callable[..., Prepared[None]]
) -> None:
    prepared = opened()
    found = embed_all(prepared.encoders(), prepared)
    stale = open_encoder(gated, keep_context=False).encoder
    before = embed_all({"stale": stale}, prepared)["stale"]
    largest = np.abs(found["gated"]).max()
    assert np.abs(before).max() > 20 * largest  # what it was with the statistics of the run
    assert np.abs(found[NAME]).max() < 5 * largest
    assert not np.allclose(found[NAME], found["gated"], rtol=0.1)


def test_a_note_says_what_was_done(gated: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    found = evaluate(gated, tiny_cohort, target="sick", draws=20, cache=tmp_path / "cache", out=tmp_path / "out")
    said = [note for note in found.notes if note.startswith(f"{NAME}: BatchNorm statistics are estimated anew")]
    assert len(said) == 1
    assert "training images of the cohort (at most 512)" in said[0]
    assert said[0] in json.loads((tmp_path / "out" / "notes.json").read_text(encoding="utf-8"))["general"]
    assert NAME in {result.encoder for result in found.results}


def test_the_same_images_give_the_same_statistics(
    gated: Path, opened: Callable[..., Prepared[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = opened()
    assert same(bare_of(prepared, gated), bare_of(opened(), gated))
    monkeypatch.setattr(ungated, "NUM_IMAGES", 8)
    few = bare_of(prepared, gated)
    assert same(few, bare_of(prepared, gated))
    assert not same(few, bare_of(prepared, gated, seed=1))  # other eight


def test_only_training_images_matter(
    gated: Path, opened: Callable[..., Prepared[None]], tiny_cohort: Path, tmp_path: Path
) -> None:
    before = bare_of(opened(), gated)
    cohort = Cohort.open(tiny_cohort)
    r = np.random.default_rng(5)

    def overwrite(rows: np.ndarray) -> None:
        for row in rows:
            image = PillowImage.fromarray(r.integers(0, 256, (24, 24), dtype=np.uint8))
            image.save(cohort.image_path(int(row)))

    overwrite(np.flatnonzero(cohort.split != "train"))
    assert same(bare_of(opened(), gated), before)
    overwrite(np.flatnonzero(cohort.split == "train")[:1])
    assert not same(bare_of(opened(), gated), before)


def test_without_readable_training_images_the_column_is_left_out(
    gated: Path, opened: Callable[..., Prepared[None]], tiny_cohort: Path
) -> None:
    frame = pd.read_csv(tiny_cohort.parent / "table.csv")
    frame["split"] = np.where(frame["patient"] == "P000", "train", np.where(frame["patient"] < "P006", "val", "test"))
    frame.to_csv(tiny_cohort.parent / "fixed.csv", index=False)
    train = [tiny_cohort.parent / name for name in frame["image"][frame["split"] == "train"]]
    for unreadable in (1, 2, 3):
        train[unreadable - 1].write_bytes(b"no image")
        prepared = opened(tiny_cohort.parent / "fixed.csv")
        said = [note for note in prepared.notes if note.startswith(NAME)]
        assert len(said) == 1
        left_out = len(train) - unreadable < 2
        assert ("is left out" in said[0]) == left_out
        assert set(prepared.encoders()) == {"gated", "random-init"} | (set() if left_out else {NAME})


def test_nothing_is_said_where_nothing_is_done(
    gated: Path, opened: Callable[..., Prepared[None]], tiny_cohort: Path, tmp_path: Path
) -> None:
    plain = build_encoder(EncoderSpec(**{**SPEC, "context": False}), seed=0)
    save_encoder(plain, tmp_path / "plain", preprocessing=Preprocessing(24).to_json())
    prepared = prepared_for(tmp_path / "plain", tiny_cohort, tmp_path / "cache")
    assert not any("BatchNorm" in note for note in prepared.notes)
    assert prepared.judged.training is None

    seen = opened()
    normless = copy.deepcopy(seen.judged.encoder)
    for name, module in list(normless.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            normless.set_submodule(name, nn.GroupNorm(1, module.num_features))
    judged = Judged("gated", normless, seen.judged.preprocessing, None)
    found, note = ungated.show_training(judged, seen.store, seen.samples, seen.kept, name=NAME)
    assert (found, note) == (judged, "")
    assert NAME in replace(seen, judged=found).encoders()  # as it is


def test_clips_are_seen_too(tmp_path: Path) -> None:
    gated, folder = save_gated(tmp_path / "gated", frames=3, size=16, temporal_shift=8), tmp_path / "clips"
    folder.mkdir()
    r, lines = np.random.default_rng(0), []
    for clip in range(12):
        for frame in range(1 + clip % 4):  # some shorter than the three frames that are seen
            name = f"{clip}_{frame}.png"
            PillowImage.fromarray(r.integers(0, 256, (20, 20), dtype=np.uint8)).save(folder / name)
            split = "train" if clip < 6 else "test"
            lines.append({"image": name, "patient": f"p{clip}", "series": f"s{clip}", "order": frame, "split": split})
    pd.DataFrame(lines).to_csv(folder / "t.csv", index=False)
    prepared = prepared_for(gated, folder / "t.csv", tmp_path / "cache")
    assert any(note.startswith(f"{NAME}: BatchNorm") for note in prepared.notes)
    bare = bare_of(prepared, gated)
    assert same(bare, bare_of(prepared, gated))
    assert not same(bare, open_encoder(gated, keep_context=False).encoder)
    found = embed_all({"bare": bare}, prepared)["bare"]
    assert found.shape == (12, 256)
    assert np.isfinite(found).all()


def test_elsewhere_the_statistics_are_of_the_cohort_that_heads_are_fitted_on(
    gated: Path, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.read_csv(tiny_cohort.parent / "table.csv")
    other = tmp_path / "there"
    (other / "img").mkdir(parents=True)
    r = np.random.default_rng(1)
    for name in frame["image"]:
        PillowImage.fromarray(r.integers(0, 256, (24, 24), dtype=np.uint8)).save(other / name)
    frame.assign(patient="Q" + frame["patient"]).to_csv(other / "table.csv", index=False)
    (other / "cohort.yaml").write_text(tiny_cohort.read_text())
    used: list[nn.Module] = []
    encoders = Prepared.encoders
    monkeypatch.setattr(Prepared, "encoders", lambda self: used.append(encoders(self)[NAME]) or encoders(self))
    found = evaluate_elsewhere(gated, tiny_cohort, other / "cohort.yaml", target="sick", probes=("linear",), draws=20,
                               cache=tmp_path / "cache", out=tmp_path / "out")  # fmt: skip
    prepared = prepared_for(gated, tiny_cohort, tmp_path / "cache")
    assert same(used[0], bare_of(prepared, gated))
    assert sum("BatchNorm statistics are estimated anew" in note for note in found.notes) == 1
    assert NAME in {result.encoder for result in found.results}
