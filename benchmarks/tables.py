"""Write the tables of README and docs from the result files, between their markers; `--check`: are they up to date?"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cost_pages
import growth
import starts_pages
import study_pages
from bolus.evaluation.statistics.verdict import ENOUGH_PATIENTS
from figures import markdown
from grid import RESULTS, read_cells
from rejudged import read_results

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def span(line: dict[str, Any], sign: str = "") -> str:
    """An estimate with its interval."""
    if line["estimate"] is None:
        return "undefined"
    return f"{line['estimate']:{sign}.3f} [{line['ci_low']:{sign}.3f}, {line['ci_high']:{sign}.3f}]"


def mlvicx_results() -> list[dict[str, Any]]:
    """Both cohorts' lines."""
    return [line for cohort in ("chest", "odir") for line in read_results(RESULTS / f"mlvicx-{cohort}.json")]


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


def results_of(name: str) -> Sequence[dict[str, Any]]:
    """The lines of a comparison, if it was made."""
    return read_results(RESULTS / f"{name}.json")


def arms_table(name: str, metrics: tuple[str, ...], by: str) -> str:
    """Arms of a comparison, a column for each metric; `by` is what else tells their lines apart."""
    lines = [line for line in results_of(name) if "arm" in line]
    rows = []
    for key in dict.fromkeys((line[by], line["arm"]) for line in lines):
        mine = {line["metric"]: line for line in lines if (line[by], line["arm"]) == key}
        if metrics[0] in mine:
            found = [span(mine[metric]) if metric in mine else "" for metric in metrics]
            rows.append([*key, str(mine[metrics[0]]["seeds"]), *found])
    return markdown([by, "arm", "seeds", *metrics], rows)


def differences_table(name: str, metrics: tuple[str, ...], by: str) -> str:
    """Paired differences of a comparison, in the metric's unit and as a share of the other arm's."""
    rows = []
    for line in results_of(name):
        if "difference" in line and line["metric"] in metrics:
            share = "{:+.1f} % [{:+.1f}, {:+.1f}]".format(*(100 * value for value in line["relative"]))
            share = "" if line["metric"] == "spearman" else share  # of something near 0 it says nothing
            found = [span(line, "+"), share, f"{line['detectable']:.3f}", line["verdict"]]
            rows.append([str(line[by]), line["difference"], line["metric"], *found])
    return markdown([by, "difference", "metric", "[95 %]", "relative", "detectable", "verdict"], rows)


def pivot_table(name: str, task: str, column: str, kind: str = "arm") -> str:
    """Arms, or differences, of one task: a row for each with its target, a column for each value of a key.

    Differences that are decided by several seeds are marked *, those of too few patients (few).
    """
    lines = [line for line in results_of(name) if kind in line and line["task"] == task]
    values = list(dict.fromkeys(line[column] for line in lines))
    rows = []
    for target in dict.fromkeys(_target(line) for line in lines):
        about = [line for line in lines if _target(line) == target]
        for arm in dict.fromkeys(line[kind] for line in about):
            mine = {line[column]: line for line in about if line[kind] == arm}
            found = [_marked(mine[value], kind) if value in mine else "" for value in values]
            rows.append([target, arm, str(next(iter(mine.values()))["seeds"]), *found])
        chance = {line[column]: line["chance"] for line in about if "chance" in line}
        if kind == "arm" and chance:
            rows.append([target, "chance", "", *(f"{chance[value]:.3f}" for value in values)])
    shown = [f"{100 * v:g} % of labels" if column == "fraction" else str(v).replace("_", " ") for v in values]
    return markdown(["target", kind, "seeds", *shown], rows)


def _marked(line: dict[str, Any], kind: str) -> str:
    """An estimate with its interval, and what its verdict is."""
    marks = {"decided": " *", "too few patients": " (few)"}
    return span(line, "+" if kind == "difference" else "") + marks.get(line.get("verdict", ""), "")


def _target(line: dict[str, Any]) -> str:
    """What was asked, of whom, with the prevalence or the number of pairs where the line says it."""
    cohort = f"{line['cohort']} " if line.get("cohort") in ("nih1000", "cxr") else ""
    said = f", {100 * line['prevalence']:.0f} % of {line['num_samples']} positive" if "prevalence" in line else ""
    said += f", {line['num_samples']} pairs" if "chance" in line else ""
    return f"{cohort}{line['target']}{said}"


