"""An encoder trained on for one target: whole, or frozen under a linear head that is trained on images."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from bolus.data.cohort.cohort import Samples
from bolus.data.copies.seen import SeenImages
from bolus.data.images.cache import Store
from bolus.data.views.presets import resolve
from bolus.encoders.backbone import Encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.evaluation.probing import fitting
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.probing.options import FinetuneSpec
from bolus.evaluation.probing.viewing import Sight
from bolus.evaluation.statistics.metrics import FloatArray, IntArray, higher_is_better, metrics_of
from bolus.evaluation.targets import check_task
from bolus.recipe import AugmentSpec
from bolus.seeds import seed_for


@dataclass(frozen=True, eq=False)
class Finetuned:
    """An encoder and a head that were trained together.

    Args:
        encoder: a copy, in evaluation mode.
        head: linear, on that encoder's embeddings; constant where there was nothing to learn.
        predictions: of the held samples, as `Head.predict` gives them.
        notes: what a reader must know, in sentences; with the epochs, the best one and its validation.
    """

    encoder: Encoder
    head: Head
    predictions: FloatArray
    notes: tuple[str, ...]

    def save(
        self,
        folder: Path,
        *,
        preprocessing: Mapping[str, Any],
        lineage: Sequence[Mapping[str, Any]] = (),
        seen: Mapping[str, SeenImages] | None = None,
    ) -> None:
        """Write an encoder folder with `head.safetensors` in it; Args as `save_encoder`."""
        save_encoder(self.encoder, folder, preprocessing=preprocessing, lineage=lineage, seen=seen)
        self.head.save(Path(folder) / "head.safetensors")


def mild(augment: AugmentSpec) -> AugmentSpec:
    """A pretraining augmentation toned down for fine-tuning: no crop below 0.7 of the area, half the rest, no blur.

    Noise is left out, and so are augmentations of one's own.

    >>> toned = mild(AugmentSpec(preset="xray"))
    >>> toned.crop_scale, toned.rotation, toned.blur, toned.flip_horizontal
    ((0.7, 1.0), 5.0, 0.0, 0.0)
    """
    full = resolve(augment.model_copy(update={"own": ()}))
    assert full.crop_scale is not None
    low, high = full.crop_scale
    half = {
        key: value / 2
        for key in ("rotation", "brightness", "contrast", "saturation", "hue")
        if (value := getattr(full, key)) is not None
    }
    none = {"blur": 0.0, "noise": 0.0}
    return full.model_copy(update={**half, **none, "crop_scale": (min(high, max(low, 0.7)), high)})


def target_loss(raw: Tensor, target: Tensor, *, task: str, class_weights: Tensor | None = None) -> Tensor:
    """What fine-tuning minimises: cross-entropy of classes, squared error of standardised numbers.

    Args:
        raw: `[n, K]` float logits, or `[n, 1]` of the second of two classes, or `[n, 1]` numbers.
        target: `[n]` float: class 0..K-1, or number; NaN is missing and left out.
        task: `classify` or `regress`.
        class_weights: `[K]` factors of the loss of each class's samples.

    Returns:
        The mean over samples with a target; exactly 0, with zero gradients, where there is none.

    >>> target_loss(torch.zeros(2, 1), torch.tensor([1.0, torch.nan]), task="classify")
    tensor(0.6931)
    >>> target_loss(torch.tensor([[1.0], [5.0]]), torch.tensor([3.0, 5.0]), task="regress")
    tensor(2.)
    """
    given = torch.isfinite(target)
    raw, target = raw[given], target[given]
    if not len(target):
        return raw.sum() * 0.0
    if task == "regress":
        return F.mse_loss(raw[:, 0], target.to(raw.dtype))
    codes = target.long()
    logits = raw if raw.shape[1] > 1 else torch.cat([torch.zeros_like(raw), raw], dim=1)
    losses = F.cross_entropy(logits, codes, reduction="none")
    return (losses if class_weights is None else losses * class_weights[codes]).mean()


def fit_finetuned(
    encoder: Encoder,
    store: Store,
    samples: Samples,
    y: FloatArray,
    *,
    train: IntArray,
    val: IntArray,
    held: IntArray,
    task: str,
    num_classes: int = 2,
    spec: FinetuneSpec | None = None,
) -> Finetuned:
    """Train a copy of the encoder, or only a head on it, for one target; the epoch is chosen on validation.

    The head is linear on embeddings that are standardised by the training samples as the encoder first sees them, and
    starts at 0. The epoch kept is the best by the first metric of the task on validation, and of equals by the
    validation loss; where validation does not define the metric it is the last, with a note. A function of its
    arguments (on an accelerator but for the last bits); the encoder given and the global random state stay as they are.

    Args:
        encoder: on the device that is trained on.
        store: images in the encoder's preprocessing; clips where it has `frames`.
        samples: of the store's cohort.
        y: `[len(samples)]` codes (-1 or NaN missing) or numbers (NaN missing).
        train: positions among the samples that are trained on; those without a target are left out.
        val: positions that choose the epoch, likewise.
        held: positions that are predicted, in this order; their targets are not looked at.
        task: `classify` or `regress`.
        num_classes: K.
        spec: how; the defaults where None.

    Raises:
        EvaluationError: no training sample with a target.
        UsageError: an unknown task, or class weights of a regression.
    """
    spec = spec or FinetuneSpec()
    check_task(task)
    spec.check_for(task)
    y = np.asarray(y, dtype=np.float64)
    train, val = (rows[fitting.has_target(y[rows], task)] for rows in (train, val))
    encoder = copy.deepcopy(encoder).unfreeze().eval().requires_grad_(spec.whole)
    if len(train) == 0 or np.ptp(y[train]) == 0:  # an error, or a constant
        blank = np.zeros((max(len(train), len(held)), encoder.shape.dim))
        nobody = fitting.Labelled(blank[:0], y[:0], y[:0])
        fitted = fitting.Labelled(blank[: len(train)], y[train], np.arange(len(train)))
        head = fitting.fit_linear(fitted, nobody, task, num_classes=num_classes)
        return Finetuned(encoder, head, head.predict(blank[: len(held)]), head.notes)
    sight = Sight(encoder, store, samples, augment=spec.augment, whole=spec.whole)
    if not spec.whole:
        sight.remember(np.unique(np.concatenate([train, val, held])))
    model = _Model(encoder, _blank_head(y, train, val, sight.plain(train), task, num_classes))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(spec.seed)  # of dropout, if there is any
        notes = _train(model, sight, y, train, val, spec)
    head = replace(model.head(), notes=tuple(notes))
    return Finetuned(encoder.eval(), head, head.predict(sight.plain(held).cpu().numpy()), head.notes)


class _Model(nn.Module):
    """An encoder and a linear layer, which `head` gives as a Head."""

    def __init__(self, encoder: Encoder, blank: Head) -> None:
        super().__init__()
        self.encoder, self.blank = encoder, blank
        self.device = next(encoder.parameters()).device
        self.mean, self.scale = (
            torch.from_numpy(values).float().to(self.device) for values in (blank.mean, blank.scale)
        )
        outputs = len(blank.classes) if len(blank.classes) > 2 else 1
        self.weight = nn.Parameter(torch.zeros(outputs, len(blank.mean), device=self.device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=self.device))

    def raw(self, features: Tensor) -> Tensor:
        """Logits or standardised numbers `[n, K']` from features `[n, D]`."""
        return F.linear((features - self.mean) / self.scale, self.weight, self.bias)

    def head(self) -> Head:
        """The linear layer as it is now."""
        coef, intercept = (values.detach().cpu().double().numpy().copy() for values in (self.weight, self.bias))
        return replace(self.blank, coef=coef, intercept=intercept)

    def targets(self, y: FloatArray) -> Tensor:
        """What `target_loss` takes, `[n]`; NaN for a class that training did not have."""
        if self.blank.task == "regress":
            values = (y - self.blank.target_mean) / self.blank.target_scale
        else:
            place = np.searchsorted(self.blank.classes, y).clip(max=len(self.blank.classes) - 1)
            values = np.where(self.blank.classes[place] == y, place, np.nan)
        return torch.from_numpy(values).float().to(self.device)


def _blank_head(y: FloatArray, train: IntArray, val: IntArray, features: Tensor, task: str, num_classes: int) -> Head:
    """A linear head without coefficients, standardised by the training features."""
    x_nd = features.double().cpu().numpy()
    mean, scale = x_nd.mean(0), x_nd.std(0)
    scale = np.where(scale > 1e-6 * np.abs(mean) + 1e-9, scale, 1.0)
    blank = Head("linear", task, np.empty((0, len(mean))), np.empty(0), mean, scale, np.empty(0, np.int64), 0)
    if task == "regress":
        return replace(blank, target_mean=float(y[train].mean()), target_scale=float(y[train].std()))
    most = int(y[np.concatenate([train, val])].max()) + 1
    return replace(blank, classes=np.unique(y[train]).astype(np.int64), num_classes=max(2, num_classes, most))


def _train(model: _Model, sight: Sight, y: FloatArray, train: IntArray, val: IntArray, spec: FinetuneSpec) -> list[str]:
    """Train, leave the model as it was at its best epoch, and say which that was."""
    task = model.blank.task
    name, metric = next(iter(metrics_of(task, model.blank.num_classes).items()))
    sign = 1.0 if higher_is_better(name) else -1.0
    class_weights = None
    if task == "classify" and spec.class_weights == "balanced":
        counts = np.unique(y[train], return_counts=True)[1]
        class_weights = torch.from_numpy(len(train) / (len(counts) * counts)).float().to(model.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr=spec.lr if spec.whole else spec.head_lr, weight_decay=spec.weight_decay)
    parts = min(math.ceil(len(train) / spec.batch_size), len(train) // 2)  # of two samples at least, for batch norms
    schedule = CosineAnnealingLR(optimizer, T_max=spec.epochs * parts)
    targets, best, reached, value, epoch = model.targets(y), 0, (-math.inf, -math.inf), math.nan, 0
    kept: dict[str, Tensor] = {}
    for epoch in range(1, spec.epochs + 1):
        order = np.random.default_rng([spec.seed, epoch]).permutation(train)
        for number, batch in enumerate(np.array_split(order, parts)):
            raw = model.raw(sight.random(batch, seed_for(spec.seed, "finetune", epoch, number)))
            loss = target_loss(raw, targets[torch.from_numpy(batch)], task=task, class_weights=class_weights)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            features = sight.plain(val)
            wrong = target_loss(model.raw(features), targets[torch.from_numpy(val)], task=task)
        found = metric(y[val], model.head().predict(features.cpu().numpy()))
        if math.isfinite(found) and (sign * found, -float(wrong)) > reached:
            best, value, reached = epoch, found, (sign * found, -float(wrong))
            kept = {
                key: tensor.clone()
                for key, tensor in model.state_dict().items()
                if spec.whole or not key.startswith("encoder.")
            }
        if best and epoch - best >= spec.patience:
            break
    if not best:
        return [f"validation does not define {name}: the last of {epoch} epochs is taken"]
    model.load_state_dict(kept, strict=spec.whole)
    model.blank = replace(model.blank, validation=value)
    return [f"epoch {best} of {epoch} was best on validation ({name} {value:.3g})"]
