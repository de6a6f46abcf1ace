"""Time and memory to open and split a table of a million rows, without touching an image.

python benchmarks/opening.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grid import RESULTS, run_grid

SCRIPT = """
import json, resource, sys, time
from bolus.data.cohort.cohort import Cohort
roles = {"label:finding": "finding", "score:age": "age"}
began = time.perf_counter()
cohort = Cohort.open(sys.argv[1], roles=roles, missing={"finding": ["todo"]})
opened = time.perf_counter()
sides = cohort.split
print(json.dumps({
    "open_seconds": round(opened - began, 2),
    "split_seconds": round(time.perf_counter() - opened, 2),
    "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    "patients": cohort.num_patients,
    "test_share": round(float((sides == "test").mean()), 4),
}))
"""


def measure(rows: int, spelling: str = "plain") -> dict[str, Any]:
    """One cell, in a process of its own.

    `mixed`: every other patient is written `7.0` for 7, no two rows have one time, and ages are such as `058Y`.
    """
    rng = np.random.default_rng(0)
    patients = rng.integers(0, rows // 4, rows)
    frame = pd.DataFrame(
        {
            "image": [f"images/{row // 1000:04d}/{row:07d}.dcm" for row in range(rows)],
            "patient": [f"PAT{patient:08d}" for patient in patients],
            "visit": rng.integers(0, 6, rows),
            "days": rng.integers(0, 4000, rows),
            "age": rng.integers(20, 90, rows),
            "sex": rng.choice(["F", "M"], rows),
            "finding": rng.choice(["none", "effusion|edema", "nodule", "todo"], rows),
        }
    )
    if spelling == "mixed":
        times = np.datetime64("2150-01-01T00:00:00") + np.arange(rows) * np.timedelta64(617, "s")
        ages = frame["age"].astype(str).str.zfill(3) + "Y"
        written: pd.Series[Any] = pd.Series(patients).astype(str) + np.where(np.arange(rows) % 2, ".0", "")
        frame = frame.drop(columns="days").assign(patient=written, StudyDate=np.datetime_as_string(times), age=ages)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        frame.to_csv(table, index=False)
        shown = subprocess.run([sys.executable, "-c", SCRIPT, str(table)], capture_output=True, text=True, check=True)
    return dict(json.loads(shown.stdout))


CELLS: list[dict[str, Any]] = [{"rows": 1_000_000}, {"rows": 1_000_000, "spelling": "mixed"}]

if __name__ == "__main__":
    for line in run_grid(RESULTS / "opening.jsonl", CELLS, measure):
        print(line["cell"], line["result"])
