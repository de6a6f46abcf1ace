"""Tables, figures and verdicts of studies of one claim each: docs/studies, benchmarks/results/study-verdicts.jsonl.

A study's file of comparison, and that of the keys that validation patients chose, are read; nothing is measured.
Verdicts are corrected within a study (Holm): the claim's differences, which its `Page` states, among themselves, every
other one among all of them. What is decided before and not after is `only a hint`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bolus.evaluation.statistics.intervals import holm
from figures import DOCS, is_stale, markdown, pyplot, save_figure
from grid import RESULTS, read_cells
from looks import number_of_looks

Line = dict[str, Any]
HINT = "only a hint"


@dataclass(frozen=True)
class Page:
    """A study that has a page.

    Args:
        file: of its comparison, in benchmarks/results, without `.json`; the table names begin with it.
        study: its name among the looks.
        paper: whose claim it asks.
        arm: the recipe of the paper.
        others: what the claim compares it with: its ancestors, and what a user would have without it.
        claim: what a line says of the questions that the claim is about.
        by: keys that tell the questions of a line apart.
        figure: what the figure of tuned keys measures.
    """

    file: str
    study: str
    paper: str
    arm: str
    others: tuple[str, ...]
    claim: Mapping[str, str]
    by: tuple[str, ...]
    figure: str


PAGES = (
    Page(
        "supremix-acdc",
        "supremix on acdc",
        "SupReMix",
        "supremix",
        ("supcon", "regression"),
        {"how": "probe", "target": "lv", "metric": "mae"},
        ("how", "target", "metric"),
        "MAE, % of the slice",
    ),
    Page(
        "learner-acdc",
        "learner on acdc",
        "LEARNER",
        "mse + linear",
        ("mse", "mse + unweighted"),
        {"metric": "mae"},
        ("metric",),
        "MAE of the change, % of the slice",
    ),
    Page(
        "mlvicx-lesions",
        "mlvicx on lesions",
        "MLVICX",
        "mlvicx",
        ("vicreg", "start"),
        {"metric": "auroc"},
        ("target", "fraction", "metric"),
        "1 - AUROC",
    ),
    Page(
        "gcl-fewshot",
        "gcl from few patients",
        "GCL",
        "GCL",
        ("random init", "sum"),
        {"metric": "dice"},
        ("target", "metric"),
        "Dice",
    ),
    Page(
        "volumes-phantom",
        "phantom of volumes",
        "SupReMix, of volumes",
        "supremix_3d",
        ("simclr_3d", "random init"),
        {"target": "severity", "metric": "mae"},
        ("target", "metric"),
        "MAE of the severity",
    ),
    Page(
        "volumes-acdc",
        "acdc as volumes",
        "volumes against slices",
        "volumes, pretrained",
        ("slices, pretrained", "volumes, random init"),
        {"metric": "dice"},
        ("target", "metric"),
        "Dice",
    ),
)


def lines_of(page: Page) -> list[Line]:
    """The lines of its comparison, with `holm` and the verdict after it; none where it was not made."""
    path = RESULTS / f"{page.file}.json"
    lines: list[Line] = json.loads(path.read_text())["results"] if path.is_file() else []
    family = [line for line in lines if "difference" in line and line["seeds"] > 1 and line.get("p_value") is not None]
    claimed = [line for line in family if is_claim(page, line)]
    for together in (family, claimed):
        for line, corrected in zip(together, holm([line["p_value"] for line in together]), strict=True):
            line["holm"] = corrected
    for line in family:
        if line["verdict"] == "decided" and line["holm"] >= 0.05:
            line["verdict"] = HINT
    return lines


def whom(line: Line) -> str:
    """How many were judged; ham10000 names lesions and no persons."""
    return f"{line['num_patients']:,} {'lesions' if line.get('cohort') == 'ham10000' else 'patients'}"


def is_claim(page: Page, line: Line) -> bool:
    """Whether a difference is one that the paper's claim is about."""
    compared = [f"{page.arm} - {other}" for other in page.others]
    return line.get("difference") in compared and all(line[key] == value for key, value in page.claim.items())