def gcl_table() -> str:
    """Dice of every arm, a column for each number of labelled patients."""
    lines = [line for line in results_of("gcl") if "arm" in line and line["metric"] == "dice"]
    numbers = list(dict.fromkeys(line["labelled"] for line in lines))
    rows = []
    for arm in dict.fromkeys(line["arm"] for line in lines):
        mine = {line["labelled"]: line for line in lines if line["arm"] == arm}
        found = [f"{span(mine[number])}{spread(mine[number])}" if number in mine else "" for number in numbers]
        pooled = " / ".join(f"{mine[number]['dice_pcl']:.3f}" for number in numbers if number in mine)
        rows.append([arm, str(next(iter(mine.values()))["seeds"]), *found, pooled])
    return markdown(["arm", "seeds", *(f"M = {number}" for number in numbers), "pooled as PCL does"], rows)


def spread(line: dict[str, Any]) -> str:
    """The standard deviation over seeds, where there are several."""
    return f", sd {statistics.stdev(line['by_seed']):.3f}" if len(line["by_seed"]) > 1 else ""


def gcl_differences() -> str:
    """Paired differences in Dice, a column for each number of labelled patients; decided ones are marked."""
    lines = [line for line in results_of("gcl") if "difference" in line and line["metric"] == "dice"]
    numbers = list(dict.fromkeys(line["labelled"] for line in lines))
    rows = []
    for name in dict.fromkeys(line["difference"] for line in lines):
        mine = {line["labelled"]: line for line in lines if line["difference"] == name}
        marked = [
            span(mine[number], "+") + (" *" if mine[number]["verdict"] == "decided" else "") if number in mine else ""
            for number in numbers
        ]
        most = max(line["detectable"] for line in mine.values())
        rows.append([name, *marked, f"{most:.3f}"])
    return markdown(["difference", *(f"M = {number}" for number in numbers), "detectable, at most"], rows)


def conflicts_table() -> str:
    """Cosines between the gradients of meta labels, means over the seeds of an arm."""
    file = RESULTS / "gcl.json"
    looked = json.loads(file.read_text())["conflicts"] if file.is_file() else {}
    rows = []
    arms = dict.fromkeys(name.rpartition(", seed ")[0] for name in looked)
    for arm in (arm for arm in arms if "K =" not in arm and "+" not in arm):
        every = [found["pairs"] for name, found in looked.items() if name.rpartition(", seed ")[0] == arm]
        for pair in every[0]:
            first, second = pair.split(" ~ ")
            if first.endswith("_pixel") != second.endswith("_pixel"):
                continue  # of two branches, which are not reconciled with each other
            mean = {key: sum(pairs[pair][key] for pairs in every) / len(every) for key in every[0][pair]}
            thirds = f"{mean['first third']:+.2f} to {mean['last third']:+.2f}"
            rows.append(
                [arm, pair, f"{mean['cosine']:+.2f}", thirds, f"{100 * mean['below 0']:.0f} %", str(len(every))]
            )
    return markdown(["arm", "objectives", "mean cosine", "first to last third", "samples below 0", "seeds"], rows)


PLANNED = ("odir", "chest", "lus")  # acdc is among gcl's tables


def planned_table(kind: str) -> str:
    """Arms of planned.py, or what the planned recipe is above each of them: a row a question, a column an arm.

    Differences that are decided by several seeds are marked *, those of too few patients (few).
    """
    tables = []
    for cohort in PLANNED:
        lines = [line for line in results_of(f"planned-{cohort}") if kind in line]
        if kind == "difference":
            lines = [line for line in lines if line["difference"].startswith("planned - ")]
        names = list(dict.fromkeys(line[kind] for line in lines))
        rows = []
        for question in dict.fromkeys(_planned_question(line) for line in lines):
            mine = {line[kind]: line for line in lines if _planned_question(line) == question}
            rows.append([question, *(_marked(mine[name], kind) if name in mine else "" for name in names)])
        if rows:
            seeds = max(line["seeds"] for line in lines)
            head = f"{cohort}, {seeds} seeds"
            tables.append(markdown([head, *(name.removeprefix("planned - ") for name in names)], rows))
    return "\n\n".join(tables)


