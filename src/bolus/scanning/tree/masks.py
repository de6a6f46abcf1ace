"""Masks that lie in a tree beside their images: `images/a.png` and `masks/a.png`, or `a.png` and `a_mask.png`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bolus.scanning.files import LeftOut
from bolus.scanning.tree.pattern import relative, split_extension
from bolus.scanning.volumes import Volume, lies_on

ORPHANS = "files named like masks, of which no image or several have the rest of their name"
OFF_GRID = "masks on other voxels than their image"
LOSSY = "masks as JPEG or video, which change labels at their edges"

_MASKS = frozenset(
    (*("mask", "masks", "seg", "segs", "segmentation", "segmentations", "labelmap", "labelmaps", "dseg", "roi"),
     *("gt", "groundtruth", "annotation", "annotations"))
)  # fmt: skip
_IMAGES = frozenset(("image", "images", "img", "imgs", "imagestr", "imagests"))
_LABELS = frozenset(("label", "labels", "labelstr", "labelsts"))  # masks where a folder of images stands beside it
_CHANNEL = re.compile(r"_0000$")  # of the first channel, as nnU-Net names it
_CUT = re.compile(r"([_\-. ])")


def find_masks(
    paths: Sequence[Path], root: Path, kinds: Mapping[Path, str], volumes: Mapping[Path, Volume], left_out: LeftOut
) -> tuple[list[Path], dict[Path, Path], list[str]]:
    """Which files are images, the mask of each that has one, and what is said of it.

    A file is a mask if a word of its path is one for masks, and the path without such words is that of one image.
    Where this is so of no file, all are images.

    Args:
        paths: of files that can be read.
        root: of the tree.
        kinds: of files, by their first bytes.
        volumes: headers of those that are NIfTI.
        left_out: takes masks that cannot be used.

    Example:
        >>> names = [Path(name) for name in ("images/a.png", "images/b.png", "masks/a.png")]
        >>> images, masks, _ = find_masks(names, Path(), dict.fromkeys(names, "PNG"), {}, LeftOut(list))
        >>> [path.as_posix() for path in images], {a.as_posix(): b.as_posix() for a, b in masks.items()}
        (['images/a.png', 'images/b.png'], {'images/a.png': 'masks/a.png'})
    """
    folders = {part.lower() for path in paths for part in path.relative_to(root).parts[:-1]}
    words = _MASKS | _LABELS if folders & _IMAGES else _MASKS
    named = [path for path in paths if _words(relative(path, root)) & words]
    apart = set(named)
    images = [path for path in paths if path not in apart]
    by_key: dict[str, list[Path]] = {}
    for path in images:
        for key in {_key(relative(path, root), words, cut) for cut in (False, True)}:
            by_key.setdefault(key, []).append(path)
    pairs: dict[Path, Path] = {}
    orphans: list[Path] = []
    for path in named:
        fitting = by_key.get(_key(relative(path, root), words, False), [])
        if len(fitting) != 1 or fitting[0] in pairs:
            orphans.append(path)
        else:
            pairs[fitting[0]] = path
    if not pairs:
        return list(paths), {}, []
    left_out[ORPHANS] += orphans
    for image, mask in list(pairs.items()):
        if kinds[mask] in {"JPEG", "video"}:
            reason = LOSSY
        elif (image in volumes) != (mask in volumes) or (
            image in volumes and not lies_on(volumes[mask], volumes[image])
        ):
            reason = OFF_GRID
        else:
            continue
        left_out[reason].append(mask)
        del pairs[image]
    for reason in [reason for reason, held in left_out.items() if not held]:
        del left_out[reason]
    return images, pairs, [f"Masks: {len(pairs):,} of {len(images):,} images have one, by their names."]


def _words(path: str) -> set[str]:
    return {word.lower() for word in re.split(r"[/_\-. ]", split_extension(path)[0])}


def _key(path: str, words: frozenset[str], cut: bool) -> str:
    """A path without the words for masks and images; of an image, also without its first channel."""
    stem = split_extension(path)[0]
    if cut:
        stem = _CHANNEL.sub("", stem)
    kept = []
    for part in stem.lower().split("/"):
        left = [piece for piece in _CUT.split(part)[::2] if piece not in words | _IMAGES]
        kept.append("_".join(filter(None, left)))
    return "/".join(filter(None, kept))
