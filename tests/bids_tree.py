"""BIDS data sets made on the spot: sessions, tables with n/a, inherited sidecars, masks in derivatives, and litter."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
ELSEWHERE = AFFINE + np.array([[0, 0, 0, 40], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
SHAPE = (8, 6, 4)


def write_text(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        path.write_text("".join("\t".join(row) + "\n" for row in content))
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_volume(path: Path, voxels: Any = None, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if voxels is None:
        voxels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 900, SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def write_mask(path: Path, *, affine: Any = AFFINE, mirrored: bool = False, shape: tuple[int, ...] = SHAPE) -> Path:
    """A lesion of two slices; mirrored: the same voxels at the same places, with the x axis of the file reversed."""
    voxels = np.zeros(shape, np.uint8)
    voxels[2:4, 2:5, 1:3] = 1
    if mirrored:
        voxels = voxels[::-1]
        affine = affine @ np.array([[-1, 0, 0, shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return write_volume(path, voxels, affine)


def write_small_bids(root: Path) -> Path:
    """Four subjects with images, one without; the tests state every row of what is found in it."""
    text = lambda name, content: write_text(root / name, content)  # noqa: E731
    image = lambda name, *args: write_volume(root / name, *args)  # noqa: E731
    text("dataset_description.json", {"Name": "small", "BIDSVersion": "1.10.0"})
    text("README", "A data set.")
    text(
        "participants.tsv",
        [
            ["participant_id", "age", "sex", "group", "mmse"],
            ["sub-01", "34", "F", "patient", "28"],
            ["sub-02", "n/a", "male", "control", "n/a"],
            ["sub-03", "89+", "n/a", "n/a", "30"],
            ["sub-04", "51", "O", "patient", "21"],
        ],
    )
    text("participants.json", {"age": {"Units": "years"}})
    text("T1w.json", {"Manufacturer": "Maker", "ManufacturersModelName": "Model A", "InstitutionName": "North"})
    text("sub-02/sub-02_T1w.json", {"ManufacturersModelName": "Model B"})
    text("sub-02/ses-01/anat/sub-02_ses-01_T1w.json", {"BodyPart": "BRAIN", "InstitutionName": "n/a"})
    text("sub-02/ses-01/anat/sub-02_ses-01_acq-x_T1w.json", {"ManufacturersModelName": "of no image here"})

    image("sub-01/ses-01/anat/sub-01_ses-01_FLAIR.nii.gz")
    image("sub-01/ses-01/anat/sub-01_ses-01_T1w.nii.gz")
    image("sub-01/ses-02/anat/sub-01_ses-02_ce-gadolinium_T1w.nii.gz")
    text(
        "sub-01/sub-01_sessions.tsv",
        [
            ["session_id", "acq_time", "age", "mmse"],
            ["ses-01", "2180-03-01", "n/a", "27"],
            ["ses-02", "2181-03-05", "35", "n/a"],
        ],
    )
    text(
        "sub-01/ses-01/sub-01_ses-01_scans.tsv",
        [
            ["filename", "acq_time", "quality"],
            ["anat/sub-01_ses-01_T1w.nii.gz", "2180-03-02T10:20:30.5", "good"],
            ["anat/sub-01_ses-01_FLAIR.nii.gz", "n/a", "poor"],
        ],
    )
    image("sub-02/ses-01/anat/sub-02_ses-01_T1w.nii.gz")
    image("sub-03/ses-02/anat/sub-03_ses-02_T2starw.nii")
    image("sub-05/ses-01/anat/sub-05_ses-01_hemi-L_run-2_T2w.nii.gz")

    left = root / "derivatives/lesions"
    text("derivatives/lesions/dataset_description.json", {"Name": "lesions", "DatasetType": "derivative"})
    write_mask(left / "sub-01/ses-01/anat/sub-01_ses-01_space-T1w_label-lesion_mask.nii.gz")
    write_mask(left / "sub-02/ses-01/anat/sub-02_ses-01_label-lesion_mask.nii.gz", mirrored=True)
    write_mask(left / "sub-03/ses-02/anat/sub-03_ses-02_space-MNI152_label-lesion_mask.nii.gz", affine=ELSEWHERE)
    write_mask(left / "sub-04/ses-01/anat/sub-04_ses-01_label-lesion_mask.nii.gz")
    brains = root / "derivatives/brains"
    write_mask(brains / "sub-01/ses-01/anat/sub-01_ses-01_desc-brain_mask.nii.gz")
    write_mask(brains / "sub-01/ses-02/anat/sub-01_ses-02_ce-gadolinium_desc-brain_mask.nii.gz")
    write_mask(brains / "sub-02/ses-01/anat/sub-02_ses-01_desc-brain_mask.nii.gz")
    write_mask(brains / "sub-02/ses-01/anat/sub-02_ses-01_label-GM_probseg.nii.gz")
    image("derivatives/prepared/sub-02/ses-01/anat/sub-02_ses-01_desc-preproc_T1w.nii.gz")

    image("sub-03/ses-02/func/sub-03_ses-02_task-rest_bold.nii.gz", np.zeros((4, 4, 2, 5), np.int16))
    text("sub-03/ses-02/dwi/sub-03_ses-02_dwi.bval", "0 1000")
    text("sub-03/ses-02/eeg/sub-03_ses-02_task-rest_eeg.edf", "0")
    image("sub-03/ses-02/fmap/sub-03_ses-02_phasediff.nii.gz")
    image("sub-03/ses-02/anat/sub-03_ses-02_part-phase_T2starw.nii.gz")
    image("sub-03/ses-02/anat/sub-05_ses-02_T1w.nii.gz")  # a subject whom the folder contradicts
    image("sub-03/ses-02/anat/brain.nii.gz")
    text("sub-05/ses-01/anat/sub-05_ses-01_run-3_T2w.nii.gz", "")
    whole = write_volume(root / "sub-05/ses-01/anat/sub-05_ses-01_run-4_T2w.nii.gz").read_bytes()
    (root / "sub-05/ses-01/anat/sub-05_ses-01_run-4_T2w.nii.gz").write_bytes(whole[: len(whole) // 2])
    text("sub-05/ses-01/anat/sub-05_ses-01_run-5_T2w.nii.gz", "not an image")
    text("sub-05/ses-01/anat/sub-05_ses-01_run-6_T2w.hdr", "0")
    text("sourcedata/raw.dcm", "0")
    text("code/convert.sh", "0")
    text(".DS_Store", "0")
    (root / "sub-05/ses-01/anat/sub-05_ses-01_run-7_T2w.nii.gz").symlink_to(root / ".git/annex/absent")
    return root


def write_bids_cohort(root: Path, *, subjects: int = 12, side: int = 24, depth: int = 4, seed: int = 0) -> Path:
    """A data set to learn from: one or two sessions a subject; a bright lesion whose mask is in derivatives."""
    rng = np.random.default_rng(seed)
    write_text(root / "dataset_description.json", {"Name": "cohort", "BIDSVersion": "1.10.0"})
    rows = [["participant_id", "age", "sex", "group"]]
    for number in range(1, subjects + 1):
        sick = number % 2
        subject = f"sub-{number:02d}"
        rows.append([subject, "n/a" if number % 5 == 0 else f"{40 + 3 * number}", "FM"[number % 2], "ca"[sick]])
        sessions = [["session_id", "acq_time"]]
        for session in range(1, 2 + (number % 3 > 0)):
            stem = f"{subject}/ses-{session}/anat/{subject}_ses-{session}"
            sessions.append([f"ses-{session}", "n/a" if number % 7 == 0 else f"2015-0{session + 1}-{number:02d}"])
            voxels = rng.normal(300, 40, (side, side, depth))
            lesion = np.zeros(voxels.shape, np.uint8)
            x, y = rng.integers(2, side - 9, 2)
            lesion[x : x + 6, y : y + 6, 1:] = 1
            voxels[lesion > 0] += 250 if sick else 120
            write_volume(root / f"{stem}_T1w.nii.gz", voxels.astype(np.int16), np.diag([2.0, 2.0, 5.0, 1.0]))
            if number % 6:
                derived = root / "derivatives/lesions" / f"{stem}_label-lesion_mask.nii.gz"
                write_volume(derived, lesion, np.diag([2.0, 2.0, 5.0, 1.0]))
        write_text(root / f"{subject}/{subject}_sessions.tsv", sessions)
    write_text(root / "participants.tsv", rows)
    return root
