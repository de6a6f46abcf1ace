"""Reading the headers of many DICOM files: speed against a bare loop of pydicom, memory, and going on after a kill.

python benchmarks/scan.py [--files 100000] [--processes 2]

Files of 12 kB are made on the spot: CT slices of 120 elements, with a private group and a sequence, 50 a series.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from grid import RESULTS, run_grid

A_SERIES, SERIES_OF_PATIENT = 50, 4

BARE = """
import json, sys, time
from pathlib import Path
import pydicom
paths = json.loads(Path(sys.argv[1]).read_text())
began = time.perf_counter()
for path in paths:
    pydicom.dcmread(path, stop_before_pixels=True)
print(json.dumps({"bare_files_per_second": round(len(paths) / (time.perf_counter() - began))}))
"""

READ = """
import json, resource, sys, time
from pathlib import Path
from bolus.scanning.dicom.reading import read_parts
paths = json.loads(Path(sys.argv[1]).read_text())
peak = lambda: round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
began, done, half = time.perf_counter(), 0, 0.0
for part in read_parts(paths, processes=int(sys.argv[2]), state=Path(sys.argv[3])):
    done += len(part["found"])
    half = half or (peak() if done >= len(paths) / 2 else 0.0)
print(json.dumps({
    "files_per_second": round(done / (time.perf_counter() - began)),
    "peak_mib_at_half": half,
    "peak_mib_at_end": peak(),
}))
"""

WHOLE = """
import json, resource, sys, time
from bolus.scanning.scanning import scan
began = time.perf_counter()
found = scan(sys.argv[1], sys.argv[2], key=sys.argv[3], processes=int(sys.argv[4]))
print(json.dumps({
    "scan_seconds": round(time.perf_counter() - began, 1),
    "scan_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1),
    "rows": found.rows,
    "patients": found.patients,
}))
"""


def make_files(folder: Path, number: int) -> list[str]:
    """Slices that differ in their UIDs, patients, numbers and places, patched into the bytes of one file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = "1.2.840.5555555555"
    first = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D3000", "SRT", "Chest"
    values = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": "1.2.840.5555555555", "StudyInstanceUID": "1.2.840.7777777777",
        "SeriesInstanceUID": "1.2.840.6666666666", "PatientID": "PAT0000001", "PatientName": "Name^First",
        "PatientBirthDate": "19500101", "PatientSex": "F", "PatientAge": "060Y", "StudyDate": "20200101",
        "StudyTime": "101010", "Modality": "CT", "Manufacturer": "Maker", "InstitutionName": "Hospital",
        "ManufacturerModelName": "Model", "BodyPartExamined": "CHEST", "InstanceNumber": 11111,
        "ImagePositionPatient": ["-100", "-100", "2222.2"], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.7, 0.7], "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "Rows": 64, "Columns": 64,
        "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "RescaleSlope": 1, "RescaleIntercept": -1024,
        "AnatomicRegionSequence": [code],
    }  # fmt: skip
    for name, value in values.items():
        setattr(first, name, value)
    first.add_new(0x00090010, "LO", "MAKER 1.0")
    for element in range(90):
        first.add_new(0x00091000 + element, "LO", f"private value {element}")
    first.PixelData = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16).tobytes()
    first.save_as(folder / "first", enforce_file_format=True)
    whole = (folder / "first").read_bytes()
    (folder / "first").unlink()
    paths = []
    for place in range(number):
        series, patient = place // A_SERIES, place // (A_SERIES * SERIES_OF_PATIENT)
        made = whole.replace(b"11111", b"%05d" % (place % A_SERIES)).replace(b"2222.2", b"%06.1f" % (place % A_SERIES))
        made = made.replace(b"5555555555", b"%010d" % place).replace(b"6666666666", b"%010d" % series)
        made = made.replace(b"7777777777", b"%010d" % patient).replace(b"PAT0000001", b"PAT%07d" % patient)
        below = folder / f"{place // 1000:04d}"
        below.mkdir(exist_ok=True)
        (below / f"{place:07d}").write_bytes(made[:-8] + place.to_bytes(8, "little"))
        paths.append(str(below / f"{place:07d}"))
    return paths


def run(script: str, *words: object) -> dict[str, Any]:
    """What a script prints, in a process of its own."""
    shown = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=True)
    return dict(json.loads(shown.stdout))


def measure(files: int, processes: int) -> dict[str, Any]:
    """One cell; the bare loop is run before and after, and the faster one counts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tree").mkdir()
        paths = make_files(folder / "tree", files)
        listed = folder / "paths.json"
        listed.write_text(json.dumps(paths))
        bare = run(BARE, listed)
        found = run(READ, listed, processes, folder / "state")
        bare = max(bare, run(BARE, listed), key=lambda each: int(each["bare_files_per_second"]))
        times = round(found["files_per_second"] / bare["bare_files_per_second"], 2)
        resumed = go_on(listed, processes, folder / "killed", files)
        whole = run(WHOLE, folder / "tree", folder / "out" / "cohort.yaml", folder / "keys" / "key", processes)
    return {**bare, **found, "times_bare": times, **resumed, **whole, "cores": os.cpu_count()}


def go_on(listed: Path, processes: int, state: Path, files: int) -> dict[str, Any]:
    """Kill a reading at half, and read on."""
    with subprocess.Popen(
        [sys.executable, "-c", READ, listed, str(processes), state], stdout=subprocess.DEVNULL
    ) as half:
        while half.poll() is None and _kept(state) * 256 < files / 2:
            time.sleep(0.01)
        half.send_signal(signal.SIGKILL)
    kept = _kept(state)
    began = time.perf_counter()
    run(READ, listed, processes, state)
    return {"kept_of_killed": min(kept * 256, files), "resumed_seconds": round(time.perf_counter() - began, 1)}


def _kept(state: Path) -> int:
    return sum(not path.name.startswith(".") for path in state.iterdir()) if state.is_dir() else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    asked = parser.parse_args()
    cells = [{"files": asked.files, "processes": each} for each in asked.processes]
    for line in run_grid(RESULTS / "scan.jsonl", cells, measure):
        print(line["cell"], line["result"])
