"""On a CUDA device no tensor meets one of the CPU: trainings and evaluations on tensors that pretend to be there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bolus
from pretended import DEVICE, pretended_cuda  # noqa: F401

SMALL = [
    "encoder.backbone=r18w32", "images.size=32", "sampling.batch_size=16", "training.max_steps=2",
    "training.log_steps=1", "training.precision=fp32", "training.activation_checkpointing=false",
]  # fmt: skip
MEASURES = "objectives.measures.targets=[score:age, attribute:sex]"
RECIPES = {
    "simclr": [],
    "mlvicx": ["combiner={kind: grad_mitigator, scope: features, conflict_steps: 1}", "training.clip=1"],
    "gcl": ["encoder.backbone=unet4"],
    "comprer_bilateral": ["sampling.participants=8", MEASURES],
    "learner": [
        "images.unit=image", "encoder.temporal_shift=null", "objectives.score.targets=[score:severity]",
        "objectives.contrast.target=score:severity", "training.accumulate=2",
    ],
    "supremix": ["objectives.supremix.targets=[score:age]"],
    "rank_n_contrast": ["objectives.rank_n_contrast.targets=[score:age]"],
    "supervised": ["objectives.predict.targets=[score:age, label:disease]"],
}  # fmt: skip


@pytest.mark.usefixtures("pretended_cuda")
def test_what_cuda_refuses_is_refused() -> None:
    there, here = torch.ones(2, 3, device=DEVICE), torch.ones(2, 3)
    for meet in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: torch.stack([here, there]),
        lambda: here[torch.tensor([0], device=DEVICE)],
        lambda: there.index_put((torch.tensor([0]),), here[:1]),
        lambda: torch.nn.Linear(3, 2)(there),
        lambda: torch.rand(2, device=DEVICE, generator=torch.Generator()),
        lambda: torch.rand(2, generator=torch.Generator(DEVICE)),
    ):
        with pytest.raises(RuntimeError, match="expected"):
            meet()
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()
    assert (there[torch.tensor([0])].device, (there * torch.tensor(2.0)).device) == (DEVICE, DEVICE)
    assert torch.rand(2, device=DEVICE, generator=torch.Generator(DEVICE)).device == DEVICE
    layer = torch.nn.Linear(3, 2).to(DEVICE)
    layer(there).sum().backward()
    assert layer.weight.grad.device == DEVICE
    assert layer(there).detach().cpu().numpy().shape == (2, 2)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bolus.make_phantom(tmp_path_factory.mktemp("phantom"), num_patients=40, size=32).parent


@pytest.mark.slow
@pytest.mark.usefixtures("pretended_cuda")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_there(name: str, phantom: Path, tmp_path: Path) -> None:
    options = {"recipe": name, "out": tmp_path / "run", "cache": phantom / "cache", "quiet": True}
    run = bolus.pretrain(phantom / "cohort.yaml", overrides=[*SMALL, *RECIPES[name]], **options)
    assert (run.status, run.record["device"]) == ("finished", "cuda")


@pytest.mark.slow
@pytest.mark.usefixtures("pretended_cuda")
def test_a_run_is_resumed_and_judged_there(phantom: Path, tmp_path: Path) -> None:
    cohort, options = phantom / "cohort.yaml", {"cache": phantom / "cache"}
    training = {"recipe": "simclr", "out": tmp_path / "run", "quiet": True, **options}
    stopped = bolus.pretrain(cohort, overrides=[*SMALL, "training.max_hours=1e-9"], **training)
    assert stopped.status == "stopped"
    run = bolus.pretrain(cohort, overrides=SMALL, resume=True, **training).folder
    judged = {"draws": 20, **options}
    spec = bolus.FinetuneSpec(epochs=1)
    bolus.evaluate(run, cohort, target="disease", probes=("linear", "knn", "finetune"), finetune=spec, **judged)
    bolus.evaluate_change(run, cohort, target="severity", **judged)
    bolus.evaluate_retrieve(run, cohort, across="visit", **judged)
    few = {"labelled": (1,), "repeats": 1, "spec": bolus.SegmentSpec(steps=2)}
    bolus.evaluate_segment(run, cohort, quiet=True, **few, **judged)
    assert bolus.dry_run(cohort, recipe="mlvicx", overrides=SMALL, **options)
