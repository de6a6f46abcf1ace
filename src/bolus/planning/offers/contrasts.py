"""Offers of objectives that say which images should lie near: views, relations within a person, meta labels, pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bolus.data.batches.columns import meta_label_problem
from bolus.data.cohort.coding import count_codes
from bolus.errors import CohortError
from bolus.planning.offers.images import stand_alone
from bolus.planning.offers.offers import ENOUGH, PAIRED, Evidence, Offer, Verdict, because


def offer_contrasts(evidence: Evidence) -> list[Offer]:
    """SimCLR, MLVICX, COMPRER's pairs, ChronoCon and GCL's meta labels, in the order of a recipe; pixels come last."""
    paired = [_between_modalities(evidence), _temporal(evidence), _bilateral(evidence)]
    ordered = _chronocon(evidence, paired[1])
    offers = [_views(evidence), _levels(evidence), *paired, ordered, _patient(evidence, paired)]
    offers += [_position(evidence), _meta(evidence, "phase", "images of one phase, such as end-diastole")]
    offers += [_meta(evidence, "region", "images of one region")]
    return [*offers, *_pixels(evidence, offers)]


def _views(evidence: Evidence) -> Offer:
    number, patients = len(evidence.columns.rows), evidence.patients()
    about = Offer("views", "SimCLR", f"two views of one {evidence.unit}", "recommended", ())
    if patients < 2:
        few = "There is no training patient" if not patients else "There is one training patient"
        return because(about, "impossible", f"{few}, and negatives are other people.")
    entry = {"kind": "contrast", "weight": 0.15, "relation": "views", "temperature": 0.1, "dim": 128}
    entry |= {"negatives": "other_patients"}
    images = (
        f"It asks for nothing but {evidence.noun}, of which there are {number:,} of {patients:,} training patients."
    )
    return because(about, "recommended", images, entry=entry)


def _levels(evidence: Evidence) -> Offer:
    about = Offer(
        "levels", "MLVICX", f"two views of one {evidence.unit}, at every level of the encoder", "possible", ()
    )
    entry = {"kind": "varcov", "source": "levels", "width": 1024}
    reason = (
        "It needs no negatives, so it stands where memory holds few images; beside views it was not better in bolus's "
        "own benchmarks, and its heads are large."
    )
    return because(about, "possible", reason, entry=entry)


def _clip(between: str, relation: Mapping[str, Any], among: Sequence[str]) -> dict[str, Any]:
    """A contrast between the values of a role, as COMPRER's."""
    apart = {"among": among[0]} if among else {}
    return {"kind": "contrast", "weight": PAIRED, "relation": relation, "between": between, **apart, **CLIP}


CLIP = {"negatives": "other_patients", "temperature": 0.07, "learnable": True, "dim": 128, "hidden": 0}


def _between_modalities(evidence: Evidence) -> Offer:
    about = Offer("modality", "COMPRER", "two modalities of one person", "impossible", ())
    if evidence.num_values("modality") < 2:
        return because(about, "impossible", "All images are of one modality, or no column says of which.")
    same = ["patient", *evidence.shared("visit")]
    return _paired(evidence, about, _clip("modality", {"same": same}, []), same, "modality", "in two modalities")


def _temporal(evidence: Evidence) -> Offer:
    about = Offer("temporal", "COMPRER", "two visits of one person", "impossible", ())
    roles = [role for role in ("visit", "time") if evidence.num_values(role) > 1]
    if not roles:
        return because(about, "impossible", "No column says the visit or the time, or all images are of one.")
    same = ["patient", *evidence.shared("modality", "laterality")]
    # Where patients have one visit number each, the time may still tell their images apart.
    role = next((role for role in roles if evidence.pairs(same=same, differ=[role]).patients > 1), roles[0])
    entry = {"kind": "contrast", "weight": PAIRED, "relation": {"same": same, "differ": [role]}, **CLIP}
    return _paired(evidence, about, entry, same, role, f"of another {role}")


def _chronocon(evidence: Evidence, temporal: Offer) -> Offer:
    """The order of a patient's visits: possible wherever visits are, recommended nowhere."""
    about = Offer("chronocon", "ChronoCon", "the order of one person's visits", "impossible", ())
    roles = [role for role in ("visit", "time") if evidence.num_values(role) > 1]
    if not roles or temporal.entry is None:
        return because(about, "impossible", *temporal.reasons)
    role = temporal.entry["relation"]["differ"][0]
    same = list(temporal.entry["relation"]["same"])
    found = evidence.pairs(same=same, differ=[role])
    reason = (
        "Only for a disease that only progresses, which no column can say; elsewhere it teaches a false order. "
        "Patients of three visits teach it most."
    )
    counts = f"{found.patients:,} of {evidence.patients():,} training patients have {evidence.noun} of another {role}."
    entry = {"kind": "chronocon", "weight": PAIRED, "by": role, "same": same}
    return because(about, "possible", counts, reason, entry=entry)


def _bilateral(evidence: Evidence) -> Offer:
    about = Offer("bilateral", "COMPRER", "the two sides of one person, such as both eyes", "impossible", ())
    if evidence.num_values("laterality") < 2:
        return because(about, "impossible", "No column says the side, or all images are of one.")
    if "laterality" in evidence.refused:
        return because(about, "refused", evidence.refused["laterality"])
    among = [role for role in evidence.shared("modality") if evidence.num_values(role) > 1]
    same = ["patient", *among, *evidence.shared("visit")]
    return _paired(evidence, about, _clip("laterality", {"same": same}, among), same, "laterality", "of the other side")


