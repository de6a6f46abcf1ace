"""Provenance: which recipe, versions, split and machine, and the commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from bolus.evaluation.change.task import Change
from bolus.evaluation.probing.options import EMBEDDED
from bolus.evaluation.probing.task import HORIZONS
from bolus.recipe import ImagesSpec
from bolus.reporting.blocks import Block, Commands, Section, Table
from bolus.reporting.evidence import Evidence, Question
from bolus.reporting.sections.verdicts import AUDIT
from bolus.reporting.wording import plain

SHOWN = 400  # characters of a fact


def provenance(evidence: list[Evidence]) -> Section:
    """The section of all runs."""
    return Section(
        "provenance",
        "Where it comes from",
        "Recipe, versions and split, and the commands that make all of it again.",
        by_run={each.name: _of_run(each) for each in evidence},
    )


def _of_run(evidence: Evidence) -> list[Block]:
    record, recipe = evidence.run.record, evidence.run.recipe
    encoder, processes = recipe.encoder, record.get("processes", 1)
    objectives = ", ".join(f"{name} ({spec.kind}, weight {spec.weight:g})" for name, spec in recipe.objectives.items())
    facts = {
        "Recipe": f"{recipe.name} {recipe.source}".strip() + f", {record['recipe_hash']}",
        "Objectives": objectives,
        "Encoder": f"{_plain_name(encoder.backbone)}{', inflated' if encoder.inflated else ''}, from "
        f"{'pretrained' if encoder.pretrained else 'random'} weights",
        "Images": _seen(recipe.images),
        "Batch and seed": f"{recipe.sampling.batch_size} samples, seed {recipe.training.seed}",
        "Steps": f"{record['steps']:,}" if "steps" in record else "not ended",
        "Split": str(record["split_hash"]),
        "Data": str(record.get("data_hash", "-")),
        "Weights": str(record.get("weights", "-")),
        "Device": f"{record.get('device', '-')}, {processes} process{'es' * (processes != 1)}",
        "Platform": str(record.get("platform", "-")),
        "Versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    }
    rows = [[name, plain(value, SHOWN)] for name, value in facts.items()]
    folder, cohort = evidence.place, evidence.cohort_place
    lines = [
        f"bolus pretrain {cohort} --recipe {folder}/recipe.yaml --out NEW_FOLDER",
        *dict.fromkeys(_command(evidence, each) for each in evidence.questions),
        f"bolus embed {folder} {cohort} -o {folder}/embeddings.parquet",
        f"bolus report {folder} -o report.html",
    ]
    return [Table(["What", "Which"], rows, "Provenance"), Commands("The same again", lines)]


def _seen(images: ImagesSpec) -> str:
    """What an encoder sees, and what a sample is.

    >>> _seen(ImagesSpec(unit="volume", size=[16, 24, 24], spacing=[3.0, 1.5, 1.5]))
    'boxes of 16 x 24 x 24 voxels of 3 x 1.5 x 1.5 mm (depth, height, width: 48 x 36 x 36 mm), one sample is one volume'
    """
    if images.unit != "volume":
        return f"{images.extent}, one sample is one {images.unit}"
    steps, axes = images.steps, "depth, height, width"
    if steps is None:
        how = "all of a volume squeezed into it" if images.fit == "stretch" else "voxels as they are"
        return f"boxes of {images.extent} ({axes}; {how}), one sample is one volume"
    apart = " x ".join(f"{step:g}" for step in steps)
    whole = " x ".join(f"{side * step:.3g}" for side, step in zip(images.sides, steps, strict=True))
    return f"boxes of {images.extent} of {apart} mm ({axes}: {whole} mm), one sample is one volume"


def _plain_name(backbone: str) -> str:
    """A backbone; of a folder by its whole path, which may name people, the last part alone."""
    return Path(backbone).name if Path(backbone).is_absolute() else backbone


def _command(evidence: Evidence, question: Question) -> str:
    """What asks the question again; options that no result keeps are left out."""
    first = question.results[0]
    where = f"{evidence.place} {evidence.cohort_place}"
    name, more = _target(question)
    target = _word(name)
    probes = tuple(name for name in dict.fromkeys(each.probe for each in question.results) if name not in ("", "none"))
    if first.task == "retrieve":
        return f"bolus evaluate retrieve {where} --across {_word(first.target.partition(':')[0])}"
    if first.task == "segment":
        numbers = sorted({each.labelled_patients for each in question.results if each.labelled_patients is not None})
        return f"bolus evaluate segment {where} --labelled-patients {','.join(map(str, numbers))}"
    if first.task == AUDIT or question.folder.name.startswith(AUDIT):
        kind = "regress" if f"{AUDIT}-regress" in question.folder.name else "classify"
        grouped = _grouped(question.folder.name, name, probes)
        more = f" --probes {','.join(probes)}" if probes != ("linear",) else ""
        return f"bolus evaluate {kind} {where} --target {target} --audit{grouped}{more}"
    shares = sorted({each.fraction for each in question.results})
    more += f" --fractions {','.join(f'{each:g}' for each in shares)}" if shares != [1.0] else ""
    more += f" --probes {','.join(probes)}" if probes != EMBEDDED else ""
    kind = "change" if "change" in first.target.partition(":")[0] else first.task
    return f"bolus evaluate {kind} {where} --target {target}{more}"


def _target(question: Question) -> tuple[str, str]:
    """The target of an evaluation as a command has it, and the options that its name in the results holds."""
    kind, _, name = question.results[0].target.rpartition(":")
    if kind == Change.name:
        name, _, tolerance = name.partition(" tolerance ")
        more = f" --tolerance {_word(tolerance)}" if tolerance else ""
        return name, more + " --adjacent-only" * (" adjacent-" in unquote(question.folder.name))
    one_class = len(question.targets) == 1  # of several, the label was asked for
    return name if one_class else name.partition("=")[0], f" --horizon {kind}" if kind in HORIZONS else ""


def _grouped(folder: str, target: str, probes: Sequence[str]) -> str:
    """How the groups of an audit were made, which only the name of its folder keeps; nothing where it chose them.

    >>> _grouped("audit-classify-stand%20by%20me%20by%20sex%20age%20bands%2030%2050-1a2b3c", "stand by me", ["linear"])
    ' --by sex,age --age-bands 30,50'
    """
    asked = unquote(folder).rpartition("-")[0].partition(target)[2].removesuffix(f" {' '.join(probes)}")
    roles, _, bands = asked.partition(" bands ")
    options = {"--by": roles.removeprefix(" by ").strip(), "--age-bands": bands}
    return "".join(f" {name} {_word(said.replace(' ', ','))}" for name, said in options.items() if said)


def _word(text: str) -> str:
    """One word of a shell, short and harmless."""
    return shlex.quote(plain(text, 60))
