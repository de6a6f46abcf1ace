"""Single files of a transformers folder or of a repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from bolus.files import load_json


def find_file(name: str, file: str) -> Path | None:
    """Where a file of a folder or hub name is on this machine, fetched if need be; None where there is none.

    >>> find_file(".", "config.json") is None
    True
    """
    found = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if found is None else Path(found)


def read_json(name: str, file: str) -> dict[str, Any]:
    """A file of JSON of a folder or hub name; empty where there is none.

    Raises:
        ValueError: it is not a JSON object.

    >>> read_json(".", "config.json")
    {}
    """
    path = find_file(name, file)
    if path is None:
        return {}
    found = load_json(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, found {type(found).__name__}")  # noqa: TRY004
    return found


def stated_config(name: str) -> dict[str, Any]:
    """The `config.json` of a folder or hub name, of transformers or of timm; empty where none can be read."""
    try:
        return read_json(name, "config.json")
    except ValueError:
        return {}
