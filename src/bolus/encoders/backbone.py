"""The encoder: any transformers backbone behind one call that gives a pooled vector, a grid and, where asked, levels.

Dimension letters: V views, N samples, B images (V * N_m of one modality), C channels, D the pooled width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bolus.encoders.context import ContextBlock
from bolus.encoders.features import Features, FeatureShape, LevelShape
from bolus.encoders.hub import config_side, make_backbone
from bolus.errors import EncoderError
from bolus.recipe import EncoderSpec

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
    global random state and leaves the encoder in training mode.

    Args:
        spec: what was asked for; `mean` and `std` hold for images in [0, 1].
        backbone: a transformers backbone; it is taken over, not copied.

    Attributes:
        shape: FeatureShape, found without running the weights.

    Raises:
        EncoderError: channels, mean or std that do not fit the backbone; context or `stem_pool: false` for a backbone
            that is no ResNet; a backbone whose last map is not `[B, C, h, w]`.

    Example:
        >>> from bolus.encoders.building import build_encoder
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
        with seeded(seed):
            return Encoder(self.spec, make_backbone(self.config, self.spec.backbone))

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
            >>> from bolus.encoders.building import build_encoder
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
        side = config_side(self.config) or 224
        has_levels = self.family is None or bool(self._level_names)
        images = torch.empty(1, self.spec.in_channels, side, side, device="meta")
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
        model_type = self.config.model_type
        self.eval()
        try:
            with torch.no_grad():
                try:
                    maps = torch.func.functional_call(self, empty, (images,), {"levels": has_levels})
                except RuntimeError as error:
                    reason = str(error).partition("\n")[0]
                    _log.warning(
                        "%s does not run without data (%s); its shapes come from a forward on zeros", model_type, reason
                    )
                    maps = self(torch.zeros(images.shape, device=next(self.parameters()).device), levels=has_levels)
        except (IndexError, ValueError, TypeError, RuntimeError) as error:
            raise EncoderError(f"{model_type} gives no maps [B, C, h, w] that bolus can read: {error}") from error
        self.train()
        if any(found.ndim != 4 for found in [maps.grid, *maps.levels]):
            raise EncoderError(f"{model_type}: expected maps [B, C, h, w], found {list(maps.grid.shape)}")
        names = self._level_names or list(getattr(self.backbone, "out_features", []))
        return FeatureShape(
            dim=maps.pooled.shape[1],
            grid_channels=maps.grid.shape[1],
            grid_stride=round(side / maps.grid.shape[-1]),
            levels=tuple(
                LevelShape(level.shape[1], round(side / level.shape[-1]), name)
                for name, level in zip(names if has_levels else [], maps.levels, strict=True)
            ),
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The CPU generator at a seed, and as it was before afterwards; weights are drawn on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