def lines_by_file(file: str) -> list[Line]:
    """The lines of the study whose comparison is in this file; none where no study has it."""
    return [line for page in PAGES if page.file == file for line in lines_of(page)]


def question(page: Page, line: Line) -> str:
    """What a line asks."""
    return ", ".join(str(line[key]).replace("_", " ") for key in page.by)


def arms_of(page: Page) -> str:
    """Every arm, a column for each question."""
    lines = [line for line in lines_of(page) if "arm" in line]
    asked = list(dict.fromkeys(question(page, line) for line in lines))
    rows = []
    for arm in dict.fromkeys(line["arm"] for line in lines):
        mine = {question(page, line): line for line in lines if line["arm"] == arm}
        rows.append(
            [arm, str(max(line["seeds"] for line in mine.values())), *(_span(mine.get(each)) for each in asked)]
        )
    return markdown(["arm", "seeds", *asked], rows)


def differences_of(page: Page) -> str:
    """Every difference, with what could have been detected and the verdict after the correction."""
    rows = []
    for line in lines_of(page):
        if "difference" in line:
            relative = line.get("relative") or [None]
            told = line["metric"] == "mae" and None not in relative  # of what may be near 0 a share says nothing
            share = "{:+.0f} % [{:+.0f}, {:+.0f}]".format(*(100 * each for each in relative)) if told else ""
            corrected = f"{line['holm']:.3f}" if "holm" in line else ""
            asked = [question(page, line), line["difference"], _span(line, "+"), share, f"{line['detectable']:.3f}"]
            rows.append([*asked, corrected, line["verdict"]])
    header = ["question", "difference", "[95 %]", "relative", "detectable", "p after Holm", "verdict"]
    return markdown(header, rows)


def summary() -> str:
    """The differences that the claims are about."""
    rows = []
    for page in PAGES:
        for line in lines_of(page):
            if is_claim(page, line):
                asked = f"{line['cohort']}, {question(page, line)}, {whom(line)}"
                other = line["difference"].removeprefix(f"{page.arm} - ")
                rows.append([page.paper, asked, f"minus {other}", _span(line, "+"), line["verdict"]])
    return markdown(["paper", "question", "difference", "[95 %]", "verdict after Holm"], rows)


def tuned_of(page: Page) -> str:
    """Every figure of validation patients by which keys were chosen."""
    rows = []
    lines = read_cells(RESULTS / f"{page.file}-tuning.jsonl")
    arms = list(dict.fromkeys(line["cell"]["arm"] for line in lines))
    for line in sorted(lines, key=lambda line: arms.index(line["cell"]["arm"])):
        keys = {key.rpartition(".")[2]: value for key, value in line["cell"]["keys"].items()}
        shown = ", ".join(f"{key} {value}" for key, value in keys.items())
        rows.append([line["cell"]["arm"], shown, f"{line['result']['figure']:.4f}"])
    return markdown(["arm", "keys", f"validation {page.figure}"], rows)


def curve_of(page: Page) -> str:
    """What validation patients say after other trainings: an arm a row, a point a column, its seeds in it."""
    lines = read_cells(RESULTS / f"{page.file}-curve.jsonl")
    arms, points = (list(dict.fromkeys(line["cell"][key] for line in lines)) for key in ("arm", "point"))
    rows = []
    for arm in arms:
        mine = [line for line in lines if line["cell"]["arm"] == arm]
        by_point = [[line["result"]["figure"] for line in mine if line["cell"]["point"] == point] for point in points]
        rows.append([arm, *(", ".join(f"{figure:.3f}" for figure in figures) for figures in by_point)])
    took = [[line["seconds"] / 60 for line in lines if line["cell"]["point"] == point] for point in points]
    rows.append(["minutes a training", *(f"{statistics.mean(minutes):.1f}" for minutes in took)])
    shown = [point.rpartition(".")[2].replace("=", " ").replace("_", " ") for point in points]
    return markdown([f"validation {page.figure}", *shown], rows)


def verdicts() -> list[Line]:
    """A line for each difference of every study."""
    return [_verdict(page, line) for page in PAGES for line in lines_of(page) if "difference" in line]


