"""Nets of MONAI and timm by import path: trained, stopped, resumed and judged on a small phantom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bolus import evaluate, load_encoder, make_phantom, pretrain
from bolus.recipe import Recipe

pytestmark = pytest.mark.slow

SMALL_DENSENET = {
    "backbone": "monai.networks.nets:DenseNet121",
    "arguments": {"spatial_dims": 2, "out_channels": 8, "init_features": 4, "growth_rate": 2, "block_config": [1, 1]},
}
TIMM = """
import timm


def net(in_channels, name):
    return timm.create_model(name, in_chans=in_channels, features_only=True)
"""


@pytest.fixture
def small_resnet_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:  # torchvision beside a torch it was not built for
        pytest.skip(f"timm cannot be imported: {error}")
    (tmp_path / "of_timm.py").write_text(TIMM)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"backbone": "of_timm:net", "arguments": {"name": "test_resnet"}}


def train_stop_resume_judge(encoder: dict[str, Any], folder: Path) -> int:
    """Assert that a resumed run has the weights of a whole one, judge it, and give the width of its features."""
    recipe = Recipe.load(
        {
            "name": "theirs",
            "encoder": encoder,
            "images": {"size": 32, "views": 2},
            "sampling": {"batch_size": 8},
            "objectives": {"views": {"kind": "contrast", "relation": "views", "hidden": 8, "dim": 8}},
            "training": {"max_steps": 3, "log_steps": 1},
        }
    )
    cohort = make_phantom(folder / "phantom", num_patients=12, size=32).parent / "cohort.yaml"
    options: dict[str, Any] = {"recipe": recipe, "cache": folder / "cache", "quiet": True}
    whole = pretrain(cohort, out=folder / "whole", **options)
    part = pretrain(cohort, out=folder / "part", overrides=["training.max_hours=1e-9"], **options)
    assert part.status == "stopped"
    part = pretrain(cohort, out=folder / "part", resume=True, **options)
    assert part.record["weights"] == whole.record["weights"]
    judged = evaluate(part.folder, cohort, target="disease", probes=("linear",), draws=20, cache=folder / "cache")
    assert judged.results
    return int(load_encoder(whole.encoder)[0].shape.dim)


def test_a_net_of_monai(tmp_path: Path) -> None:
    assert train_stop_resume_judge(SMALL_DENSENET, tmp_path) == 8


def test_a_net_of_timm(small_resnet_of_timm: dict[str, Any], tmp_path: Path) -> None:
    assert train_stop_resume_judge(small_resnet_of_timm, tmp_path) > 0
