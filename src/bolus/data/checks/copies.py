"""What a check says of images that stand on several rows: copies pixel for pixel, and near copies across patients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bolus.data.checks.ranges import count, numbers
from bolus.data.checks.report import Finding, Severity
from bolus.data.cohort.cohort import Cohort
from bolus.data.copies.near import NearCopies, find_near_copies


def look_at_copies(cohort: Cohort, seen: pd.DataFrame, kinds: npt.NDArray[np.str_]) -> list[Finding]:
    """Exact copies, then near copies of images of different patients; errors where they cross the split.

    Args:
        cohort: whose rows.
        seen: one line an image, with `row`, `quantiles`, `digest` and `thumbnail`; see `bolus.data.checks.pixels`.
        kinds: `[images]`, the modality of each; near copies are sought within one.
    """
    findings = _exact(cohort, seen)
    for kind in np.unique(kinds).tolist():
        findings += _near(cohort, seen[kinds == kind])
    return findings


def _exact(cohort: Cohort, seen: pd.DataFrame) -> list[Finding]:
    """Images of equal pixels; those of one value are not copies of one another but empty."""
    several = [quantiles[0] < quantiles[-1] for quantiles in seen["quantiles"]]
    frame = seen.loc[several, ["row", "digest"]]
    frame = frame[frame["digest"].duplicated(keep=False)]
    frame = frame.assign(patient=cohort.encoded("patient")[frame["row"]], side=cohort.split[frame["row"]])
    counts = frame.groupby("digest")[["patient", "side"]].transform("nunique")
    across, torn = (counts["patient"] > 1).to_numpy(), (counts["side"] > 1).to_numpy()
    kinds: list[tuple[Severity, str, npt.NDArray[np.bool_], str]] = [
        (
            "error",
            "duplicate_across_splits",
            across & torn,
            "different patients on different sides of the split: leakage",
        ),
        ("warning", "duplicate_across_patients", across & ~torn, "different patients"),
        ("warning", "duplicate_within_patient", ~across, "one patient"),
    ]
    findings = []
    for severity, kind, here, whose in kinds:
        if here.any():
            groups, rows = frame["digest"][here].nunique(), numbers(frame["row"][here])
            message = f"{len(rows)} images are exact copies in {count(groups, 'group', 'groups')}, of {whose}"
            findings.append(Finding(severity, kind, message, rows))
    return findings


def _near(cohort: Cohort, seen: pd.DataFrame) -> list[Finding]:
    """Images of different patients that show the same; those that are exact copies are said already."""
    rows = seen["row"].to_numpy()
    whose, side = cohort.encoded("patient")[rows], cohort.split[rows]
    found = find_near_copies(np.stack(seen["thumbnail"].tolist()), whose)
    digest = pd.factorize(seen["digest"])[0]
    new = digest[found.pairs[:, 0]] != digest[found.pairs[:, 1]]
    torn = side[found.pairs[:, 0]] != side[found.pairs[:, 1]]
    kinds: list[tuple[Severity, str, npt.NDArray[np.bool_], str]] = [
        ("error", "near_copy_across_splits", new & torn, "different patients on different sides of the split: leakage"),
        ("warning", "near_copy_across_patients", new & ~torn, "different patients"),
    ]
    return [
        Finding(severity, kind, _in_words(found, here, rows, whose), numbers(np.unique(rows[found.pairs[here]])))
        for severity, kind, here, whose in kinds
        if here.any()
    ]


def _in_words(found: NearCopies, here: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], whose: str) -> str:
    pairs = found.pairs[here]
    images, places = np.unique(pairs, return_inverse=True)
    ends = places.reshape(-1, 2).T
    links = coo_array((np.ones(len(pairs)), (ends[0], ends[1])), shape=(len(images), len(images)))
    groups = range(connected_components(links, directed=False)[0])
    first, second = (rows[pairs[0]] + 1).tolist()
    below = "" if np.isnan(found.strangers) else f", where no others exceed {found.strangers:.2f}"
    return (
        f"{len(images)} images are near copies in {count(groups, 'group', 'groups')}, of {whose}: the same but for "
        f"size, coding, mirror, crop or grey, such as rows {first} and {second}; look at them (likeness "
        f"{found.likeness[here].min():.2f} to {found.likeness[here].max():.2f}{below})"
    )
