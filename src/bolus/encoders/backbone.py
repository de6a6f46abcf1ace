"""Encoders: any transformers backbone behind one call that gives a pooled vector, a grid and, where asked, levels.

Dimension letters: V views, N samples, B images (V * N_m of one modality), C channels, D the pooled width.

An encoder folder holds `model.safetensors`, `encoder.json` and, where there is a card, `README.md`; it is rebuilt
from these without a network and without unpickling anything.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    AutoConfig,
    Dinov2Config,
    ResNetConfig,
)
from transformers.utils import cached_file

from bolus.encoders.context import ContextBlock
from bolus.encoders.features import Features, FeatureShape, LevelShape
from bolus.errors import EncoderError, suggest
from bolus.recipe import EncoderSpec

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "encoder.json", "README.md"
FORMAT = 1  # of encoder.json

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """Where a family of backbones keeps what is read from it, as dotted module paths; None where it has no such thing.

    Args:
        stem: the first convolution with its norm and activation; its output is the first level.
        stem_pool: the max-pool after it.
        stages: a list of modules; each output is a level and feeds the next stage.
        tokens: the last norm, whose output `[B, tokens, D]` starts with the CLS token.
    """

    stem: str | None = None
    stem_pool: str | None = None
    stages: str | None = None
    tokens: str | None = None


# By transformers model type. A backbone that is not here gives the maps of its own `out_features` as levels.
FAMILIES: dict[str, Family] = {
    "resnet": Family(stem="embedder.embedder", stem_pool="embedder.pooler", stages="encoder.stages"),
    "dinov2": Family(tokens="layernorm"),
    "dinov2_with_registers": Family(tokens="layernorm"),
    "dinov3_vit": Family(tokens="norm"),
    "vitdet": Family(),
}


@dataclass(frozen=True)
class _Named:
    """A configuration with a name, and the hub name of its ImageNet weights where there are any."""

    config: Callable[[], Any]
    hub_name: str | None = None


def _basic_resnet(embedding_size: int, hidden_sizes: list[int]) -> Any:
    return ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], embedding_size=embedding_size, hidden_sizes=hidden_sizes
    )


NAMED: dict[str, _Named] = {
    "resnet18": _Named(lambda: _basic_resnet(64, [64, 128, 256, 512]), "microsoft/resnet-18"),
    "resnet50": _Named(ResNetConfig, "microsoft/resnet-50"),
    "r18w32": _Named(lambda: _basic_resnet(32, [32, 64, 128, 256])),
    "vit_tiny": _Named(
        lambda: Dinov2Config(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, patch_size=8, image_size=64
        )
    ),
}


@dataclass
class Maps:
    """What one forward gives for B images.

    Args:
        pooled: `[B, D]`: the CLS token where there is one, else the mean of the grid.
        levels: maps `[B, C, h, w]`, shallow to deep; empty unless asked for.
        grid: the last map, `[B, C, h, w]`.
    """

    pooled: Tensor
    levels: list[Tensor]
    grid: Tensor


# Where the hooks of the forward now running put what they read: set for one forward, so nothing outlives it, and own
# to each thread, so that two forwards never meet.
_KEPT: ContextVar[dict[str, Tensor] | None] = ContextVar("bolus_kept_maps", default=None)


@dataclass(eq=False)
class _Tap:
    """A forward hook that refines a module's output where it has a block, and keeps it while a forward asks for it.

    An object and not a closure: a deep copy of the encoder copies its taps with it, onto the copied blocks.
    """

    name: str
    block: ContextBlock | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.block is not None:
            output = self.block(output)
        kept = _KEPT.get()
        if kept is not None:
            kept[self.name] = output
        return output


class Encoder(nn.Module):
    """A backbone, its context blocks and its normalisation, with the shapes it gives.

    Build one by `build_encoder`, `load_encoder` or `external_encoder`; the constructor draws context blocks from the
    global random state.

    Args:
        spec: what was asked for; `mean` and `std` hold for images in [0, 1].
        backbone: a transformers backbone; it is taken over, not copied.

    Attributes:
        shape: FeatureShape, found without running the weights.

    Raises:
        EncoderError: channels, mean or std that do not fit the backbone; context or `stem_pool: false` for a backbone
            that is no ResNet; a backbone whose last map is not `[B, C, h, w]`.

    Example:
        >>> encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
        >>> encoder.shape.dim, [level.stride for level in encoder.shape.levels]
        (256, [2, 4, 8, 16, 32])
        >>> encoder(torch.rand(2, 1, 64, 64)).pooled.shape
        torch.Size([2, 256])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec, backbone: nn.Module) -> None:
        super().__init__()
        self.spec, self.backbone = spec, backbone
        self.num_channels = int(getattr(self.config, "num_channels", 3))
        if spec.in_channels not in (1, self.num_channels):
            raise EncoderError(
                f"expected a backbone for {spec.in_channels}-channel images, found one for {self.num_channels} "
                f"({spec.backbone})"
            )
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            if len(values) not in (1, self.num_channels) or (name == "std" and min(values) <= 0):
                raise EncoderError(
                    f"encoder.{name}: expected one value, or one for each of {self.num_channels} channels"
                    f"{', above 0' if name == 'std' else ''}; found {values}"
                )
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.family = FAMILIES.get(self.config.model_type)
        if self.family is not None:  # it reads the last stage itself, whatever the configuration selects
            self.config.out_features = list(self.config.stage_names)[-1:]
        self._drop_stem_pool()
        self.context = nn.ModuleList()
        self._tap()
        self.shape = self._find_shape()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def twin(self, *, seed: int) -> Encoder:
        """The same architecture with fresh weights, a function of the seed: what its shape alone gives away."""
        with _seeded(seed):
            return Encoder(self.spec, _make_backbone(self.config, self.spec.backbone))

    @property
    def config(self) -> Any:
        """The backbone's transformers configuration."""
        return self.backbone.config

    def _drop_stem_pool(self) -> None:
        if self.spec.stem_pool:
            return
        if self.family is None or self.family.stem_pool is None:
            raise EncoderError(f"encoder.stem_pool: false needs a ResNet, found {self.config.model_type}")
        self.backbone.set_submodule(self.family.stem_pool, nn.Identity())

    def _tap(self) -> None:
        """Hang a tap, with a context block where the spec asks for them, on the modules that are levels."""
        family, config = self.family or Family(), self.config
        self._level_names: list[str] = []
        if family.stem is not None and family.stages is not None:
            num_stages = len(list(self.backbone.get_submodule(family.stages).children()))
            self._level_names = [family.stem, *(f"{family.stages}.{stage}" for stage in range(num_stages))]
        elif self.spec.context:
            raise EncoderError(f"encoder.context needs a ResNet, found {self.config.model_type}")
        widths = [config.embedding_size, *config.hidden_sizes] if self._level_names else []
        for name, channels in zip(self._level_names, widths, strict=True):
            block = ContextBlock(channels, self.spec.context_reduction) if self.spec.context else None
            if block is not None:
                self.context.append(block)
            self.backbone.get_submodule(name).register_forward_hook(_Tap(name, block))
        self._cls_name = family.tokens if getattr(config, "apply_layernorm", True) else None
        if self._cls_name is not None:
            self.backbone.get_submodule(self._cls_name).register_forward_hook(_Tap(self._cls_name))

    def forward(self, images: Tensor, *, levels: bool = False) -> Maps:
        """Normalise images and encode them.

        Args:
            images: `[B, C, H, W]` float32 in [0, 1] with C of the spec; grey is repeated where the backbone takes more.
            levels: also give every level.

        Raises:
            EncoderError: images of another shape or dtype; levels of a backbone that has none.
        """
        if images.ndim != 4 or images.shape[1] != self.spec.in_channels or not images.is_floating_point():
            raise EncoderError(
                f"expected images [B, {self.spec.in_channels}, H, W] of floats in [0, 1], "
                f"found {list(images.shape)} of {images.dtype}"
            )
        if levels and self.family is not None and not self._level_names:
            raise EncoderError(f"{self.config.model_type} has no levels; an objective that needs levels wants a ResNet")
        pixels = (images.expand(-1, self.num_channels, -1, -1) - self.mean) / self.std
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # what convolutions are fastest with
        kept: dict[str, Tensor] = {}
        token = _KEPT.set(kept if levels or self._cls_name is not None else None)
        try:
            maps: tuple[Tensor, ...] = self.backbone(pixels, return_dict=True).feature_maps
        finally:
            _KEPT.reset(token)
        grid = maps[-1]
        pooled = grid.mean(dim=(2, 3)) if self._cls_name is None else kept[self._cls_name][:, 0]
        if not levels:
            return Maps(pooled, [], grid)
        return Maps(pooled, list(maps) if self.family is None else [kept[name] for name in self._level_names], grid)

    def encode(
        self, views: Mapping[str, Tensor], rows: Mapping[str, Tensor], *, levels: bool = False, grid: bool = False
    ) -> Features:
        """Features of a batch, one forward for each modality over all its views.

        Args:
            views: modality -> `[V, N_m, C, H, W]` float32 in [0, 1]; V is the same for all, H and W need not be.
            rows: modality -> int64 `[N_m]`, positions among the N samples; together they are each of 0 .. N-1 once.
            levels: also give every level.
            grid: also give the last map.

        Returns:
            Features with pooled `[V, N, D]` in the batch's order.

        Raises:
            EncoderError: views and rows that do not fit each other, or no images.

        Example:
            >>> encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
            >>> features = encoder.encode({"XR": torch.rand(2, 3, 1, 32, 32)}, {"XR": torch.arange(3)}, grid=True)
            >>> features.pooled.shape, features.grid["XR"].shape
            (torch.Size([2, 3, 256]), torch.Size([2, 3, 256, 1, 1]))
        """
        if not views or set(views) != set(rows):
            raise EncoderError(f"expected views and rows of the same modalities, found {sorted(views)}, {sorted(rows)}")
        num_views = next(iter(views.values())).shape[0]
        pooled: list[Tensor] = []
        features = Features(pooled=torch.empty(0))
        for modality, images in views.items():
            if images.ndim != 5 or images.shape[0] != num_views or images.shape[1] != len(rows[modality]):
                raise EncoderError(
                    f"{modality}: expected views [{num_views}, {len(rows[modality])}, C, H, W] as V and the rows say, "
                    f"found {list(images.shape)}"
                )
            by_view = images.shape[:2]
            maps = self(images.flatten(0, 1), levels=levels)
            pooled.append(maps.pooled.unflatten(0, by_view))
            if levels:
                features.levels[modality] = [level.unflatten(0, by_view) for level in maps.levels]
            if grid:
                features.grid[modality] = maps.grid.unflatten(0, by_view)
        together = torch.cat(pooled, dim=1)
        order = torch.cat([rows[modality].to(together.device) for modality in views])
        features.pooled = torch.zeros_like(together).index_copy(1, order, together)
        return features

    def _find_shape(self) -> FeatureShape:
        """Channels and strides from one forward on the meta device, which runs no arithmetic."""
        size = _first_int(getattr(self.config, "image_size", None)) or 224
        has_levels = self.family is None or bool(self._level_names)
        was_training = self.training, self.backbone.training
        self.eval()
        try:
            images = torch.empty(1, self.spec.in_channels, size, size, device="meta")
            state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
            with torch.no_grad():
                try:
                    maps = torch.func.functional_call(self, empty, (images,), {"levels": has_levels})
                except (RuntimeError, NotImplementedError) as error:
                    _log.warning(
                        "%s does not run without data (%s); its shapes come from one small forward on zeros",
                        self.config.model_type,
                        str(error).partition("\n")[0],
                    )
                    zeros = torch.zeros(images.shape, device=next(self.parameters()).device)
                    maps = self(zeros, levels=has_levels)
        except (IndexError, ValueError, TypeError, RuntimeError) as error:
            raise EncoderError(
                f"{self.config.model_type} gives no maps [B, C, h, w] that bolus can read: {error}"
            ) from error
        finally:
            self.train(was_training[0])
            self.backbone.train(was_training[1])
        if any(found.ndim != 4 for found in [maps.grid, *maps.levels]):
            raise EncoderError(f"{self.config.model_type}: expected maps [B, C, h, w], found {list(maps.grid.shape)}")
        names = self._level_names or list(getattr(self.backbone, "out_features", []))
        return FeatureShape(
            dim=maps.pooled.shape[1],
            grid_channels=maps.grid.shape[1],
            grid_stride=round(size / maps.grid.shape[-1]),
            levels=tuple(
                LevelShape(level.shape[1], round(size / level.shape[-1]), name)
                for name, level in zip(names if has_levels else [], maps.levels, strict=True)
            ),
        )


