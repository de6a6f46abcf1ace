"""Clips: the temporal shift by index arithmetic, where it acts, and what an encoder makes of frames."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import ConvNextV2Config, ResNetConfig

from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.encoders.parts import video
from bolus.encoders.parts.video import frame_mean, temporal_shift
from bolus.errors import EncoderError, UsageError
from bolus.recipe import EncoderSpec

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # in float64
SHAPES: dict[str, dict[str, Any]] = {
    "basic": {"layer_type": "basic", "embedding_size": 4, "hidden_sizes": [16, 32], "depths": [2, 2]},
    "bottleneck": {"layer_type": "bottleneck", "embedding_size": 4, "hidden_sizes": [16, 32], "depths": [1, 2]},
}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], str]:
    """Folders with the configuration of a ResNet of two small stages, without weights, by the type of its blocks."""

    def make(layer_type: str = "basic") -> str:
        ResNetConfig(**SHAPES[layer_type]).save_pretrained(tmp_path / layer_type)
        return str(tmp_path / layer_type)

    return make


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(backbone: str, *, seed: int = 3, **keys: Any) -> Encoder:
    """A float64 encoder in evaluation mode, whose running statistics are not those it was born with."""
    encoder = build_encoder(EncoderSpec(backbone=backbone, **keys), seed=seed).double()
    with torch.no_grad():
        encoder(pixels(8, 1, 32, 32, seed=17))
    return encoder.eval()


def naive_shift(
    x: Tensor, num_frames: int, fold: int, *, mask: Tensor | None = None, transposed: bool = False
) -> Tensor:
    """One channel of one frame at a time; transposed: every value goes back to where it came from."""
    moved, out = x.shape[1] // fold, torch.zeros_like(x)
    for n in range(x.shape[0] // num_frames):
        for t in range(num_frames):
            for c in range(x.shape[1]):
                source = t + 1 if c < moved else t - 1 if c < 2 * moved else t
                comes = 0 <= source < num_frames and (source == t or mask is None or bool(mask[n, source]))
                if comes:
                    here, there = n * num_frames + t, n * num_frames + source
                    if transposed:
                        out[there, c] += x[here, c]
                    else:
                        out[here, c] = x[there, c]
    return out


# --- the shift


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
@pytest.mark.parametrize(("channels", "fold"), [(8, 8), (16, 8), (17, 8), (7, 8), (5, 2), (4, 2), (9, 4), (1, 2)])
def test_shift_equals_loops(num_frames: int, channels: int, fold: int) -> None:
    x = numbers(3 * num_frames, channels, 2, 3)
    assert torch.equal(temporal_shift(x, num_frames, fold=fold), naive_shift(x, num_frames, fold))


def test_shift_moves_an_eighth_each_way_by_default() -> None:
    x = numbers(4, 16, 1, 1)
    assert torch.equal(temporal_shift(x, 4), naive_shift(x, 4, 8))
    assert (temporal_shift(x, 4) != x).any(dim=0).flatten().tolist() == [True] * 4 + [False] * 12


@pytest.mark.parametrize(("num_frames", "channels", "fold"), [(1, 8, 8), (3, 9, 4), (4, 17, 8), (2, 3, 8)])
def test_gradient_is_the_transposed_shift(num_frames: int, channels: int, fold: int) -> None:
    x = numbers(2 * num_frames, channels, 2, 2).requires_grad_()
    upstream = numbers(*x.shape, seed=1)
    (gradient,) = torch.autograd.grad(temporal_shift(x, num_frames, fold=fold), x, upstream)
    assert torch.equal(gradient, naive_shift(upstream, num_frames, fold, transposed=True))
    assert torch.autograd.gradcheck(lambda y: temporal_shift(y, num_frames, fold=fold), (x,))


SOME = torch.tensor([[True, True, True, True], [True, True, False, False], [False, True, False, True]])


@pytest.mark.parametrize(("channels", "fold"), [(16, 8), (17, 8), (7, 8), (5, 2), (9, 4), (1, 2)])
def test_masked_shift_and_its_gradient_equal_loops(channels: int, fold: int) -> None:
    x = numbers(12, channels, 2, 3).requires_grad_()
    upstream = numbers(*x.shape, seed=1)
    shifted = temporal_shift(x, 4, fold=fold, frame_mask=SOME)
    assert torch.equal(shifted, naive_shift(x, 4, fold, mask=SOME))
    (gradient,) = torch.autograd.grad(shifted, x, upstream)
    assert torch.equal(gradient, naive_shift(upstream, 4, fold, mask=SOME, transposed=True))
    assert torch.equal(shifted, temporal_shift(x, 4, fold=fold)) == (channels // fold == 0)


def test_all_real_frames_shift_bit_for_bit_as_without_a_mask() -> None:
    x = numbers(12, 16, 2, 3).float()
    every = torch.ones(3, 4, dtype=torch.bool)
    assert torch.equal(temporal_shift(x, 4, frame_mask=every).view(torch.int32), temporal_shift(x, 4).view(torch.int32))


def test_what_stands_in_frames_that_are_not_real_is_not_shifted_even_where_it_is_no_number() -> None:
    x = numbers(12, 16, 2, 3)
    x[~SOME.flatten()] = float("nan")
    shifted = temporal_shift(x, 4, frame_mask=SOME)
    assert shifted[SOME.flatten()].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_shift_keeps_dtype_layout_and_its_input(dtype: torch.dtype) -> None:
    x = numbers(6, 8, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    before = x.clone()
    shifted = temporal_shift(x, 3, fold=4)
    assert shifted.dtype == dtype
    assert shifted.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)
    assert torch.equal(shifted, naive_shift(x, 3, 4))


def test_clips_do_not_meet() -> None:
    x = numbers(6, 8, 2, 2)
    other = torch.cat([x[:3], numbers(3, 8, 2, 2, seed=1)])
    assert torch.equal(temporal_shift(x, 3)[:3], temporal_shift(other, 3)[:3])


def test_shift_of_nothing() -> None:
    assert temporal_shift(torch.zeros(0, 8, 2, 2), 4).shape == (0, 8, 2, 2)


@pytest.mark.parametrize(
    ("shape", "num_frames", "fold"),
    [((7, 8, 2, 2), 3, 8), ((6, 8, 2), 3, 8), ((6, 8, 2, 2), 0, 8), ((6, 8, 2, 2), 3, 1)],
)
def test_shift_refuses(shape: tuple[int, ...], num_frames: int, fold: int) -> None:
    with pytest.raises(UsageError, match=r"fold of at least 2" if fold < 2 else r"expected maps \[N \* T, C, H, W\]"):
        temporal_shift(torch.zeros(shape), num_frames, fold=fold)


def test_shift_refuses_a_mask_of_other_clips() -> None:
    with pytest.raises(UsageError, match=r"frame_mask \[2, 3\] as the maps say, found \[3, 2\]"):
        temporal_shift(torch.zeros(6, 8, 2, 2), 3, frame_mask=torch.ones(3, 2, dtype=torch.bool))


# --- where it acts


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, True, False], [True, True, True]])])
@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_only_the_first_convolution_of_a_block_sees_shifted_features(
    tiny: Callable[[str], str], layer_type: str, mask: Tensor | None
) -> None:
    """Every block, with and without a convolution in its shortcut, against its forward written by hand."""
    num_frames, fold = 3, 2
    encoder = build(tiny(layer_type), temporal_shift=fold)
    blocks = [block for stage in encoder.backbone.encoder.stages for block in stage.layers]
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].clone(), output)))
        for block in blocks
    ]
    with torch.no_grad():
        encoder(pixels(2, 1, num_frames, 32, 32), frame_mask=mask)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(blocks) == sum(SHAPES[layer_type]["depths"])
    for block, (x, output) in zip(blocks, seen, strict=True):
        hidden = naive_shift(x, num_frames, fold, mask=mask)
        assert not torch.equal(hidden, x)
        assert torch.equal(hidden, naive_shift(x, num_frames, fold)) == (mask is None)
        for layer in block.layer:
            convolution = layer.convolution
            hidden = F.conv2d(hidden, convolution.weight, stride=convolution.stride, padding=convolution.padding)
            hidden = layer.activation(layer.normalization(hidden))
        residual = x
        if not isinstance(block.shortcut, nn.Identity):
            residual = F.conv2d(x, block.shortcut.convolution.weight, stride=block.shortcut.convolution.stride)
            residual = block.shortcut.normalization(residual)
        torch.testing.assert_close(output, torch.relu(hidden + residual), **EXACT)
    shortcuts = {isinstance(block.shortcut, nn.Identity) for block in blocks}
    assert shortcuts == {True, False}


def test_single_images_are_not_shifted(tiny: Callable[[str], str]) -> None:
    shifting, plain = build(tiny("basic"), temporal_shift=2), build(tiny("basic"))
    images = pixels(4, 1, 32, 32)
    assert torch.equal(shifting(images).pooled, plain(images).pooled)
    assert not torch.allclose(shifting(images[None].transpose(1, 2)).pooled, plain(images[None].transpose(1, 2)).pooled)


def test_shift_adds_no_weights(tiny: Callable[[str], str]) -> None:
    shifting, plain = build(tiny("basic"), temporal_shift=2).state_dict(), build(tiny("basic")).state_dict()
    assert shifting.keys() == plain.keys()
    assert all(torch.equal(shifting[name], plain[name]) for name in plain)


def test_order_of_frames_counts_only_with_a_shift(tiny: Callable[[str], str]) -> None:
    clips = pixels(2, 1, 4, 32, 32)
    for shift in (None, 2):
        encoder = build(tiny("basic"), temporal_shift=shift)
        same = torch.allclose(encoder(clips).pooled, encoder(clips.flip(2)).pooled, **EXACT)
        assert same == (shift is None)


@pytest.mark.parametrize("shift", [None, 2])
def test_clip_of_one_frame(tiny: Callable[[str], str], shift: int | None) -> None:
    """The image itself without a shift; with one, zeros come into the moved channels."""
    encoder = build(tiny("basic"), temporal_shift=shift)
    images = pixels(3, 1, 32, 32)
    image, clip = encoder(images, levels=True), encoder(images.unsqueeze(2), levels=True)
    assert torch.equal(image.levels[0], clip.levels[0])  # the stem comes before any block
    assert torch.equal(image.pooled, clip.pooled) == (shift is None)
    assert torch.equal(image.grid, clip.grid) == (shift is None)


@pytest.mark.parametrize("key", ["vit_tiny", "convnext"])
def test_shift_needs_a_resnet(tmp_path: Path, key: str) -> None:
    ConvNextV2Config(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match=r"encoder\.temporal_shift needs a ResNet, found (dinov2|convnext)"):
        build_encoder(EncoderSpec(backbone=str(tmp_path) if key == "convnext" else key, temporal_shift=8), seed=0)


# --- frames become a clip


def naive_mean(x: Tensor, num_frames: int, mask: Tensor | None) -> Tensor:
    clips = []
    for n in range(x.shape[0] // num_frames):
        real = [t for t in range(num_frames) if mask is None or mask[n, t]]
        clips.append(sum(x[n * num_frames + t] for t in real) / len(real))
    return torch.stack(clips)


MASK = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


@pytest.mark.parametrize("mask", [None, MASK, torch.ones(3, 3, dtype=torch.bool)])
@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 2, 5)])
def test_frame_mean_equals_a_loop(shape: tuple[int, ...], mask: Tensor | None) -> None:
    x = numbers(*shape)
    torch.testing.assert_close(frame_mean(x, 3, mask), naive_mean(x, 3, mask), rtol=1e-12, atol=1e-12)


def test_frames_that_are_not_real_reach_neither_value_nor_gradient() -> None:
    x = numbers(9, 4)
    x[~MASK.flatten()] = float("nan")
    x.requires_grad_()
    frame_mean(x, 3, MASK).sum().backward()
    assert x.grad is not None
    expected = (MASK / MASK.sum(dim=1, keepdim=True)).flatten()[:, None].expand(-1, 4).double()
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=0)


def test_mean_of_half_precision_does_not_overflow() -> None:
    x = torch.full((8, 2), 30_000.0, dtype=torch.float16)
    mask = torch.tensor([[True] * 7 + [False]])
    mean = frame_mean(x, 8, mask)
    assert mean.dtype == torch.float16
    torch.testing.assert_close(mean, x[:1])


@pytest.mark.parametrize("mask", [None, MASK])
def test_without_a_shift_frames_are_encoded_one_by_one(tiny: Callable[[str], str], mask: Tensor | None) -> None:
    encoder = build(tiny("basic"), context=True, neck=6)
    clips = pixels(3, 1, 3, 32, 32)
    found = encoder(clips, frame_mask=mask, levels=True)
    frames = [encoder(clips[n, :, t][None], levels=True) for n in range(3) for t in range(3)]
    gather: Callable[[list[Tensor]], Tensor] = lambda parts: naive_mean(torch.cat(parts), 3, mask)  # noqa: E731
    torch.testing.assert_close(found.pooled, gather([frame.pooled for frame in frames]), **EXACT)
    torch.testing.assert_close(found.grid, gather([frame.grid for frame in frames]), **EXACT)
    assert len(found.levels) == 3
    for position, level in enumerate(found.levels):
        torch.testing.assert_close(level, gather([frame.levels[position] for frame in frames]), **EXACT)


def test_colour_and_grey_clips_fold_alike(tiny: Callable[[str], str]) -> None:
    encoder = build_encoder(EncoderSpec(backbone=tiny("basic"), in_channels=3), seed=0).double().eval()
    clips = pixels(2, 3, 4, 32, 32)
    torch.testing.assert_close(
        encoder(clips).pooled,
        torch.stack([encoder(clip.transpose(0, 1)).pooled.mean(dim=0) for clip in clips]),
        **EXACT,
    )


def test_clips_into_a_vit_and_into_an_unknown_family(tmp_path: Path) -> None:
    ConvNextV2Config(
        hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, out_features=["stage1", "stage2"]
    ).save_pretrained(tmp_path)
    clips = pixels(2, 1, 3, 32, 32)
    for name in ("vit_tiny", str(tmp_path)):
        encoder = build_encoder(EncoderSpec(backbone=name), seed=0).double().eval()
        frames = encoder(clips.transpose(1, 2).flatten(0, 1))
        found = encoder(clips, levels=name != "vit_tiny")
        torch.testing.assert_close(found.pooled, frames.pooled.unflatten(0, (2, 3)).mean(dim=1), **EXACT)
        torch.testing.assert_close(found.grid, frames.grid.unflatten(0, (2, 3)).mean(dim=1), **EXACT)
        assert [len(level) for level in found.levels] == [2] * len(encoder.shape.levels)


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("shift", [None, 2])
def test_padded_clip_equals_the_clip_without_padding(
    tiny: Callable[[str], str], layer_type: str, shift: int | None
) -> None:
    encoder = build(tiny(layer_type), temporal_shift=shift, context=True)
    clips = pixels(2, 1, 3, 32, 32)
    padded = torch.cat([clips, clips[:, :, -1:].expand(-1, -1, 2, -1, -1)], dim=2)
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    found, expected = encoder(padded, frame_mask=mask, levels=True), encoder(clips, levels=True)
    torch.testing.assert_close(found.pooled, expected.pooled, **EXACT)
    for ours, theirs in zip(found.levels, expected.levels, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    assert not torch.allclose(encoder(padded).pooled, expected.pooled)


@pytest.mark.parametrize("shift", [None, 2])
def test_what_frames_that_are_not_real_show_changes_nothing(tiny: Callable[[str], str], shift: int | None) -> None:
    """Wherever they stand; and where they part a clip, what is left is as if it were two."""
    encoder = build(tiny("basic"), temporal_shift=shift, context=True, neck=6)
    clips = pixels(3, 1, 5, 32, 32)
    mask = torch.tensor(
        [[True, True, True, False, False], [True, True, False, True, True], [False, True] + [False] * 3]
    )
    others = torch.where(mask[:, None, :, None, None], clips, pixels(*clips.shape, seed=5))
    found, again = (encoder(each, frame_mask=mask, levels=True) for each in (clips, others))
    assert torch.equal(found.pooled, again.pooled)
    assert torch.equal(found.grid, again.grid)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.levels, again.levels, strict=True))
    assert not torch.allclose(encoder(clips).pooled, encoder(others).pooled)
    halves = torch.stack([clips[1, :, :2], clips[1, :, 3:]])
    torch.testing.assert_close(found.pooled[1], encoder(halves).pooled.mean(dim=0), **EXACT)


@pytest.mark.parametrize("shift", [None, 2])
def test_no_gradient_reaches_frames_that_are_not_real(tiny: Callable[[str], str], shift: int | None) -> None:
    """In evaluation mode; in training they count in the statistics of BatchNorm, and so have a gradient."""
    encoder = build(tiny("basic"), temporal_shift=shift, context=True)
    clips = pixels(3, 1, 4, 32, 32).double().requires_grad_()
    mask = SOME[:, :4]
    for training in (False, True):
        encoder.train(training)
        (gradient,) = torch.autograd.grad(encoder(clips, frame_mask=mask).pooled.square().sum(), clips)
        by_frame = gradient.abs().sum(dim=(1, 3, 4))
        assert (by_frame[mask] > 0).all()
        assert (by_frame[~mask] == 0).all() != training


@pytest.mark.parametrize("training", [False, True])
def test_a_mask_of_real_frames_only_leaves_features_bit_for_bit(tiny: Callable[[str], str], training: bool) -> None:
    encoder = build(tiny("basic"), temporal_shift=2).float().train(training)
    clips = pixels(2, 1, 4, 32, 32)
    every = torch.ones(2, 4, dtype=torch.bool)
    read: list[Tensor] = []
    handle = stages(encoder)[-1].register_forward_hook(lambda _, inputs, output: read.append(output))
    encoder(clips), encoder(clips, frame_mask=every)
    handle.remove()
    assert torch.equal(*read)  # of each frame; their mean over some, or over all, rounds otherwise
    masked, bare = encoder(clips, frame_mask=every).pooled, encoder(clips).pooled
    torch.testing.assert_close(masked, bare, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shift", [None, 2])
def test_gradient_reaches_every_parameter_and_every_frame(tiny: Callable[[str], str], shift: int | None) -> None:
    encoder = build_encoder(EncoderSpec(backbone=tiny("basic"), temporal_shift=shift, neck=5), seed=3)
    clips = pixels(3, 1, 4, 32, 32).requires_grad_()
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, True, False]])
    encoder(clips, frame_mask=mask).pooled.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert clips.grad is not None
    assert (clips.grad.abs().sum(dim=(1, 3, 4)) > 0)[mask].all()


# --- encode


@pytest.mark.parametrize("shift", [None, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_encode_scatters_clips_of_modalities(tiny: Callable[[str], str], shift: int | None, masked: bool) -> None:
    encoder = build(tiny("basic"), temporal_shift=shift, neck=6)
    views = {"US": pixels(2, 3, 1, 4, 32, 32), "XA": pixels(2, 2, 1, 4, 48, 32, seed=1)}
    rows = {"US": torch.tensor([4, 0, 2]), "XA": torch.tensor([3, 1])}
    mask = torch.arange(4) < torch.tensor([4, 1, 2, 3, 2])[:, None]
    features = encoder.encode(views, rows, frame_mask=mask if masked else None, levels=True, grid=True)
    assert features.pooled.shape == (2, 5, 6)
    for modality, clips in views.items():
        for v in range(2):
            for position, row in enumerate(rows[modality].tolist()):
                alone = encoder(clips[v, position][None], frame_mask=mask[row][None] if masked else None, levels=True)
                torch.testing.assert_close(features.pooled[v, row], alone.pooled[0], **EXACT)
                torch.testing.assert_close(features.grid[modality][v, position], alone.grid[0], **EXACT)
                for together, single in zip(features.levels[modality], alone.levels, strict=True):
                    torch.testing.assert_close(together[v, position], single[0], **EXACT)


def test_what_does_not_fit_is_refused(tiny: Callable[[str], str]) -> None:
    encoder = build(tiny("basic"))
    clips, real = pixels(2, 1, 3, 32, 32), torch.ones(2, 3, dtype=torch.bool)
    for images, mask, message in [
        (clips[:, :, :0], None, r"expected images \[B, 1, H, W\] or clips \[B, 1, T, H, W\]"),
        (clips.expand(-1, 3, -1, -1, -1), None, r"found \[2, 3, 3, 32, 32\]"),
        (clips[None], None, r"found \[1, 2, 1, 3, 32, 32\]"),
        (clips, real[:, :2], r"expected a frame_mask \[2, 3\] .* found \[2, 2\]"),
        (clips, real[:1], r"expected a frame_mask \[2, 3\] .* found \[1, 3\]"),
        (clips, real.float(), r"of torch.bool.* of torch.float32"),
        (clips[:, :, 0], real, "no frame_mask for single images"),
    ]:
        with pytest.raises(EncoderError, match=message):
            encoder(images, frame_mask=mask)
    with pytest.raises(AssertionError, match="without a real frame"):
        encoder(clips, frame_mask=torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(EncoderError, match=r"frame_mask \[2, T\] as the rows say, found \[3, 3\]"):
        encoder.encode({"US": clips[None]}, {"US": torch.arange(2)}, frame_mask=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(EncoderError, match=r"US: expected views \[1, 3, C, H, W\]"):
        encoder.encode({"US": clips[None]}, {"US": torch.arange(3)})


# --- copies, folders, threads


def test_copies_and_folders_shift_too(tiny: Callable[[str], str], tmp_path: Path) -> None:
    encoder = build(tiny("basic"), temporal_shift=2, context=True, neck=6).float()  # as folders hold it
    clips = pixels(2, 1, 4, 32, 32)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    expected = encoder(clips, frame_mask=mask).pooled
    copied = copy.deepcopy(encoder)
    assert torch.equal(copied(clips, frame_mask=mask).pooled, expected)
    save_encoder(encoder, tmp_path / "saved", preprocessing={"frames": 4})
    loaded, _ = load_encoder(tmp_path / "saved")
    assert (loaded.spec, loaded.shape) == (encoder.spec, encoder.shape)
    assert torch.equal(loaded(clips, frame_mask=mask).pooled, expected)
    twin = encoder.twin(seed=5).eval()
    assert twin.spec == encoder.spec
    assert not torch.equal(twin(clips).pooled, expected)
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin(clips, frame_mask=mask).pooled, expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(encoder(clips, frame_mask=mask).pooled, expected)


def test_folder_of_an_image_encoder_starts_a_clip_encoder(tiny: Callable[[str], str], tmp_path: Path) -> None:
    images = build(tiny("basic")).float()  # as folders hold it
    save_encoder(images, tmp_path / "saved", preprocessing={})
    spec = EncoderSpec(backbone=str(tmp_path / "saved"), pretrained=True, temporal_shift=2)
    clips = pixels(2, 1, 4, 32, 32)
    found = build_encoder(spec, seed=0).eval()
    by_hand = build(tiny("basic"), seed=9, temporal_shift=2).float()
    by_hand.load_state_dict(images.state_dict())
    assert torch.equal(found(clips).pooled, by_hand(clips).pooled)


def test_threads_with_other_numbers_of_frames_do_not_meet(tiny: Callable[[str], str]) -> None:
    """Forwards wait for each other between the stages, so that all of them are under way at once."""
    encoder = build(tiny("basic"), temporal_shift=2)
    inputs = [pixels(6, 1, 2, 32, 32), pixels(4, 1, 3, 32, 32, seed=1), pixels(12, 1, 32, 32, seed=2)]
    expected = [encoder(each).pooled for each in inputs]
    barrier = threading.Barrier(len(inputs), timeout=30)

    def meet(*_: Any) -> None:
        barrier.wait()

    handles = [stage.register_forward_pre_hook(meet) for stage in stages(encoder)]
    found: dict[int, Tensor] = {}

    def forward(position: int) -> None:
        found[position] = encoder(inputs[position]).pooled

    threads = [threading.Thread(target=forward, args=(position,)) for position in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    assert sorted(found) == [0, 1, 2]
    assert all(torch.equal(found[position], each) for position, each in enumerate(expected))


def stages(encoder: Encoder) -> list[nn.Module]:
    return list(encoder.backbone.encoder.stages)


def test_forwards_may_nest(tiny: Callable[[str], str]) -> None:
    outer, inner = build(tiny("basic"), temporal_shift=2), build(tiny("basic"), temporal_shift=4, seed=9)
    clips, others = pixels(2, 1, 4, 32, 32), [pixels(4, 1, 32, 32, seed=1), pixels(2, 1, 3, 32, 32, seed=2)]
    expected, expected_inner = outer(clips).pooled, [inner(each).pooled for each in others]
    found: list[Tensor] = []
    handle = stages(outer)[1].register_forward_pre_hook(lambda *_: found.extend(inner(each).pooled for each in others))
    assert torch.equal(outer(clips).pooled, expected)
    handle.remove()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected_inner, strict=True))


def test_nothing_is_held_after_a_failure(tiny: Callable[[str], str]) -> None:
    encoder = build(tiny("basic"), temporal_shift=2)
    handle = stages(encoder)[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder(pixels(2, 1, 3, 32, 32))
    handle.remove()
    assert video._FRAMES.get("unset") == "unset"


def test_checkpointing_the_encoder_gives_the_same_gradients_and_a_part_is_refused(tiny: Callable[[str], str]) -> None:
    """A stage computed again in the backward pass would not know the frames, and its gradients would be others."""
    encoder = build(tiny("basic"), temporal_shift=2)
    clips, mask = pixels(2, 1, 4, 32, 32), SOME[:2]

    def gradients(forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(forward(clips).square().sum(), list(encoder.parameters())))

    expected = gradients(lambda x: encoder(x, frame_mask=mask).pooled)
    found = gradients(lambda x: checkpoint(lambda y: encoder(y, frame_mask=mask).pooled, x, use_reentrant=False))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    stage = stages(encoder)[0]
    forward = stage.forward
    stage.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    with pytest.raises(EncoderError, match="checkpoint the encoder as a whole"):
        gradients(lambda x: encoder(x).pooled)
