"""timm's names: weights go there and come back, and timm itself gives the same features where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ResNetConfig, ViTConfig

from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder
from bolus.encoders.families.timm_names import convert_names
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.errors import EncoderError, UsageError
from bolus.exporting.timm_weights import from_timm, write_timm
from bolus.recipe import EncoderSpec

SIZE = 32
RESNETS: dict[str, Any] = {
    "basic": ResNetConfig(layer_type="basic", embedding_size=64, hidden_sizes=[16, 24, 32, 40], depths=[1, 2, 1, 1]),
    "bottleneck": ResNetConfig(embedding_size=64, hidden_sizes=[32, 64, 96, 128], depths=[2, 1, 1, 1]),
}
VIT = ViTConfig(
    hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, patch_size=8, image_size=24,
    layer_norm_eps=1e-6,
)  # fmt: skip


def encoder_of(folder: Path, config: Any, *, channels: Any = 3, steps: int = 10, **spec: Any) -> Encoder:
    """An encoder whose weights are not what they start with, and whose norms have seen so many batches."""
    config.save_pretrained(folder / "config")
    asked = EncoderSpec(backbone=str(folder / "config"), in_channels=channels, mean=[0.4], std=[0.3], **spec)
    encoder, generator = build_encoder(asked, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(torch.rand(value.shape, generator=generator) * (0.2 if value.ndim < 2 else 0.02))
        for _ in range(steps):
            encoder(torch.rand(8, channels, SIZE, SIZE, generator=generator))
    return encoder.eval()


def pixels(channels: int = 3) -> torch.Tensor:
    return torch.rand(3, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", RESNETS)
def test_a_resnet_goes_and_comes_back(kind: str, channels: int, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, RESNETS[kind], channels=channels)
    write_timm(encoder, tmp_path / "out", size=SIZE)
    theirs = load_file(tmp_path / "out" / "model.safetensors")
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias", "layer4.0.conv2.weight"} <= set(theirs)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["model_args"]["layers"] == RESNETS[kind].depths
    assert found["model_args"]["channels"] == ([16, 24, 32, 40] if kind == "basic" else [8, 16, 24, 32])
    assert found["pretrained_cfg"]["mean"] == pytest.approx([0.4] * channels)
    back = from_timm({**theirs, "fc.weight": torch.zeros(2, 40)}, mean=[0.4], std=[0.3])
    with torch.no_grad():
        assert torch.equal(back(pixels(channels)).pooled, encoder(pixels(channels)).pooled)
    save_encoder(back, tmp_path / "kept", preprocessing={"size": SIZE})
    again, _ = load_encoder(tmp_path / "kept")
    with torch.no_grad():
        assert torch.equal(again(pixels(channels)).pooled, encoder(pixels(channels)).pooled)


def test_a_vision_transformer_goes_and_comes_back(tmp_path: Path) -> None:
    """At another size than its own, for which its positions are interpolated once and for all."""
    encoder = encoder_of(tmp_path, VIT)
    write_timm(encoder, tmp_path / "out", size=SIZE)
    theirs = load_file(tmp_path / "out" / "model.safetensors")
    assert theirs["pos_embed"].shape == (1, 17, 128)
    ours = dict(encoder.backbone.state_dict())
    for name, value in convert_names(theirs).items():
        if name != "embeddings.position_embeddings":
            assert torch.equal(value, ours.pop(name)), name
    assert set(ours) == {"embeddings.position_embeddings"}
    back = build_encoder(EncoderSpec(backbone=str(tmp_path / "out"), pretrained=True, in_channels=3), seed=5).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(pixels()).pooled, encoder(pixels()).pooled, rtol=0, atol=1e-5)


def test_what_timm_cannot_say_is_refused(tmp_path: Path) -> None:
    basic = RESNETS["basic"]
    for number, (config, spec, why) in enumerate((
        (basic, {"context": True}, "context blocks"),
        (basic, {"neck": 8}, "a neck"),
        (basic, {"stem_pool": False}, "no pooling in its stem"),
        (basic, {"inflated": True}, "it sees volumes"),
        (ResNetConfig(**{**basic.to_dict(), "embedding_size": 32}), {}, r"its stem has 32 channels \(timm: 64\)"),
        (ResNetConfig(**{**basic.to_dict(), "hidden_act": "gelu"}), {}, "strides or activations"),
        (ViTConfig(**{**VIT.to_dict(), "layer_norm_eps": 1e-12}), {}, r"an epsilon of 1e-12 \(timm: 1e-06\)"),
    )):  # fmt: skip
        encoder = encoder_of(tmp_path / str(number), config, steps=0, **spec)
        with pytest.raises(EncoderError, match=f"timm cannot open this encoder: .*{why}"):
            write_timm(encoder, tmp_path / "out", size=SIZE)
    unet = build_encoder(EncoderSpec(backbone="unet2"), seed=0)
    with pytest.raises(EncoderError, match="bolus_unet is neither a ResNet nor a plain vision transformer"):
        write_timm(unet, tmp_path / "out", size=SIZE)
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UsageError, match="empty or new"):
        write_timm(encoder_of(tmp_path, basic, steps=0), tmp_path / "full", size=SIZE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layer1.0.se.fc1.weight": torch.zeros(4, 4)}, r"1 more or fewer, the first layer1\.0\.se\.fc1\.weight"),
        ({"bn1.bias": None}, r"1 more or fewer, the first bn1\.bias"),
        ({"conv1.weight": None}, r"'conv1\.weight' is missing"),
        ({"layer2.0.conv1.weight": torch.zeros(24, 8, 3, 3)}, "weights of other shapes"),
        ({"conv1.weight": torch.zeros(64, 4, 7, 7)}, "1 or 3 channels, found one of 4"),
    ],
)
def test_what_is_no_plain_resnet_is_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    write_timm(encoder_of(tmp_path, RESNETS["basic"], steps=0), tmp_path / "out", size=SIZE)
    theirs = load_file(tmp_path / "out" / "model.safetensors") | change
    with pytest.raises(EncoderError, match=why):
        from_timm({name: value for name, value in theirs.items() if value is not None}, mean=[0.5], std=[0.5])


# With timm, where it can be imported -----------------------------------------------------


@pytest.fixture
def timm() -> Any:
    try:
        import timm as found
    except Exception as error:  # its torchvision may be of another torch
        pytest.skip(f"timm cannot be imported: {error}")
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", [*RESNETS.values(), VIT], ids=[*RESNETS, "vit"])
def test_timm_gives_the_same_features(config: Any, channels: Any, timm: Any, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, config, channels=channels)
    write_timm(encoder, tmp_path / "out", size=SIZE)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        expected = encoder(pixels(channels)).pooled.numpy()
        found = model((pixels(channels) - encoder.mean) / encoder.std).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timms_resnets_open_here(name: str, timm: Any) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(4, 3, 64, 64))
        found = from_timm(model.state_dict(), mean=[0.4], std=[0.3])(pixels()).pooled
        expected = model.eval()((pixels() - 0.4) / 0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
