"""A plan as advice in plain text: what to train on and why, what to leave alone, and what can be decided after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from bolus.planning.offers.offers import noun
from bolus.planning.start import ASKED
from bolus.planning.steps import is_of, next_steps
from bolus.terminal import fold

if TYPE_CHECKING:
    from bolus.planning.hazards.hazard import Hazard
    from bolus.planning.offers.offers import Offer
    from bolus.planning.planner import Plan
    from bolus.planning.resolution import Resolution

NOTHING = (
    "nothing to train on can be recommended for this cohort, so no recipe was written; "
    "the advice says what is missing or in the way"
)
_ALIKE = 4  # hazards of one kind that are told each with its sentence; of more, the first with its and the rest by name
_LESS = "; less is undecided"  # said once for all targets
_TARGETS = 12  # targets whose resolution is told; the rest is counted
_COLUMNS = 6  # columns without a role that are named
_STARTING = (
    "encoder.pretrained",
    "images.size",
    "images.spacing",
    "sampling.chunk",
)  # choices that are told, where the others stand in the recipe


def render(plan: Plan, *, cohort: Sequence[str] = ("cohort.yaml",), recipe: str = "recipe.yaml") -> str:
    """The whole advice, as wide as the terminal and 100 columns at most, but for a word that is longer.

    Args:
        plan: what was found and chosen.
        cohort: the words of a command line that open the cohort: its file, then options such as `--role`.
        recipe: where the recipe is written, for the commands to run next.
    """
    chosen = [offer for offer in plan.offers if offer.verdict == "recommended"]
    kept = [offer for offer in plan.offers if offer.verdict == "possible"]
    care = [hazard for hazard in plan.hazards if not hazard.refuses]
    sections = [
        ("The cohort", _paragraph([*plan.facts, *_without_role(plan)])),
        (f"Recommended: {_several(chosen)}", [*_offers(chosen, plan), *_summary(plan, recipe)]),
        ("The start", _paragraph(_starting(plan))),
        ("Possible, left out", _offers(kept, plan)),
        ("Refused: learn from none of these", _items(refusals(plan))),
        ("Take care", _items(_hazards(care))),
        ("Not possible here", _items(_impossible(plan.offers))),
        ("What the test patients can decide", _decidable(plan)),
        ("Next", next_steps(plan, _judged(plan), cohort=cohort, recipe=recipe)),
    ]
    return "\n\n".join("\n".join([*fold(title, "", "  "), *lines]) for title, lines in sections if lines)


def recommended(plan: Plan) -> list[str]:
    """What is trained on, objective by objective, and by name what was refused.

    Args:
        plan: what was found and chosen.
    """
    offers = {offer.name: offer for offer in plan.offers if offer.entry is not None}
    made = list(plan.recipe.objectives) if plan.recipe is not None else []
    refused = list(dict.fromkeys(hazard.role for hazard in plan.hazards if hazard.refuses))
    lines = [f"planned: {_several(made)}"]
    for name in made:
        lines += fold(f"{_name(offers[name])}: {offers[name].signal}" if name in offers else name, "  ", "    ")
    return [*lines, *fold(f"refused: {', '.join(refused)}; bolus plan says why", "", "  ")] if refused else lines


def refusals(plan: Plan) -> list[str]:
    """What must not be learnt from: hazards in their own words, then the objectives that are refused, each once.

    Args:
        plan: what was found and chosen.
    """
    told, hence = _hazards(hazard for hazard in plan.hazards if hazard.refuses), []
    for offer in plan.offers:
        if offer.verdict == "refused":
            own = _own(offer, plan)
            if own:
                told.append(f"{_name(offer)}: {sentences(own)}")
            else:
                hence.append(_name(offer))
    return [*told, f"Hence no {', '.join(hence)}."] if hence else told


def sentences(parts: Iterable[str]) -> str:
    """Sentences in a row, each with its full stop.

    >>> sentences(["label:a leaks", "It is left out."])
    'label:a leaks. It is left out.'
    """
    found = [" ".join(part.split()) for part in parts]
    return " ".join(part if part[-1] in ".?!:" else f"{part}." for part in found if part)


def _several(objectives: Sequence[Offer | str]) -> str:
    if not objectives:
        return "nothing"
    return "one objective" if len(objectives) == 1 else f"{len(objectives)} objectives, trained together"


def _name(offer: Offer) -> str:
    return f"{offer.name} ({offer.paper})" if offer.paper else offer.name


def _paragraph(parts: Iterable[str]) -> list[str]:
    return fold(sentences(parts), "  ", "  ")


def _items(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in fold(text, "  - ", "    ")]


def _without_role(plan: Plan) -> list[str]:
    """The columns that nothing is made of, since a label or a score may be among them."""
    taken = set(plan.cohort.roles.values())
    found = [str(column) for column in plan.cohort.columns if column not in taken]
    if not found:
        return []
    more = f" and {len(found) - _COLUMNS} more" if len(found) > _COLUMNS else ""
    what = "1 column has" if len(found) == 1 else f"{len(found)} columns have"
    names = ", ".join(found[:_COLUMNS])
    return [f"{what} no role ({names}{more}); a label or a score among them: --role label:NAME=COLUMN"]


def _own(offer: Offer, plan: Plan) -> list[str]:
    """Its reasons but for those that are refusals of a column, which are told once for all."""
    refused = [hazard.sentence for hazard in plan.hazards if hazard.refuses]
    return [reason for reason in offer.reasons if not any(sentence in reason for sentence in refused)]


def _offers(offers: Iterable[Offer], plan: Plan) -> list[str]:
    lines = []
    for offer in offers:
        lines += fold(f"{_name(offer)}: {offer.signal}", "  ", "    ")
        lines += fold(sentences(_own(offer, plan)), "    ", "    ")
    return lines


def _summary(plan: Plan, recipe: str) -> list[str]:
    """The recipe in a sentence, or that there is none."""
    made = plan.recipe
    if made is None:
        return _paragraph(["No column of this table gives an objective that I would train on"])
    images, unit = made.images, noun(plan.samples.unit)
    frames = f" of {images.frames} frames" if images.unit == "clip" else ""
    views = f", {images.views} views each" if images.views > 1 else ""
    inflated = ", inflated," if made.encoder.inflated else ""
    start = f"{inflated.removesuffix(',')}, pretrained," if made.encoder.pretrained else inflated
    spaced = f" of {' x '.join(f'{step:g}' for step in images.steps)} mm" if images.steps else ""
    combiner = f", gradients combined by {made.combiner.kind}" if len(made.objectives) > 1 else ""
    whole = (
        f"The recipe: {made.encoder.backbone}{start} at {images.extent}{spaced}, "
        f"{made.sampling.batch_size} {unit}{frames} a batch{views}, {made.training.epochs} epochs{combiner}; "
        f"why, key by key, stands in {recipe}"
    )
    dropped = [
        _name(each) for each in plan.offers if each.verdict == "recommended" and each.name not in made.objectives
    ]
    return _paragraph([whole, *([f"Not in it, as asked: {', '.join(dropped)}"] if dropped else [])])


def _starting(plan: Plan) -> list[str]:
    """Why the encoder starts as it does, but for what was asked for; nothing where nothing is trained."""
    return [why for key, why in plan.choices if key in _STARTING and why != ASKED] if plan.recipe is not None else []


def _judged(plan: Plan) -> list[Resolution]:
    """What an encoder may be judged by: the targets without columns that are refused and masks of clips."""
    refused = [hazard.role for hazard in plan.hazards if hazard.refuses]
    refused += ["mask"] if plan.samples.unit == "clip" else []  # they are of single images
    return [each for each in plan.resolutions if not is_of(each, refused)]


def _hazards(hazards: Iterable[Hazard]) -> list[str]:
    """A sentence each; where many are of one kind, the first speaks for the others."""
    told = []
    for _, group in groupby(sorted(hazards, key=_kind), key=_kind):
        alike = list(group)
        few = alike if len(alike) <= _ALIKE else alike[:1]
        told += [sentences([each.sentence if each.role in each.sentence else f"{each.role}: {each.sentence}"])
                 for each in few]  # fmt: skip
        others = ", ".join(dict.fromkeys(each.role for each in alike[len(few) :]))
        told += [f"Likewise: {others}."] if others else []
    return told


def _kind(hazard: Hazard) -> int:
    order = ("leak", "shortcut", "identifier", "unique", "copy", "constant", "missing", "doubtful")
    return order.index(hazard.kind) if hazard.kind in order else len(order)


def _impossible(offers: Iterable[Offer]) -> list[str]:
    """One line for each thing that is missing, with what wants it."""
    lacking: dict[str, list[str]] = {}
    for offer in offers:
        if offer.verdict == "impossible":
            lacking.setdefault(sentences(offer.reasons[:1]), []).append(_name(offer))
    return [f"{', '.join(names)}: {reason}" for reason, names in lacking.items()]


def _decidable(plan: Plan) -> list[str]:
    resolutions = _judged(plan)
    if not resolutions:
        why = (
            "no label, score or mask can be asked for"
            if plan.resolutions
            else "no column is a label, a score or a mask"
        )
        return _paragraph([f"Nothing: {why}. Judge by retrieval, or label some patients"])
    ranked = sorted(resolutions, key=lambda each: each.alike is None)  # stable: what can be decided first
    lines = _items(sentences([each.sentence.replace(_LESS, "")]) for each in ranked[:_TARGETS])
    if len(ranked) > _TARGETS:
        lines += _items([f"and {len(ranked) - _TARGETS} targets more."])
    if ranked[0].alike is None:
        more = [f"None of it yet: put more patients on the test side{_how(plan)}, or label more"]
    else:
        more = [
            "Each with 80 % power; a smaller difference stays undecided",
            "Four times the test patients would halve these numbers",
            "They hold for given encoders; to compare recipes takes three trainings of each, whose spread adds to them",
        ]
    return [*lines, *_paragraph(more)]


def _how(plan: Plan) -> str:
    """The option that makes the test larger, where shares of the patients make it."""
    if plan.cohort.spec.split.leave_out_site is not None:
        return ""
    fixed = plan.cohort.roles.get("split")
    return " (--split test=0.4)" if fixed is None else f", which column {fixed} says"
