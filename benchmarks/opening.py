"""What a table costs by its rows: to open it, to split it, to plan for it, and to reach the first step of a training.

python benchmarks/opening.py
python benchmarks/opening.py --only csv

A row is a frame of one of 1,000 files of pixels (of fewer rows, 10,000 frames a file), and all of them are in the
cache: its shards are written as a build would have, but with black images, so that neither decoding nor the disk is
measured. The recipe is the planned one with a small encoder at 8 pixels, so that the step costs nothing beside the
table. Each cell runs in a process of its own; memory is the largest that the process held until the end of a stage.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from grid import RESULTS, run_grid

FRAMES, PART = 10_000, 1_000_000  # frames of a file; rows that are made at a time
OVERRIDES = ("encoder.backbone=resnet18", "encoder.pretrained=false", "images.size=8", "sampling.batch_size=64")
SCRIPT = Path(__file__).with_name("opening_child.py")


def columns(start: int, stop: int, rows: int, spelling: str) -> pa.Table:
    """Some rows of a table.

    `mixed`: every other patient is written `7.0` for 7, no two rows have one time, and ages are such as `058Y`.
    """
    rng, number = np.random.default_rng(start), stop - start
    row, patient = np.arange(start, stop), rng.integers(0, max(1, rows // 4), number)
    found: dict[str, Any] = {
        "image": _joined("pixels/", row // FRAMES, ".frames", width=4),
        "frame": row % FRAMES,
        "patient": _joined("PAT", patient, "", width=8),
        "visit": rng.integers(0, 6, number),
        "days": rng.integers(0, 4000, number),
        "age": rng.integers(20, 90, number),
        "sex": pa.array(["F", "M"]).take(pa.array(rng.integers(0, 2, number))),
        "finding": pa.array(["none", "effusion", "nodule", "todo"]).take(pa.array(rng.integers(0, 4, number))),
    }
    if spelling == "mixed":
        del found["days"]
        times = np.datetime64("1950-01-01T00:00:00") + row * np.timedelta64(617, "s")
        found |= {
            "patient": np.char.add(patient.astype("U9"), np.where(row % 2, ".0", "")),
            "StudyDate": np.datetime_as_string(times),
            "age": _joined("0", found["age"], "Y", width=2),
        }
    return pa.table(found)


def _joined(before: str, numbers: np.ndarray, after: str, *, width: int) -> pa.Array:
    """Numbers with zeros before them, as text between others."""
    different, place = np.unique(numbers, return_inverse=True)
    return pa.array([f"{before}{number:0{width}d}{after}" for number in different.tolist()]).take(pa.array(place))


def write_table(path: Path, rows: int, spelling: str) -> None:
    """The table, a part at a time, with an open file."""
    writer: Any = None
    for start in range(0, rows, PART):
        part = columns(start, min(start + PART, rows), rows, spelling)
        if writer is None:
            writer = (pa_csv.CSVWriter if path.suffix == ".csv" else pa_parquet.ParquetWriter)(path, part.schema)
        writer.write_table(part)
    writer.close()


def measure(rows: int, table: str = "csv", spelling: str = "plain") -> dict[str, Any]:
    """One cell."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BOLUS_BENCH_TMP")) as folder:
        work = Path(folder)
        write_table(work / f"table.{table}", rows, spelling)
        (work / "pixels").mkdir()
        for file in range(-(-rows // FRAMES)):
            (work / f"pixels/{file:04d}.frames").write_bytes(file.to_bytes(4, "little"))
        facts = {"table": f"table.{table}", "rows": rows, "overrides": OVERRIDES, "frames": FRAMES}
        (work / "asked.json").write_text(json.dumps(facts), encoding="utf-8")
        environment = {**os.environ, "BOLUS_CACHE": str(work / "cache"), "BOLUS_KEY": str(work / "site.key")}
        for stage in ("cache", "measure"):
            command = [sys.executable, str(SCRIPT), stage, str(work)]
            shown = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if shown.returncode:
                raise SystemExit(shown.stderr)
        return dict(json.loads(shown.stdout.splitlines()[-1]))


ROWS = (100_000, 1_000_000, 3_000_000, 10_000_000)
CELLS: list[dict[str, Any]] = [
    *({"rows": rows, "table": table} for table in ("csv", "parquet") for rows in ROWS),
    {"rows": 1_000_000, "table": "csv", "spelling": "mixed"},
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=ROWS[-1], help="rows of the largest cell")
    parser.add_argument("--only", choices=("csv", "parquet"), help="tables of one kind")
    options = parser.parse_args()
    chosen = [cell for cell in CELLS if cell["rows"] <= options.most and options.only in (None, cell["table"])]
    for line in run_grid(RESULTS / "opening.jsonl", chosen, measure):
        print(line["cell"], line["result"])
