"""The encoder folder: `model.safetensors`, `encoder.json`; `README.md` and `seen_images.safetensors` where they are.

An encoder is rebuilt from it without a network and without unpickling anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CONFIG_MAPPING

from bolus import __version__
from bolus.data.copies.seen import SeenImages, save_seen
from bolus.encoders.backbone import Encoder, seeded
from bolus.encoders.families.hub import is_named, make_backbone
from bolus.encoders.volumes.inflation import inflate_weights
from bolus.errors import EncoderError
from bolus.files import load_json, replacing, save_tensors, tensors_of, write_json, write_text
from bolus.recipe import EncoderSpec

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "encoder.json", "README.md"
CONTRACT = "contract.json"  # of an export
FORMAT = 1  # of encoder.json
OPTIONAL = ("context", "neck")  # parts that an encoder may or may not have, by module and by key of its spec


def save_encoder(
    encoder: Encoder,
    folder: Path,
    *,
    preprocessing: Mapping[str, Any],
    card: str = "",
    lineage: Sequence[Mapping[str, Any]] = (),
    seen: Mapping[str, SeenImages] | None = None,
) -> None:
    """Write an encoder folder that `load_encoder` reads back to the same outputs.

    Each file is written beside its place and then renamed; `encoder.json` comes last and holds the digest of the
    weights, so that a folder which was interrupted is refused and never half read.

    Args:
        encoder: saved as it is, in whichever mode.
        folder: made where it is missing; files of other names in it stay.
        preprocessing: JSON values, how an image becomes the encoder's input before it is in [0, 1].
        card: Markdown for `README.md`; none is written where it is empty.
        lineage: whom the weights were trained on, the encoder's own training first, then those of the encoders it was
            initialised from, each as `data.cohort.split.hash_patients` makes it: `salt`, `keys` of the patients, and
            the fingerprint of the site's `key`, which older ones lack. Then whoever has the folder can test a guessed
            identifier against the keys; else who also has the site's key.
        seen: the images of these trainings, by `data.copies.seen.name_of` their salts, for `seen_images.safetensors`.

    Raises:
        EncoderError: `preprocessing` is not JSON.
    """
    folder = Path(folder)
    spec = encoder.spec
    config = json.loads(encoder.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    description = {
        "format": FORMAT,
        "spec": spec.model_dump(mode="json"),
        "backbone_config": config,
        "input": {
            "range": [0.0, 1.0],
            "channels": spec.in_channels,
            "grey_repeated_to": encoder.num_channels if spec.in_channels < encoder.num_channels else None,
            "mean": spec.mean,
            "std": spec.std,
        },
        "preprocessing": dict(preprocessing),
        "lineage": [_training(each["salt"], sorted(each["keys"]), each.get("key", "")) for each in lineage],
        "versions": {"bolus": __version__, "torch": torch.__version__},
    }
    try:
        json.dumps(description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EncoderError(f"preprocessing: expected JSON values, found something else: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        save_tensors(temporary, tensors_of(encoder.state_dict()), {"format": "pt"})
    description["weights"] = _digest(folder / WEIGHTS)
    save_seen(seen or {}, folder)
    if card:
        write_text(folder / CARD, card)
    write_json(folder / DESCRIPTION, description)


def load_encoder(folder: Path, *, keep_context: bool = True) -> tuple[Encoder, dict[str, Any]]:
    """An encoder in evaluation mode and its preprocessing contract, from a run folder or one that `save_encoder` wrote.

    Args:
        folder: with `encoder.json` and `model.safetensors`, or a run, whose encoder it is; no network is used.
        keep_context: false leaves the context blocks out, as MLVICX's published evaluation does.

    Raises:
        EncoderError: no encoder folder, a damaged one, one of a later format, or encoders of several modalities.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file() and (folder / "encoder").is_dir():
        folder = folder / "encoder"
    parts = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
    if parts and not (folder / DESCRIPTION).is_file():
        raise EncoderError(
            f"{folder} holds an encoder for each of {len(parts)} modalities: load one of them, such as {parts[0]}"
        )
    description = _read_description(folder)
    try:
        spec = EncoderSpec.model_validate(description["spec"])
        preprocessing: dict[str, Any] = dict(description["preprocessing"])
        if not keep_context:
            spec = spec.model_copy(update={"context": False})
        with seeded(0):
            encoder = Encoder(spec, make_backbone(_config(description), str(folder)))
    except (ValidationError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{folder / DESCRIPTION}: not an encoder that this version of bolus knows: {error}"
        ) from error
    fill_encoder(encoder, folder, leave_out=() if keep_context else ("context",))
    return encoder.eval(), preprocessing


