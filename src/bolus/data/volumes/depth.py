"""Whether what a table lists are volumes: stacks of slices so deep that a network sees depth in them."""

from __future__ import annotations

import numpy as np

from bolus.data.cohort.cohort import Cohort, Samples
from bolus.data.images.clips import open_samples, rows_are_files
from bolus.data.readers.own import open_readers
from bolus.data.volumes.geometry import Geometry, sample_geometry
from bolus.data.volumes.reading import kind_of
from bolus.errors import BolusError, CohortError

DEEP = 16  # slices of a volume, in the median, from which a cohort is one of volumes
LOOKED = 8  # volumes whose headers are read to decide it
TOMOGRAPHIC = frozenset({"CT", "MR", "MRI", "PT", "PET"})  # modalities of which images in order are slices in space


def why_volumes(cohort: Cohort) -> str:
    """Why the samples of a cohort are taken for volumes, in a sentence; empty where they are not.

    They are if each row is a slice of a series of CT, MR or PT, of which the median has 16 slices or more, or a NIfTI
    file, of which the median has 16 voxels or more along each axis; if the headers of most of a few say that their
    voxels make a grid; and if no mask says that slices are what is asked for.

    Args:
        cohort: whose table; of 8 volumes at most, the headers of files are read.

    Example:
        >>> import pandas as pd
        >>> from bolus.data.cohort.spec import CohortSpec
        >>> frame = pd.DataFrame({"image": ["a", "b"], "patient": ["p", "q"]})
        >>> why_volumes(Cohort(frame, CohortSpec(table="t.csv")))
        ''
    """
    if "mask" in cohort.roles and not cohort.absent("mask").all():
        return ""
    files = rows_are_files(cohort)
    if not files and not _are_slices(cohort):
        return ""
    try:
        samples = open_samples(cohort, "volume")
    except CohortError:
        return ""
    picked = few(len(samples), LOOKED)
    if files and 2 * sum(_is_nifti(samples, position) for position in picked) <= len(picked):
        return ""
    if not files and np.median(samples.num_rows) < DEEP:
        return ""
    found = look_at_volumes(samples, LOOKED)
    laid = [each for each in found if isinstance(each, Geometry)]
    if 2 * len(laid) <= len(found):
        return ""
    if files:
        depth = np.median([min(each.shape) for each in laid])
        return f"A row is a NIfTI file, of {depth:.0f} slices or more in the median." if depth >= DEEP else ""
    return (
        f"Rows are slices of CT, MR or PT, {np.median(samples.num_rows):.0f} a volume in the median, and no masks say "
        "that they are asked for one by one."
    )


def look_at_volumes(samples: Samples, most: int) -> list[Geometry | BolusError]:
    """The grids of some volumes, evenly picked, or why one cannot be laid.

    Args:
        samples: volumes.
        most: of them.
    """
    found: list[Geometry | BolusError] = []
    readers = open_readers(samples.cohort.spec.readers)
    for position in few(len(samples), most):
        try:
            found.append(sample_geometry(samples, position, readers))
        except BolusError as error:
            found.append(error)
    return found


def few(number: int, most: int) -> list[int]:
    """Some of so many, evenly picked.

    >>> few(10, 3), few(2, 3)
    ([0, 4, 9], [0, 1])
    """
    picked: list[int] = np.unique(np.linspace(0, number - 1, most).astype(int)).tolist() if number else []
    return picked


def _are_slices(cohort: Cohort) -> bool:
    """Whether every row has a place in a series of CT, MR or PT."""
    if not {"series", "order"} <= set(cohort.roles) or not {each.upper() for each in cohort.modalities} <= TOMOGRAPHIC:
        return False
    return not np.isnan(cohort.encoded("order")).any() and bool((cohort.encoded("series") >= 0).all())


def _is_nifti(samples: Samples, position: int) -> bool:
    """Whether a row is a NIfTI file, by its content."""
    cohort = samples.cohort
    try:
        return (
            kind_of([cohort.image_path(int(samples.first_row[position]))], open_readers(cohort.spec.readers)) == "NIfTI"
        )
    except BolusError:
        return False
