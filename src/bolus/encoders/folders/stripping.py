"""An encoder folder without what leads to the patients that it was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays

from bolus.checksums import find_damage, with_checksums, without_checksums
from bolus.data.copies.seen import FILE as SEEN
from bolus.encoders.building import is_public
from bolus.encoders.folders.folder import CARD, DESCRIPTION, WEIGHTS
from bolus.encoders.folders.modality_folder import DESCRIPTION as OF_MODALITIES
from bolus.errors import EncoderError, UsageError
from bolus.files import check_new, making, replacing, save_tensors, write_json, write_text

HEAD, DECODER = "head.safetensors", "decoder.safetensors"
HIDDEN = "the encoder of a folder"  # what stands for a path
KNOWN = (WEIGHTS, DESCRIPTION, OF_MODALITIES, CARD, SEEN, HEAD, DECODER)
"""Files of an encoder folder; what else lies there is not copied."""


@dataclass(frozen=True)
class Private:
    """A part of an encoder folder that leads to patients, or to others by a path.

    Args:
        what: it is, in words.
        lost: what nobody can tell any more without it, in words.
        file: that it is in.
        take: takes it out of that file, or the file away; whether there was any.
    """

    what: str
    lost: str
    file: str
    take: Callable[[Path], bool]


def _take_lineage(path: Path) -> bool:
    description = json.loads(path.read_text(encoding="utf-8"))
    if not description.get("lineage"):
        return False
    write_json(path, {**description, "lineage": []})
    return True


def _take_start(path: Path) -> bool:
    description = json.loads(path.read_text(encoding="utf-8"))
    if is_public(name := description["spec"]["backbone"]) or name == HIDDEN:
        return False
    write_json(path, {**description, "spec": {**description["spec"], "backbone": HIDDEN}})
    return True


def _take_start_of_card(path: Path) -> bool:
    """Of the card beside a description, before the description forgets it."""
    name = json.loads((path.parent / DESCRIPTION).read_text(encoding="utf-8"))["spec"]["backbone"]
    text = path.read_text(encoding="utf-8")
    if is_public(name) or name == HIDDEN or name not in text:
        return False
    write_text(path, text.replace(name, HIDDEN))
    return True


def _take_patients(path: Path) -> bool:
    """Of a head or a segmenter, whose notes are the header of their file."""
    with safe_open(path, framework="numpy") as file:
        header: dict[str, str] = dict(file.metadata() or {})
    arrays, found = load_arrays(path), False
    for name, text in header.items():
        notes: Any = json.loads(text) if text.startswith("{") else None
        if not isinstance(notes, dict):
            continue
        names = [key for key in ("patients", "keys") if notes.get(key)]
        found = found or bool(names)
        if names:
            if damaged := find_damage(notes, arrays):
                raise EncoderError(f"{path} is damaged: its checksum differs ({', '.join(damaged)})")
            facts = {**without_checksums(notes), **{key: [] for key in names}, "salt": "", "key": ""}
            header[name] = json.dumps(with_checksums(facts, arrays), allow_nan=False)
    if found:
        with replacing(path) as temporary:
            save_tensors(temporary, arrays, header)
    return found


def _take_file(path: Path) -> bool:
    path.unlink()
    return True


PRIVATE = (
    Private(
        "keyed hashes of the training patients", "whether test patients were trained on", DESCRIPTION, _take_lineage
    ),
    Private(
        "keyed bits of the training images",
        "whether test images are training images under other names",
        SEEN,
        _take_file,
    ),
    Private("keyed hashes of the patients of the head", "whom the head was fitted on", HEAD, _take_patients),
    Private("keyed hashes of the patients of the decoder", "whose masks it has learnt", DECODER, _take_patients),
    Private("the path of the folder that it began from", "which folder it began from", CARD, _take_start_of_card),
    Private("the path of the folder that it began from", "which folder it began from", DESCRIPTION, _take_start),
)
"""Everything in an encoder folder that leads to people: what is added to a folder is added here."""


@dataclass(frozen=True)
class Stripped:
    """What `strip` did.

    Args:
        folder: without private parts.
        taken: what was taken out, in words.
        lost: what nobody can tell any more, in words.
        left: how many files are no part of an encoder: not copied, or, in place, left as they are.
    """

    folder: Path
    taken: tuple[str, ...]
    lost: tuple[str, ...]
    left: int


def strip(source: str | Path, out: str | Path | None = None) -> Stripped:
    """Take out of an encoder folder what leads to the patients that it was trained on; weights stay bit for bit.

    Args:
        source: an encoder folder, one with encoders of several modalities, or, with `out`, a run, whose encoder it is.
        out: a folder to make, with what belongs to an encoder and nothing else; None: the folder itself is changed.

    Raises:
        EncoderError: no encoder folder, or a damaged one.
        UsageError: a run without `out`, for a run keeps what it knows; or a folder `out` that is not empty.

    Example:
        >>> strip("/nowhere")
        Traceback (most recent call last):
        bolus.errors.EncoderError: expected an encoder folder with encoder.json, found none in /nowhere
    """
    folder = Path(source)
    if (folder / "run.json").is_file():
        if out is None:
            raise UsageError(f"{folder} is a run, which keeps what it knows; name a folder for its encoder with -o")
        folder = folder / "encoder"
    described = folder.glob(f"*/{DESCRIPTION}") if (folder / OF_MODALITIES).is_file() else [folder / DESCRIPTION]
    parts = sorted(path.parent for path in described if path.is_file())
    if not parts:
        raise EncoderError(f"expected an encoder folder with {DESCRIPTION}, found none in {folder}")
    places = {folder, *parts}
    others = {path for place in places for path in place.iterdir() if path.name not in KNOWN} - places
    if out is None:
        taken = _strip(parts)
    else:
        check_new(Path(out))
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with making(Path(out)) as made:
            for place in sorted(places):
                target = made / place.relative_to(folder)
                target.mkdir(exist_ok=True)
                for path in (place / name for name in KNOWN if (place / name).is_file()):
                    shutil.copyfile(path, target / path.name)
            taken = _strip([made / part.relative_to(folder) for part in parts])
    what, lost = (tuple(dict.fromkeys(words)) for words in ([p.what for p in taken], [p.lost for p in taken]))
    return Stripped(folder if out is None else Path(out), what, lost, len(others))


def _strip(parts: list[Path]) -> list[Private]:
    """Take every private part out of these folders; those that were there."""
    taken = []
    for folder in parts:
        for private in PRIVATE:
            path = folder / private.file
            try:
                if path.is_file() and private.take(path):
                    taken.append(private)
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise EncoderError(f"{path}: damaged, so that nothing can be taken out of it") from error
            except Exception as error:  # safetensors' own error derives from Exception alone
                if type(error).__name__ != "SafetensorError":
                    raise
                raise EncoderError(f"{path}: damaged, so that nothing can be taken out of it") from error
    return taken
