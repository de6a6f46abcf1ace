"""Which files of a BIDS data set are images or masks, and why the others are neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bolus.data.images.sources import in_threads
from bolus.errors import BolusError
from bolus.scanning.bids.masks import SUFFIXES
from bolus.scanning.bids.names import DATATYPES, NO_IMAGES, Name, parse_name
from bolus.scanning.files import DAMAGED, SYSTEM, LeftOut, is_system, kinds_of
from bolus.scanning.volumes import Volume, read_volume

IMAGES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ome.tif", ".ome.tiff")
TEXTS = frozenset({"", ".json", ".tsv", ".tsv.gz", ".bval", ".bvec", ".txt", ".md", ".rst", ".html", ".svg", ".cff"})

TABLE = "tables and texts of the data set, which describe its images"
ASIDE = "files of sourcedata, code and stimuli, which BIDS does not describe"
DERIVED = "derived images (in derivatives), but for masks"
NOT_BIDS = "names that do not follow BIDS, or contradict their folder"
SIGNALS = "recordings that are no images (EEG, MEG, behaviour, motion, spectra and the like)"
FIELD_MAPS = "field maps"
PHASES = "phase, real and imaginary parts of images"
PROBABILITIES = "probabilities of a segmentation, and masks for defacing"
SERIES_4D = "several volumes in a file (4-D: functional, diffusion or dynamic series), which are not read yet"
FORMATS = "formats that are not read, such as surfaces, or NIfTI headers apart from their voxels"


def sort_files(root: Path, files: Sequence[Path], left_out: LeftOut) -> tuple[dict[Path, Name], dict[Path, Name]]:
    """Files that should be images, and those that should be masks, by their names and folders alone."""
    images: dict[Path, Name] = {}
    masks: dict[Path, Name] = {}
    for path in files:
        place, name = path.relative_to(root).parts, parse_name(path.name)
        reason = ""
        if is_system(path):
            reason = SYSTEM
        elif place[0] in {"sourcedata", "code", "stimuli"}:
            reason = ASIDE
        elif ("." + path.name.partition(".")[2] if "." in path.name else "") in TEXTS:
            reason = TABLE
        elif name is None or not _agrees(name, place):
            reason = NOT_BIDS if place[0] != "derivatives" else DERIVED
        elif name.suffix in SUFFIXES and name.extension in IMAGES:
            masks[path] = name
        else:
            reason = _why_no_image(name, place)
            if not reason:
                images[path] = name
        if reason:
            left_out[reason].append(path)
    return images, masks


def _agrees(name: Name, place: tuple[str, ...]) -> bool:
    """Whether a name has a subject, and the subject and session of the folders that the file lies in."""
    if "sub" not in name.entities:
        return False
    for folder in place[:-1]:
        key, dash, label = folder.partition("-")
        if dash and key in {"sub", "ses"} and name.entities.get(key) != label:
            return False
    return True


def _why_no_image(name: Name, place: tuple[str, ...]) -> str:
    datatype = place[-2] if len(place) > 1 else ""
    if place[0] == "derivatives":
        return DERIVED
    if datatype in NO_IMAGES:
        return SIGNALS
    if name.suffix in {"probseg", "defacemask"}:
        return PROBABILITIES
    if name.extension not in IMAGES:
        return FORMATS
    if datatype == "fmap":
        return FIELD_MAPS
    if name.entities.get("part") in {"phase", "real", "imag"}:
        return PHASES
    return "" if datatype in DATATYPES else NOT_BIDS


def open_files(names: Mapping[Path, Name], left_out: LeftOut) -> dict[Path, Volume | None]:
    """The header of each NIfTI file with one volume, None of another image; the rest is left out."""
    kinds = kinds_of(list(names), left_out)
    found: dict[Path, Volume | None] = {}

    def header(path: Path) -> Volume | str:
        try:
            return read_volume(path)
        except (BolusError, OSError):
            return DAMAGED

    packed = [path for path, kind in kinds.items() if kind == "NIfTI"]
    headers = dict(zip(packed, in_threads(header, packed), strict=True))
    for path in kinds:
        volume = headers.get(path)
        if isinstance(volume, str):
            left_out[volume].append(path)
        elif volume is not None and volume.times > 1:
            left_out[SERIES_4D].append(path)
        else:
            found[path] = volume
    return found
