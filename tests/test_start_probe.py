"""A run beside the encoder that it started from: what is better, what is behind, and what a resumed run remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bolus.data.images.cache import Preprocessing
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.recipe import EncoderSpec
from bolus.run import Run
from bolus.training import loop
from bolus.training.health import health, start_probe
from bolus.training.health.online_probe import Probed
from bolus.training.health.start_probe import against_start, patience
from bolus.training.loop import pretrain

N = 200
Y = np.arange(N, dtype=np.float64)[:, None] % 2.0
NOISE = np.random.default_rng(0).normal(size=(N, 1))


def probed(signal: float, role: str = "label:sick", samples: str = "these") -> Probed:
    scores = np.asarray(signal * Y + NOISE, dtype=np.float64)
    return Probed(role, "AUROC", np.asarray(Y, dtype=np.float64), scores, np.arange(N) // 2, samples)


def looks_at(signals: list[float], *, looks: int = 3, start: float = 1.0) -> list[tuple[Any, dict[str, Any]]]:
    """The findings of consecutive looks against a start, and their lines of metrics."""
    began = probed(start)
    facts = {"role": began.role, "samples": began.samples, "scores": began.scores.tolist()}
    lines: list[dict[str, Any]] = [{"kind": "health", "step": 0, "start": facts}]
    said = []
    for step, signal in enumerate(signals, 1):
        (finding,), line = against_start(probed(signal), lines, looks=looks, seed=0)
        lines += [{"kind": "train", "step": step}, {"kind": "health", "step": step, **line}]
        said.append((finding, line["start"]))
    return said


def test_nothing_gained_gained_and_lost_again() -> None:
    said = [finding.sentence for finding, _ in looks_at([1.0, 1.001, 3.0, 1.0])]
    assert said[0].startswith("Nothing gained yet over the encoder it started from: AUROC +0.00 [")
    assert said[1].startswith("Nothing gained yet over the encoder it started from")
    assert said[2].startswith("Gained over the encoder it started from: AUROC +0.")
    assert said[3].startswith("No longer ahead of the encoder it started from")


def test_behind_is_said_after_several_looks_in_a_row_below_the_noise() -> None:
    said = looks_at([0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert [finding.good for finding, _ in said] == [True, True, False, False, True, True]
    assert [facts["below"] for _, facts in said] == [1, 2, 3, 4, 0, 1]
    assert said[2][0].sentence.startswith("Behind its start for 3 looks: AUROC -0.")
    for way_out in ("optimizer.lr", "layer_decay", "fewer steps", "unfrozen"):
        assert way_out in said[2][0].sentence
    assert said[0][1]["high"] < 0
    ((only, _),) = looks_at([0.0], looks=patience(10, 10))
    assert only.sentence.startswith("Behind its start for 1 look: ")
    other = np.random.default_rng(1).normal(size=(N, 1))
    assert probed(1.0).gain_over(other + Y, seed=0).low < 0 < probed(1.0).gain_over(other + Y, seed=0).high


def test_the_interval_is_paired_and_of_patients() -> None:
    one = probed(1.0).gain_over(probed(1.02).scores, seed=0)
    other = np.random.default_rng(1).normal(size=(N, 1)) + 1.02 * Y
    apart = probed(1.0).gain_over(other, seed=0)
    assert one.se < apart.se / 4
    assert one.num_patients == N // 2
    again = probed(1.0).gain_over(probed(1.02).scores, seed=0)
    assert (again.low, again.high) == (one.low, one.high)


def test_without_a_start_or_of_another_probe_nothing_is_compared() -> None:
    assert against_start(probed(1.0), [{"kind": "health", "step": 5}], looks=3, seed=0) == ([], {})
    facts = {"role": "label:sick", "samples": "these", "scores": probed(1.0).scores.tolist()}
    lines = [{"kind": "health", "step": 0, "start": facts}]
    assert against_start(None, lines, looks=3, seed=0) == ([], {})
    (finding,), line = against_start(probed(1.0, samples="others"), lines, looks=3, seed=0)
    assert finding.good
    assert not line
    assert finding.sentence.startswith("Not compared with the encoder it started from")


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    encoder = build_encoder(EncoderSpec(backbone="r18w32", stem_pool=False, mean=[0.3]), seed=4)
    save_encoder(encoder.eval(), tmp_path / "from", preprocessing=Preprocessing(24).to_json())
    return {
        "encoder": {"backbone": str(tmp_path / "from"), "pretrained": True, "stem_pool": False},
        "images.size": 24, "sampling.batch_size": 8, "training.max_steps": 3, "training.precision": "fp32",
        "training.log_steps": 1, "training.checkpoint_steps": 1, "training.health_epochs": 0.1,
        "training.probe": "score:severity",
    }  # fmt: skip


def health_of(run: Run) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line["kind"] == "health"]


def test_a_run_resumed_twice_compares_with_the_same_start_and_looking_changes_nothing(
    keys: dict[str, Any], tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"recipe": "simclr", "overrides": keys, "cache": tmp_path / "cache", "quiet": True}
    whole = pretrain(tiny_cohort, out=tmp_path / "whole", **options)
    looks = health_of(whole)
    assert [line["step"] for line in looks] == [0, 1, 2, 3]
    value = next(each["value"] for each in looks[0]["findings"] if each["name"] == "knn score:severity")
    for line in looks[1:]:
        now = next(each["value"] for each in line["findings"] if each["name"] == "knn score:severity")
        assert line["start"]["difference"] == pytest.approx(now - value)
    part = tmp_path / "part"
    short = {**options, "overrides": {**keys, "training.max_hours": 1e-9}}
    assert pretrain(tiny_cohort, out=part, **short).status == "stopped"
    assert pretrain(tiny_cohort, out=part, resume=True, **short).status == "stopped"
    resumed = pretrain(tiny_cohort, out=part, resume=True, **options)
    assert resumed.record["weights"] == whole.record["weights"]
    assert health_of(resumed) == looks
    monkeypatch.setattr(loop, "watch_start", lambda *_: [])
    blind = pretrain(tiny_cohort, out=tmp_path / "blind", **options)
    assert blind.record["weights"] == whole.record["weights"]
    assert not any("start" in line for line in health_of(blind))


def test_the_start_is_seen_without_neck_and_without_drawing(
    keys: dict[str, Any], tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(encoder: Any, *arguments: Any) -> Any:
        seen.append(encoder.spec)
        before = torch.get_rng_state()
        found = watched(encoder, *arguments)
        assert torch.equal(before, torch.get_rng_state())
        return found

    watched = health.watch
    monkeypatch.setattr(start_probe, "watch", watch)
    options: dict[str, Any] = {"recipe": "simclr", "cache": tmp_path / "cache", "quiet": True}
    necked = {**keys, "encoder": {**keys["encoder"], "neck": 8, "context": True}, "training.max_steps": 1}
    run = pretrain(tiny_cohort, out=tmp_path / "run", overrides=necked, **options)
    assert [(spec.neck, spec.context) for spec in seen] == [(None, False)]
    assert "start" in health_of(run)[0]
    fresh = {**keys, "encoder": {"backbone": "r18w32", "stem_pool": False}, "training.max_steps": 1}
    run = pretrain(tiny_cohort, out=tmp_path / "fresh", overrides=fresh, **options)
    assert [line["step"] for line in health_of(run)] == [1], "random weights are no start"
    assert len(seen) == 1
