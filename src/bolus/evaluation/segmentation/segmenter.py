"""An encoder under a mask decoder, trained on the slices of a few labelled patients for a fixed number of steps.

Dimension letters: N slices, K classes with the background, S the side of the encoder's input in pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Store
from bolus.data.views.augment import augment, augment_labels, plain
from bolus.encoders.backbone import Encoder, seeded
from bolus.encoders.families.unet import MaskDecoder
from bolus.errors import EvaluationError, UsageError, require
from bolus.evaluation.segmentation.options import SegmentSpec
from bolus.evaluation.statistics.metrics import IntArray
from bolus.optimization import build_optimizer, lr_factor
from bolus.recipe import OptimizerSpec, ScheduleSpec
from bolus.seeds import seed_for

LOWER = "a lower learning rate (SegmentSpec.lr) may help"


@dataclass(eq=False)
class Segmenter:
    """A trained encoder and decoder, in evaluation mode, with the images that they are shown.

    Args:
        encoder: a copy.
        decoder: on its features.
        store: images, or volumes, in the encoder's preprocessing.
        samples: of the store's cohort.
        num_classes: K.
    """

    encoder: Encoder
    decoder: MaskDecoder
    store: Store
    samples: Samples
    num_classes: int

    def logits(self, images: Tensor) -> Tensor:
        """Logits `[N, K, S, S]` of images `[N, C, S, S]` float32 in [0, 1]; of volumes as `mask_logits` says."""
        return mask_logits(self.encoder, self.decoder, images)

    def predict(self, positions: IntArray, *, batch_size: int = 64) -> Tensor:
        """Class probabilities of whole slices, without augmentation; for images.

        Args:
            positions: int64 `[n]` among the samples; each must be readable.
            batch_size: slices at a time.

        Returns:
            float32 `[n, K, S, S]` on the CPU; `data.readers.masks.from_square` takes them to a slice's own pixels.
        """
        device, size = next(self.encoder.parameters()).device, self.store.preprocessing.size
        found = torch.zeros(len(positions), self.num_classes, size, size)
        self.encoder.eval()
        self.decoder.eval()
        with torch.inference_mode():
            for start in range(0, len(positions), batch_size):
                some = self.samples.first_row[positions[start : start + batch_size]]
                images = plain(self.store.gather(some).unit(device), size=size)
                found[start : start + batch_size] = self.logits(images).float().softmax(1).cpu()
        return found


def fit_segmenter(
    encoder: Encoder,
    store: Store,
    samples: Samples,
    labels: Mapping[int, NDArray[Any]],
    positions: ArrayLike,
    *,
    num_classes: int,
    spec: SegmentSpec | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Segmenter:
    """Train a decoder on a copy of the encoder, and by default the copy with it, on labelled slices.

    PCL (arXiv:2106.09157) and GCL, which builds on it, train a U-Net whose encoder was pretrained on the slices of a
    few labelled patients. Loss, steps and augmentation are ours: soft Dice of the foreground classes over the batch
    plus cross-entropy (MONAI), a fixed number of steps. The decoder starts from the seed; batches and views depend on
    the seed and the positions alone, so that every encoder meets the same ones. A function of its arguments (on an
    accelerator but for the last bits); the encoder given and the global random state stay as they are.

    Args:
        encoder: of single images, on the device that is trained on.
        store: images in the encoder's preprocessing.
        samples: of the store's cohort, unit `image` or `slice`.
        labels: position -> `[s, s]` integers 0..K-1 at the cached size (`bolus.data.readers.masks.to_square`).
        positions: int `[n]` among the samples: the slices trained on, readable, with labels; their order is ignored.
        num_classes: K, with the background, at least 2.
        spec: how; the defaults where None.
        seed: of the decoder's weights, batches, views and dropout.
        on_step: called with the number of steps done.

    Raises:
        EvaluationError: no slice to train on; or a loss or weights that are not finite, with the step (an accelerator
            is asked at the end).
        UsageError: fewer than two classes.
    """
    spec = spec or SegmentSpec()
    if num_classes < 2:
        raise UsageError(f"segmentation: expected the background and at least one class, found {num_classes} in all")
    chosen = np.unique(np.asarray(positions, dtype=np.int64))
    if not len(chosen):
        raise EvaluationError("segmentation: no labelled slice to train on")
    device, size = next(encoder.parameters()).device, store.preprocessing.size
    masks = torch.stack([torch.from_numpy(labels[int(position)].astype(np.int64)) for position in chosen])
    assert masks.shape[1:] == store.preprocessing.stored_shape[1:], f"labels {list(masks.shape)} at another size"

    def batch_of(places: IntArray, view: int) -> tuple[Tensor, Tensor]:
        stored = store.gather(samples.first_row[chosen[places]]).unit(device)
        images = augment(stored, spec.augment, size=size, views=1, seed=view)[0]
        return images, augment_labels(masks[places].to(device), spec.augment, size=size, seed=view)

    untrained = Segmenter(encoder, start_decoder(encoder, num_classes, seed), store, samples, num_classes)
    return train_segmenter(untrained, batch_of, len(chosen), spec=spec, seed=seed, on_step=on_step)


def start_decoder(encoder: Encoder, num_classes: int, seed: int) -> MaskDecoder:
    """A decoder for an encoder, with weights of a seed, on its device."""
    with seeded(seed_for(seed, "decoder")):
        decoder = MaskDecoder(encoder.shape, num_classes)
    return decoder.to(next(encoder.parameters()).device)


def train_segmenter(
    untrained: Segmenter,
    batch_of: Callable[[IntArray, int], tuple[Tensor, Tensor]],
    number: int,
    *,
    spec: SegmentSpec,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> Segmenter:
    """Train a segmenter on a copy of its encoder; the rest is as `fit_segmenter` says.

    Args:
        untrained: whose decoder is trained itself.
        batch_of: places among what is trained on, int64 `[B]`, and the seed of their views -> images `[B, C, ...]` and
            their classes `[B, ...]`, on the device.
        number: of what is trained on.
        spec: how.
        seed: of the order and of dropout.
        on_step: called with the number of steps done.

    Raises:
        EvaluationError: as `fit_segmenter`.
    """
    device = next(untrained.encoder.parameters()).device
    model = replace(untrained, encoder=copy.deepcopy(untrained.encoder).unfreeze())
    model.encoder.requires_grad_(spec.whole).train(spec.whole)
    model.decoder.train()
    optimizer = build_optimizer(
        {"encoder": model.encoder, "decoder": model.decoder},
        OptimizerSpec(kind="adamw", lr=spec.lr, weight_decay=spec.weight_decay),
        spec.lr,
    )
    schedule = ScheduleSpec(kind="cosine", warmup_epochs=spec.warmup)  # all steps are one epoch
    loss_of = mask_loss()
    order = _order(number, spec.steps * spec.batch_size, seed).reshape(spec.steps, spec.batch_size)
    never = torch.tensor(spec.steps, device=device)
    failed = never.clone()  # the first step whose loss is not finite
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_for(seed, "dropout"))
        for step, batch in enumerate(order):
            factor = lr_factor(schedule, step, total_steps=spec.steps, steps_per_epoch=spec.steps)
            for group in optimizer.param_groups:
                group["lr"] = spec.lr * factor
            images, target = batch_of(batch, seed_for(seed, "view", step))
            loss = loss_of(model.logits(images).float(), target[:, None])
            failed = torch.where(loss.detach().isfinite(), failed, failed.clamp(max=step))
            if device.type == "cpu" and failed < never:  # elsewhere to look is to wait
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if on_step is not None:
                on_step(step + 1)
    if failed < never:
        raise EvaluationError(f"the loss is not finite at step {int(failed) + 1} of {spec.steps}: {LOWER}")
    weights = [*model.encoder.state_dict().values(), *model.decoder.state_dict().values()]
    if not all(bool(each.isfinite().all()) for each in weights):
        raise EvaluationError(f"the weights are not finite after step {spec.steps}, the last one: {LOWER}")
    model.encoder.eval()
    model.decoder.eval()
    return model


def mask_logits(encoder: Encoder, decoder: MaskDecoder, images: Tensor) -> Tensor:
    """Class scores of every pixel, before the softmax.

    Args:
        encoder: whose maps the decoder reads.
        decoder: of that encoder.
        images: `[N, C, S, S]`, or volumes `[N, C, D, H, W]` of an encoder of volumes, float32 in [0, 1].

    Returns:
        `[N, K, S, S]` or `[N, K, D, H, W]`, float32, with gradients.

    Example:
        >>> from bolus.encoders.building import build_encoder
        >>> from bolus.recipe import EncoderSpec
        >>> encoder = build_encoder(EncoderSpec(backbone="unet2"), seed=0)
        >>> mask_logits(encoder, MaskDecoder(encoder.shape, 3), torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """
    maps = encoder(images, levels=bool(encoder.shape.levels))
    found: Tensor = decoder(maps.levels, maps.grid, images.shape[2:])
    return found


def mask_loss() -> nn.Module:
    """What is minimised: 1 less the soft Dice of the foreground classes, plus the mean cross-entropy of all pixels.

    MONAI's, a function of logits `[N, K, ...]` and classes `[N, 1, ...]`. Dice is over all pixels of the batch
    together, so that a slice without a class is no case of its own, and then the mean over the classes.
    """
    dice = require("monai.losses.dice", "decoders of masks")
    loss: nn.Module = dice.DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    return loss


def draw_labelled(patients: ArrayLike, k: int, *, seed: int, repeat: int) -> NDArray[Any]:
    """Which training patients are labelled: the first k of one permutation for each repeat, so that draws are nested.

    Args:
        patients: codes of the patients that have masks, in any order, repeated or not.
        k: how many.
        seed: of all draws.
        repeat: which draw.

    Raises:
        EvaluationError: fewer patients than k.

    >>> draw_labelled([4, 4, 7, 9], 2, seed=0, repeat=1).tolist() == draw_labelled([9, 7, 4], 3, seed=0,
    ...     repeat=1).tolist()[:2]
    True
    """
    known = np.unique(np.asarray(patients))
    if not 1 <= k <= len(known):
        raise EvaluationError(f"expected 1 to {len(known)} labelled patients, as many as have masks; found {k}")
    return np.random.default_rng([seed, repeat]).permutation(known)[:k]


def _order(count: int, length: int, seed: int) -> IntArray:
    """So many places among `count` slices: one permutation of all after another."""
    rounds = -(-length // count)
    orders = [np.random.default_rng([seed_for(seed, "order"), number]).permutation(count) for number in range(rounds)]
    return np.concatenate(orders)[:length].astype(np.int64)
