"""Pixel contrast: pixels of images that share a meta label attract, and GradFilter says which pairs to believe.

GCL's pixel branch (arXiv:2309.08888). Dimension letters: V views, N samples, R = V * N images, C channels, D the width
of an embedding, P = h * w locations of the grid (of volumes d * h * w), A anchor pixels, J = R * P pixels.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bolus.data.batches.batch import Batch
from bolus.data.batches.relation import Needs, Relation
from bolus.encoders.features import Features, FeatureShape, in_batch_order
from bolus.errors import EncoderError, RecipeError
from bolus.objectives.base import Loss, Objective
from bolus.objectives.contrasts.contrast import pairs_of
from bolus.objectives.dense.filtering import grad_filter
from bolus.objectives.heads import at_least_float32
from bolus.objectives.infonce import infonce
from bolus.seeds import seed_for


class PixelContrast(Objective):
    """InfoNCE between pixels of the grid, with the pixels of a relation's partners as positives, filtered.

    GCL's pixel branch (arXiv:2309.08888) for one meta label, on the base of PCL; the paper gives no formula and what
    follows is our reading. An anchor is a pixel of an image with a partner; its positives are all pixels of its
    partners in every view, among them the other views of its own image where the relation says so; its negatives are
    all pixels of images that are no partners. Pixels of the very same view of the same image are neither, and the other
    views of its image are never negatives. Of the positives GradFilter keeps those of which the image branch is
    certain, the easy ones first; the loss of an anchor is the mean of -log p over the kept, where p is over all
    positives and negatives, kept or not. A relation with a weighting weights the positives. A share of the pool is
    kept that grows linearly from `pace_start` to 1 at `pace_until` of the training.

    The image branch's certainty comes from its projection at every location, without pooling: from the head of the
    objective named `image_head`, which is read, in evaluation mode, and never trained here. Without a name the
    similarity of the raw grid features stands for it.

    A row that lacks a value the relation reads has no positives, hence no anchors, but is a negative for others. A
    batch without positives gives exactly 0 and no anchors. Clips count by the means over their frames. Of volumes the
    pixels are the voxels of the grid, and all else holds as it is: the paper, which is of slices, does not say so
    (inferred). Memory grows with anchors times all pixels of the batch.

    Args:
        shape: the encoder's shapes; the grid is used as it comes.
        relation: a name (a meta label, such as `patient`) or a mapping, as `Relation.parse` takes.
        temperature: divides the cosine similarities.
        dim: width of the embedding.
        hidden: width of the head's hidden layer; by default the grid's channels.
        keep: share of an anchor's positive pairs that the filter pools; None: all positives, no filter and no pace.
        pace_start: share of the pool that is kept at the start.
        pace_until: share of the training after which the whole pool is kept.
        order: "easy" or "hard", which end of the pool comes first.
        anchors: pixels drawn at random in a step, of all that have a positive; all where there are fewer.
        negatives: "all", or "other_patients".
        image_head: the name of the image branch's head, which `lend` then brings.

    Raises:
        RecipeError: a relation that does not parse, a temperature that is not positive, a width or number of anchors
            below 1, a share outside (0, 1], an unknown order or choice of negatives, or an `image_head` for an encoder
            whose pooled feature is not as wide as its grid.

    Example:
        >>> objective = PixelContrast(FeatureShape(dim=6, grid_channels=6, grid_stride=32), relation="region", dim=4)
        >>> batch = Batch({}, {"XR": torch.arange(3)}, {"sample": torch.arange(3), "region": torch.tensor([0, 0, 1])})
        >>> embedded = objective.embed(Features(torch.empty(0), grid={"XR": torch.randn(2, 3, 6, 2, 2)}), batch)
        >>> embedded["z"].shape, int(objective.loss(embedded, batch).num_anchors)
        (torch.Size([2, 3, 4, 4]), 24)
    """

    branch = "pixel"
    shares_head = True
    memory_keys = ("anchors",)
    borrows = "image_head"

    def __init__(
        self,
        shape: FeatureShape,
        *,
        relation: str | Mapping[str, Any] = "views",
        temperature: float = 0.1,
        dim: int = 128,
        hidden: int | None = None,
        keep: float | None = 0.3,
        pace_start: float = 0.3,
        pace_until: float = 0.5,
        order: Literal["easy", "hard"] = "easy",
        anchors: int = 512,
        negatives: Literal["all", "other_patients"] = "all",
        image_head: str | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise RecipeError(f"temperature: expected a positive number, found {temperature}")
        for name, share in (("keep", keep), ("pace_start", pace_start), ("pace_until", pace_until)):
            if share is not None and not 0 < share <= 1:
                raise RecipeError(f"{name}: expected a share above 0 and at most 1, found {share}")
        if shape.grid_channels < 1:
            raise RecipeError("pixels of the last maps are compared, which differ between the encoders of modalities")
        hidden = shape.grid_channels if hidden is None else hidden
        for name, size in (("dim", dim), ("hidden", hidden), ("anchors", anchors)):
            if size < 1:
                raise RecipeError(f"{name}: expected 1 or more, found {size}")
        if order not in ("easy", "hard"):
            raise RecipeError(f"order: expected 'easy' or 'hard', found {order!r}")
        if negatives not in ("all", "other_patients"):
            raise RecipeError(f"negatives: expected 'all' or 'other_patients', found {negatives!r}")
        if image_head is not None and shape.dim != shape.grid_channels:
            raise RecipeError(
                f"image_head: the head {image_head} takes the pooled feature of width {shape.dim}, and the grid has "
                f"{shape.grid_channels} channels, to which it cannot be applied; leave out encoder.neck or image_head"
            )
        self.relation = Relation.parse(relation)
        self.temperature = temperature
        self.keep, self.order = keep, order
        self.pace_start, self.pace_until = pace_start, pace_until
        self.anchors = anchors
        self.negatives = negatives
        self.image_head = image_head
        roles = frozenset(self.relation.roles) - {"sample"}  # every batch has that column, no table needs it
        self.needs = Needs(
            views=2 if "sample" in self.relation.same else 1,
            roles=roles | {"patient"} if negatives == "other_patients" else roles,
            relations=(self.relation,),
            grid=True,
            samples=2 if self.relation.with_itself else 3,  # a partner, which a view may be, and a negative
        )
        convolution = nn.Conv2d if shape.dimensions == 2 else nn.Conv3d
        self.head = nn.Sequential(convolution(shape.grid_channels, hidden, 1), nn.ReLU(), convolution(hidden, dim, 1))

    @property
    def embeds_with(self) -> Hashable:
        """Pixel objectives with one head and one source of certainty embed alike."""
        return (PixelContrast, id(self.head), *map(id, self.lent), self.keep is None)

    def pace(self, progress: float) -> float:
        """Share of the pool that is kept at this share of the training.

        >>> PixelContrast(FeatureShape(dim=6, grid_channels=6, grid_stride=32), pace_start=0.5).pace(0.25)
        0.75
        """
        return min(1.0, self.pace_start + (1 - self.pace_start) * progress / self.pace_until)

    def embed(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """`z` `[V, N, dim, P]` of unit length and, where there is a filter, `c` `[V, N, D, P]`, at least float32.

        `c` is the image branch's embedding of every location, or its features, also of unit length, without gradient.

        Raises:
            EncoderError: modalities whose grids differ in size.
        """
        grid = _in_order(features.grid, batch)
        z = self.head(grid.flatten(0, 1)).unflatten(0, grid.shape[:2])
        with torch.autocast(device_type=z.device.type, enabled=False):
            embedded = {"z": F.normalize(at_least_float32(z.flatten(3)), dim=2)}
            if self.keep is not None:
                embedded["c"] = F.normalize(self._locations(grid), dim=2)
        return embedded

    def loss(self, embedded: dict[str, Tensor], batch: Batch) -> Loss:
        """The mean over, and the number of, anchor pixels; `counts` has the pairs before (positives) and after (kept).

        Both counts are of the anchors that were drawn.
        """
        z_VNDP = embedded["z"]
        num_views, num_locations = z_VNDP.shape[0], z_VNDP.shape[3]
        device = z_VNDP.device
        positives_RR, negatives_RR = pairs_of(self.relation, self.negatives, batch, num_views)
        candidates_RR, weights_RR = positives_RR, None
        if self.relation.weighting != "none":
            weights_RR = self.relation.weights(batch.columns).repeat(num_views, num_views)
            candidates_RR = positives_RR & (weights_RR > 0)
        images, pixels = self._draw(candidates_RR, batch, num_locations)

        def spread(pairs_RR: Tensor) -> Tensor:
            return pairs_RR[images].to(device).repeat_interleave(num_locations, dim=1)

        candidates_AJ, opposed_AJ = spread(candidates_RR), spread(positives_RR | negatives_RR)
        weights_AJ = None if weights_RR is None else spread(weights_RR)
        with torch.autocast(device_type=device.type, enabled=False):
            logits_AJ = _similarity(z_VNDP, pixels.to(device)) / self.temperature
            kept_AJ = candidates_AJ
            if self.keep is not None:
                # Similarities in place of probabilities: a softmax keeps a row's order, and these never underflow.
                certainty_AJ = _similarity(embedded["c"].detach(), pixels.to(device))
                kept_AJ = grad_filter(
                    certainty_AJ,
                    logits_AJ.detach(),
                    candidates=candidates_AJ,
                    keep=self.keep,
                    pace=self.pace(batch.progress),
                    order=self.order,
                )
            values, valid = infonce(logits_AJ, kept_AJ, opposed_AJ, positive_weights=weights_AJ, reduction="none")
        num_anchors = valid.sum()
        counts: dict[str, int | Tensor] = {"positives": candidates_AJ.sum(), "kept": kept_AJ.sum()}
        return Loss(values.sum() / num_anchors.clamp(min=1), num_anchors, counts)

    def _draw(self, positives_RR: Tensor, batch: Batch, num_locations: int) -> tuple[Tensor, Tensor]:
        """Anchors among the pixels of images with a positive: int64 `[A]` images and `[A]` pixels among all J."""
        images = positives_RR.any(dim=1).nonzero().flatten().cpu()
        generator = torch.Generator().manual_seed(seed_for(batch.seed, self.name))
        drawn = torch.randperm(len(images) * num_locations, generator=generator)[: self.anchors]
        chosen = images[drawn // num_locations]
        return chosen.to(positives_RR.device), chosen * num_locations + drawn % num_locations

    @torch.no_grad()
    def _locations(self, grid_VNC: Tensor) -> Tensor:
        """What the image branch makes of every location, `[V, N, D, P]`, or the grid itself where no head is named.

        Autocast is off here: within it, weights first cast without gradients would be reused without them.
        """
        locations = at_least_float32(grid_VNC.detach().flatten(3))
        if self.image_head is None:
            return locations
        assert self.lent, "whoever builds an objective with an image_head lends it that head"
        (head,) = self.lent
        with _evaluating(head):
            projected: Tensor = head(locations.transpose(2, 3))
        return projected.transpose(2, 3)


def _similarity(x_VNDP: Tensor, pixels: Tensor) -> Tensor:
    """Products of the chosen pixels with all: `[A, J]`."""
    rows_JD = at_least_float32(x_VNDP).flatten(0, 1).transpose(1, 2).flatten(0, 1)
    return rows_JD[pixels] @ rows_JD.T


def _in_order(grids: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The grids of all modalities as one, `[V, N, C, h, w]` or `[V, N, C, d, h, w]`, in the batch's order."""
    sizes = {modality: tuple(grid.shape[3:]) for modality, grid in grids.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{modality} {' x '.join(map(str, sides))}" for modality, sides in sizes.items())
        raise EncoderError(
            f"pixel contrast needs grids of one size in all modalities, found {found}; use one image size"
        )
    return in_batch_order(grids, batch.rows)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, and each of its parts as it was afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
