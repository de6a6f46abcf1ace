"""The preflight: every image is read once and every column looked at before anything is trained.

`check` finds what goes wrong silently otherwise: files that cannot be read, ranges that make images black or white,
copies of one image on both sides of the split, labels with too few patients to learn from, columns without a role. Rows
are named by number; no finding holds a patient identifier or a file name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bolus.data.checks.columns import check_columns
from bolus.data.checks.images import look_at_images
from bolus.data.checks.report import CheckReport, Finding, frames_in_words
from bolus.data.checks.sides import count_sides, look_at_sides
from bolus.data.checks.unused import unused_columns
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.roles import is_number_role
from bolus.data.cohort.series import series_problems
from bolus.data.images.clips import rows_are_files

MIN_POSITIVE_PATIENTS = 20  # of a class; with fewer, an evaluation says little
MAX_CLASSES = 1000  # above which a label is not looked at class by class
MIN_ROWS = 10  # below which it means nothing that every row has another value
NOT_CATEGORIES = (
    "image",
    "mask",
    "patient",
    "series",
    "split",
)  # rightly another one in each row, or checked elsewhere


def check(
    cohort: Cohort | str | Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    thumbnails: str | Path | None = None,
) -> CheckReport:
    """Look at every image and column of a cohort.

    Images are read as training reads them, one in memory for each worker; of clip files (multi-frame DICOM, videos ...)
    all frames, which count as one image. A modality of which some image takes the range of the cohort gets that of
    `covering_range` over these, in `report.cohort.spec.cohort_ranges`; one that is there already is kept.

    Args:
        cohort: or the path of a cohort.yaml or table.
        workers: threads that read; the number of cores, 16 at most, where None.
        on_progress: called with (done, total) after each image.
        thumbnails: a folder for a sheet of pictures of each modality, as the encoder will see them; none where None.

    Raises:
        CohortError: a range is stated for a modality of which there is no image; or the table itself is wrong (roles,
            numbers that do not parse, a patient on both sides of a fixed split). Without a cohort there is nothing to
            report on, so this is raised as `Cohort.open` raises it, every violation listed with its rows.

    Example:
        >>> import tempfile
        >>> from bolus.phantom.images import make_phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = check(make_phantom(folder, num_patients=3, size=16))
        >>> report.errors, report.modalities[0]["rule"]
        ([], ['series'])
    """
    cohort = Cohort.open(cohort)
    findings: list[Finding] = []
    pictures = None if thumbnails is None else Path(thumbnails)
    modalities, ranges = look_at_images(cohort, findings, workers, on_progress, pictures)
    columns = _columns(cohort, findings)
    findings += check_columns(cohort)
    findings += _series(cohort)
    splits = count_sides(cohort)
    findings += look_at_sides(cohort, splits)
    if ranges != cohort.spec.cohort_ranges:
        cohort = Cohort(cohort.columns, cohort.spec.model_copy(update={"cohort_ranges": ranges}), cohort.folder)
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.severity))
    return CheckReport(cohort, findings, columns, modalities, splits, unused_columns(cohort))


def _columns(cohort: Cohort, findings: list[Finding]) -> list[dict[str, Any]]:
    records = []
    for role, column in cohort.roles.items():
        values = cohort.values(role)
        present, distinct = int(values.notna().sum()), int(values.nunique())
        records.append({"role": role, "column": column, "present": present / len(cohort), "distinct": distinct})
        taught = role.startswith(("label:", "score:"))
        category = role not in NOT_CATEGORIES and not is_number_role(role) and cohort.encoded(role).dtype == np.int64
        where = f"{role} (column {column!r})"
        if not present:
            findings.append(Finding("warning", "empty_column", f"{where} has no value"))
        elif category and distinct == present >= MIN_ROWS:
            message = f"{where} is different in every row: an identifier or free text, not a category"
            findings.append(Finding("warning", "unique_column", message))
        elif distinct == 1 < present and role not in ("image", "mask", "split"):
            message = f"{where} is the same in every row that has it"
            findings.append(Finding("warning" if taught else "note", "constant_column", message))
        elif role.startswith("label:") and distinct <= MAX_CLASSES:
            findings += _rare_classes(cohort, role.removeprefix("label:"))
    return records


def _series(cohort: Cohort) -> list[Finding]:
    """What becomes of the rows as clips, where a column says which one a row belongs to and rows are not clip files."""
    if "series" not in cohort.roles or cohort.spec.unit in {"image", "slice", "volume"} or rows_are_files(cohort):
        return []
    problems = series_problems(cohort)
    found = [
        Finding("warning", "series", f"no clips (images.unit=clip): {what}", tuple((rows + 1).tolist()))
        for rows, what in problems
    ]
    series = cohort.encoded("series")
    counts = np.bincount(series[series >= 0])
    if len(counts):
        plural = "" if len(counts) == 1 else "s"
        message = f"{len(counts)} clip{plural} by {cohort.roles['series']!r}, of {frames_in_words(counts)}"
        found.append(Finding("note", "clips", message))
    return found


def _rare_classes(cohort: Cohort, name: str) -> list[Finding]:
    labels, patients = cohort.labels(name), cohort.encoded("patient")
    positive = {
        label: len(np.unique(patients[labels.matrix[:, index] == 1])) for index, label in enumerate(labels.classes)
    }
    rare = sorted((number, label) for label, number in positive.items() if number < MIN_POSITIVE_PATIENTS)
    if not rare:
        return []
    shown = ", ".join(f"{label} {number}" for number, label in rare[:10])
    more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
    message = f"label:{name}: classes with fewer than {MIN_POSITIVE_PATIENTS} positive patients: {shown}{more}"
    return [Finding("note", "rare_class", message)]
