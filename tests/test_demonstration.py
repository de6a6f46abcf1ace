"""The demo, made small: every step runs, and running it again does nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from bolus.cli import demo as demonstration
from bolus.errors import UsageError

SMALL = ("training.epochs=1", "training.health_epochs=null", "images.size=32")


def test_a_demo_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no demo of 'supremix_3d'"):
        demonstration.demonstrate(tmp_path / "demo", recipe="supremix_3d")
    with pytest.raises(UsageError, match="no demo of volumes of 'mlvicx'"):
        demonstration.demonstrate(tmp_path / "demo", recipe="mlvicx", volumes=True)


@pytest.mark.slow
def test_the_demo_of_volumes_leaves_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("blosc2")
    keys = ("encoder.backbone=r10w8_3d", "images.size=16", "images.spacing=12", "sampling.batch_size=16", *SMALL[:2])
    small = (*demonstration.OVERRIDES["supremix_3d"], *keys)
    monkeypatch.setitem(demonstration.OVERRIDES, "supremix_3d", small)
    monkeypatch.setattr(demonstration, "NUM_SCANNED", 40)
    monkeypatch.setattr(demonstration, "VOXELS", 16)
    lines: list[str] = []
    run = demonstration.demonstrate(tmp_path / "demo", volumes=True, say=lines.append)
    said = "\n".join(lines)
    assert run.status == "finished"
    assert "80 volumes of 40 patients" in said
    assert "severity, linear:" in said
    assert "random-init" in said
    assert f"Look at it: {(tmp_path / 'demo' / 'report.html').as_uri()}" in said
    for name in ("cohort/truth.csv", "check.json", "run/encoder/encoder.json", "embeddings.parquet"):
        assert (tmp_path / "demo" / name).exists(), name
    weights = run.record["weights"]
    again = demonstration.demonstrate(tmp_path / "demo", volumes=True, say=lines.append)
    assert again.record["weights"] == weights


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mlvicx", "comprer"])
def test_the_demo_leaves_what_it_says(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {"mlvicx": "sampling.batch_size=32", "comprer": "sampling={participants: 8, batch_size: 32}"}
    small = (*demonstration.OVERRIDES[recipe], *SMALL, fewer[recipe])
    monkeypatch.setitem(demonstration.OVERRIDES, recipe, small)
    monkeypatch.setattr(demonstration, "NUM_PATIENTS", 60)
    lines: list[str] = []
    run = demonstration.demonstrate(tmp_path / "demo", recipe=recipe, say=lines.append)
    said = "\n".join(lines)
    assert run.status == "finished"
    assert "disease, linear:" in said
    assert f"Look at it: {(tmp_path / 'demo' / 'report.html').as_uri()}" in said
    assert "severity, linear:" in said
    assert ("visit: earlier to later" in said) == (recipe == "comprer")
    for name in (
        "cohort/table.csv",
        "cohort/truth.csv",
        "check.json",
        "run/encoder/encoder.json" if recipe == "mlvicx" else "run/encoder/encoders.json",
        "embeddings.parquet",
        "report.html",
    ):
        assert (tmp_path / "demo" / name).exists(), name
    weights = run.record["weights"]
    assert demonstration.demonstrate(tmp_path / "demo", recipe=recipe, say=lines.append).record["weights"] == weights
