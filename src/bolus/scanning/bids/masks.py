"""Masks of a BIDS data set: which image each belongs to, and which kind of them is taken.

A mask belongs to the images of its subject, session, run and the like, by the entities of its name, that its sidecar
names as its sources or its entity `space` as what it was drawn on, and on whose voxels it lies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bolus.errors import CohortError
from bolus.scanning.bids.names import Name
from bolus.scanning.bids.sidecars import Keys
from bolus.scanning.files import LeftOut
from bolus.scanning.volumes import Volume, lies_on

SUFFIXES = frozenset({"mask", "dseg", "roi"})
NO_IMAGE = "masks without an image of their subject, session and run"
OFF_GRID = "masks on other voxels than their image, such as those of a standard space"
OTHER = "masks of another kind than the one that was taken"
SECOND = "masks of an image that has one of this kind already"
# Entities that derivatives add, which their image does not have.
_ADDED = frozenset({"space", "desc", "label", "res", "den", "seg", "atlas", "tpl", "cohort", "hemi"})
_ON_ITSELF = frozenset({"", "orig", "native", "individual", "scanner"})


@dataclass(frozen=True)
class Mask:
    """A mask file.

    Args:
        path: of the file.
        name: its parts.
        kind: where it comes from and what it shows, such as `lesions label-lesion_mask`; no identifier.
        sources: names of the files that its sidecar says it was made from.
    """

    path: Path
    name: Name
    kind: str
    sources: frozenset[str]


def describe_mask(path: Path, root: Path, name: Name, keys: Keys) -> Mask:
    """A mask with its kind and sources.

    Args:
        path: of the file.
        root: of the data set.
        name: its parts.
        keys: of its sidecars.
    """
    place = path.relative_to(root).parts
    pipeline = place[1] if place[0] == "derivatives" and len(place) > 2 and not place[1].startswith("sub-") else ""
    said = [f"{key}-{name.entities[key]}" for key in ("seg", "atlas", "label", "desc") if key in name.entities]
    kind = " ".join(filter(None, (pipeline, "_".join([*said, name.suffix]))))
    sources: list[str] = []
    for key in ("Sources", "RawSources"):
        given = keys.get(key)
        listed = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        sources += [PurePosixPath(str(each).rpartition(":")[2]).name for each in listed]
    return Mask(path, name, kind, frozenset(sources))


def match_masks(
    masks: Iterable[Mask],
    images: Mapping[Path, Name],
    volumes: Mapping[Path, Volume],
    left_out: LeftOut,
) -> dict[str, dict[Path, Path]]:
    """Kind -> image -> mask. A mask may belong to several images of one session, such as T1w and FLAIR.

    Args:
        masks: whose headers were read.
        images: with their names; a mask is one of none of them.
        volumes: headers of images and masks that are NIfTI; other files are taken to lie on each other.
        left_out: takes masks that belong to no image.
    """
    near: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path, name in images.items():
        near[_session(name)].append(path)
    found: dict[str, dict[Path, Path]] = defaultdict(dict)
    for mask in masks:
        fitting = _fitting(mask, near.get(_session(mask.name), []), images)
        if not fitting:
            left_out[NO_IMAGE].append(mask.path)
            continue
        beside = [path for path in fitting if _on(mask.path, path, volumes)]
        if not beside:
            left_out[OFF_GRID].append(mask.path)
            continue
        free = [path for path in beside if path not in found[mask.kind]]
        found[mask.kind].update(dict.fromkeys(free, mask.path))
        if not free:
            left_out[SECOND].append(mask.path)
    return {kind: pairs for kind, pairs in found.items() if pairs}


def choose_kind(kinds: Mapping[str, Mapping[Path, Path]], wanted: str | None) -> str | None:
    """The kind whose name holds what a person asks for; else the one of the most images, brain masks last.

    Raises:
        CohortError: no kind holds it.

    Example:
        >>> a, b = {Path("a"): Path("m")}, {Path("a"): Path("m"), Path("b"): Path("n")}
        >>> choose_kind({"label-lesion_mask": a, "desc-brain_mask": b}, None)
        'label-lesion_mask'
    """
    held = [kind for kind in kinds if wanted is None or wanted.lower() in kind.lower()]
    if wanted is not None and not held:
        raise CohortError(
            f"no mask that lies on an image is of a kind with {wanted!r} in it; there are: {list_kinds(kinds)}"
        )
    rank = Counter({kind: len(kinds[kind]) for kind in held})
    return min(held, key=lambda kind: ("brain" in kind.lower(), -rank[kind], "dseg" not in kind, kind), default=None)


def list_kinds(kinds: Mapping[str, Mapping[Path, Path]]) -> str:
    """The kinds with their numbers of images, the most first."""
    ranked = sorted(kinds, key=lambda kind: (-len(kinds[kind]), kind))
    return ", ".join(f"{kind} ({len(kinds[kind]):,} images)" for kind in ranked) or "none"


def _session(name: Name) -> tuple[str, str]:
    return name.entities.get("sub", ""), name.entities.get("ses", "")


def _fitting(mask: Mask, near: Sequence[Path], images: Mapping[Path, Name]) -> list[Path]:
    """Images that the mask may belong to by names alone."""
    named = [path for path in near if path.name in mask.sources]
    if named:
        return named
    own = {key: label for key, label in mask.name.entities.items() if key not in _ADDED}
    fitting = [path for path in near if own.items() <= images[path].entities.items()]
    exact = [path for path in fitting if own.items() == images[path].entities.items()]
    fitting = exact or fitting
    space = mask.name.entities.get("space", "").lower()
    if space not in _ON_ITSELF:
        drawn_on = [path for path in fitting if images[path].suffix.lower() == space]
        return drawn_on or fitting  # a standard space: the voxels will say that it does not lie on the image
    return fitting


def _on(mask: Path, image: Path, volumes: Mapping[Path, Volume]) -> bool:
    if mask in volumes and image in volumes:
        return lies_on(volumes[mask], volumes[image])
    return mask not in volumes and image not in volumes
