"""Keys in files of their own: that of the site, under which runs hash their training patients, and those of scans.

A key lies in no folder that is given away. What is given away names it by its fingerprint, which leads nowhere: a key
that bolus made is 32 random bytes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bolus.errors import UsageError

VARIABLE = "BOLUS_KEY"
"""The environment variable that names a key file."""
_FEWEST = 16  # characters of a key
_MOST = 4096  # bytes of a file that may be one


@dataclass(frozen=True)
class SiteKey:
    """The secret under which training patients are hashed.

    Args:
        path: of its file.
        secret: 32 bytes.
        made: whether the file was made just now.

    Example:
        >>> SiteKey(Path("k"), b"0" * 32).fingerprint
        'fff5a7c0a16197e2'
    """

    path: Path
    secret: bytes = field(repr=False)
    made: bool = False

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell this key from others."""
        return fingerprint_of(self.secret)


def fingerprint_of(secret: bytes) -> str:
    """What files say of a key."""
    return hashlib.blake2b(secret, digest_size=8, person=b"bolus.fingerprnt").hexdigest()


def keys_folder() -> Path:
    """Where keys lie that were given no place of their own, in the user's configuration.

    Raises:
        UsageError: this user has no home folder.
    """
    try:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError as error:
        raise UsageError(f"there is no home folder to keep a key in; set {VARIABLE} to a file for it") from error
    return home / "bolus" / "keys"


def site_key_path() -> Path:
    """The file of the site's key: the one that `BOLUS_KEY` names, else `site` in the folder of keys."""
    stated = os.environ.get(VARIABLE)
    return Path(stated).expanduser() if stated else keys_folder() / "site"


def open_site_key(outside: Path | None = None) -> SiteKey:
    """The site's key, made at its first use.

    Args:
        outside: a folder that is written now, which the key must not lie in.

    Raises:
        UsageError: as `read_secret`.
    """
    path = site_key_path()
    secret, made = read_secret(path, outside=outside, ways=f"set {VARIABLE} to another file")
    return SiteKey(path, secret, made)


def find_secret(fingerprint: str) -> bytes | None:
    """The secret of a fingerprint: the site's, or another that lies in the folder of keys; None where it is not here.

    No fingerprint stands for no secret, as in files of earlier versions: empty bytes.

    Raises:
        UsageError: others can read the site's key, or it is none.

    >>> find_secret(""), find_secret("00000000")
    (b'', None)
    """
    if not fingerprint:
        return b""
    own, others = site_key_path(), list[Path]()
    if own.exists() and fingerprint_of(secret := read_secret(own)[0]) == fingerprint:
        return secret
    with suppress(OSError, UsageError):
        others = sorted(path for path in keys_folder().iterdir() if path.is_file() and path.stat().st_size <= _MOST)
    for path in others:
        with suppress(OSError, UsageError):
            if fingerprint_of(secret := read_secret(path)[0]) == fingerprint:
                return secret
    return None


def say_absent(fingerprint: str) -> str:
    """Why nothing can be compared with hashes under a key that is not here, and what helps, after a subject.

    >>> say_absent("fff5a7c0a16197e2")
    'hashed with the key fff5a7c0a16197e2, which is not here; ask ... and set BOLUS_KEY to it, or compare where it lies'
    """
    return (
        f"hashed with the key {fingerprint}, which is not here; ask who trained for that key file and set {VARIABLE} "
        "to it, or compare where it lies"
    )


def read_secret(path: Path, *, outside: Path | None = None, ways: str = "") -> tuple[bytes, bool]:
    """32 bytes that follow from a key file, which is made where there is none, and whether it was.

    Args:
        path: of the file, readable by its owner only.
        outside: a folder that it must not lie in; folders with a point before their name are no part of it, as
            `~/.config` is none of what is written to a home folder.
        ways: how another place is named, for messages.

    Raises:
        UsageError: the key would be given away, cannot be made or read, can be read by others, or is none.
    """
    path = path.expanduser().absolute()
    ways = ways or f"set {VARIABLE} to another file"
    if outside is not None and _lies_in(path.resolve(), outside.absolute().resolve()):
        raise UsageError(f"the key lies in the folder of the output, with which it would be given away; {ways}")
    made = False
    try:
        if not path.exists():
            made = _make(path)
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise UsageError(f"the key {path} can be read by others; chmod 600 it")
        text = path.read_bytes().strip()
    except OSError as error:
        why = os.strerror(error.errno) if error.errno is not None else type(error).__name__
        raise UsageError(f"the key {path} cannot be {'read' if path.exists() else 'made'}: {why}; {ways}") from error
    if len(text) < _FEWEST:
        raise UsageError(f"the key {path}: expected at least {_FEWEST} characters, found {len(text)}")
    return hashlib.blake2b(text, digest_size=32).digest(), made


def _lies_in(path: Path, folder: Path) -> bool:
    if not path.is_relative_to(folder):
        return False
    return not any(part.startswith(".") for part in path.relative_to(folder).parts[:-1])


def _make(path: Path) -> bool:
    """Write a key whole, where no other process has just done so; whether it is this one's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(temporary, path)  # unlike a renaming, never over a file that is there
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            temporary.rename(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)
