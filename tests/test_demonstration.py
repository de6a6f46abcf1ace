"""The demo, made small: every step runs, and running it again does nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from bolus import demonstration


def test_the_demo_leaves_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("training.epochs=1", "training.health_epochs=null", "sampling.batch_size=32", "images.size=32")
    monkeypatch.setattr(demonstration, "OVERRIDES", (*demonstration.OVERRIDES, *small))
    monkeypatch.setattr(demonstration, "NUM_PATIENTS", 60)
    lines: list[str] = []
    run = demonstration.demonstrate(tmp_path / "demo", say=lines.append)
    said = "\n".join(lines)
    assert run.status == "finished"
    assert "disease, linear:" in said
    assert "severity, linear:" in said
    for name in (
        "cohort/table.csv",
        "cohort/truth.csv",
        "check.json",
        "run/encoder/encoder.json",
        "embeddings.parquet",
    ):
        assert (tmp_path / "demo" / name).exists(), name
    weights = run.record["weights"]
    assert demonstration.demonstrate(tmp_path / "demo", say=lines.append).record["weights"] == weights
