"""The private side of a scan: a key outside the output folder, and beside it what must not leave the house.

With the key KEY lie KEY.ledger.json (keyed hashes of persons, and the first day of each), KEY.links (links to the
images), KEY.masks (made of segmentations), KEY.left-out.csv (paths of files that were left out) and, while a scan runs,
KEY.reading (headers). All are readable by their owner only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bolus.errors import UsageError
from bolus.files import replacing, strict_json

VARIABLE = "BOLUS_KEY"
"""The environment variable that names a key file."""
_FEWEST = 16  # characters of a key
_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


def default_key(out: Path) -> Path:
    """The key file of a cohort for which no other one was named: of `BOLUS_KEY`, else one in the user's configuration.

    Args:
        out: the cohort.yaml, wherever it is to be written.
    """
    stated = os.environ.get(VARIABLE)
    if stated:
        return Path(stated).expanduser()
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    whole = os.path.realpath(out)
    place = hashlib.blake2b(whole.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return home / "bolus" / "keys" / f"{_PLAIN.sub('-', out.stem)[:40]}-{place}"


@dataclass
class Key:
    """A secret from which names follow that lead back to no one who does not hold it.

    Args:
        path: of the key file.
        secret: 32 bytes.

    Example:
        >>> key = Key(Path("k"), b"0" * 32)
        >>> key.name("patient", "Doe") == key.name("patient", "Doe"), key.name("site", "Doe")[:2]
        (True, 'si')
    """

    path: Path
    secret: bytes = field(repr=False)

    @classmethod
    def open(cls, path: Path, out: Path) -> Key:
        """The key in a file, made where there is none.

        Args:
            path: of the key file.
            out: cohort.yaml, whose folder the key must not lie in.

        Raises:
            UsageError: the key would be given away with the output, others can read it, or it is no key.
        """
        path = path.expanduser().absolute()
        real, folder = path.resolve(), out.absolute().parent.resolve()
        hidden = real.is_relative_to(folder) and any(
            part.startswith(".") for part in real.relative_to(folder).parts[:-1]
        )  # as ~/.config is, for whoever works in their home folder
        if real.is_relative_to(folder) and not hidden:
            raise UsageError(
                "the key lies in the folder of the output, with which it would be given away; name another place with "
                f"--key or {VARIABLE}, or another folder for -o"
            )
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_hex(32) + "\n")
        elif os.name == "posix" and path.stat().st_mode & 0o077:
            raise UsageError(f"the key {path} can be read by others; chmod 600 it")
        text = path.read_bytes().strip()
        if len(text) < _FEWEST:
            raise UsageError(f"the key {path}: expected at least {_FEWEST} characters, found {len(text)}")
        return cls(path, hashlib.blake2b(text, digest_size=32).digest())

    def digest(self, what: str, text: str) -> str:
        """16 hexadecimal digits that name a text, different for each kind of thing."""
        content = f"{what}\0{text}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(content, key=self.secret, digest_size=8).hexdigest()

    def name(self, what: str, text: str) -> str:
        """A name that no program reads as a number: letters of the kind of thing, and the digest."""
        return f"{what[:2]}-{self.digest(what, text)}"

    def beside(self, ending: str) -> Path:
        """A private file or folder that goes with the key."""
        return self.path.with_name(f"{self.path.name}.{ending}")

    @cached_property
    def ledger(self) -> Ledger:
        """What earlier scans with this key found out."""
        path = self.beside("ledger.json")
        if not path.is_file():
            return Ledger()
        try:
            return Ledger(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path} is damaged; without it, days of earlier scans are lost") from error

    def save(self) -> None:
        """Write the ledger."""
        write_private(self.beside("ledger.json"), strict_json(vars(self.ledger)) + "\n")


@dataclass
class Ledger:
    """What must stay the same from scan to scan. No identifier stands in it, but days do.

    Args:
        first_day: name in the table -> the day that 0 stands for, in days since 1970.
        alias: digest of an identifier -> name in the table, where it is that of another spelling.
        person: digest of an identifier without case, separators and leading zeros and of a birth date -> name.
    """

    first_day: dict[str, int] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    person: dict[str, str] = field(default_factory=dict)


def write_private(path: Path, text: str) -> None:
    """Write a text file that only its owner can read."""
    with replacing(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def private_folder(path: Path) -> Path:
    """A folder that only its owner can enter, made where there is none."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def as_text(value: Any) -> str:
    """A cell as text, empty where it is missing."""
    return "" if value is None or value != value else str(value)  # noqa: PLR0124 - NaN