def build_encoder(spec: EncoderSpec, *, seed: int) -> Encoder:
    """An encoder in training mode, the same for the same spec and seed; the global random state stays as it was.

    A named configuration with `pretrained: true` takes its ImageNet weights from the hub; a bolus encoder folder with
    `pretrained: true` gives its backbone and, where the spec asks for context and the folder has it, its blocks.

    Args:
        spec: the backbone's name, folder or hub name, and how it is fed.
        seed: of every weight that is not loaded; a backbone starts alike with and without context.

    Raises:
        EncoderError: a name that is unknown or cannot be loaded, or a spec that does not fit the backbone.

    Example:
        >>> state = torch.get_rng_state()
        >>> encoder = build_encoder(EncoderSpec(backbone="r18w32", context=True), seed=0)
        >>> len(encoder.context), bool((torch.get_rng_state() == state).all())
        (5, True)
    """
    with _seeded(seed):
        if spec.pretrained and not _is_encoder_folder(spec.backbone):
            return Encoder(spec, _load_backbone(spec.backbone)).train()
        config = _find_config(spec.backbone)
        if not spec.pretrained and hasattr(config, "num_channels"):
            config.num_channels = spec.in_channels
        encoder = Encoder(spec, _make_backbone(config, spec.backbone))
    if spec.pretrained:
        state = _read_weights(Path(spec.backbone))
        has_context = any(name.startswith("context.") for name in state)
        _fill(encoder, state, Path(spec.backbone), keep_context=spec.context, fresh_context=not has_context)
    return encoder.train()


