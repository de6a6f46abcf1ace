"""The card of an export: what a person must know before using it, with counts and intervals, and nobody's name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bolus.embedding.opening import Judged
from bolus.encoders.building import is_public
from bolus.evaluation.segmentation.saved import SavedSegmenter
from bolus.evaluation.statistics.results import decimals
from bolus.exporting.models import Reader
from bolus.recipe import EncoderSpec
from bolus.run import Run

MOST = 30  # lines of the table of results
STALE_NORMS = (
    "The context blocks were left out, and BatchNorm keeps the statistics of the network with them, so that features "
    "may be far off; bolus evaluate judges the network without them by statistics that it estimates anew. Judge the "
    "export itself before you use it."
)

_OF_VOLUMES = (
    "Give `model.onnx` boxes of voxels (`contract.json`); {whole}. "
    "`bolus embed` and `bolus.preprocess` read the files, which `embed_without_bolus.py` does not: its `--test`, with "
    "numpy and onnxruntime, compares with the test vectors."
)

_USE = {
    "hf": "Open it with transformers: {reading}. Pixels must be normalised by mean and std of `contract.json`.\n\n"
    "`AutoImageProcessor` does the size, the scale of eight bits and the normalisation, and no more: of images of more "
    "bits, windows, oblong pictures and reductions in two steps it knows nothing. For the same pixels as in training "
    "use `bolus.preprocess`, or build what `contract.json` says.",
    "onnx": "`python embed_without_bolus.py IMAGE... -o {written}` needs numpy, Pillow, pydicom (for DICOM) and "
    "onnxruntime. `--test` compares with the test vectors. In a program of your own, give `model.onnx` what "
    "`contract.json` says.",
    "torch": "`torch.export.load('model.pt2').module()(images)` with float32 images in [0, 1], as `bolus.preprocess` "
    "or `contract.json` makes them; it gives a tuple.",
}


@dataclass(frozen=True)
class Quoted:
    """Which results of a run's evaluations are of what is exported, since several networks stand in them.

    Args:
        bare: the encoder goes without the context blocks that it has.
        trained: the head or segmenter that an evaluation trained together with an encoder of its own, which goes along;
            None: the encoder is the run's.
        notes: what must be known of the results, in sentences.
    """

    bare: bool = False
    trained: Reader | None = None
    notes: tuple[str, ...] = ()

    def fits(self, line: Mapping[str, Any], judged: str) -> bool:
        """Whether a line of results is of it; `judged` is what its file calls the encoder of the run.

        >>> line = {"encoder": "a", "task": "classify", "target": "edema", "probe": "linear"}
        >>> Quoted().fits(line, "a"), Quoted(bare=True).fits(line, "a")
        (True, False)
        """
        if line["encoder"] != (f"{judged} without context" if self.bare else judged):
            return False
        if isinstance(self.trained, SavedSegmenter):
            return bool(line["task"] == "segment")
        head, asked = self.trained, (line["task"], line["target"], line.get("probe"))
        return head is None or asked == (head.task, head.target, "finetune")


def write_card(judged: Judged, described: Mapping[str, Any], *, reading: str = "", quoted: Quoted | None = None) -> str:
    """Markdown for README.md.

    Args:
        judged: what is exported.
        described: the contract with its `check`.
        reading: of transformers, how features are read.
        quoted: which results are of it; None: those of the run's encoder.
    """
    run, to = judged.run, str(described["to"])
    shape = " x ".join(str(part) for part in described["inputs"]["images"]["shape"][1:])
    check, draws = described["check"], "mask" in described["outputs"]
    what = "A segmenter" if draws else "An encoder"
    use = _OF_VOLUMES if to == "onnx" and "volume" in described["preprocessing"] else _USE[to]
    whole = "the embedding of a volume is the mean over its windows"
    if draws:
        whole = "bolus takes boxes that overlap by half, and averages probabilities by a Gaussian about each middle"
    lines = [
        f"# {_title(described)}",
        "",
        f"{what} of medical images, exported by bolus {described['bolus']} to {to}. Not a medical device.",
        "",
        "## Use",
        "",
        use.format(reading=f"`{reading}`", written="masks" if draws else "embeddings.csv", whole=whole),
        "",
        f"- Input: float32 in [0, 1], batch x {shape}; how files become that: `contract.json`, docs/deploying.md",
        f"- Output: {', '.join(f'`{name}` {_shape(size)}' for name, size in described['outputs'].items())}",
        f"- Largest difference from bolus on {check['rows']}: {check['largest_difference']:.1e} of the largest value",
        "- `test_vectors/`: made pictures, what the encoder must see of them, and what it must answer",
    ]
    spec = None if run is None else run.recipe.encoder_of(described["modality"] or "")
    if spec is not None and spec.inflated:
        lines.append("- A network of images whose kernels were repeated along depth (inflated) before training")
    if "head" in described:
        head = described["head"]
        classes = f" ({', '.join(head['classes'])})" if head["task"] != "regress" else ""
        lines += [f"- Head: {head['task']} {head['target']}{classes}", *(f"  - {note}" for note in head["notes"])]
    lines += ["", "## Training data", "", *_data(run, spec)]
    lines += ["", "## Evaluation", "", *_results(run, quoted or Quoted())]
    lines += [
        "",
        "## Intended use and limits",
        "",
        "- For research, and as a part of systems that are judged as a whole on patients of the place of use.",
        "- Images of other devices, protocols, ages or diseases may be embedded badly without any sign of it.",
        "- Intervals above are over the test patients of one cohort; another hospital is another question.",
        "- Embeddings are data of patients: they can be matched with images and may give away sex, age and site.",
        "- The keyed hashes of the training patients are "
        + ("in contract.json." if "lineage" in described else "left out; the run folder holds them."),
    ]
    return "\n".join(lines) + "\n"


def _title(described: Mapping[str, Any]) -> str:
    modality = described["modality"]
    what = "Segmenter" if "mask" in described["outputs"] else "Encoder"
    return f"{what}{f' of {modality}' if modality else ''}"


def _shape(size: Sequence[Any]) -> str:
    return " x ".join(str(part) for part in size)


def _data(run: Run | None, spec: EncoderSpec | None) -> list[str]:
    if run is None or spec is None:
        return ["Not known here: this was exported from an encoder and not from a run."]
    record, recipe = run.record, run.recipe
    objectives = ", ".join(f"{name} ({each.kind}, weight {each.weight:g})" for name, each in recipe.objectives.items())
    start = spec.backbone
    if not is_public(start) or ("/" in start and record.get("ancestors")):  # which bolus trained, and so a folder
        start = "an encoder of a folder"  # whose path is nobody's business
    what = {"clip": "clips", "volume": "volumes"}.get(recipe.images.unit, "images")
    return [
        f"- {record['num_training_samples']} {what} of {len(record['training_patients'])} patients",
        f"- {record['num_rows']} rows in the table, {record['num_quarantined']} of them quarantined",
        f"- Split {record['split_hash']}, recipe {recipe.name} {record['recipe_hash']}: {objectives}",
        f"- Start: {start}{', pretrained' if spec.pretrained else ', random weights'}",
    ]


def _results(run: Run | None, quoted: Quoted) -> list[str]:
    """Every estimate of what is exported with all labels, how many are not shown, and what must be known of them.

    The first line of a file is of the run's encoder, by the name that the run had then.
    """
    found: list[dict[str, Any]] = []
    notes = [f"\n{note}" for note in quoted.notes]
    for path in sorted(run.folder.glob("evaluations/*/results.jsonl")) if run is not None else []:
        read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found += [
            each for each in read
            if quoted.fits(each, read[0]["encoder"])
            and not each["baseline"] and each["fraction"] == 1.0 and not each["subset"]
        ]  # fmt: skip
    if not found:
        return ["None was found beside the run: `bolus evaluate` before you use it.", *notes]
    lines = ["| task | target | read by | metric | estimate [95 %] | samples | patients |", f"|{'---|' * 7}"]
    made: list[str] = []
    for each in found:
        low, value, high = (decimals(each[key]) for key in ("ci_low", "estimate", "ci_high"))
        cells = (each["task"], each["target"], each.get("probe", ""), each["metric"], f"{value} [{low}, {high}]",
                 each["num_samples"], each["num_patients"])  # fmt: skip
        made.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    made = list(dict.fromkeys(made))  # the same question may have been asked twice
    more = [f"\n{len(made) - MOST} more stand in the evaluations of the run."] if len(made) > MOST else []
    return [*lines, *made[:MOST], *more, *notes]