def _planned_question(line: dict[str, Any]) -> str:
    share = f", {100 * line['fraction']:g} % of labels" if line.get("fraction", 1.0) < 1 else ""
    return f"{line['target']}{share}: {line['metric'].replace('_', ' ')}, {line['num_patients']} patients"


def export_table() -> str:
    """Exported encoders against bolus, models of timm read by it, and fresh images embedded without torch and bolus."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for line in read_cells(RESULTS / "export.jsonl"):
        found.setdefault(line["cell"]["model"], {})[line["cell"]["to"]] = line["result"]
    fresh = found.pop("fresh")
    formats = ["onnx", "torch", "hf", "timm"]

    def told(result: dict[str, Any] | None) -> str:
        return "" if result is None else f"{result['difference']:.1e}" if "difference" in result else "refused"

    rows = [
        [model, *(told(trips.get(to, trips.get("bolus") if to == "timm" else None)) for to in formats)]
        for model, trips in found.items()
    ]
    rows += [[f"{each['images']} new images by the script", told(each), "", "", ""] for each in fresh.values()]
    return markdown(["encoder", *formats], rows)


def recount_table() -> str:
    """How many of the differences that were decided on several seeds still are."""
    names = {
        "differences": "over several seeds",
        "decided_before": "decided, old rule",
        "decided": "still decided",
    }
    rows = [[line["file"], *(str(line[name]) for name in names)] for line in read_results(RESULTS / "recount.json")]
    return markdown(["comparisons", *names.values()], rows)


def null_table() -> str:
    """How often two equal arms are told apart, and an unequal pair is found."""
    power = {_study(line["cell"]): line["result"] for line in read_cells(RESULTS / "verdicts-power.jsonl")}
    rows = []
    for line in read_cells(RESULTS / "verdicts-null.jsonl"):
        cell, found, true = line["cell"], line["result"], power.get(_study(line["cell"]), {})
        shown = [_share(found["decided_before"]), _share(found["decided"])]
        shown += [_share(true.get("found_before")), _share(true.get("found"))]
        rows.append([f"{cell['spread']:g}", str(cell["patients"]), str(cell["seeds"]), *shown])
    header = ["sd of d' over trainings", "test patients", "seeds", "false positives, old rule", "new rule"]
    return markdown([*header, "power at 3 SE, old rule", "new rule"], rows)


def _study(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["spread"], cell["patients"], cell["seeds"]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def fractions_table() -> str:
    """How often two equal encoders are told apart at a label fraction."""
    rows = [
        [*(f"{line['cell'][key]:g}" for key in ("spread", "patients", "repeats")),
         *(_share(line["result"][key]) for key in ("decided_before", "decided"))]
        for line in read_cells(RESULTS / "verdicts-fractions.jsonl")
    ]  # fmt: skip
    header = ["sd of d' over draws of labels", "test patients", "draws", "false positives, old rule", "new rule"]
    return markdown(header, rows)


def coverage_table() -> str:
    """How often intervals hold the true value: the least and the most over the grid, before and now."""
    lines = read_cells(RESULTS / "verdicts-coverage.jsonl")
    rows = []
    for what, chosen in (
        ("fewer than 10 positives", [line for line in lines if 0 < line["result"]["positives"] < 10]),
        ("10 to 25 positives", [line for line in lines if 10 <= line["result"]["positives"] <= 25]),
        ("more than 25 positives", [line for line in lines if line["result"]["positives"] > 25]),
        ("a number, 40 patients", [line for line in lines if _number(line) == 40]),
        ("a number, 100 or 400 patients", [line for line in lines if (_number(line) or 0) > 40]),
    ):
        for metric in chosen[0]["result"]["covered"] if chosen else ():
            spans = []
            for key in ("covered_before", "covered"):
                found = [line["result"][key][metric] for line in chosen]
                spans.append(f"{min(found):.3f} to {max(found):.3f}")
            rows.append([what, metric.replace("_", " "), str(len(chosen)), *spans])
    return markdown(["test patients", "metric", "settings", "coverage, old rule (percentiles)", "new rule"], rows)


def _number(line: dict[str, Any]) -> int | None:
    """Patients of a cell whose target is a number."""
    return line["cell"]["patients"] if line["cell"]["task"] == "regress" else None


# For each paper, one difference from its ancestor, and one from where its training began. Studies of one claim come
# first; elsewhere the question is normal or not on odir, which has the most test patients, from random weights.
NORMAL = "normal fundus, AUROC"
RANDOM, START = "random init", "start"
SUMMARY: tuple[
    tuple[str, str, str, dict[str, Any], str, str, str], ...
] = (  # paper, question, file, its lines, arm, ancestor, where it began
    (
        "MLVICX",
        "melanoma, 10 % of labels, AUROC",
        "mlvicx-lesions",
        {"fraction": 0.1},
        "mlvicx",
        "vicreg",
        START,
    ),
    (
        "COMPRER",
        "six eye diseases, 5 % of labels, AUROC",
        "starts",
        {"probe": "linear", "target": "macro", "fraction": 0.05},
        "comprer",
        "simclr",
        START,
    ),
    (
        "SupReMix",
        "left ventricle on cardiac MRI, MAE in % of the slice",
        "supremix-acdc",
        {"how": "probe", "target": "lv", "metric": "mae"},
        "supremix",
        "regression",
        RANDOM,
    ),
    (
        "LEARNER",
        "unlabelled change of the left ventricle, MAE in % of the slice",
        "learner-acdc",
        {"metric": "mae"},
        "mse + linear",
        "mse",
        RANDOM,
    ),
    ("GCL", "cardiac MRI, one labelled patient, Dice", "gcl", {"labelled": 1, "metric": "dice"}, "GCL", "pcl", RANDOM),
    (
        "`bolus plan`",
        NORMAL,
        "planned-odir",
        {"target": "N", "metric": "auroc", "fraction": 1.0},
        "planned",
        "simclr",
        RANDOM,
    ),
)


def summary_table(*papers: str) -> str:
    """One question a paper, of these or of all: its arm against its ancestor and against where it began."""
    rows = []
    for paper, question, file, where, arm, ancestor, began in SUMMARY:
        if papers and paper not in papers:
            continue
        lines, found = study_pages.lines_by_file(file) or results_of(file), []
        for other in (ancestor, began):
            line = difference_of([line for line in lines if where.items() <= line.items()], arm, other)
            found.append((line, f"{other}: {span(line, '+')} {line['verdict']}"))
        patients = f"{question}, {study_pages.whom(found[0][0])}"
        rows.append([paper, patients, found[0][1], found[1][1]])
    return markdown(["paper", "question", "minus its ancestor [95 %]", "minus where it began [95 %]"], rows)


def difference_of(lines: Sequence[dict[str, Any]], arm: str, other: str) -> dict[str, Any]:
    """The line of an arm less another; turned round where a comparison has them the other way."""
    named = {line["difference"]: line for line in lines if "difference" in line}
    if f"{arm} - {other}" in named:
        return named[f"{arm} - {other}"]
    line = named[f"{other} - {arm}"]
    return {**line, "estimate": -line["estimate"], "ci_low": -line["ci_high"], "ci_high": -line["ci_low"]}


def twins_table() -> str:
    """Copies filed as new patients, found by check and by evaluate; pairs where nothing was planted."""
    rows = []
    for line in read_cells(RESULTS / "twins.jsonl"):
        if "cohort" not in line["cell"]:
            continue
        found = line["result"]
        kinds, bits = {kind: each["found"] for kind, each in found["kinds"].items()}, found["remembered"]
        cropped = "cropped to 95 %"
        others, again = ({kind: n for kind, n in each.items() if kind != cropped} for each in (kinds, bits["found"]))
        rows.append(
            [
                line["cell"]["cohort"],
                f"{found['images']:,}",
                f"{min(others.values())} to {max(others.values())}",
                str(kinds[cropped]),
                str(found["pairs"]),
                f"{min(again.values())} to {max(again.values())}",
                str(bits["found"][cropped]),
                f"{len(bits['held_out_recognised'])} of {bits['held_out_images']:,}",
            ]
        )
    header = ["cohort", "images", "check: seven kinds", "crop", "pairs, nothing planted"]
    return markdown([*header, "evaluate: seven kinds", "crop", "refused, nothing planted"], rows)


def torture_table() -> str:
    """What was attacked, how often, and how often the promise held."""
    rows = [
        [line["promise"], line["attack"], f"{line['held']} of {line['tried']}", line.get("remark", "")]
        for line in results_of("torture")
    ]
    return markdown(["promise", "attack", "held", ""], rows)


METHODS = ("MLVICX", "COMPRER", "SupReMix", "LEARNER", "GCL")  # with a page in docs/methods

TABLES: dict[str, Callable[[], str]] = {
    "summary": summary_table,
    "papers": partial(summary_table, *METHODS),
    **{f"method-{paper.lower()}": partial(summary_table, paper) for paper in METHODS},
    "recount": recount_table,
    "verdicts": null_table,
    "verdicts-fractions": fractions_table,
    "verdicts-coverage": coverage_table,
    "starts": lambda: markdown(*starts_pages.rows_of(starts_pages.lines_of("linear"))),
    "starts-finetuned": lambda: markdown(*starts_pages.rows_of(starts_pages.lines_of("finetune"))),
    "starts-plan": lambda: markdown(*starts_pages.rows_of(starts_pages.lines_of(None, "starts-plan"), "planned")),
    "starts-chest": lambda: markdown(*starts_pages.rows_of(starts_pages.lines_of("linear", "starts-chest"))),
    "mlvicx": mlvicx_table,
    "mlvicx-differences": mlvicx_differences,
    "supremix": lambda: arms_table("supremix", ("mae", "r2", "gm", "pearson"), "how"),
    "supremix-differences": lambda: differences_table("supremix", ("mae",), "how"),
    "learner": lambda: arms_table("learner", ("accuracy", "balanced_accuracy", "macro_f1"), "target"),
    "learner-differences": lambda: differences_table("learner", ("accuracy", "spearman"), "target"),
    "planned": lambda: planned_table("arm"),
    "planned-differences": lambda: planned_table("difference"),
    "gcl": gcl_table,
    "gcl-differences": gcl_differences,
    "gcl-conflicts": conflicts_table,
    "comprer-phantom": lambda: pivot_table("comprer-phantom", "regress", "metric"),
    "comprer-phantom-differences": lambda: pivot_table("comprer-phantom", "regress", "metric", "difference"),
    "comprer-phantom-retrieval": lambda: pivot_table("comprer-phantom", "retrieve", "metric"),
    "comprer-phantom-found": lambda: pivot_table("comprer-phantom", "retrieve", "metric", "difference"),
    "comprer-odir-found": lambda: pivot_table("comprer-odir", "retrieve", "metric", "difference"),
    "comprer-odir": lambda: pivot_table("comprer-odir", "classify", "fraction"),
    "comprer-odir-differences": lambda: pivot_table("comprer-odir", "classify", "fraction", "difference"),
    "comprer-odir-retrieval": lambda: pivot_table("comprer-odir", "retrieve", "metric"),
    "comprer-chest": lambda: pivot_table("comprer-chest", "classify", "metric"),
    "comprer-chest-differences": lambda: pivot_table("comprer-chest", "classify", "metric", "difference"),
    "comprer-chest-site": lambda: pivot_table("comprer-chest", "site", "metric"),
    **cost_pages.TABLES,
    **study_pages.tables(),
    "export": export_table,
    "torture": torture_table,
    "twins": twins_table,
}


def rendered(text: str) -> str:
    """A page with every table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        if begin in text:
            head, _, rest = text.partition(begin)
            _, _, tail = rest.partition(end)
            text = f"{head}{begin}\n{make()}\n{end}{tail}"
    return text


FIGURES: tuple[tuple[Callable[[], bool], Callable[[], None]], ...] = (
    (starts_pages.stale, lambda: starts_pages.draw(starts_pages.lines_of("linear"))),
    (growth.stale, lambda: growth.draw(growth.curves())),
    (study_pages.verdicts_are_stale, study_pages.write_verdicts),
    *((partial(study_pages.stale, page), partial(study_pages.draw, page)) for page in study_pages.PAGES),
)


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for name in TABLES:
        if sum(f"<!-- table: {name} -->" in text for text in pages.values()) != 1:
            parser.error(f"the table {name} must stand on exactly one page")
    stale = 0
    for page, before in pages.items():
        after = rendered(before)
        stale += before != after
        if not arguments.check:
            page.write_text(after, encoding="utf-8")
    for is_stale, draw in FIGURES:
        stale += is_stale()
        if not arguments.check and is_stale():
            draw()
    return int(arguments.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
