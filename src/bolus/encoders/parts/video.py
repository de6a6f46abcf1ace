"""Clips in an encoder of images: frames fold into the batch, see their neighbours by temporal shift, and are averaged.

The only file with clip axes other than `[C, T, H, W]`. Dimension letters: B clips (N in the shift), T frames, C
channels. Folded frames are n-major: frame t of clip n is at n * T + t.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.convnext.modeling_convnext import ConvNextLayer
from transformers.models.dinov3_convnext.modeling_dinov3_convnext import DINOv3ConvNextLayer
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from bolus.encoders.families.efficientnet import InvertedResidual
from bolus.errors import EncoderError, UsageError

_RESNET = (ResNetBasicLayer, ResNetBottleNeckLayer)

# Frames of each clip in the forward now running and which of them are real, None where it sees single images; like the
# maps that a forward keeps, set for one forward and own to each thread. Not set at all: no forward of an encoder is
# running.
_FRAMES: ContextVar[tuple[int, Tensor | None] | None] = ContextVar("bolus_frames")


def temporal_shift(x: Tensor, num_frames: int, *, fold: int = 8, frame_mask: Tensor | None = None) -> Tensor:
    """Move one in `fold` channels a frame back in time and as many a frame on, so that frames see their neighbours.

    TSM (Lin et al., arXiv:1811.08383). With f = C // fold, channels 0 .. f-1 take the values of the next frame and
    channels f .. 2f-1 those of the frame before; zeros come in at the clip's ends, and the other channels stay. So a
    clip of one frame is not left as it is: its moved channels are zero. Where f is 0 nothing moves. A frame that is not
    real gives nothing away: in its neighbours zeros come in, as at the clip's ends.

    Args:
        x: `[N * T, C, H, W]`, n-major.
        num_frames: T.
        fold: at least 2.
        frame_mask: bool `[N, T]`, true at real frames; None: all are.

    Returns:
        The same shape and dtype, channels_last in memory where anything moved.

    Raises:
        UsageError: `x` is not `[N * T, C, H, W]`, the mask is not `[N, T]`, or `fold` is below 2.

    Example:
        >>> clip = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]).view(2, 3, 1, 1)
        >>> temporal_shift(clip, 2, fold=3).view(2, 3).tolist()
        [[2.0, 0.0, 100.0], [0.0, 10.0, 200.0]]
        >>> temporal_shift(clip, 2, fold=3, frame_mask=torch.tensor([[True, False]])).view(2, 3).tolist()
        [[0.0, 0.0, 100.0], [0.0, 10.0, 200.0]]
    """
    if fold < 2:
        raise UsageError(f"expected a fold of at least 2, which moves at most every channel, found {fold}")
    if x.ndim != 4 or num_frames < 1 or x.shape[0] % num_frames:
        raise UsageError(f"expected maps [N * T, C, H, W] with T={num_frames} frames a clip, found {list(x.shape)}")
    NT, C, H, W = x.shape
    if frame_mask is not None and frame_mask.shape != (NT // num_frames, num_frames):
        raise UsageError(
            f"expected a frame_mask [{NT // num_frames}, {num_frames}] as the maps say, found {list(frame_mask.shape)}"
        )
    moved = C // fold
    if moved == 0:
        return x
    x_NTHWC = x.movedim(1, -1).view(NT // num_frames, num_frames, H, W, C)
    early, late, still = torch.split(x_NTHWC, [moved, moved, C - 2 * moved], dim=-1)
    if frame_mask is not None:
        real = frame_mask.to(x.device).view(-1, num_frames, 1, 1, 1)
        early, late = (torch.where(real, moving, 0) for moving in (early, late))
    last_axes = (0, 0) * 3  # H, W, C; then T: padding by -1 crops a frame
    shifted = [F.pad(early, (*last_axes, -1, 1)), F.pad(late, (*last_axes, 1, -1)), still]
    return torch.cat(shifted, dim=-1).flatten(0, 1).movedim(-1, 1)


def shift_blocks(stages: nn.Module, fold: int) -> None:
    """Shift what the first convolution of every residual block of a convolutional network sees, and only that.

    Residual TSM: the shortcut carries the unshifted features. Nothing happens in a forward over single images.

    Args:
        stages: of the network; hooks are hung on convolutions in them: in MobileNetV2's blocks, if there is a shortcut.
        fold: as in `temporal_shift`.

    Raises:
        EncoderError: blocks of a kind that is not known here.
    """
    first = [
        *(each.layer[0].convolution for each in stages.modules() if isinstance(each, _RESNET)),
        *(each.expand.convolution for each in stages.modules() if isinstance(each, InvertedResidual) and each.skip),
        *(each.dwconv for each in stages.modules() if isinstance(each, ConvNextLayer)),
        *(each.depthwise_conv for each in stages.modules() if isinstance(each, DINOv3ConvNextLayer)),
    ]
    if not first:
        raise EncoderError("encoder.temporal_shift: it is not known which convolutions of this backbone are shifted")
    for convolution in first:
        convolution.register_forward_pre_hook(_Shift(fold))


@dataclass(eq=False)
class _Shift:
    """A forward pre-hook that shifts a module's input by the real frames of the forward now running.

    An object and not a closure, so that a deep copy of the encoder can take it along.
    """

    fold: int

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        try:
            frames = _FRAMES.get()
        except LookupError:  # or a part computed again in the backward pass would silently go without its shift
            raise EncoderError(
                "encoder.temporal_shift: the number of frames is known only inside a forward of the encoder; call the "
                "encoder and not a part of it, and checkpoint the encoder as a whole"
            ) from None
        if frames is None:
            return None
        num_frames, frame_mask = frames
        return temporal_shift(inputs[0], num_frames, fold=self.fold, frame_mask=frame_mask), *inputs[1:]


@contextmanager
def running_frames(num_frames: int | None, frame_mask: Tensor | None) -> Iterator[None]:
    """Let the shifts of one forward know how many frames a clip has, and which are real.

    Args:
        num_frames: T; None for single images.
        frame_mask: bool `[B, T]`, true at real frames; None: all are.
    """
    token = _FRAMES.set(None if num_frames is None else (num_frames, frame_mask))
    try:
        yield
    finally:
        _FRAMES.reset(token)


def fold_frames(images: Tensor, frame_mask: Tensor | None, *, channels: int) -> tuple[Tensor, int | None]:
    """Images as they are, with None; clips as their frames, with T.

    Args:
        images: `[B, C, H, W]`, or clips `[B, C, T, H, W]`, float.
        frame_mask: bool `[B, T]`, true at real frames, at least one in a row; None: all are. Only checked here.
        channels: the C that is expected.

    Returns:
        `[B, C, H, W]` or `[B * T, C, H, W]`, n-major.

    Raises:
        EncoderError: images or a mask of another shape or dtype, or a mask for single images.

    Example:
        >>> frames, num_frames = fold_frames(torch.rand(2, 1, 3, 8, 8), None, channels=1)
        >>> frames.shape, num_frames
        (torch.Size([6, 1, 8, 8]), 3)
    """
    shaped = images.ndim in (4, 5) and images.shape[1] == channels and (images.ndim == 4 or images.shape[2] > 0)
    if not shaped or not images.is_floating_point():
        raise EncoderError(
            f"expected images [B, {channels}, H, W] or clips [B, {channels}, T, H, W] of floats in [0, 1], "
            f"found {list(images.shape)} of {images.dtype}"
        )
    num_frames = images.shape[2] if images.ndim == 5 else None
    if frame_mask is not None:
        if num_frames is None:
            raise EncoderError(f"expected no frame_mask for single images, found {list(frame_mask.shape)}")
        if frame_mask.shape != (images.shape[0], num_frames) or frame_mask.dtype != torch.bool:
            raise EncoderError(
                f"expected a frame_mask [{len(images)}, {num_frames}] of torch.bool, as the clips say, "
                f"found {list(frame_mask.shape)} of {frame_mask.dtype}"
            )
        # A traced program cannot look at values.
        assert torch.compiler.is_exporting() or bool(frame_mask.any(dim=1).all()), "a clip without a real frame"
    return (images if num_frames is None else images.transpose(1, 2).flatten(0, 1)), num_frames


def frame_mean(x: Tensor, num_frames: int, frame_mask: Tensor | None) -> Tensor:
    """The mean over each clip's real frames.

    Args:
        x: `[B * T, ...]` float.
        num_frames: T.
        frame_mask: bool `[B, T]`, at least one true in a row; None: all are.

    Returns:
        `[B, ...]`, dtype of the input. What stands in frames that are not real reaches neither it nor a gradient.

    Example:
        >>> frame_mean(torch.tensor([[1.0], [3.0], [99.0]]), 3, torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    clips = x.view(x.shape[0] // num_frames, num_frames, *x.shape[1:])
    if frame_mask is None:
        return clips.mean(dim=1)
    frame_mask = frame_mask.to(x.device)
    real = frame_mask.view(*frame_mask.shape, *[1] * (x.ndim - 1))
    share: Tensor = real.sum(dim=1).to(x.dtype) / num_frames
    return torch.where(real, clips, 0).mean(dim=1) / share  # the mean first: a sum may not fit into half precision
