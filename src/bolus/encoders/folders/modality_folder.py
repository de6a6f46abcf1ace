"""The folder of encoders per modality: `encoders.json` and, for each modality, an encoder folder that opens alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bolus.data.copies.seen import SeenImages, load_seen
from bolus.data.images.preprocessing import Preprocessing, join_contracts
from bolus.encoders.backbone import Encoder
from bolus.encoders.folders.folder import lineage_of, load_encoder, save_encoder, stated_weights
from bolus.encoders.modalities import ModalityEncoders, part_folders
from bolus.errors import EncoderError
from bolus.files import load_json, write_json

DESCRIPTION = "encoders.json"
FORMAT = 1  # of encoders.json


def save_encoders(
    encoder: Encoder | ModalityEncoders,
    folder: Path,
    contract: Preprocessing,
    *,
    card: Callable[[str | None], str],
    lineage: Sequence[Mapping[str, Any]],
    seen: Mapping[str, SeenImages] | None = None,
) -> None:
    """Write one encoder as `save_encoder` does; or those of modalities, a folder each, and `encoders.json` last.

    The description holds the digests of the weights it was written for, so that a folder that was interrupted, or put
    together from two, is refused.

    Args:
        encoder: saved as it is.
        folder: made where it is missing.
        contract: how images become inputs, with the ranges and contracts of all modalities.
        card: modality -> Markdown for its encoder; None: of the one encoder.
        lineage: as for `save_encoder`; each encoder's, since all were trained together.
        seen: likewise.
    """
    if isinstance(encoder, Encoder):
        save_encoder(encoder, folder, preprocessing=contract.to_json(), card=card(None), lineage=lineage, seen=seen)
        return
    parts = {}
    for name, part in part_folders(encoder.names).items():
        own = contract.of(name)
        ranges = {key: value for key, value in own.ranges.items() if key == name}
        own = replace(own, ranges=ranges, stated=tuple(key for key in own.stated if key == name))
        about: dict[str, Any] = {"preprocessing": own.to_json(), "card": card(name), "lineage": lineage, "seen": seen}
        save_encoder(encoder.of(name), folder / part, **about)
        parts[name] = {"folder": part, "weights": stated_weights(folder / part)}
    write_json(folder / DESCRIPTION, {"format": FORMAT, "modalities": parts})


def is_modality_folder(folder: Path) -> bool:
    """Whether a folder holds encoders per modality, as `save_encoders` wrote them."""
    return (Path(folder) / DESCRIPTION).is_file()


def load_encoders(
    folder: Path, *, keep_context: bool = True
) -> tuple[ModalityEncoders, Preprocessing, list[dict[str, Any]]]:
    """Encoders of all modalities in evaluation mode, the contract of them all, and whom they were trained on.

    Args:
        folder: that `save_encoders` wrote for several modalities; no network is used.
        keep_context: as for `load_encoder`.

    Raises:
        EncoderError: no such folder, a damaged one, one of a later format, or encoders that are not those that the
            description was written for.
    """
    encoders, contracts, lineage = dict[str, Encoder](), dict[str, Preprocessing](), list[dict[str, Any]]()
    for name, (part, weights) in _read_parts(folder).items():
        if stated_weights(part) != weights:
            raise EncoderError(f"{part}: not the encoder that {folder / DESCRIPTION} was written for")
        encoders[name], contract = load_encoder(part, keep_context=keep_context)
        contracts[name] = Preprocessing(**contract)
        lineage += [each for each in lineage_of(part) if each not in lineage]
    return ModalityEncoders(encoders).eval(), join_contracts(contracts), lineage


def seen_by(folder: Path) -> dict[str, SeenImages]:
    """The images that an encoder, or those of modalities, were trained on; empty where that is not written down.

    Raises:
        EncoderError: as `bolus.data.copies.seen.load_seen`.
    """
    found = load_seen(folder)
    for part, _ in _read_parts(folder).values() if is_modality_folder(folder) else ():
        found |= load_seen(part)
    return found


def _read_parts(folder: Path) -> dict[str, tuple[Path, str]]:
    """Modality -> its folder and the digest of its weights."""
    path = folder / DESCRIPTION
    try:
        description = load_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(f"expected {DESCRIPTION} in {folder}, found none") from error
    except ValueError as error:
        raise EncoderError(f"{path}: not JSON: {error}") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise EncoderError(f"{path}: expected format {FORMAT}, found {found}")
    try:
        parts = {
            name: (folder / Path(each["folder"]).name, each["weights"])
            for name, each in dict(description["modalities"]).items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"{path}: expected modalities with folder and weights") from error
    if not parts:
        raise EncoderError(f"{path}: expected at least one modality, found none")
    return parts
