"""Starts in timm's names, such as RETFound's: against a vision transformer written out here, and what is refused."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTMAEConfig, ViTModel

from bolus.encoders.backbone import Encoder
from bolus.encoders.building import build_encoder, external_encoder
from bolus.encoders.families.hub import find_config
from bolus.encoders.families.timm_names import convert_names
from bolus.encoders.folders.folder import load_encoder, save_encoder
from bolus.errors import EncoderError
from bolus.recipe import EncoderSpec, Recipe

ROOT = Path(__file__).resolve().parents[1]
TIMM = {
    "architecture": "vit_large_patch16_224", "num_classes": 0,
    "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "input_size": [3, 32, 32]},
}  # fmt: skip


def weights(
    width: int = 128, *, blocks: int = 2, patch: int = 8, across: int = 4, last: str = "norm"
) -> dict[str, Tensor]:
    """A vision transformer's weights as timm names them, with a head and a part of MAE's decoder."""
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, across**2 + 1, width), "mask_token": (1, 1, 8),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        f"{last}.weight": (width,), f"{last}.bias": (width,), "head.weight": (2, width), "head.bias": (2,),
        "decoder_pos_embed": (1, across**2 + 1, 8), "decoder_blocks.0.attn.qkv.weight": (24, 8),
    }  # fmt: skip
    for block in range(blocks):
        for name, shape in {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "mlp.fc1.weight": (2 * width, width), "mlp.fc1.bias": (2 * width,),
            "mlp.fc2.weight": (width, 2 * width), "mlp.fc2.bias": (width,),
        }.items():  # fmt: skip
            shapes[f"blocks.{block}.{name}"] = shape
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def naive(w: dict[str, Tensor], x: Tensor, *, heads: int, eps: float = 1e-6) -> Tensor:
    """timm's VisionTransformer up to its last norm, or to the mean of the patches under `fc_norm`, block by block.

    Returns:
        `[B, 1 + h * w, D]`, or with `fc_norm` `[B, D]`.
    """

    def norm(tokens: Tensor, name: str) -> Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(tokens: Tensor, name: str) -> Tensor:
        return tokens @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    kernel = w["patch_embed.proj.weight"]
    patches = F.conv2d(x, kernel, w["patch_embed.proj.bias"], stride=kernel.shape[-1])
    height, width = patches.shape[-2:]
    positions = w["pos_embed"]
    across = int((positions.shape[1] - 1) ** 0.5)
    if (height, width) != (across, across):
        grid = positions[:, 1:].transpose(1, 2).unflatten(2, (across, across))
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        positions = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    tokens = torch.cat([w["cls_token"].expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1) + positions
    for block in range(1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))):
        at = f"blocks.{block}"
        seen = linear(norm(tokens, f"{at}.norm1"), f"{at}.attn.qkv")
        B, N, D = tokens.shape
        q, k, v = seen.reshape(B, N, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
        mixed = torch.zeros_like(v)
        for head in range(heads):
            scores = q[:, head] @ k[:, head].transpose(1, 2) / (D // heads) ** 0.5
            mixed[:, head] = torch.softmax(scores, dim=-1) @ v[:, head]
        tokens = tokens + linear(mixed.transpose(1, 2).reshape(B, N, D), f"{at}.attn.proj")
        inner = linear(norm(tokens, f"{at}.norm2"), f"{at}.mlp.fc1")
        tokens = tokens + linear(0.5 * inner * (1 + torch.erf(inner / 2**0.5)), f"{at}.mlp.fc2")
    return norm(tokens[:, 1:].mean(1), "fc_norm") if "fc_norm.weight" in w else norm(tokens, "norm")


def write(folder: Path, w: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(w, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def start(folder: Path, **keys: Any) -> Encoder:
    spec = EncoderSpec(**{"backbone": str(folder), "pretrained": True, "in_channels": 3, **keys})
    return build_encoder(spec, seed=3).eval()


def pixels(height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- what it gives


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
@pytest.mark.parametrize(("width", "stated"), [(128, None), (128, 8), (48, 3)])
def test_it_gives_what_timms_transformer_gives(
    width: int, stated: int | None, size: tuple[int, int], tmp_path: Path
) -> None:
    """Of heads of 64 channels where nothing is stated; positions are interpolated at another size."""
    w = weights(width)
    write(tmp_path, w, None if stated is None else {"num_attention_heads": stated})
    encoder, x = start(tmp_path, mean=[0.0], std=[1.0]).double(), pixels(*size)
    expected = naive({name: tensor.double() for name, tensor in w.items()}, x, heads=stated or width // 64)
    with torch.no_grad():
        found = encoder(x)
    torch.testing.assert_close(found.pooled, expected[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.grid.flatten(2), expected[:, 1:].transpose(1, 2), rtol=1e-10, atol=1e-10)
    assert found.grid.shape == (2, width, size[0] // 8, size[1] // 8)
    assert (encoder.num_blocks, encoder.shape.grid_stride) == (2, 8)


def test_a_norm_after_the_mean_makes_the_mean_the_pooled_feature(tmp_path: Path) -> None:
    """As in RETFound fine-tuned: `fc_norm` of the mean of the patches, without a norm before."""
    w = weights(last="fc_norm")
    encoder, x = start(write(tmp_path, w), mean=[0.0], std=[1.0]).double(), pixels()
    expected = naive({name: tensor.double() for name, tensor in w.items()}, x, heads=2)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).pooled, expected, rtol=1e-10, atol=1e-10)
        assert encoder(x).grid.shape == (2, 128, 4, 4)


def test_the_converted_weights_are_those_of_transformers_vit(tmp_path: Path) -> None:
    w = weights()
    config = find_config(str(write(tmp_path, w)))
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(convert_names(w))
    expected = naive(w, pixels().float(), heads=2)
    torch.testing.assert_close(model(pixels().float()).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_it_trains_from_the_last_block_and_its_folder_opens_again(tmp_path: Path) -> None:
    encoder = start(write(tmp_path / "from", weights()), unfrozen=1)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert {re.match(r"backbone\.(layers\.1|layernorm)\.", name) is not None for name in trained} == {True}
    save_encoder(encoder, tmp_path / "to", preprocessing={"size": 32})
    again, _ = load_encoder(tmp_path / "to")
    x = pixels().float()
    assert torch.equal(again(x).pooled, encoder(x).pooled)
    fresh = start(tmp_path / "from", pretrained=False)
    assert fresh.shape == encoder.shape
    assert not torch.allclose(fresh(x).pooled, encoder(x).pooled)


# --- what goes with it


def test_timms_configuration_says_how_images_are_normalised(tmp_path: Path) -> None:
    write(tmp_path, weights(), TIMM)
    encoder, contract = external_encoder(tmp_path)
    assert (encoder.spec.mean, encoder.spec.std, contract) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4], {"size": 32})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.9] * 3}))
    assert start(tmp_path).spec.mean == [0.1] * 3


def test_transformers_configuration_is_checked_against_the_shapes(tmp_path: Path) -> None:
    config = ViTMAEConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, patch_size=8,
        image_size=32, layer_norm_eps=1e-3,
    )  # fmt: skip
    w = weights()
    write(tmp_path, w, {**config.to_dict(), "image_size": [32, 32]})
    with torch.no_grad():
        found = start(tmp_path, mean=[0.0], std=[1.0])(pixels().float()).pooled
    torch.testing.assert_close(found, naive(w, pixels().float(), heads=4, eps=1e-3)[:, 0], rtol=1e-4, atol=1e-5)
    write(tmp_path, w, {**config.to_dict(), "num_hidden_layers": 12})
    with pytest.raises(EncoderError, match=r"config.json says \{'num_hidden_layers': 12\}"):
        start(tmp_path)


def test_timms_repositories_on_the_hub_take_the_same_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--someone--retina"
    folder = write(cached / "snapshots" / ("0" * 40), weights(), TIMM)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    by_name, by_folder = start(Path("someone/retina")), start(folder)
    assert torch.equal(by_name(pixels().float()).pooled, by_folder(pixels().float()).pooled)
    assert by_name.spec.mean == [0.4, 0.5, 0.6]


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.ls1.gamma": (128,)}, r"found 1 more, the first blocks\.0\.ls1\.gamma"),
        ({"reg_token": (1, 4, 128)}, r"the first reg_token"),
        ({"fc_norm.weight": (128,), "fc_norm.bias": (128,)}, r"found 2 more"),
        ({"blocks.1.mlp.fc2.bias": None}, r"lacks 1 weights of a bolus_vit .* layers\.1\.mlp\.fc2\.bias"),
        ({"norm.weight": None, "norm.bias": None}, r"lacks 2 weights"),
        ({"pos_embed": (1, 16, 128)}, r"positions of a square .* found patches \[8, 8\] and pos_embed \[1, 16, 128\]"),
        ({"patch_embed.proj.weight": (128, 3, 8, 4)}, r"expected square patches"),
        ({"blocks.1.mlp.fc1.weight": (7, 128)}, r"weights of other shapes"),
    ],
)  # fmt: skip
def test_what_is_no_plain_transformer_is_refused(
    change: dict[str, tuple[int, ...] | None], message: str, tmp_path: Path
) -> None:
    w = weights()
    for name, shape in change.items():
        w.pop(name, None)
        if shape is not None:
            w[name] = torch.zeros(shape)
    write(tmp_path, w)
    with pytest.raises(EncoderError, match=message):
        start(tmp_path)


@pytest.mark.parametrize("width", [48, 1280])
def test_heads_that_cannot_be_known_must_be_stated(width: int, tmp_path: Path) -> None:
    write(tmp_path, weights(width, blocks=1))
    with pytest.raises(EncoderError, match=rf"share its {width} channels.*\"num_attention_heads\": 16"):
        find_config(str(tmp_path))
    write(tmp_path, weights(width, blocks=1), {"model_args": {"num_heads": 16}})
    assert find_config(str(tmp_path)).num_attention_heads == 16
    write(tmp_path, weights(width, blocks=1), {"num_heads": 7})
    with pytest.raises(EncoderError, match=rf"num_heads that divides {width} channels, config.json has 7"):
        find_config(str(tmp_path))


def test_the_commands_of_the_page_are_accepted() -> None:
    page = (ROOT / "docs" / "starting.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^bolus pretrain .*$", page, re.MULTILINE)
    assert len(lines) > 6
    for line in lines:
        keys = [word for word in line.split() if re.match(r"[a-z_.]+=", word)]
        assert Recipe.load("comprer_bilateral").override(keys).encoder.pretrained, line
    (other,) = re.findall(r"`optimizer='(\{.*?\})'`", page)
    found = Recipe.load("simclr").override([f"optimizer={other}"]).optimizer
    assert (found.kind, found.lr, found.layer_decay) == ("adamw", 3e-5, 0.75)


def test_a_pickle_is_not_opened_and_the_page_says_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = weights()
    stored = {"model": w, "optimizer": {}, "epoch": 799, "args": argparse.Namespace(lr=1e-3)}
    torch.save(stored, tmp_path / "RETFound_cfp_weights.pth")
    with pytest.raises(EncoderError, match=r"RETFound_cfp_weights.pth is a pickle.*docs/starting.md"):
        start(tmp_path)
    page = (ROOT / "docs" / "starting.md").read_text(encoding="utf-8")
    (snippet,) = (
        block for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "pth" in block
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "starting.md", "exec"), {})
    written = load_file(tmp_path / "retfound" / "model.safetensors")
    assert set(written) == set(w)
    (processor,) = tmp_path.glob("retfound/preprocessor_config.json")
    assert json.loads(processor.read_text())["image_mean"] == [0.485, 0.456, 0.406]
    assert start(tmp_path / "retfound").spec.std == [0.229, 0.224, 0.225]
