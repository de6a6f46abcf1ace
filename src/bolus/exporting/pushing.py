"""A folder that stands goes to the Hugging Face hub, or to what HF_ENDPOINT names."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id

from bolus.errors import BolusError, UsageError

_OF_CLIENT = cast(
    "type[Exception]", next((each for each in HfHubHTTPError.__mro__ if each.__name__ == "HTTPError"), HfHubHTTPError)
)
"""What the hub's client raises where there is no answer at all, whichever client that is."""


def check_name(name: str) -> None:
    """Raise UsageError for what cannot be a repository.

    >>> check_name("a/b/c")
    Traceback (most recent call last):
    bolus.errors.UsageError: push: expected OWNER/NAME, found 'a/b/c'
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"push: expected OWNER/NAME, found {name!r}") from error


def push_folder(folder: Path, name: str) -> str:
    """Upload an export; the repository is made where it is not there, and is private then.

    Args:
        folder: of the export.
        name: `OWNER/NAME`.

    Returns:
        Where it lies, as the hub says.

    Raises:
        BolusError: the hub cannot be reached, HF_HUB_OFFLINE is set, or it refuses; the folder stays.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        found = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by bolus")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, _OF_CLIENT) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise BolusError(f"{folder} is written, and was not pushed to {name}: {reason}") from error
    return str(found.repo_url)