def _verdict(page: Page, line: Line) -> Line:
    return {
        "paper": page.paper,
        "question": f"{line['cohort']}, {question(page, line)}: {line['difference']}",
        "seeds": line["seeds"],
        "estimate": line["estimate"],
        "interval": [line["ci_low"], line["ci_high"]],
        "detectable": line["detectable"],
        "holm": line.get("holm"),
        "looks": number_of_looks(RESULTS / "looks.jsonl", page.study, line["tier"]),
        "verdict": line["verdict"],
    }


VERDICTS = RESULTS / "study-verdicts.jsonl"


def verdicts_are_stale() -> bool:
    """Whether the file of verdicts says something else than the studies."""
    return bool(verdicts()) and not (VERDICTS.is_file() and VERDICTS.read_text() == _as_lines(verdicts()))


def write_verdicts() -> None:
    """Write the file of verdicts."""
    VERDICTS.write_text(_as_lines(verdicts()))


def _as_lines(lines: list[Line]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def shown_of(page: Page) -> list[Any]:
    """The numbers that the figure of a study shows: the keys that were tried, and every arm on its first question."""
    tuned = [
        [line["cell"]["arm"], line["cell"]["keys"], line["result"]["figure"]]
        for line in read_cells(RESULTS / f"{page.file}-tuning.jsonl")
    ]
    lines = [line for line in lines_of(page) if "arm" in line]
    first = [line for line in lines if question(page, line) == question(page, lines[0])]
    values = [[line[key] for key in ("arm", "estimate", "ci_low", "ci_high", "by_seed")] for line in first]
    return [tuned, values] if values else []


def draw(page: Page) -> None:
    """Left, what validation patients said of each key; right, every arm on test patients, its seeds as dots."""
    tuned, values = shown_of(page)
    plt = pyplot(page.file)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    arms = list(dict.fromkeys(arm for arm, _, _ in tuned))
    for place, arm in enumerate(arms):
        figures = [value for each, _, value in tuned if each == arm]
        left.scatter(range(len(figures)), figures, s=18, color=f"C{place}", label=arm)
        left.plot(range(len(figures)), figures, color=f"C{place}", alpha=0.4)
    left.set(xlabel="keys tried, in order", ylabel=f"validation {page.figure}", title="Choosing keys")
    if arms:
        left.legend(fontsize="x-small")
    else:
        left.set_visible(False)
    for place, (arm, estimate, low, high, by_seed) in enumerate(values[::-1]):
        colour = f"C{arms.index(arm)}" if arm in arms else "0.5"
        right.plot([low, high], [place, place], color=colour, linewidth=2)
        right.scatter([estimate], [place], color=colour, zorder=3)
        right.scatter(by_seed, [place] * len(by_seed), s=8, color="black", alpha=0.6, zorder=4)
    right.set_yticks(range(len(values)), [arm for arm, *_ in values[::-1]])
    right.set(title="Test patients, 95 %", xlabel=page.figure)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_figure(figure, DOCS / "studies" / f"{page.file}.svg", shown_of(page))


def stale(page: Page) -> bool:
    """Whether the figure of a study shows other numbers than its results."""
    return is_stale(DOCS / "studies" / f"{page.file}.svg", shown_of(page))


def _span(line: Line | None, sign: str = "") -> str:
    if line is None or line["estimate"] is None or math.isnan(line["estimate"]):
        return ""
    return f"{line['estimate']:{sign}.3f} [{line['ci_low']:{sign}.3f}, {line['ci_high']:{sign}.3f}]"


def tables() -> dict[str, Callable[[], str]]:
    """Name -> table, of the studies whose keys were chosen, and of those that have been compared."""
    compared = [page for page in PAGES if (RESULTS / f"{page.file}.json").is_file()]
    found: dict[str, Callable[[], str]] = {"studies": summary} if compared else {}
    for page in PAGES:
        if page in compared:
            found[f"{page.file}-arms"] = partial(arms_of, page)
            found[f"{page.file}-differences"] = partial(differences_of, page)
        if read_cells(RESULTS / f"{page.file}-tuning.jsonl"):
            found[f"{page.file}-tuned"] = partial(tuned_of, page)
        if read_cells(RESULTS / f"{page.file}-curve.jsonl"):
            found[f"{page.file}-curve"] = partial(curve_of, page)
    return found
