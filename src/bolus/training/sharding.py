"""An encoder shared out over processes: each holds a part of its parameters, gradients and optimiser state (FSDP2).

Block after block is gathered when it runs and given up again. Heads stay whole in every process. What is written is
whole, so that files are those of a run that is not shared out.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bolus.device import is_shared_out
from bolus.encoders.backbone import Encoder
from bolus.encoders.features import Maps
from bolus.encoders.modalities import ModalityEncoders
from bolus.errors import RecipeError
from bolus.recipe import Recipe
from bolus.training.processes import all_reduce_sum, broadcast_parameters, launched, world_size


def check_shard(recipe: Recipe, modalities: Sequence[str]) -> None:
    """Refuse what cannot be done where each process holds only a part of the encoder.

    Args:
        recipe: for its combiner, encoders and precision; nothing is refused without `training.shard`.
        modalities: of the training samples.

    Raises:
        RecipeError: what does not go together, and the key to change.

    >>> check_shard(Recipe.load("gcl").override(["training.shard=true"]), [])
    Traceback (most recent call last):
    bolus.errors.RecipeError: training.shard: grad_mitigator reconciles objectives in the encoder's parameters, of which
    each process has only a part; set combiner.scope=features, or training.shard=false
    """
    if not recipe.training.shard:
        return
    spec, several = recipe.combiner, len(recipe.objectives) > 1
    if several and spec.scope == "encoder" and spec.kind != "sum":
        raise RecipeError(
            f"training.shard: {spec.kind} reconciles objectives in the encoder's parameters, of which each process has "
            "only a part; set combiner.scope=features, or training.shard=false"
        )
    if several and spec.scope == "encoder" and spec.conflict_steps is not None:
        raise RecipeError(
            "training.shard: conflicts are looked at in the encoder's parameters, of which each process has only a "
            "part; set combiner.conflict_steps=null for no look, or combiner.scope=features for one at the features"
        )
    if recipe.training.precision == "fp16":
        raise RecipeError(
            "training.shard: with fp16 each process would scale its part of the gradient by itself; "
            "set training.precision=bf16, or training.shard=false"
        )
    if recipe.encoders == "per_modality" or len(modalities) > 1:
        raise RecipeError(
            "training.shard: all processes have to run the encoder together, and with images of several modalities a "
            "process may have none of one; train on one modality, or set training.shard=false"
        )


def shard_encoder(encoder: Encoder | ModalityEncoders, device: torch.device) -> None:
    """Share out an encoder's parameters in place, after those of the first process were given to all.

    Its units are the blocks of the backbone where these are known, and the rest; otherwise it is gathered as a whole.
    Gradients that come back are averaged over processes, as those of `processes.all_reduce_mean`.

    Args:
        encoder: on the device, before an optimiser knows its parameters.
        device: of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    assert isinstance(encoder, Encoder), "check_shard"
    # What makes a view, such as the CLS token of all tokens, gives it to nobody who would change it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    _announce_maps()
    broadcast_parameters(encoder)
    encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(device.type, (world_size(),))
    for unit in encoder.units:
        fully_shard(unit, mesh=mesh)
    sharded: Any = fully_shard(encoder, mesh=mesh)
    if device.type == "cpu":  # gloo has no average
        sharded.set_force_sum_reduction_for_comms(True)


@cache
def _announce_maps() -> None:
    """Let torch find the tensors in what an encoder returns, on which it hangs the gathering for the backward pass."""
    torch.export.register_dataclass(Maps)


def part_of(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory: its part, or all."""
    return tensor.to_local() if is_shared_out(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, for which every process has to call where it is shared out; as it is where it is not."""
    return tensor.full_tensor() if is_shared_out(tensor) else tensor  # type: ignore[attr-defined]


def share_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in every process, shared out as another is; as it is where that is not.

    >>> share_out(torch.ones(2), torch.zeros(2))
    tensor([1., 1.])
    """
    if not is_shared_out(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed: Any = like
    return distribute_tensor(tensor.to(like.device), placed.device_mesh, placed.placements, src_data_rank=None)


def whole_encoder(encoder: Encoder | ModalityEncoders) -> Encoder | ModalityEncoders:
    """The encoder with all of its parameters, for the first process to look at and to save.

    Every process has to call it. An encoder that is not shared out is given as it is; of one that is, the first
    process gets a copy with the same weights, on the same device, and the others get it as it is.
    """
    if not any(is_shared_out(parameter) for parameter in encoder.parameters()):
        return encoder
    state, first = {}, launched().is_main_process
    for name, tensor in encoder.state_dict().items():
        full = whole(tensor)
        if first:
            state[name] = full
    if not first:
        return encoder
    copy = encoder.twin(seed=0).to(next(encoder.parameters()).device)
    copy.load_state_dict(state)
    return copy


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of gradients together, those that are shared out with the parts of all processes.

    >>> total_norm([torch.tensor([3.0]), torch.tensor([4.0])])
    tensor(5.)
    """
    parts = [part_of(each) for each in gradients if is_shared_out(each)]
    if not parts:
        return nn.utils.get_total_norm(gradients)
    squares = all_reduce_sum(nn.utils.get_total_norm(parts).square())
    plain = [each for each in gradients if not is_shared_out(each)]
    return (squares + nn.utils.get_total_norm(plain).square()).sqrt() if plain else squares.sqrt()


def clip_to(gradients: Sequence[Tensor], most: float, norm: Tensor) -> None:
    """Scale gradients in place so that their norm is at most so much, by the formula of torch's `clip_grad_norm_`.

    Args:
        gradients: shared out or not.
        most: the norm that they may have.
        norm: that they have together.

    >>> grads = [torch.tensor([6.0]), torch.tensor([8.0])]
    >>> clip_to(grads, 5.0, total_norm(grads))
    >>> grads
    [tensor([3.0000]), tensor([4.0000])]
    """
    share = torch.clamp(most / (norm + 1e-6), max=1.0)
    torch._foreach_mul_([part_of(each) for each in gradients], share)
