"""What docs/results-cost.md and docs/scaling.md say of time and memory: a table a result file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from figures import markdown
from grid import RESULTS, read_cells


def opening_table() -> str:
    """What a table costs by its rows, until the first step of a training."""

    def told(stage: dict[str, Any]) -> str:
        return f"{stage['seconds']:.1f} ({stage['cpu_seconds']:.1f})"

    rows = []
    for line in read_cells(RESULTS / "opening.jsonl"):
        cell, result = line["cell"], line["result"]
        stages = result["stages"]
        named = f"{cell['table']}{', mixed' if cell.get('spelling') == 'mixed' else ''}"
        times = [told(stages[name]) for name in ("import", "open", "split", "plan", "pretrain")]
        memory = [f"{result['peak_gib']:.2f} GiB", f"{result['bytes_a_row']:,}"]
        rows.append([f"{cell['rows']:,}", named, *times, told(result), *memory])
    head = ["rows", "file", "import", "open", "split", "plan", "to the first step", "in all", "peak", "bytes a row"]
    return markdown(head, rows)


def step_table() -> str:
    """The whole step against the bare network."""
    rows = []
    for line in read_cells(RESULTS / "step.jsonl"):
        cell, result = line["cell"], line["result"]
        sizes = f"{cell['size']} px, {cell['batch']} samples, {cell['precision']}"
        rows.append(
            [
                f"{cell['recipe']}, {cell['backbone']}, {sizes}",
                f"{cell['device']} ({line['machine']['cores']} cores)",
                f"{result['images_per_second_whole']:.0f}",
                f"{result['ratio']:.3f} [{result['ratio_min']:.3f}, {result['ratio_max']:.3f}]",
                f"{100 * result['augmentation_share']:.1f} %",
                f"{100 * result['data_wait_share']:.2f} %",
            ]
        )
    header = ["recipe", "device", "images/s", "ratio, median [min, max]", "augmentation", "data wait"]
    return markdown(header, rows)


def vit_step_table() -> str:
    """A step of a large vision transformer with and without activation checkpointing."""
    rows = []
    for line in read_cells(RESULTS / "vit_step.jsonl"):
        cell, found = line["cell"], line["result"]
        what = f"{cell['backbone']}, {cell['size']} px, {cell['precision']} on {cell['device']}"
        how = "checkpointed" if cell["checkpointing"] else "plain"
        numbers = [f"{found['gib']:.1f} GiB", f"{found['seconds']:.1f} s"] if "gib" in found else [found["error"], ""]
        rows.append([what, str(cell["images"]), how, *numbers])
    return markdown(["step", "images", "activations", "peak", "time"], rows)


def questions_table() -> str:
    """Seconds of three questions of one run."""
    found = json.loads((RESULTS / "questions.json").read_text())
    rows = [[each["question"], f"{each['seconds']:.0f} s"] for each in found["questions"]]
    return markdown([f"question, of {found['images']:,} images", "took"], rows)


def start_page_table() -> str:
    """Seconds of the commands of docs/start.md."""
    found = json.loads((RESULTS / "start_page.json").read_text())
    parts = {"install": "in all, to install", "page": "in all, the page"}
    ran = [each for each in found["results"] if each["command"].startswith("bolus ")]
    rows = [[f"`{' '.join(filter(str.isalpha, each['command'].split()))}`", f"{each['seconds']:.0f} s"] for each in ran]
    rows += [[words, f"{found[part]:.0f} s"] for part, words in parts.items()]
    return markdown(["command", "took"], rows)


def gradcache_table() -> str:
    """Memory of a step in chunks over that of one chunk; a grid has the three cells of a recipe together."""
    found = [(line["cell"], line["result"]) for line in read_cells(RESULTS / "gradcache.jsonl")]
    rows = []
    for cell, chunks in found:
        if cell["chunk"] is None:
            continue
        alike = {key: cell[key] for key in ("recipe", "backbone", "size")}
        one, whole = (
            next(more for other, more in found if other == {**alike, "batch": batch, "chunk": None})
            for batch in (cell["chunk"], cell["batch"])
        )
        what = f"{cell['recipe']}, {cell['backbone']}, {cell['size']} px, {cell['batch']} samples by {cell['chunk']}"
        memory = [
            f"{chunks[key]:.0f} / {one[key]:.0f} MiB = {chunks[key] / one[key]:.2f}" for key in ("mib", "graph_mib")
        ]
        rows.append([what, *memory, f"{whole['mib']:.0f} MiB"])
    header = ["step", "memory / one chunk's", "graphs / one chunk's", "memory at once"]
    return markdown(header, rows)


def meta_labels_table() -> str:
    """What M meta labels cost, as ratios of one run."""
    rows = []
    for line in read_cells(RESULTS / "meta_labels.jsonl"):
        cell, found = line["cell"], line["result"]
        if cell["what"] == "labels":
            ratios = found["ratios"]
            what = f"{cell['backbone']}, {cell['size']} px" + (", image and pixels" if cell["pixels"] else "")
            names = ("encoder / passes", "features / single", "sum / single", "passes / single")
            rows.append([what, str(cell["num_labels"]), *("{:.2f} [{:.2f}, {:.2f}]".format(*ratios[n]) for n in names)])
    header = ["encoder, branches", "M", "scope encoder / its passes", "scope features / one label", "sum / one label"]
    return markdown([*header, "passes / one label"], rows)


def filter_table() -> str:
    """What GradFilter's K costs: the pixel objective with it over the same without."""
    rows = []
    for line in read_cells(RESULTS / "meta_labels.jsonl"):
        if line["cell"]["what"] == "filter":
            ratios = line["result"]["ratios"]
            side, base = line["cell"]["side"], 1000 * line["result"]["seconds"]["None"]
            chosen = ("0.1", "0.3", "0.6", "0.9")
            rows.append(
                [f"{side} x {side}", f"{base:.0f} ms", *("{:.2f} [{:.2f}, {:.2f}]".format(*ratios[k]) for k in chosen)]
            )
    return markdown(["grid", "no filter", "K = 0.1", "K = 0.3", "K = 0.6", "K = 0.9"], rows)


