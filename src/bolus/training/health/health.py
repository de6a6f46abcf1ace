"""Is it working? Collapse, rank, alignment, uniformity, an online probe; each ends in one sentence.

Everything is measured on validation patients, whom the training never sees, in evaluation mode, with seeds of its own:
looking at a run does not change it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Store
from bolus.data.views.samples import random_views, stored_views
from bolus.embedding.vectors import embed_samples
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders
from bolus.progress import Meter
from bolus.recipe import ImagesSpec, Recipe
from bolus.seeds import seed_for
from bolus.training.health.online_probe import Probed, probe_vectors
from bolus.training.memory import samples_together

WATCHED = 1024  # samples at most
SPREAD = 512  # of these, for uniformity, which compares every two
PAIRED = 256  # of these, of which two views are made


@dataclass(frozen=True)
class HealthFinding:
    """One measure of a run's health.

    Args:
        name: of the measure.
        value: NaN where it is undefined.
        good: whether it gives no cause for concern.
        sentence: what it means, for a person.
    """

    name: str
    value: float
    good: bool
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """As plain data, NaN as null."""
        data = asdict(self)
        return {**data, "value": None if np.isnan(self.value) else self.value}


def collapse(z_ND: Tensor) -> float:
    """Spread of L2-normalised embeddings: their per-dimension standard deviation times sqrt(D).

    1 where directions are isotropic, 0 where all embeddings point one way (Chen and He, arXiv:2011.10566, sec. 4).

    >>> round(collapse(torch.ones(8, 4)), 3)
    0.0
    """
    z = F.normalize(z_ND, dim=1)
    return float(z.std(0, unbiased=False).mean() * z.shape[1] ** 0.5)


def effective_rank(z_ND: Tensor) -> float:
    """Exp of the entropy of the singular values' shares (RankMe, Garrido et al., arXiv:2210.02885, eq. 3).

    >>> round(effective_rank(torch.eye(4)), 3)
    4.0
    """
    values = torch.linalg.svdvals(z_ND.double())
    shares = values / values.sum().clamp_min(1e-12) + 1e-12
    return float(torch.exp(-(shares * shares.log()).sum()))


def alignment(z_a_ND: Tensor, z_b_ND: Tensor) -> float:
    """Mean squared distance of two views of a sample on the unit sphere (Wang and Isola, arXiv:2005.10242).

    >>> alignment(torch.eye(2), torch.eye(2))
    0.0
    """
    return float((F.normalize(z_a_ND, dim=1) - F.normalize(z_b_ND, dim=1)).pow(2).sum(1).mean())


def uniformity(z_ND: Tensor) -> float:
    """Log of the mean Gaussian potential between samples, t = 2; 0 where all coincide (arXiv:2005.10242).

    >>> uniformity(torch.ones(3, 2))
    0.0
    """
    return float(torch.pdist(F.normalize(z_ND, dim=1)).pow(2).mul(-2).exp().mean().log())


@dataclass(frozen=True)
class Look:
    """One look at a run.

    Args:
        findings: every measure.
        probed: what the online probe said of each sample; None where nothing was probed.
    """

    findings: list[HealthFinding]
    probed: Probed | None = None


def watch(
    encoder: Encoder | ModalityEncoders, store: Store, samples: Samples, recipe: Recipe, *, idle: bool = False
) -> Look:
    """Every measure on the validation patients (on nobody's labels but theirs); a few seconds.

    No more samples go through the encoder at a time than in a step, so a look takes no more memory than that.
    Without validation patients the geometry is measured on training images, and the sentence says so. What the data
    leave open is said in a finding, never raised.

    Args:
        encoder: as it is in training; its mode is put back.
        store: the pixels of `samples.cohort`.
        samples: images, slices, clips or volumes, as the recipe says.
        recipe: for its augmentation, seed and probe.
        idle: no objective had anything to learn from, so that a spread says nothing of the training.

    Raises:
        RecipeError: as `online_probe.check_probe`.
    """
    readable, split = samples.readable(store.readable), samples.cohort.split[samples.first_row]
    if isinstance(encoder, ModalityEncoders):  # of other modalities none was trained on
        readable &= np.isin(samples.cohort.modality[samples.first_row], encoder.names)
    held_out = np.flatnonzero((split == "val") & readable)
    where = "validation" if len(held_out) >= 2 else "training"
    pool = held_out if len(held_out) >= 2 else np.flatnonzero((split == "train") & readable)
    if len(pool) < 2:
        sentence = f"Too few readable {samples.unit}s to say how the run is doing."
        return Look([HealthFinding("images", float(len(pool)), True, sentence)])
    rng = np.random.default_rng(seed_for(recipe.training.seed, "health"))
    positions = np.sort(rng.permutation(pool)[:WATCHED])
    together = samples_together(recipe)
    images = together * recipe.images.views * store.preprocessing.images_per_view
    vectors = embed_samples(encoder, store, samples, positions, batch_size=min(256, images))
    if not np.isfinite(vectors).all():
        return Look([HealthFinding("finite", 0.0, False, "Embeddings are not finite: the weights have diverged.")])
    z = torch.from_numpy(vectors)
    drawn = rng.permutation(len(positions))  # the first rows of a table may be of a few patients
    findings = _geometry(z, z[drawn[:SPREAD]], where, idle)
    some = np.sort(drawn[:PAIRED])
    patients = samples.cohort.encoded("patient")[samples.first_row[positions[some]]]
    others = _others(np.asarray(patients, np.int64), rng)
    findings.append(_alignment(encoder, store, samples, positions[some], others, recipe, where, together))
    probed = None
    if where == "validation":
        probed = probe_vectors(vectors, samples.cohort, samples.first_row[positions], recipe)
    return Look(findings + ([_probe_finding(probed)] if probed is not None else []), probed)


def tell(meter: Meter, findings: Iterable[HealthFinding]) -> None:
    """Say each finding; `!` stands before what gives cause for concern."""
    for finding in findings:
        meter.say(("  " if finding.good else "! ") + finding.sentence)


def _geometry(z: Tensor, some: Tensor, where: str, idle: bool) -> list[HealthFinding]:
    spread, rank = collapse(z), effective_rank(z - z.mean(0))
    most = min(z.shape[0] - 1, z.shape[1])
    even = uniformity(some)
    fine = "as the encoder began, since nothing was compared." if idle else "no collapse."
    return [
        HealthFinding(
            "spread",
            spread,
            spread >= 0.1,
            f"Spread of {where} embeddings is {spread:.2f} of 1: "
            + (fine if spread >= 0.1 else "collapsed or nearly so; lower the learning rate, check the views."),
        ),
        HealthFinding(
            "effective_rank",
            rank,
            rank >= 0.1 * most,
            f"Embeddings use about {rank:.0f} of {most} directions"
            + ("." if rank >= 0.1 * most else ": dimensional collapse; a probe will find little."),
        ),
        HealthFinding(
            "uniformity",
            even,
            even < -0.5,
            f"Uniformity is {even:.2f}: the embeddings {'are spread out' if even < -0.5 else 'lie close together'} "
            "(0 is a single point; lower is more even).",
        ),
    ]


def _alignment(
    encoder: Encoder | ModalityEncoders,
    store: Store,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    others: npt.NDArray[np.int64],
    recipe: Recipe,
    where: str,
    together: int,
) -> HealthFinding:
    """How far two views of a sample lie apart, and views of it and of the one at the place that `others` says."""
    was_training = encoder.training
    encoder.eval()
    seed = seed_for(recipe.training.seed, "health", "views")
    first, second = torch.zeros(2, len(positions), encoder.shape.dim)
    modality = samples.cohort.modality[samples.first_row[positions]]
    for name in np.unique(modality).tolist() if _apart(encoder, recipe) else [""]:
        places = np.flatnonzero(modality == name) if name else np.arange(len(positions))
        for start in range(0, len(places), together):
            part = places[start : start + together]
            views = _two_views(encoder.of(name), store, samples, positions[part], recipe.images_of(name), seed)
            first[part], second[part] = views
    encoder.train(was_training)
    value = alignment(first, second)
    other = alignment(first, second[torch.from_numpy(others)])
    share, what = value / max(other, 1e-12), samples.unit
    sentence = f"Two views of a {where} {what} lie {share:.2f} times as far apart as views of different {what}s"
    return HealthFinding(
        "alignment", value, share < 0.9, sentence + ("." if share < 0.9 else f": augmentation hides the {what}.")
    )


def _others(patients: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """For each sample the place of one of another patient, or of another sample where all are of one patient.

    >>> _others(np.array([0, 0, 1]), np.random.default_rng(0))[:2].tolist()
    [2, 2]
    """
    found = np.roll(np.arange(len(patients)), 1)
    for place, patient in enumerate(patients):
        choice = np.flatnonzero(patients != patient)
        if len(choice):
            found[place] = rng.choice(choice)
    return found


def _apart(encoder: Encoder | ModalityEncoders, recipe: Recipe) -> bool:
    """Whether modalities are seen by themselves: other encoders, sizes or augmentations."""
    return isinstance(encoder, ModalityEncoders) or bool(recipe.modalities)


def _two_views(
    encoder: Encoder,
    store: Store,
    samples: Samples,
    positions: npt.NDArray[np.int64],
    images: ImagesSpec,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Features `[n, D]` of two augmented views of samples of one encoder and size.

    Views are a function of the seed and their sample alone, whichever others are seen with it.
    """
    device, whole = next(encoder.parameters()).device, store.preprocessing
    contract = whole.seen_by(samples.cohort.modality[samples.first_row[positions]])
    options: dict[str, Any] = {"sides": images.sides, "frames": contract.frames, "device": device}
    made, masks = list[Tensor](), list[Tensor]()
    with torch.inference_mode():
        for position in positions:
            stored, real = stored_views(contract, store, samples, np.array([position]), readable=store.readable)
            own = seed_for(seed, int(position))
            made.append(random_views(stored, images.augment, views=2, seed=own, **options))
            masks += [] if real is None else [torch.from_numpy(real)]
        mask = torch.cat(masks).to(device) if masks else None
        first, second = (encoder(view, frame_mask=mask).pooled.float().cpu() for view in torch.cat(made, 1))
    return first, second


def _probe_finding(probed: Probed) -> HealthFinding:
    role, value, chance = probed.role, probed.value, probed.chance
    if np.isnan(value):
        return HealthFinding(f"knn {role}", value, True, f"Too few labelled validation patients to watch {role}.")
    measure = probed.measure
    sentence = (
        f"Neighbours among other validation patients predict {role} with {measure} {value:.2f} (chance {chance:g})"
    )
    sentence += "." if value > chance else ": nothing of it is seen yet."
    return HealthFinding(f"knn {role}", value, value > chance, sentence)