def save_encoder(encoder: Encoder, folder: Path, *, preprocessing: Mapping[str, Any], card: str = "") -> None:
    """Write an encoder folder that `load_encoder` reads back to the same outputs.

    Each file is written beside its place and then renamed; `encoder.json` comes last and holds the digest of the
    weights, so that a folder which was interrupted is refused and never half read.

    Args:
        encoder: saved as it is, in whichever mode.
        folder: made where it is missing; files of other names in it stay.
        preprocessing: JSON values, how an image becomes the encoder's input before it is in [0, 1].
        card: Markdown for `README.md`; none is written where it is empty.

    Raises:
        EncoderError: `preprocessing` is not JSON.
    """
    folder = Path(folder)
    grey_repeated = encoder.spec.in_channels < encoder.num_channels
    config = json.loads(encoder.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    description = {
        "format": FORMAT,
        "spec": encoder.spec.model_dump(mode="json"),
        "backbone_config": config,
        "input": {
            "range": [0.0, 1.0],
            "channels": encoder.spec.in_channels,
            "grey_repeated_to": encoder.num_channels if grey_repeated else None,
            "mean": encoder.spec.mean,
            "std": encoder.spec.std,
        },
        "preprocessing": dict(preprocessing),
        "versions": {"bolus": version("bolus"), "torch": torch.__version__},
    }
    try:
        json.dumps(description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EncoderError(f"preprocessing: expected JSON values, found something else: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    # Clones, because safetensors refuses tensors that share memory.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.state_dict().items()}
    with _replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    description["weights"] = _digest(folder / WEIGHTS)
    if card:
        with _replacing(folder / CARD) as temporary:
            temporary.write_text(card, encoding="utf-8")
    with _replacing(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_encoder(folder: Path, *, keep_context: bool = True) -> tuple[Encoder, dict[str, Any]]:
    """An encoder in evaluation mode and its preprocessing contract, from a folder that `save_encoder` wrote.

    Args:
        folder: with `encoder.json` and `model.safetensors`; no network is used.
        keep_context: false leaves the context blocks out, as MLVICX's published evaluation does.

    Raises:
        EncoderError: no encoder folder, a damaged one, or one of a later format.
    """
    folder = Path(folder)
    description = _read_description(folder)
    try:
        spec = EncoderSpec.model_validate(description["spec"])
        preprocessing: dict[str, Any] = dict(description["preprocessing"])
        if not keep_context:
            spec = spec.model_copy(update={"context": False})
        with _seeded(0):
            backbone = _make_backbone(_config_from(description["backbone_config"]), str(folder))
            encoder = Encoder(spec, backbone)
    except (ValidationError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{folder / DESCRIPTION}: not an encoder that this version of bolus knows: {error}"
        ) from error
    _fill(encoder, _read_weights(folder), folder, keep_context=keep_context)
    return encoder.eval(), preprocessing


def external_encoder(
    name_or_folder: str | Path, *, in_channels: Literal[1, 3] | None = None, keep_context: bool = True
) -> tuple[Encoder, dict[str, Any]]:
    """Any encoder to judge, in evaluation mode: a bolus encoder folder, a transformers folder, or a hub name.

    Mean, standard deviation and size come from its `preprocessor_config.json` where there is one; otherwise images
    are normalised by EncoderSpec's defaults, and a log line says so.

    Args:
        name_or_folder: as given to `from_pretrained`, or the folder of `save_encoder`. HF_HUB_OFFLINE is respected.
        in_channels: of the images it will be given; 1 is repeated where the backbone takes 3. None: its own.
        keep_context: of a bolus encoder folder, see `load_encoder`.

    Returns:
        The encoder and its preprocessing contract: what `save_encoder` was given, or `size`, the pixels of the side it
        was made for, where that is known.

    Raises:
        EncoderError: nothing there that can be loaded, or channels that do not fit.
    """
    name = str(name_or_folder)
    if _is_encoder_folder(name):
        encoder, contract = load_encoder(Path(name), keep_context=keep_context)
        if in_channels in (None, encoder.spec.in_channels):
            return encoder, contract
        with _seeded(0):
            spec = encoder.spec.model_copy(update={"in_channels": in_channels})
            again = Encoder(spec, _make_backbone(encoder.config, name))
        again.load_state_dict(encoder.state_dict())
        return again.eval(), contract
    with _seeded(0):
        backbone = _load_backbone(name)
        config: Any = backbone.config
        processor = _read_processor(NAMED[name].hub_name or name if name in NAMED else name)
        normalisation: dict[str, list[float]] = {}
        if not processor:
            _log.warning("%s has no preprocessor_config.json: images are normalised by mean 0.5 and std 0.25", name)
        elif not processor.get("do_normalize", True):
            normalisation = {"mean": [0.0], "std": [1.0]}
        elif "image_mean" in processor and "image_std" in processor:
            normalisation = {"mean": _as_list(processor["image_mean"]), "std": _as_list(processor["image_std"])}
        own: Literal[1, 3] = 1 if getattr(config, "num_channels", 3) == 1 else 3
        spec = EncoderSpec(backbone=name, pretrained=True, in_channels=in_channels or own, **normalisation)
        size = _processor_size(processor) or _first_int(getattr(config, "image_size", None))
        return Encoder(spec, backbone).eval(), {} if size is None else {"size": size}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The CPU generator at a seed, and as it was before afterwards; weights are drawn on the CPU, others stay alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _find_config(name: str) -> Any:
    """The architecture that a name, a folder or a hub name stands for."""
    if name in NAMED:
        return NAMED[name].config()
    if _is_encoder_folder(name):
        return _config_from(_read_description(Path(name))["backbone_config"])
    where = _where(name)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EncoderError(f"no encoder loaded: tried {where}: {error}") from error


def _load_backbone(name: str) -> nn.Module:
    """A pretrained backbone in float32, every weight of which came from the file."""
    if name in NAMED:
        hub_name = NAMED[name].hub_name
        if hub_name is None:
            raise EncoderError(f"encoder.pretrained: {name!r} has no published weights; leave pretrained false")
        name = hub_name
    where, config = _where(name), _find_config(name)
    # Through the class and not AutoBackbone.from_pretrained, which asks the hub first, even for a folder.
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise _not_a_backbone(config, name)
    backbone_class = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    try:
        backbone, report = backbone_class.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"no encoder loaded: tried {where}: {error}") from error
    missing = sorted(str(key) for key in report["missing_keys"])
    if missing:
        raise EncoderError(
            f"{where}: its file lacks {len(missing)} weights of a {config.model_type} backbone, the first {missing[0]}"
        )
    module: nn.Module = backbone
    return module


def _make_backbone(config: Any, name: str) -> nn.Module:
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise _not_a_backbone(config, name)
    try:
        backbone: nn.Module = AutoBackbone.from_config(config, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        raise EncoderError(f"{name}: no {config.model_type} backbone can be built: {error}") from error
    return backbone


def _not_a_backbone(config: Any, name: str) -> EncoderError:
    known = sorted(str(found.model_type) for found in MODEL_FOR_BACKBONE_MAPPING)
    return EncoderError(
        f"{name}: transformers has no backbone for {config.model_type!r}; it has them for {', '.join(known)}"
    )


def _config_from(values: Mapping[str, Any]) -> Any:
    return CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))


def _where(name: str) -> str:
    """What a name that is not ours will be tried as, in words; refuses what cannot be a hub name."""
    if Path(name).is_dir():
        return f"folder {name}"
    if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name):
        offline = " from the cache, because HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else ""
        return f"hub name {name}{offline} (there is no such folder here)"
    raise EncoderError(
        f"no encoder {name!r}: not a named one ({suggest(name, NAMED)}), a folder, or a hub name OWNER/NAME"
    )


def _is_encoder_folder(name: str) -> bool:
    return name not in NAMED and (Path(name) / DESCRIPTION).is_file()


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(f"expected an encoder folder with {DESCRIPTION}, found none in {folder}") from error
    except ValueError as error:
        raise EncoderError(f"{path}: not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise EncoderError(f"{path}: expected format {FORMAT}, found {found}")
    return description


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an encoder folder, once they are the ones that its description speaks of."""
    path, expected = folder / WEIGHTS, _read_description(folder).get("weights")
    if not path.is_file():
        raise EncoderError(f"expected {WEIGHTS} in {folder}, found none")
    if _digest(path) != expected:
        raise EncoderError(f"{path}: not the weights that {DESCRIPTION} was written for; the folder is damaged or torn")
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _fill(
    encoder: Encoder, state: dict[str, Tensor], folder: Path, *, keep_context: bool, fresh_context: bool = False
) -> None:
    """Load weights in place; every parameter must get one, but for context blocks that are meant to be fresh."""
    if not keep_context:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("context.")}
    try:
        missing, unexpected = encoder.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise EncoderError(f"{folder}: weights of other shapes than {DESCRIPTION} says: {error}") from error
    missing = [name for name in missing if not (fresh_context and name.startswith("context."))]
    if missing or unexpected:
        raise EncoderError(f"{folder}: weights missing {missing[:3]}, weights of no use {unexpected[:3]}")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` in one step once it has been written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_processor(name: str) -> dict[str, Any]:
    """A `preprocessor_config.json` of a folder or hub name; empty where there is none."""
    path = cached_file(
        name,
        "preprocessor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return {}
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderError(f"{name}: preprocessor_config.json is not JSON: {error}") from error
    return dict(values)


def _processor_size(processor: Mapping[str, Any]) -> int | None:
    """Pixels of the side that the encoder's own processor crops or resizes to."""
    keys = ["crop_size", "size"] if processor.get("do_center_crop") else ["size"]
    for key in keys:
        value = processor.get(key)
        if isinstance(value, Mapping):
            value = value.get("height") or value.get("shortest_edge")
        if (size := _first_int(value)) is not None:
            return size
    return None


def _first_int(value: Any) -> int | None:
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return int(value) if isinstance(value, int) and value > 0 else None


def _as_list(value: Any) -> list[float]:
    return [float(entry) for entry in value] if isinstance(value, (list, tuple)) else [float(value)]