def losses_table() -> str:
    """Time and memory of supremix_loss beside the dense form."""
    rows = []
    for line in read_cells(RESULTS / "losses.jsonl"):
        cell, found = line["cell"], line["result"]
        dense = f"{1000 * found['dense_seconds']:.0f} ms" if "ratio" in found else "does not fit"
        ratio = f"{found['ratio']:.1f} [{found['ratio_min']:.1f}, {found['ratio_max']:.1f}]" if "ratio" in found else ""
        ours = [f"{1000 * found['seconds']:.1f} ms", f"{found['peak_mb']:.0f} MB"]
        rows.append([cell["labels"], str(cell["num_rows"]), *ours, dense, ratio])
    return markdown(["labels", "rows", "supremix_loss", "above the process", "dense", "dense / ours [min, max]"], rows)


RACE_HEADER = [
    "cell", "images/s, bolus", "images/s, lightly", "from the second epoch", "first two epochs, from the start",
    "memory, GiB", "AUROC", "less lightly's",
]  # fmt: skip


def race_table() -> str:
    """A row a cell of race.py: speed, memory and accuracy of both."""
    rows = []
    for line in read_cells(RESULTS / "race.jsonl"):
        cell, found = line["cell"], line["result"]
        ours, theirs, ratios = found["bolus"], found["lightly"], found["ratios"]
        rows.append(
            [
                f"{cell['method']}, {cell['backbone']}, {cell['size']} px, {cell['epochs']} x {cell['images']} images",
                f"{ours['warm']:.0f}",
                f"{theirs['warm']:.0f}",
                f"{ratios['warm']:.2f}",
                f"{ratios['cold']:.2f}",
                f"{ours['peak_gib']:.2f} / {theirs['peak_gib']:.2f}" if "peak_gib" in ours else "not measured alone",
                " / ".join(f"{value:.3f}" for value in (_mean(ours["auroc"]), _mean(theirs["auroc"]))),
                _interval(found["auroc_ahead"][0]),
            ]
        )
    return markdown(RACE_HEADER, rows)


LOSS_HEADER = ["loss", "rows", "bolus", "other", "time", "other / bolus [min, max]", "memory, MB"]


def loss_race_table() -> str:
    """A row a cell of loss_race.py and a library."""
    rows = []
    for line in read_cells(RESULTS / "loss_race.jsonl"):
        cell, found = line["cell"], line["result"]
        ours = found["bolus"]
        for name, other in found.items():
            if name in ("bolus", "relative_difference"):
                continue
            median, low, high = other["over_bolus"]
            rows.append(
                [
                    cell["loss"],
                    f"{cell['num_rows']:,}",
                    f"{1000 * ours['seconds']:.1f} ms",
                    name,
                    f"{1000 * other['seconds']:.1f} ms",
                    f"{median:.2f} [{low:.2f}, {high:.2f}]",
                    f"{ours['peak_mb']:.0f} / {other['peak_mb']:.0f}",
                ]
            )
    return markdown(LOSS_HEADER, rows)


def cache_table() -> str:
    """How fast the cache is filled, beside the decoders alone."""
    rows = []
    for line in read_cells(RESULTS / "cache.jsonl"):
        found, kib = line["result"], line["result"]["kib"]
        rates = [f"{found[name]['rate']:.1f}" for name in ("bare", "alone", "cache")]
        rows.append([line["cell"]["kind"], f"{kib:,}", *rates, f"{found['of_bare']:.2f}", f"{found['of_threads']:.2f}"])
    header = ["file", "KiB", "decoder alone, one core", "and checked, made square", "cache, all cores"]
    return markdown([*header, "of the decoders", "of our reading"], rows)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _interval(found: list[Any]) -> str:
    value, low, high = found
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def volume_batches_table() -> str:
    """A row a batch of volumes: memory and speed of a step, at once and in chunks."""
    found = [(line["cell"], line["result"]) for line in read_cells(RESULTS / "volume_batches.jsonl")]
    rows = []
    for cell in {json.dumps({**cell, "chunk": None}): cell for cell, _ in found}.values():
        both = {other["chunk"]: more for other, more in found if {**other, "chunk": None} == {**cell, "chunk": None}}
        told = [
            f"{each['memory_gib']:.2f} GiB, {each['boxes_per_second']:.3g} boxes/s" if each else ""
            for each in (both.get(None), next((more for chunk, more in both.items() if chunk is not None), None))
        ]
        rows.append([f"{cell['net']}, {cell['size']} voxels", str(cell["batch"]), *told])
    return markdown(["encoder, box", "volumes a batch", "at once", "`sampling.chunk=2`"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "opening": opening_table,
    "step": step_table,
    "vit_step": vit_step_table,
    "questions": questions_table,
    "start-page": start_page_table,
    "gradcache": gradcache_table,
    "meta_labels": meta_labels_table,
    "meta_labels-filter": filter_table,
    "losses": losses_table,
    "race": race_table,
    "loss_race": loss_race_table,
    "volume_batches": volume_batches_table,
    "cache": cache_table,
}
