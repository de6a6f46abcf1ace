"""The encoder: any transformers backbone behind one call that gives a pooled vector, a grid and, where asked, levels.

Dimension letters: V views, N samples, B images, clips or volumes (V * N_m of one modality), C channels, T frames, D
the pooled width; of volumes `[B, C, D, H, W]`, D is the depth.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bolus.encoders.families.depth import find_blocks, require_blocks
from bolus.encoders.families.hub import can_checkpoint, config_patch, config_side, make_backbone
from bolus.encoders.families.known import Family, family_of
from bolus.encoders.families.own import OwnBackbone, redraw
from bolus.encoders.features import Features, FeatureShape, LevelShape, Maps, encode_views, one_stride
from bolus.encoders.parts.context import ContextBlock
from bolus.encoders.parts.layout import channels_beside, lay_out
from bolus.encoders.parts.recomputing import recompute
from bolus.encoders.parts.strides import stride_ahead
from bolus.encoders.parts.video import fold_frames, frame_mean, running_frames, shift_blocks
from bolus.encoders.parts.windows import shift_between
from bolus.encoders.volumes.inflation import INFLATABLE, inflate
from bolus.errors import EncoderError
from bolus.recipe import NORMALISATION, EncoderSpec

_log = logging.getLogger(__name__)


_SIDE = 64  # voxels of the volume that shapes are found on, where the architecture states none

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
    """A backbone, its context blocks, neck and normalisation, with the shapes it gives.

    Build one by `build_encoder`, `load_encoder` or `external_encoder`; the constructor draws context blocks, then the
    neck, from the global random state and leaves the encoder in training mode.

    With `spec.unfrozen` only the last so many blocks and what lies after them are trained (the last norm, the neck, the
    context blocks of those stages); with 0 only the neck. The rest has no gradients and stays in evaluation mode
    whatever `train` says, so that neither BatchNorm statistics nor dropped paths change it.

    Args:
        spec: what was asked for; `mean` and `std` hold for images in [0, 1] and are `NORMALISATION` where it has none.
        backbone: a transformers backbone; it is taken over, not copied.

    Attributes:
        shape: FeatureShape, found without running the weights.
        dimensions: 3 of an encoder of volumes, else 2.
        neck: the linear layer after pooling, or nothing.
        num_blocks: blocks of the backbone, transformer blocks or stages of a ResNet; None where they are not known.

    Raises:
        EncoderError: channels, mean or std that do not fit the backbone; context, temporal_shift or
            `stem_pool: false` for a backbone that is no ResNet; more unfrozen blocks than there are, or than are
            known; a backbone whose last map is not `[B, C, h, w]`, or `[B, C, d, h, w]` of volumes; a backbone that
            cannot be inflated, or was and is not said to be.

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
        stated = {key: getattr(spec, key) or value for key, value in NORMALISATION.items()}
        self.spec, self.backbone = spec.model_copy(update=stated), backbone
        self._still: list[str] = []  # modules that stay in evaluation mode
        if spec.inflated:
            inflate(backbone, spec.backbone)
        elif getattr(self.config, "dimensions", 2) == 3 and self.config.model_type in INFLATABLE:
            raise EncoderError(f"the encoder in {spec.backbone} was inflated: set encoder.inflated=true")
        self.dimensions = int(getattr(self.config, "dimensions", 2))
        self.num_channels = int(getattr(self.config, "num_channels", 3))
        if spec.in_channels not in (1, self.num_channels):
            raise EncoderError(
                f"expected a backbone for {spec.in_channels}-channel images, found one for {self.num_channels} "
                f"({spec.backbone})"
            )
        for name, values in stated.items():
            if len(values) not in (1, self.num_channels) or (name == "std" and min(values) <= 0):
                raise EncoderError(
                    f"encoder.{name}: expected one value, or one for each of {self.num_channels} channels"
                    f"{', above 0' if name == 'std' else ''}; found {values}"
                )
            self.register_buffer(name, torch.tensor(values).view(1, -1, *[1] * self.dimensions), persistent=False)
        self.family = family_of(self.config)
        if self.family is not None and not self.family.maps:  # the last stage is read, whatever it selects
            self.config.out_features = list(self.config.stage_names)[-1:]
        self._blocks = find_blocks(backbone, self.family)
        self.num_blocks = None if self._blocks is None else self._blocks.number
        self._patch = None if self.family is None else config_patch(self.config)
        self._arguments = {} if self.family is None else dict(self.family.arguments)
        self._drop_stem_pool()
        stride_ahead(backbone)
        shift_between(backbone)
        self.context = nn.ModuleList()
        self._tap()
        self.neck: nn.Module = nn.Identity()
        self.shape = self._find_shape()
        if spec.neck is not None:
            self.neck = nn.Linear(self.shape.dim, spec.neck)
            self.shape = replace(self.shape, dim=spec.neck)
        self._freeze()
        lay_out(self)

    def twin(self, *, seed: int) -> Encoder:
        """The same architecture with fresh weights, a function of the seed: what its shape alone gives away."""
        with seeded(seed):
            backbone = make_backbone(self.config, self.spec.backbone)
            if isinstance(backbone, OwnBackbone) and self.spec.pretrained:  # its factory loads weights
                redraw(backbone)
            return Encoder(self.spec, backbone)

    @property
    def config(self) -> Any:
        """The backbone's transformers configuration."""
        return self.backbone.config

    @property
    def units(self) -> list[nn.Module]:
        """The blocks of the backbone, which it runs one after the other; empty where they are not known."""
        return [] if self._blocks is None else list(self.backbone.get_submodule(self._blocks.path).children())

    def depth_of(self, name: str) -> int:
        """How far from the image a parameter or module of this encoder lies.

        Args:
            name: as `named_parameters` or `named_modules` gives it.

        Returns:
            0 for the embeddings or the stem, 1 .. L for the L blocks, L + 1 for what follows them. A context block
            lies where the stage that it refines does.

        Raises:
            EncoderError: the blocks of this backbone are not known.

        Example:
            >>> from bolus.encoders.building import build_encoder
            >>> encoder = build_encoder(EncoderSpec(backbone="vit_tiny"), seed=0)
            >>> names = ["embeddings.cls_token", "encoder.layer.0.norm1.bias", "encoder.layer.1", "layernorm"]
            >>> [encoder.depth_of(f"backbone.{name}") for name in names]
            [0, 1, 2, 3]
        """
        return require_blocks(self._blocks, self.config.model_type).depth_of(name)

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode, as of any module; what `spec.unfrozen` leaves as it is stays in evaluation mode."""
        super().train(mode)
        for name in self._still:
            self.get_submodule(name).eval()
        return self

    def unfreeze(self) -> Encoder:
        """Train everything from now on; the spec says so afterwards.

        >>> from bolus.encoders.building import build_encoder
        >>> encoder = build_encoder(EncoderSpec(backbone="vit_tiny", unfrozen=1), seed=0)
        >>> encoder.backbone.embeddings.training, encoder.unfreeze().backbone.embeddings.training
        (False, True)
        """
        self.spec, self._still = self.spec.model_copy(update={"unfrozen": None}), []
        return self.requires_grad_(True).train(self.training)

    def checkpoint_activations(self) -> None:
        """From now on, keep only what goes into each block in training, and compute the block again on the way back.

        Gradients are the same; a step takes a second forward and much less memory. Never reentrant, so that several
        objectives may go back through one forward.

        Raises:
            EncoderError: transformers cannot do so for this backbone, and it is none of volumes whose blocks are known.
        """
        if self.dimensions == 3 and self._blocks is not None:
            recompute(self.backbone, self._blocks)
            return
        if not can_checkpoint(self.config, self.spec.backbone):
            raise EncoderError(
                f"training.activation_checkpointing: a {self.config.model_type} backbone cannot compute its "
                "activations again; set it to false"
            )
        model: Any = self.backbone
        # Called so since transformers 5.23, which warns of the old name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def check_sides(self, *sides: int) -> None:
        """Raise EncoderError for images that patches do not cover: a border would be cut off at the far sides.

        Args:
            sides: height and width in pixels; of a volume, depth, height and width, which any encoder here takes.
        """
        patch = self._patch
        if patch is None or self.dimensions == 3:
            return
        height, width = sides
        if height % patch == 0 and width % patch == 0:
            return
        side = height if height % patch else width
        near = [multiple for multiple in (side // patch * patch, (side // patch + 1) * patch) if multiple]
        raise EncoderError(
            f"expected images whose sides are multiples of {patch} pixels, the patch of {self.spec.backbone}, "
            f"found {height} x {width}; near {side} there {'is' if len(near) == 1 else 'are'} "
            f"{' and '.join(str(multiple) for multiple in near)}"
        )

    def _freeze(self) -> None:
        """Leave out of training what `spec.unfrozen` says."""
        unfrozen = self.spec.unfrozen
        if unfrozen is None:
            return
        try:
            blocks = require_blocks(self._blocks, self.config.model_type)
        except EncoderError as error:
            raise EncoderError(f"encoder.unfrozen: {error}; set it to null") from None
        if unfrozen > blocks.number:
            raise EncoderError(
                f"encoder.unfrozen: expected at most {blocks.number}, the blocks of {self.spec.backbone}, "
                f"found {unfrozen}"
            )
        self._still = blocks.left_out(unfrozen, num_context=len(self.context))
        for name in self._still:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def _drop_stem_pool(self) -> None:
        if self.spec.stem_pool:
            return
        if self.family is None or self.family.stem_pool is None:
            raise EncoderError(f"encoder.stem_pool: false needs a ResNet, found {self.config.model_type}")
        self.backbone.set_submodule(self.family.stem_pool, nn.Identity())

    def _tap(self) -> None:
        """Hang taps, with context blocks if asked for, on the modules that are levels, and shifts on their blocks."""
        family, config = self.family or Family(), self.config
        self._level_names: list[str] = []
        if family.stem is not None and family.stages is not None:
            num_stages = len(list(self.backbone.get_submodule(family.stages).children()))
            self._level_names = [family.stem, *(f"{family.stages}.{stage}" for stage in range(num_stages))]
            if self.spec.temporal_shift is not None:
                if self.dimensions == 3:
                    raise EncoderError(
                        f"encoder.temporal_shift: {self.spec.backbone} sees a volume at once, and there are no frames "
                        "to shift between; set it to null"
                    )
                shift_blocks(self.backbone.get_submodule(family.stages), self.spec.temporal_shift)
        elif self.spec.context or self.spec.temporal_shift is not None:
            key = "context" if self.spec.context else "temporal_shift"
            raise EncoderError(f"encoder.{key} needs a ResNet, found {self.config.model_type}")
        sizes = list(config.hidden_sizes) if self._level_names else []
        widths = [getattr(config, "embedding_size", sizes[0]), *sizes] if sizes else []
        for name, channels in zip(self._level_names, widths, strict=True):
            asked, reduction = self.spec.context, self.spec.context_reduction
            block = ContextBlock(channels, reduction, dimensions=self.dimensions) if asked else None
            if block is not None:
                self.context.append(block)
            self.backbone.get_submodule(name).register_forward_hook(_Tap(name, block))
        self._cls_name = family.tokens if getattr(config, "apply_layernorm", True) else None
        if self._cls_name is not None:
            self.backbone.get_submodule(self._cls_name).register_forward_hook(_Tap(self._cls_name))

    def forward(self, images: Tensor, *, frame_mask: Tensor | None = None, levels: bool = False) -> Maps:
        """Normalise images, volumes, or the frames of clips, and encode them.

        Frames are encoded as images are and their features averaged; they see each other only through
        `spec.temporal_shift`, and see nothing of frames that are not real. Without it a clip of one frame is the image;
        with it zeros come in beside that frame, whereas nothing is shifted in an image.

        In training, BatchNorm's statistics are over all that is passed here together: images of all views, and all
        frames, also those that are not real (which in batches repeat a clip's last frame).

        Args:
            images: `[B, C, H, W]`, or clips `[B, C, T, H, W]`, float32 in [0, 1] with C of the spec; grey is repeated
                where the backbone takes more. Of an encoder of volumes `[B, C, D, H, W]`, and nothing else.
            frame_mask: of clips, bool `[B, T]`, true at real frames, at least one in a row; None: all are.
            levels: also give every level.

        Raises:
            EncoderError: images or a mask of another shape or dtype; sides that are no multiples of the patch of a
                vision transformer, whose positions are interpolated to any that are; levels of a backbone that has
                none.
        """
        if levels and not self._has_levels:
            raise EncoderError(f"{self.config.model_type} has no levels; an objective that needs levels wants a ResNet")
        if self.dimensions == 3:
            check_volumes(images, frame_mask, channels=self.spec.in_channels)
            num_frames = None
        else:
            images, num_frames = fold_frames(images, frame_mask, channels=self.spec.in_channels)
        frame_mask = None if frame_mask is None else frame_mask.to(images.device)
        self.check_sides(*images.shape[2:])
        pixels = (images.expand(-1, self.num_channels, *[-1] * self.dimensions) - self.mean) / self.std
        pixels = channels_beside(pixels)  # what convolutions are fastest with
        kept: dict[str, Tensor] = {}
        token = _KEPT.set(kept if levels or self._cls_name is not None else None)
        lone = self.training and len(pixels) == 1
        if lone:  # one image has no statistics: norms use the running ones, as in evaluation, and leave them alone
            self.eval()
        try:
            with running_frames(num_frames, frame_mask):
                maps: tuple[Tensor, ...] = self.backbone(pixels, return_dict=True, **self._arguments).feature_maps
        finally:
            _KEPT.reset(token)
            if lone:
                self.train()
        places = tuple(range(2, 2 + self.dimensions))
        found = [maps[-1].mean(dim=places) if self._cls_name is None else kept[self._cls_name][:, 0], maps[-1]]
        if levels:
            found += [kept[name] for name in self._level_names] or maps
        if num_frames is not None:
            found = [frame_mean(each, num_frames, frame_mask) for each in found]
        pooled, grid, *read = found
        return Maps(self.neck(pooled), read, grid)

    def encode(
        self,
        views: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        *,
        frame_mask: Tensor | None = None,
        levels: bool = False,
        grid: bool = False,
    ) -> Features:
        """Features of a batch, one forward for each modality over all its views.

        So in training the statistics of BatchNorm are over all views of a modality's samples together.

        Args:
            views: modality -> `[V, N_m, C, H, W]`, clips `[V, N_m, C, T, H, W]`, or of an encoder of volumes
                `[V, N_m, C, D, H, W]`, float32 in [0, 1]; V is the same for all, the sides need not be.
            rows: modality -> int64 `[N_m]`, positions among the N samples; together they are each of 0 .. N-1 once.
            frame_mask: of clips, bool `[N, T]`, true at real frames; None: all are.
            levels: also give every level.
            grid: also give the last map.

        Returns:
            Features with pooled `[V, N, D]` in the batch's order.

        Raises:
            EncoderError: views, rows and mask that do not fit each other, or no images.

        Example:
            >>> from bolus.encoders.building import build_encoder
            >>> encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0)
            >>> features = encoder.encode({"XR": torch.rand(2, 3, 1, 32, 32)}, {"XR": torch.arange(3)}, grid=True)
            >>> features.pooled.shape, features.grid["XR"].shape
            (torch.Size([2, 3, 256]), torch.Size([2, 3, 256, 1, 1]))
        """
        return encode_views(lambda modality: self, views, rows, frame_mask=frame_mask, levels=levels, grid=grid)

    def of(self, modality: str) -> Encoder:
        """The encoder that sees a modality: this one, whichever it is."""
        return self

    @property
    def has_context(self) -> bool:
        """Whether it has context blocks, without which it may be judged as well."""
        return self.spec.context

    @property
    def _has_levels(self) -> bool:
        return bool(self._level_names) or self.family is None or self.family.tokens is None

    def _find_shape(self) -> FeatureShape:
        """Channels and strides from one forward on the meta device, which runs no arithmetic."""
        side = config_side(self.config) or (224 if self.dimensions == 2 else _SIDE)
        if self._patch is not None:
            side = max(1, side // self._patch) * self._patch
        has_levels = self._has_levels
        images = torch.empty(1, self.spec.in_channels, *[side] * self.dimensions, device="meta")
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
        model_type, wanted = self.config.model_type, "[B, C, h, w]" if self.dimensions == 2 else "[B, C, d, h, w]"
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
            raise EncoderError(f"{model_type} gives no maps {wanted} that bolus can read: {error}") from error
        self.train()
        if any(found.ndim != images.ndim for found in [maps.grid, *maps.levels]):
            raise EncoderError(f"{model_type}: expected maps {wanted}, found {list(maps.grid.shape)}")
        names = self._level_names or list(getattr(self.backbone, "out_features", []))

        def strides(found: Tensor) -> tuple[int, ...]:
            return tuple(round(side / length) for length in found.shape[2:])

        return FeatureShape(
            dim=maps.pooled.shape[1],
            grid_channels=maps.grid.shape[1],
            grid_stride=one_stride(strides(maps.grid)),
            levels=tuple(
                LevelShape(level.shape[1], one_stride(strides(level)), name, strides(level))
                for name, level in zip(names if has_levels else [], maps.levels, strict=True)
            ),
            grid_strides=strides(maps.grid),
            dimensions=self.dimensions,
        )


def check_volumes(volumes: Tensor, frame_mask: Tensor | None, *, channels: int) -> None:
    """Raise EncoderError for what is no batch of volumes `[B, C, D, H, W]` of floats, or for a frame mask.

    >>> check_volumes(torch.zeros(2, 1, 8, 8), None, channels=1)
    Traceback (most recent call last):
    bolus.errors.EncoderError: expected volumes [B, 1, D, H, W] of floats in [0, 1], found [2, 1, 8, 8] of torch.float32
    """
    if volumes.ndim != 5 or volumes.shape[1] != channels or not volumes.is_floating_point():
        raise EncoderError(
            f"expected volumes [B, {channels}, D, H, W] of floats in [0, 1], found {list(volumes.shape)} of "
            f"{volumes.dtype}"
        )
    if frame_mask is not None:
        raise EncoderError(f"expected no frame_mask for volumes, found {list(frame_mask.shape)}")


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """The random generators of the CPU and of a device at a seed, and as they were before afterwards.

    Args:
        seed: of whatever is drawn within: weights, which are drawn on the CPU, or dropout and dropped paths.
        device: the accelerator on which something is drawn as well.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
