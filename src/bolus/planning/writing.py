"""A planned recipe as YAML with a comment at every choice, and what was left out ready to be taken in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import yaml

from bolus.data.cohort.coding import count_codes
from bolus.errors import CohortError, UsageError
from bolus.files import write_text
from bolus.planning.advice import NOTHING, refusals, sentences
from bolus.planning.offers.offers import noun
from bolus.provenance import versions
from bolus.recipe import ModalitySpec, Recipe
from bolus.terminal import WIDTH

if TYPE_CHECKING:
    from bolus.planning.offers.offers import Offer
    from bolus.planning.planner import Plan

# Written though they may be defaults, because they are what a person changes first.
EDITED = (
    "encoder.backbone",
    "images.size",
    "images.augment.preset",
    "sampling.batch_size",
    "training.epochs",
    "training.seed",
)
_LEFT_OUT = (
    'An objective that is left out is commented with a single "#": to train on it too, remove "# " from its lines, and '
    "from those of its bins. To drop one: objectives.NAME=null on the command line."
)


def recipe_text(plan: Plan) -> str:
    """The recipe as YAML that `Recipe.load` reads back to an equal recipe, with the reasons as comments.

    A line of recipe that is left out begins with `# `, a remark with `## `, so that a whole block can be uncommented.

    Args:
        plan: what was found and chosen.

    Raises:
        CohortError: the plan has no recipe.
    """
    recipe = plan.recipe
    if recipe is None:
        raise CohortError(NOTHING)
    why: dict[str, str] = {}
    for key, reason in plan.choices:
        why[key] = sentences([why[key], reason]) if key in why else reason
    data = _kept(recipe, {*EDITED, *why})
    left = [offer for offer in plan.offers if offer.entry is not None and offer.name not in recipe.objectives]
    reasons = {offer.name: _reason(offer) for offer in plan.offers if offer.entry is not None}
    lines = _header(plan)
    for section in Recipe.model_fields:
        content = data.get(section)
        if section == "bins":
            lines += _bins(content or {}, left, why)
        elif content is None:
            continue
        elif section == "objectives":
            lines += [*_remarks(why.get("objectives"), 0), "objectives:"]
            for name, entry in content.items():
                whys = {key: each for key, each in why.items() if key.startswith(f"objectives.{name}.")}
                remark = why.get(f"objectives.{name}")
                whys[f"objectives.{name}"] = sentences(each for each in (reasons.get(name), remark) if each)
                lines += _lines(f"objectives.{name}", name, entry, whys, 1)
            lines += [line for offer in left for line in _commented(offer)]
            lines += [line for text in refusals(plan) for line in _remarks(f"refused: {text}", 1)]
        else:
            lines += _lines(section, section, content, why, 0)
    return "\n".join(lines) + "\n"


def save_recipe(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Write the commented recipe; a file that holds it already stays as it is.

    Args:
        plan: what was found and chosen.
        path: of the YAML file; folders are made.
        force: write over another file.

    Raises:
        CohortError: the plan has no recipe.
        UsageError: a folder is there; or another file, and `force` is false.
    """
    text = recipe_text(plan)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; say which file in it, such as -o {path / 'recipe.yaml'}")
    if path.exists() and not force and not (path.is_file() and path.read_bytes() == text.encode()):
        raise UsageError(
            f"{path} exists, and may hold changes of yours; write over it with --force, or choose another -o"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _kept(recipe: Recipe, wanted: set[str]) -> dict[str, Any]:
    """What differs from the defaults, and the keys that are wanted anyway, in the order of the recipe's sections."""
    full, lean = recipe.model_dump(mode="json"), recipe.model_dump(mode="json", exclude_defaults=True)
    if recipe.modalities:  # an encoder or augmentation of its own would take what it leaves out from that of all
        full["modalities"] = {name: _whole(spec) for name, spec in recipe.modalities.items()}
        lean["modalities"] = full["modalities"]
    sections = {key for key, value in full.items() if isinstance(value, dict)}
    first = {key: next(iter(full[key]), "") for key in wanted & sections}  # a choice of a section is of its first key
    return _pick(full, lean, wanted | {f"{key}.{name}" for key, name in first.items()}, "")


def _whole(spec: ModalitySpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_none=True)


def _pick(full: Mapping[str, Any], lean: Mapping[str, Any], wanted: set[str], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in full.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            inner = _pick(value, lean.get(key) or {}, wanted, f"{path}.")
            if inner:
                found[key] = inner
        elif key in lean or path in wanted:
            found[key] = value
    return found


def _header(plan: Plan) -> list[str]:
    samples, cohort = plan.samples, plan.samples.cohort
    train = samples.on_side("train")
    patients = count_codes(samples.first_of(cohort.coded("patient").codes)[train])
    origin = (
        f"Written by bolus plan (bolus {versions().get('bolus', '?')}) for {Path(plan.cohort.spec.table).name}; split "
        f"{plan.cohort.split_hash}, {int(train.sum()):,} {noun(samples.unit)} of {patients:,} patients to train on."
    )
    texts = [origin, sentences(plan.facts), _LEFT_OUT]
    return [line for text in texts for line in wrap(_plain(text), WIDTH, initial_indent="# ", subsequent_indent="# ")]


def _reason(offer: Offer, *, whole: bool = False) -> str:
    """Paper, signal, and the first of the reasons, or all of them."""
    reasons = offer.reasons if whole else offer.reasons[:1]
    return sentences([f"{offer.paper}: {offer.signal}" if offer.paper else offer.signal, *reasons])


def _bins(bins: Mapping[str, Any], left: Iterable[Offer], why: Mapping[str, str]) -> list[str]:
    """The section, and commented out what objectives that are left out would need there."""
    needed: dict[str, tuple[int, list[str]]] = {}
    for offer in left:
        for role, number in offer.bins.items():
            if role not in bins:
                needed.setdefault(role, (number, []))[1].append(offer.name)
    if not bins and not needed:
        return []
    lines = _lines("bins", "bins", bins, why, 0) if bins else ["# bins:"]
    for role, (number, names) in needed.items():
        lines.append(f"  # {_flow(role)}: {number}  # for {', '.join(names)}" if bins else
                     f"#   {_flow(role)}: {number}  # for {', '.join(names)}")  # fmt: skip
    return lines


def _commented(offer: Offer) -> list[str]:
    """An objective as lines to uncomment."""
    remarks = _remarks(f"{offer.verdict}, left out. {_reason(offer, whole=True)}", 1)
    return [*remarks, *(f"  # {line[2:]}" for line in _lines("", offer.name, dict(offer.entry or {}), {}, 1))]


def _lines(path: str, key: str, value: Any, why: Mapping[str, str], depth: int) -> list[str]:
    """A key with its value or its keys, and the remark on it beside it where there is room, else above."""
    indent, remark = "  " * depth, why.get(path)
    block = isinstance(value, Mapping) and value and depth < 2
    line = f"{indent}{_flow(key)}:" if block else f"{indent}{_flow(key)}: {_flow(value)}"
    if block:
        inner = [each for name, item in value.items() for each in _lines(f"{path}.{name}", name, item, why, depth + 1)]
        return [*_remarks(remark, depth), line, *inner]
    beside = f"{line}  # {_plain(remark)}" if remark else line
    return [beside] if len(beside) <= WIDTH else [*_remarks(remark, depth), line]


def _remarks(text: str | None, depth: int) -> list[str]:
    indent = "  " * depth + "## "
    return wrap(_plain(text or ""), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _plain(text: str) -> str:
    """On one line, of characters that YAML allows in a comment."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def _flow(value: Any) -> str:
    """A value as YAML on one line.

    >>> _flow({"same": ["patient"]}), _flow(1e-4), _flow("yes"), _flow(None)
    ('{same: [patient]}', '0.0001', "'yes'", 'null')
    """
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
