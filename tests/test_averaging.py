"""Gradients averaged while the backward pass runs are those averaged after it, at 2 and 4 processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bolus.training.gradients import overlap
from bolus.training.gradients.overlap import averaged_gradients
from launching import launch

WORKER = """
import torch
import torch.distributed as dist
from torch import nn
from bolus.recipe import CombinerSpec
from bolus.training.gradients import combiner as room
from bolus.training.gradients.combiner import Combiner
from bolus.training.gradients.overlap import averaged_gradients
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, order = dist.get_rank(), []
send = dist.all_reduce
def watched(tensor, *given, **named):
    order.append(tensor.numel())
    return send(tensor, *given, **named)
dist.all_reduce = watched

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, 6)).double()
net.to(memory_format=torch.channels_last)
heads = {"a": nn.Linear(6, 3).double(), "b": nn.Linear(6, 1).double()}
idle = nn.Parameter(torch.ones(5, dtype=torch.float64))
some = nn.Parameter(torch.ones(7))  # float32, used by one process only

def gradients(bucket, last):
    room.averaged_gradients = lambda *given: averaged_gradients(*given, bucket=bucket)
    own = {k: list(h.parameters()) for k, h in heads.items()}
    combiner = Combiner(CombinerSpec(), [idle, some, *net.parameters()], own)
    for batch in range(2):
        x = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * rank + batch))
        first = net[0](x)
        first.register_hook(lambda grad: order.append("first layer"))
        z = net[1:](first)
        losses = {k: h(z).square().mean() for k, h in heads.items()}
        if rank == 1:
            losses["a"] = losses["a"] + some.double().square().sum()
        order.clear()
        combiner.accumulate(losses, last=last and batch == 1)
    sent, meanwhile = [each for each in order if each != "first layer"], order.index("first layer")
    combiner.reconcile()
    assert all(parameter.grad is not None for parameter in combiner.parameters)
    return [parameter.grad.clone() for parameter in combiner.parameters], sent, meanwhile

after, nothing, _ = gradients(1, False)
assert not nothing and after[1].any() and not after[0].any()
for bucket in (1, 400, 10**9):
    during, sent, meanwhile = gradients(bucket, True)
    # Sent before the pass reached the first layer: heads and two layers, or nothing where all go at once.
    assert meanwhile == {1: 8, 400: meanwhile, 10**9: 0}[bucket]
    assert len(sent) == {1: 12, 400: len(sent), 10**9: 3}[bucket], sent
    for one, other in zip(during, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        assert one.dtype == other.dtype
dist.destroy_process_group()
"""


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_averaged_meanwhile_is_what_is_averaged_after(processes: int, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    launch(tmp_path / "worker.py", processes=processes)


def test_buckets_are_filled_from_the_last_parameter_on() -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (4, 1, 2, 3)]
    parameters.append(nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    found = [[len(each) for each in group] for group in overlap._divide(parameters, 20)]
    assert found == [[1], [3, 2], [1, 4]]


def test_a_loss_of_nothing_leaves_what_is_held() -> None:
    weight = nn.Parameter(torch.ones(2))
    assert averaged_gradients(torch.tensor(0.0), [weight], [torch.full((2,), 3.0)])[0].tolist() == [3.0, 3.0]
    assert weight.grad is None