def _paired(
    evidence: Evidence, about: Offer, entry: Mapping[str, Any], same: list[str], differ: str, what: str
) -> Offer:
    """An offer that rests on pairs of one person's samples."""
    found = evidence.pairs(same=same, differ=[differ])
    if found.patients < 2:
        return because(about, "impossible", f"{_few(found.patients)} {evidence.noun} {what}.")
    counts = (
        f"{found.patients:,} of {evidence.patients():,} training patients have {evidence.noun} {what} "
        f"({found.pairs:,} pairs)."
    )
    if found.patients < ENOUGH:
        return because(about, "possible", counts, f"Fewer than {ENOUGH} patients teach little.", entry=entry)
    return because(about, "recommended", counts, entry=entry)


META = {
    "kind": "contrast",
    "weight": PAIRED,
    "head": "image",
    "temperature": 0.1,
    "dim": 128,
    "negatives": "other_patients",
}


def _patient(evidence: Evidence, paired: Sequence[Offer]) -> Offer:
    about = Offer("patient", "GCL", "images of one person", "impossible", ())
    found = evidence.pairs(same=["patient"])
    if found.patients < 2:
        return because(about, "impossible", f"{_few(found.patients)} two {evidence.noun}.")
    counts = f"{found.patients:,} of {evidence.patients():,} training patients have two {evidence.noun} or more."
    entry = {**META, "relation": "patient"}
    finer = [each.name for each in paired if each.verdict == "recommended"]
    if finer:
        reason = f"What {_listed(finer)} says is finer: which {evidence.noun} of a person should agree, and in what."
        return because(about, "possible", counts, reason, entry=entry)
    if found.patients < ENOUGH:
        return because(about, "possible", counts, f"Fewer than {ENOUGH} patients teach little.", entry=entry)
    return because(about, "recommended", counts, entry=entry)


def _position(evidence: Evidence) -> Offer:
    about = Offer("position", "GCL", "slices at one height of the body part", "impossible", ())
    alone = evidence.unit == "image" and stand_alone(evidence.columns.cohort)
    if evidence.unit in ("clip", "volume") or alone or not evidence.has("slice_position"):
        why = "Samples are whole volumes." if evidence.unit == "volume" else ""
        return because(about, "impossible", why or "No column says where in its volume a slice lies.")
    entry = {**META, "relation": "bin:slice_position"}
    patients, values = evidence.patients("slice_position"), evidence.num_values("slice_position")
    if values < 4:
        return because(about, "impossible", f"There are {values} heights, too few for quarters of a volume.")
    try:
        evidence.columns["bin:slice_position"]
    except CohortError:
        return because(
            about, "impossible", "Nearly all slices lie at one height, which leaves no quarters of a volume."
        )
    counts = f"Slices of {patients:,} training patients say where they lie; their quarters are the classes."
    verdict: Verdict = "recommended" if patients >= ENOUGH else "possible"
    return because(about, verdict, counts, entry=entry, bins={"slice_position": 4})


def _meta(evidence: Evidence, role: str, signal: str) -> Offer:
    """A contrast by a category that several patients share."""
    about = Offer(role, "GCL", signal, "impossible", ())
    if not evidence.has(role):
        return because(about, "impossible", f"No column says the {role}.")
    if role in evidence.refused:
        return because(about, "refused", evidence.refused[role])
    patients, codes = evidence.columns["patient"], evidence.columns[role]
    sizes = [count_codes(patients[codes == code]) for code in pd.unique(codes[evidence.known(role)])]
    if len(sizes) < 2:
        return because(about, "impossible", f"Every {evidence.unit} is of one {role}.")
    problem = meta_label_problem(codes)
    if problem is not None:
        return because(about, "impossible", f"The {role} {problem}.")
    counts = f"{len(sizes)} values, each of {_range(sizes)} training patients."
    entry = {**META, "relation": role}
    verdict: Verdict = "recommended" if sorted(sizes)[-2] >= ENOUGH else "possible"
    return because(about, verdict, counts, entry=entry)


def _pixels(evidence: Evidence, before: list[Offer]) -> list[Offer]:
    """GCL's pixel level, of each meta label that is recommended: only slices of a U-Net have it."""
    if evidence.unit != "slice":
        about = Offer("pixels", "GCL", "pixels of slices that share a meta label", "impossible", ())
        return [because(about, "impossible", f"Samples are {evidence.noun}, not slices.")]
    found = []
    for offer in before:
        if offer.entry is not None and offer.entry.get("head") == "image" and offer.verdict == "recommended":
            about = Offer(f"{offer.name}_pixel", "GCL", f"pixels of {offer.signal}", "possible", ())
            entry = {"kind": "pixel_contrast", "head": "pixel", "image_head": "image"}
            reason = "It nearly doubles a step, needs a U-Net, and its gain in Dice was undecided in bolus's benchmark."
            relation = {"relation": offer.entry["relation"]}
            found.append(because(about, "possible", reason, entry={**entry, **relation}, bins=offer.bins))
    return found


def _few(patients: int) -> str:
    """The subject and verb of a sentence on none, or one.

    >>> _few(0), _few(1)
    ('0 training patients have', '1 training patient has')
    """
    return f"{patients} training patient{' has' if patients == 1 else 's have'}"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
