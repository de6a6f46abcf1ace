"""Memory and speed of writing embeddings by the number of rows; of a tiny encoder, whose vectors take most memory.

python benchmarks/embedding.py

Rows are slices of volumes. They are decoded into the cache beforehand, by another process. `whole` holds all embeddings
(`bolus.embed`), `pieces` writes them as they come (`bolus embed`), and `again` finds them remembered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import build_store
from bolus.data.images.preprocessing import Preprocessing
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import save_encoder
from bolus.recipe import EncoderSpec
from grid import RESULTS, run_grid

SIDE, SLICES = 16, 1000  # pixels, and slices of a volume
SCRIPT = """
import json, os, resource, sys, threading, time
from pathlib import Path
import bolus.embedding.table as table
from bolus.data.cohort.cohort import Cohort
folder, way = Path(sys.argv[1]), sys.argv[2]
largest, over = [0], threading.Event()
def watch():
    while not over.wait(0.02):
        status = Path("/proc/self/status")
        if status.is_file():
            largest[0] = max(largest[0], int(status.read_text().split("RssAnon:")[1].split()[0]))
cohort = Cohort.open(folder / "cohort.yaml")
table.open_encoder(folder / "encoder")
before = resource.getrusage(resource.RUSAGE_SELF)
thread = threading.Thread(target=watch)
thread.start()
began = time.perf_counter()
if way == "whole":
    table.embed(folder / "encoder", cohort, out=folder / "e.parquet", cache=folder / "cache")
else:
    table.write_embeddings(folder / "encoder", cohort, folder / "e.parquet", cache=folder / "cache")
seconds = time.perf_counter() - began
over.set()
thread.join()
after = resource.getrusage(resource.RUSAGE_SELF)
spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({
    "rows_per_second": round(len(cohort) / seconds),
    "rows_per_cpu_second": round(len(cohort) / spent),
    "mib_before": round(before.ru_maxrss / 2**10),
    "peak_mib": round(after.ru_maxrss / 2**10),
    "peak_mib_without_files": round(largest[0] / 2**10),
    "file_mib": round((folder / "e.parquet").stat().st_size / 2**20),
}))
"""


def measure(rows: int) -> dict[str, Any]:
    """One number of rows, each way in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rng = np.random.default_rng(0)
        for volume in range(rows // SLICES):
            voxels = rng.integers(0, 256, (SIDE, SIDE, SLICES), np.uint8)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{volume}.nii")
        frame = pd.DataFrame({"volume": np.arange(rows) // SLICES, "order": np.arange(rows) % SLICES})
        frame["image"], frame["patient"] = frame["volume"].astype(str) + ".nii", frame["volume"]
        frame["sex"], frame["age"] = rng.choice(["F", "M"], rows), rng.integers(20, 90, rows)
        frame.drop(columns="volume").to_csv(folder / "table.csv", index=False)
        (folder / "cohort.yaml").write_text("table: table.csv\nroles: {'score:age': age}\nranges: {image: [0, 255]}\n")
        contract = Preprocessing(SIDE)
        save_encoder(build_encoder(EncoderSpec(backbone="r18w32"), seed=0).eval(), folder / "encoder",
                     preprocessing=contract.to_json())  # fmt: skip
        subprocess.run([sys.executable, __file__, "decode", str(folder)], check=True)
        found = {}
        for name, way in (("pieces", "pieces"), ("again", "pieces"), ("whole", "whole")):
            if name == "whole":
                for path in (folder / "cache" / "embeddings").rglob("*.npy"):
                    path.unlink()
            shown = subprocess.run(
                [sys.executable, "-c", SCRIPT, str(folder), way], capture_output=True, text=True, check=True
            )
            found[name] = json.loads(shown.stdout.splitlines()[-1])
    return found


CELLS: list[dict[str, Any]] = [{"rows": 20_000}, {"rows": 200_000}]

if __name__ == "__main__":
    if sys.argv[1:2] == ["decode"]:
        given = Path(sys.argv[2])
        build_store(Cohort.open(given / "cohort.yaml"), Preprocessing(SIDE), folder=given / "cache")
    else:
        for line in run_grid(RESULTS / "embedding.jsonl", CELLS, measure):
            print(line["cell"], json.dumps(line["result"], indent=1))
