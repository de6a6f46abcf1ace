"""Write the README's tables from the result files, between their markers; `--check` says whether they are current."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bolus.evaluation.verdict import ENOUGH_PATIENTS
from grid import RESULTS, read_cells

README = Path(__file__).resolve().parents[1] / "README.md"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def span(line: dict[str, Any], sign: str = "") -> str:
    """An estimate with its interval."""
    return f"{line['estimate']:{sign}.3f} [{line['ci_low']:{sign}.3f}, {line['ci_high']:{sign}.3f}]"


def mlvicx_results() -> list[dict[str, Any]]:
    """Both cohorts' lines."""
    files = (RESULTS / f"mlvicx-{cohort}.json" for cohort in ("chest", "odir"))
    return [line for file in files if file.is_file() for line in json.loads(file.read_text())["results"]]


def mlvicx_table() -> str:
    """AUROC of every arm, and its difference from random init."""
    results, rows = mlvicx_results(), []
    for line in results:
        if "arm" not in line or line["num_positive_patients"] < ENOUGH_PATIENTS:
            continue
        versus = [
            other
            for other in results
            if other.get("difference") == f"{line['arm']} - random init" and other["target"] == line["target"]
        ]
        gap = [span(versus[0], "+"), f"{versus[0]['detectable']:.3f}", versus[0]["verdict"]] if versus else ["", "", ""]
        question = f"{line['cohort']} {line['target']} ({line['num_positive_patients']} of {line['num_patients']})"
        rows.append([question, line["arm"], str(line["seeds"]), span(line), *gap])
    header = ["test question (positive of all patients)", "arm", "seeds", "AUROC [95 %]", "minus random init"]
    return markdown([*header, "detectable", "verdict"], rows)


def mlvicx_differences() -> str:
    """MLVICX against its ancestors, and its ablations."""
    wanted = [line for line in mlvicx_results() if line.get("difference", "").startswith("mlvicx")]
    rows = []
    for line in wanted:
        enough = line["num_positive_patients"] >= ENOUGH_PATIENTS
        if enough and not line["difference"].endswith("random init"):
            question, found = f"{line['cohort']} {line['target']}", f"{line['detectable']:.3f}"
            rows.append([question, line["difference"], span(line, "+"), found, line["verdict"]])
    return markdown(["test question", "difference", "AUROC [95 %]", "detectable", "verdict"], rows)


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


def opening_table() -> str:
    """Time and memory to open a large table."""
    rows = [
        [
            f"{line['cell']['rows']:,}",
            f"{line['result']['patients']:,}",
            f"{line['result']['open_seconds']:.1f} s",
            f"{line['result']['split_seconds']:.1f} s",
            f"{line['result']['peak_gib']:.2f} GiB",
        ]
        for line in read_cells(RESULTS / "opening.jsonl")
    ]
    return markdown(["rows", "patients", "open and validate", "split", "peak of the process"], rows)


TABLES = {
    "opening": opening_table,
    "mlvicx": mlvicx_table,
    "mlvicx-differences": mlvicx_differences,
    "step": step_table,
}


def rendered(text: str) -> str:
    """The README with every table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        if begin in text:
            head, _, rest = text.partition(begin)
            _, _, tail = rest.partition(end)
            text = f"{head}{begin}\n{make()}\n{end}{tail}"
    return text


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = rendered(before)
    if arguments.check:
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
