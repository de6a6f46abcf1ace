"""Seconds of three questions about one run, which embeds the cohort, its start and its random twin for the first alone.

python benchmarks/starts.py --seeds 0 --arms comprer --train-only
python benchmarks/questions.py
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import bolus
import comprer_odir
from bolus.data.cohort.cohort import Cohort
from bolus.embedding.remembering import FOLDER
from grid import RESULTS, record

WORK = Path("runs/starts/small")
QUESTIONS = ("classify eye=D", "regress age", "retrieve across laterality")


def main() -> None:
    """Ask three questions, and write how long each took."""
    shutil.rmtree(WORK / "cache" / FOLDER, ignore_errors=True)
    cohort, run = Cohort.open(comprer_odir.prepare(WORK, {})), WORK / "comprer-0"
    lines = []
    for number, question in enumerate(QUESTIONS, start=1):
        began, out = time.monotonic(), WORK / f"question-{number}"
        if question.startswith("retrieve"):
            bolus.evaluate_retrieve(run, cohort, across="laterality", cache=WORK / "cache", out=out)
        else:
            task, _, target = question.partition(" ")
            bolus.evaluate(run, cohort, task=task, target=target, probes=("linear",), cache=WORK / "cache", out=out)
        lines.append({"question": question, "number": number, "seconds": round(time.monotonic() - began, 1)})
        print(lines[-1], flush=True)
    whole = {**record(), "images": len(cohort), "questions": lines}
    (RESULTS / "questions.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
