"""Offers of objectives that learn what the table measures, and of the image drawn again."""

from __future__ import annotations

import numpy as np

from bolus.data.cohort.roles import is_number_role
from bolus.planning.offers.offers import ENOUGH, PAIRED, Evidence, Offer, because

FEW_LEVELS = 10  # values of a score up to which it is ordinal, and of an attribute up to which they are classes


def offer_measures(evidence: Evidence) -> list[Offer]:
    """Prediction, LEARNER's and SupReMix's contrast by a score, labels, and COMPRER's reconstruction."""
    targets, left_out = usable_targets(evidence)
    scores = [role for role in targets if role.startswith("score:")]
    learnt = [_measures(evidence, targets, left_out), _ordinal(evidence, scores), _mixed(evidence, scores)]
    return [*learnt, _labels(evidence), _reconstruction(evidence)]


def usable_targets(evidence: Evidence) -> tuple[list[str], list[str]]:
    """What may be predicted, and sentences on what may not: scores, ages, and attributes of few classes such as sex."""
    found, left_out = [], []
    for role in [*evidence.starting("score:"), *evidence.starting("attribute:")]:
        if role in evidence.refused or role in evidence.copies:
            left_out.append(evidence.refused.get(role) or evidence.copies[role])
        elif evidence.patients(role) < ENOUGH:
            left_out.append(f"{role} is known of {evidence.patients(role)} training patients only.")
        elif (
            not is_number_role(role)
            and evidence.columns[role].dtype.kind != "f"
            and evidence.num_values(role) > FEW_LEVELS
        ):
            left_out.append(f"{role} has {evidence.num_values(role)} values, too many to be classes.")
        else:
            found.append(role)
    return found, left_out


def _measures(evidence: Evidence, found: list[str], left_out: list[str]) -> Offer:
    about = Offer("measures", "COMPRER, LEARNER", "what the table measures, predicted", "impossible", ())
    if not found:
        lacking = left_out or ["No column is a score or an attribute."]
        return because(about, "refused" if set(left_out) & set(evidence.refused.values()) else "impossible", *lacking)
    known = ", ".join(f"{role} ({evidence.facts(role).number:,} {evidence.noun})" for role in found)
    entry = {"kind": "predict", "targets": found, "hidden": 256}
    return because(about, "recommended", f"Predicted: {known}.", *left_out, entry=entry)


def _score(evidence: Evidence) -> str:
    """What no score is, where some may not be learnt."""
    return "score that may be learnt" if any(role.startswith("score:") for role in evidence.refused) else "score"


def _ordinal(evidence: Evidence, scores: list[str]) -> Offer:
    about = Offer("score", "LEARNER", "contrast that grows with the difference of a clinical score", "impossible", ())
    if not scores:
        return because(about, "impossible", f"No {_score(evidence)} is known of enough training patients.")
    score = min(scores, key=evidence.num_values)
    levels = evidence.num_values(score)
    entry = {"kind": "score_contrast", "weight": PAIRED, "target": score, "threshold": 0.0}
    entry |= {} if levels <= FEW_LEVELS else {"threshold": 0.1}
    if levels <= FEW_LEVELS:
        return because(about, "recommended", f"{score} is ordinal: {levels} values.", entry=entry)
    return because(about, "possible", f"{score} is continuous, and predicting it says the same with less.", entry=entry)


def _mixed(evidence: Evidence, scores: list[str]) -> Offer:
    about = Offer("supremix", "SupReMix", "contrast over a continuous score, with mixed rows", "impossible", ())
    scores = [role for role in scores if evidence.num_values(role) > FEW_LEVELS]
    if not scores:
        return because(about, "impossible", f"No {_score(evidence)} has more than {FEW_LEVELS} values.")
    span = float(np.ptp(evidence.columns[scores[0]][evidence.known(scores[0])]))
    window = float(f"{span / 20:.1g}")  # the paper's 5 years, of about a hundred
    entry = {"kind": "supremix", "weight": PAIRED, "targets": [scores[0]], "temperature": 0.5, "window": window}
    entry |= {"negatives": "other_patients"}
    reason = f"Predicting {scores[0]} was better in bolus's own benchmark on age; take it in place of measures."
    return because(about, "possible", reason, entry=entry)


def _labels(evidence: Evidence) -> Offer:
    about = Offer("labels", "supervised", "the labels, predicted", "impossible", ())
    labels = [role for role in evidence.starting("label:") if role not in evidence.refused]
    if not labels:
        return because(about, "impossible", "No label of one class a row may be learnt.")
    numbers = ", ".join(f"{role} ({evidence.facts(role).number:,})" for role in labels)
    entry = {"kind": "predict", "targets": labels}
    reason = f"Kept to judge by: {numbers}. Where most images have one, the plain supervised recipe is hard to beat."
    return because(about, "possible", reason, entry=entry)


def _reconstruction(evidence: Evidence) -> Offer:
    about = Offer("reconstruction", "COMPRER", "the image itself, drawn again", "possible", ())
    if evidence.unit == "clip":
        return because(about, "impossible", "It draws single images, and samples are clips.")
    return because(
        about, "possible", "It costs a decoder and has shown no gain in bolus's own benchmarks.",
        entry={"kind": "reconstruct"},
    )  # fmt: skip
