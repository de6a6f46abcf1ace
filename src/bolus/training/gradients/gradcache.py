"""A batch in chunks at the memory of one: GradCache (Gao et al., arXiv:2101.06983), for whatever objectives.

Objectives see the encoder through its features only. So chunk after chunk goes through the encoder, and only features
are kept; heads and losses run on those of the whole batch and leave a gradient there; then chunk after chunk goes
through the encoder again and takes its part of that gradient back to the parameters. The price is a second forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bolus.data.batches.batch import Batch
from bolus.encoders.features import Features
from bolus.encoders.parts.norms import norms_of
from bolus.errors import RecipeError
from bolus.recipe import Recipe

_Buffers = Sequence[list[Tensor]] | None  # None: gradients are left in the parameters' `.grad`
Carry = Callable[[Sequence[Sequence[Tensor]], Sequence[nn.Parameter], _Buffers], None]

_Parts = dict[tuple[str, str, int], Tensor]  # what it is, of which modality, at which level -> a tensor of the features


@dataclass(frozen=True)
class Cut:
    """Features cut from the encoder, and the way of their gradients back through it.

    Args:
        features: what objectives see.
        leaves: the tensors of the features that depend on what is trained.
        carry: takes gradients of the leaves, a list for each objective, then the encoder's parameters, then buffers, a
            list for each objective, to which it adds the gradients of the parameters. Without buffers it adds them to
            the parameters' own `.grad`, from one list of gradients. To be called once.
    """

    features: Features
    leaves: list[Tensor]
    carry: Carry


def cut(features: Features) -> Cut:
    """Features cut from the graph that made them, which stays until their gradients were carried back.

    Args:
        features: of a batch, with their graph.

    >>> weight, found = nn.Parameter(torch.ones(2)), []
    >>> cut(Features(weight.view(1, 1, 2) * 3)).carry([[torch.ones(1, 1, 2)]], [weight], [found])
    >>> found
    [tensor([3., 3.])]
    """
    made = _parts_of(features)
    ends = [key for key, tensor in made.items() if tensor.requires_grad]
    seen = {key: tensor.detach().requires_grad_() if key in ends else tensor for key, tensor in made.items()}

    def carry(grads: Sequence[Sequence[Tensor]], parameters: Sequence[nn.Parameter], buffers: _Buffers) -> None:
        _back([made[key] for key in ends], grads, parameters, buffers)

    return Cut(_features_of(seen), [seen[key] for key in ends], carry)


def cut_chunks(encode: Callable[[Batch, int], Features], chunks: Sequence[Batch], state: Iterable[Tensor]) -> Cut:
    """Features of a batch that goes through the encoder chunk by chunk, which keeps nothing else of it.

    Their gradients are carried back in a second forward of each chunk, one chunk's graph at a time. It is this forward
    that changes the encoder's running statistics, once for each chunk.

    Args:
        encode: a chunk and its number -> its features; the same, dropout included, when it is called again.
        chunks: of the batch, in its order, as `split_batch` gives them.
        state: the encoder's buffers, such as running statistics.

    >>> weight, found = nn.Parameter(torch.ones(2)), []
    >>> chunks = [Batch({"XR": torch.full((1, 1, 2), 3.0 + place)}, {}, {}) for place in range(2)]
    >>> made = cut_chunks(lambda chunk, place: Features(weight * chunk.views["XR"]), chunks, [])
    >>> made.features.pooled.tolist(), made.features.pooled.grad_fn
    ([[[3.0, 3.0], [4.0, 4.0]]], None)
    >>> made.carry([[torch.ones(1, 2, 2)]], [weight], [found])
    >>> found
    [tensor([7., 7.])]
    """
    before = [(tensor, tensor.clone()) for tensor in state]
    parts: dict[tuple[str, str, int], list[Tensor]] = {}
    # Not no_grad: a graph that keeps no tensor tells which features depend on what is trained, at the same memory, and
    # runs the very arithmetic that the second forward will run.
    with saved_tensors_hooks(_forget, _recall):
        for place, chunk in enumerate(chunks):
            for key, tensor in _parts_of(encode(chunk, place)).items():
                parts.setdefault(key, []).append(tensor.detach().requires_grad_(tensor.requires_grad))
    seen = {
        key: torch.cat(each, dim=1).detach().requires_grad_(any(part.requires_grad for part in each))
        for key, each in parts.items()
    }
    ends = [key for key, tensor in seen.items() if tensor.requires_grad]
    if ends:  # else there is no second forward
        for tensor, value in before:
            tensor.copy_(value)

    def carry(grads: Sequence[Sequence[Tensor]], parameters: Sequence[nn.Parameter], buffers: _Buffers) -> None:
        ahead = [dict(zip(ends, each, strict=True)) for each in grads]
        start = dict.fromkeys(seen, 0)
        for place, chunk in enumerate(chunks if ends else ()):
            made = _parts_of(encode(chunk, place))
            own = {key: slice(start[key], start[key] + tensor.shape[1]) for key, tensor in made.items()}
            start |= {key: part.stop for key, part in own.items()}
            trained = [key for key in made if made[key].requires_grad]
            outputs, made = [made[key] for key in trained], {}
            _back(outputs, [[each[key][:, own[key]] for key in trained] for each in ahead], parameters, buffers)
        if not ends:
            _back([], grads, parameters, buffers)

    return Cut(_features_of(seen), [seen[key] for key in ends], carry)


def split_batch(batch: Batch, rows: Mapping[str, npt.NDArray[np.int64]], chunk: int) -> list[Batch]:
    """A batch in parts of at most so many samples, as even as can be, with all their views; nothing is copied.

    Args:
        batch: of one process.
        rows: modality -> int64, its `rows` on the CPU, ascending, as `Fetched` has them.
        chunk: samples of a part at most, 1 or more.

    >>> batch = Batch({"XR": torch.zeros(2, 5, 1, 8, 8)}, {"XR": torch.arange(5)}, {"sample": torch.arange(5)})
    >>> [part.num_samples for part in split_batch(batch, {"XR": np.arange(5)}, 4)]
    [2, 3]
    """
    num_parts = -(-batch.num_samples // chunk)
    edges = [batch.num_samples * place // num_parts for place in range(num_parts + 1)]
    parts = []
    for start, stop in pairwise(edges):
        where = {name: slice(*np.searchsorted(places, [start, stop]).tolist()) for name, places in rows.items()}
        where = {name: own for name, own in where.items() if own.stop > own.start}
        parts.append(
            Batch(
                {name: batch.views[name][:, own] for name, own in where.items()},
                {name: batch.rows[name][own] - start for name, own in where.items()},
                {role: values[start:stop] for role, values in batch.columns.items()},
                None if batch.frame_mask is None else batch.frame_mask[start:stop],
                batch.progress,
                batch.seed,
            )
        )
    return parts


def check_chunk(encoder: nn.Module, recipe: Recipe, processes: int = 1) -> None:
    """Refuse chunks that a batch cannot be split into, or of a single image where BatchNorm is trained.

    Args:
        encoder: in the modes in which it will be trained.
        recipe: for its sampling and images.
        processes: that share a batch evenly.

    Raises:
        RecipeError: such chunks, and the sizes that will do.

    >>> check_chunk(nn.Identity(), Recipe.load("simclr").override(["sampling={batch_size: 64, chunk: 48}"]), 2)
    Traceback (most recent call last):
    bolus.errors.RecipeError: sampling.chunk: expected at most the 32 samples that each of 2 processes has of a batch
    (sampling.batch_size=64), found 48; lower it, or set sampling.chunk=null for no chunks
    """
    chunk = recipe.sampling.chunk
    if chunk is None:
        return
    batch_size, images = recipe.sampling.batch_size, recipe.images
    share = batch_size // processes
    if chunk > share:
        whose = f"the {share} samples " + (f"that each of {processes} processes has " if processes > 1 else "")
        raise RecipeError(
            f"sampling.chunk: expected at most {whose}of a batch (sampling.batch_size={batch_size}), found {chunk}; "
            "lower it, or set sampling.chunk=null for no chunks"
        )
    fewest = max(1, share // -(-share // chunk))
    frames = images.frames if images.unit == "clip" else 1
    if fewest * images.views * frames == 1 and any(norm.training for norm in norms_of(encoder)):
        raise RecipeError(
            f"sampling.chunk: in chunks of {chunk} samples a batch of {share} has some of one image, of which the "
            "encoder's BatchNorm has no statistics; raise sampling.chunk or images.views"
        )


def _parts_of(features: Features) -> _Parts:
    found = {("pooled", "", 0): features.pooled}
    for modality, levels in features.levels.items():
        found |= {("levels", modality, depth): level for depth, level in enumerate(levels)}
    return found | {("grid", modality, 0): grid for modality, grid in features.grid.items()}


def _features_of(parts: _Parts) -> Features:
    features = Features(parts["pooled", "", 0])
    for (what, modality, _), tensor in parts.items():
        if what == "levels":  # shallow to deep, as they were taken
            features.levels.setdefault(modality, []).append(tensor)
        elif what == "grid":
            features.grid[modality] = tensor
    return features


def _back(
    outputs: Sequence[Tensor],
    grads: Sequence[Sequence[Tensor]],
    parameters: Sequence[nn.Parameter],
    buffers: _Buffers,
) -> None:
    """Add to each objective's buffers what its gradients of the outputs give the parameters; the graph is then gone.

    By way of `grad`, which adds parameter by parameter: a second gradient as large as the encoder is never held.
    """
    if buffers is None:
        assert len(grads) == 1, "one `.grad` for several objectives"
        if outputs:
            torch.autograd.backward(outputs, grads[0])
        return
    for place, (each, buffer) in enumerate(zip(grads, buffers, strict=True), start=1):
        for parameter in parameters:
            parameter.grad = None
        for parameter, held in zip(parameters, buffer, strict=bool(buffer)):
            parameter.grad = held
        if outputs:
            torch.autograd.backward(outputs, each, retain_graph=place < len(grads), inputs=list(parameters))
        buffer[:] = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    for parameter in parameters:
        parameter.grad = None


def _forget(tensor: Tensor) -> None:
    """In place of a tensor that a graph would keep: nothing."""


def _recall(nothing: Any) -> Tensor:
    raise AssertionError("the first forward has no way back")
