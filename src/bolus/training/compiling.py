"""The encoder compiled by torch: steps are faster after a first one that takes long."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec

import torch

from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, each_encoder
from bolus.errors import RecipeError, TrainingError
from bolus.recipe import Recipe

BACKEND = "inductor"


def compile_encoder(encoder: Encoder | ModalityEncoders, device: torch.device) -> None:
    """Have an encoder compiled when it first runs, in place: names of weights, hooks and files stay as they are.

    Block by block where these are known, so that blocks that are alike are compiled once; else the backbone as a whole.
    What surrounds the blocks, heads, losses and augmentation run as they are.

    Args:
        encoder: before it is shared out over processes.
        device: that it runs on.

    Raises:
        RecipeError: what torch compiles with is not installed.
    """
    _check_compiler(device)
    import torch._functorch.config

    # Else memory that the backward pass needs is used again within it, and there are several passes where each
    # objective has its own.
    torch._functorch.config.donated_buffer = False
    for each in each_encoder(encoder):
        for unit in each.units or [each.backbone]:
            unit.compile(backend=BACKEND)


def eager(recipe: Recipe) -> AbstractContextManager[object]:
    """While the run looks at itself: what is compiled runs as it is, so that nothing is compiled for a few images."""
    return torch.compiler.set_stance("force_eager") if recipe.training.compile else nullcontext()


@contextmanager
def explain_compiling(recipe: Recipe) -> Iterator[None]:
    """Turn an error of the compiler into a TrainingError that says what to do.

    >>> with explain_compiling(Recipe.load("simclr")):
    ...     pass
    """
    if not recipe.training.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise TrainingError(
            f"training.compile: torch cannot compile {recipe.encoder.backbone} here ({reason}); set it to false"
        ) from error


def _check_compiler(device: torch.device) -> None:
    if device.type == "cpu":
        known = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
        if not any(name and shutil.which(name) for name in known):
            raise RecipeError(
                "training.compile: on a CPU torch compiles with a C++ compiler, and neither g++ nor clang++ was found; "
                "install one, or set training.compile=false"
            )
    elif find_spec("triton") is None:
        raise RecipeError(
            "training.compile: on a GPU torch compiles with the package triton, which is not installed; install it, or "
            "set training.compile=false"
        )