def lineage_of(folder: Path) -> list[dict[str, Any]]:
    """Whom an encoder folder's weights were trained on, as `save_encoder` was told; nothing where it is not known.

    Args:
        folder: with `encoder.json`, or an export with `contract.json`, which has a lineage where that was asked for;
            for anything else, such as a name on the hub, the answer is empty.

    Raises:
        EncoderError: a damaged description or contract, or a description of a later format.

    >>> lineage_of(Path("facebook/dinov2-small"))
    []
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if path.is_file():
        lineage = _read_description(folder).get("lineage", [])
    elif (path := folder / CONTRACT).is_file():
        try:
            contract = load_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EncoderError(f"{path}: not JSON: {error}") from error
        lineage = contract.get("lineage", []) if isinstance(contract, dict) else []
    else:
        return []
    try:
        return [
            _training(str(each["salt"]), [str(key) for key in each["keys"]], str(each.get("key", "")))
            for each in lineage
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise EncoderError(f"{path}: a lineage needs salt and keys") from error


def _training(salt: str, keys: list[str], key: str) -> dict[str, Any]:
    return {"salt": salt, **({"key": key} if key else {}), "keys": keys}


def stated_weights(folder: Path) -> str:
    """The digest of the weights that an encoder folder's description speaks of.

    Raises:
        EncoderError: no encoder folder, or one of a later format.
    """
    return str(_read_description(folder).get("weights"))


def is_encoder_folder(name: str) -> bool:
    """Whether a name is a folder that `save_encoder` wrote, and not a named configuration."""
    return not is_named(name) and (Path(name) / DESCRIPTION).is_file()


def read_config(folder: Path) -> Any:
    """The transformers configuration of the backbone in an encoder folder.

    Raises:
        EncoderError: no encoder folder, or one of a later format.
    """
    return _config(_read_description(folder))


def read_spec(folder: Path) -> EncoderSpec:
    """What was asked for when the encoder in a folder was built; keys of later versions have their defaults.

    Raises:
        EncoderError: no encoder folder, or one of a later format.
    """
    description = _read_description(folder)
    try:
        return EncoderSpec.model_validate(description["spec"])
    except (ValidationError, KeyError) as error:
        raise EncoderError(
            f"{folder / DESCRIPTION}: not an encoder that this version of bolus knows: {error}"
        ) from error


def fill_encoder(
    encoder: Encoder, folder: Path, *, leave_out: Collection[str] = (), may_lack: Collection[str] = ()
) -> None:
    """Load a folder's weights in place; every parameter and buffer must get one.

    Args:
        encoder: of the architecture that the folder describes, or its inflated twin.
        folder: that `save_encoder` wrote.
        leave_out: those of OPTIONAL that are not taken from the folder.
        may_lack: those of OPTIONAL that stay as the encoder has them where the folder has none.

    Raises:
        EncoderError: no weights, other ones than the description speaks of, or not those of this encoder.
    """
    state = {name: tensor for name, tensor in _read_weights(folder).items() if _part(name) not in leave_out}
    if encoder.spec.inflated:  # the folder's encoder may be of images
        state = inflate_weights(state, encoder.state_dict())
    stay = set(may_lack) - {_part(name) for name in state}
    theirs, ours = state.get("neck.weight"), encoder.spec.neck
    if theirs is not None and ours is not None and len(theirs) != ours:
        raise EncoderError(f"encoder.neck: expected {len(theirs)}, the width of the neck in {folder}; found {ours}")
    try:
        missing, unexpected = encoder.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise EncoderError(f"{folder}: weights of other shapes than {DESCRIPTION} says: {error}") from error
    missing = [name for name in missing if _part(name) not in stay]
    if missing or unexpected:
        raise EncoderError(f"{folder}: weights missing {missing[:3]}, weights of no use {unexpected[:3]}")


def _part(name: str) -> str:
    """The part of the encoder that a weight belongs to: `backbone`, or one of OPTIONAL."""
    return name.partition(".")[0]


def _config(description: Mapping[str, Any]) -> Any:
    values = dict(description["backbone_config"])
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = load_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        stopped = (folder / "run.json").is_file()
        why = ": training has not ended; go on with bolus pretrain ... --resume" if stopped else ""
        raise EncoderError(f"expected an encoder folder with {DESCRIPTION}, found none in {folder}{why}") from error
    except ValueError as error:
        raise EncoderError(f"{path}: not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise EncoderError(f"{path}: expected format {FORMAT}, found {found}")
    return description


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an encoder folder, once they are the ones that its description speaks of."""
    path, expected = folder / WEIGHTS, _read_description(folder).get("weights")
    if not path.is_file():
        raise EncoderError(f"expected {WEIGHTS} in {folder}, found none")
    if _digest(path) != expected:
        raise EncoderError(f"{path}: not the weights that {DESCRIPTION} was written for; the folder is damaged or torn")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise EncoderError(f"{path}: no safetensors file, which weights must be: {error}") from error
    return tensors


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
