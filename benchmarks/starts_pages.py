"""What docs/results.md says of starts.py: a table, and a figure of labels against AUROC.

python benchmarks/starts_pages.py     # writes docs/starts.svg
"""

from __future__ import annotations

import json
import sys
from typing import Any

from figures import DOCS, is_stale, pyplot, save_figure
from grid import RESULTS

FIGURE = DOCS / "starts.svg"
NAMES = {"age": "age, MAE in years", "fellow eye": "fellow eye, Top-5"}


def lines_of(probe: str | None, name: str = "starts") -> list[dict[str, Any]]:
    """Lines of one probe, or of a study that has but one; none where nothing was compared yet."""
    path = RESULTS / f"{name}.json"
    lines: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.is_file() else []
    return [line for line in lines if line.get("probe") == probe]


def rows_of(lines: list[dict[str, Any]], base: str = "start") -> tuple[list[str], list[list[str]]]:
    """The start and each arm less it: a row a question, a column an arm, * where several seeds decide.

    Args:
        lines: of a comparison.
        base: the arm in place of the start.
    """
    gaps = [line for line in lines if str(line.get("difference", "")).split(" (")[0].endswith(f" - {base}")]
    arms = list(dict.fromkeys(line["difference"] for line in gaps))
    header = ["question", base, *(_heading(arm, gaps) for arm in arms)]
    rows = []
    for asked in dict.fromkeys(_asked(line) for line in lines):
        start = next(line for line in lines if line.get("arm") == base and _asked(line) == asked)
        mine = {line["difference"]: line for line in gaps if _asked(line) == asked}
        rows.append([_named(asked), _value(start), *(_gap(mine[arm]) if arm in mine else "" for arm in arms)])
    return header, rows


def _asked(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["task"], line["target"], line.get("fraction")


def _named(asked: tuple[Any, ...]) -> str:
    _, target, fraction = asked
    if fraction is None:
        return NAMES[target]
    return f"{target.removeprefix('findings=')}, {100 * fraction:g} % of labels"


def _heading(arm: str, gaps: list[dict[str, Any]]) -> str:
    seeds = max(line["seeds"] for line in gaps if line["difference"] == arm)
    pair = arm.partition(" (")[0].replace(" - ", " minus ")
    return f"{pair} ({seeds} seed{'s' if seeds > 1 else ''})"


def _value(line: dict[str, Any]) -> str:
    return f"{line['estimate']:.3f}"


def _gap(line: dict[str, Any]) -> str:
    mark = " *" if line["verdict"] == "decided" else " (few)" if line["verdict"] == "too few patients" else ""
    return f"{line['estimate']:+.3f} [{line['ci_low']:+.3f}, {line['ci_high']:+.3f}]{mark}"


def draw(lines: list[dict[str, Any]]) -> None:
    """Labels against AUROC, a panel a target: the start, random weights and every arm, with bands of 95 %."""
    plt = pyplot("starts")
    values = [line for line in lines if "arm" in line and line["task"] == "classify"]
    targets, arms = (list(dict.fromkeys(line[key] for line in values)) for key in ("target", "arm"))
    figure, axes = plt.subplots(1, len(targets), figsize=(10, 3.6), sharex=True, layout="constrained")
    styles = {"start": ("black", "--"), "random init": ("0.55", ":")}
    colours = iter(plt.get_cmap("tab10").colors)
    drawn = {arm: styles[arm] if arm in styles else (next(colours), "-") for arm in arms}
    for axis, target in zip(axes, targets, strict=True):
        for arm in arms:
            mine = sorted((line for line in values if (line["target"], line["arm"]) == (target, arm)), key=_share)
            shares = [100 * line["fraction"] for line in mine]
            colour, style = drawn[arm]
            label = f"{arm} ({mine[0]['seeds']})"
            axis.plot(shares, [line["estimate"] for line in mine], style, color=colour, marker="o", label=label)
            low, high = ([line[end] for line in mine] for end in ("ci_low", "ci_high"))
            axis.fill_between(shares, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set(xscale="log", title=target, xlabel="labelled training patients, %")
        axis.set_xticks([5, 10, 100], ["5", "10", "100"], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("AUROC, test patients")
    axes[-1].legend(fontsize="small", title="arm (seeds)", title_fontsize="small")
    save_figure(figure, FIGURE, shown_of(lines))


def _share(line: dict[str, Any]) -> float:
    return float(line["fraction"])


def shown_of(lines: list[dict[str, Any]]) -> list[list[Any]]:
    """The numbers that the figure shows."""
    return [[line[key] for key in ("arm", "target", "fraction", "estimate", "ci_low", "ci_high", "seeds")]
            for line in lines if "arm" in line and line["task"] == "classify"]  # fmt: skip


def stale() -> bool:
    """Whether the figure shows other numbers than the results."""
    return is_stale(FIGURE, shown_of(lines_of("linear")))


if __name__ == "__main__":
    found = lines_of("linear")
    if not found:
        sys.exit("benchmarks/results/starts.json does not exist: run benchmarks/starts.py")
    draw(found)
