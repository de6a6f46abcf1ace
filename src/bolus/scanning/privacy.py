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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bolus.errors import UsageError
from bolus.files import replacing, strict_json
from bolus.site_key import VARIABLE, fingerprint_of, keys_folder, read_secret

_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")
_NAME = re.compile(r"pa-[0-9a-f]{16}")  # of a patient, as `Key.name` makes it


def default_key(out: Path) -> Path:
    """The key file of a cohort for which no other one was named: of `BOLUS_KEY`, else one in the user's configuration.

    Args:
        out: the cohort.yaml, wherever it is to be written.
    """
    stated = os.environ.get(VARIABLE)
    if stated:
        return Path(stated).expanduser()
    whole = os.path.realpath(out)
    place = hashlib.blake2b(whole.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return keys_folder() / f"{_PLAIN.sub('-', out.stem)[:40]}-{place}"


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
            UsageError: as `bolus.site_key.read_secret`.
        """
        path = path.expanduser().absolute()
        ways = f"name another place with --key or {VARIABLE}, or another folder for -o"
        return cls(path, read_secret(path, outside=out.absolute().parent, ways=ways)[0])

    @property
    def fingerprint(self) -> str:
        """What files may say of the key."""
        return fingerprint_of(self.secret)

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
            return Ledger(**json.loads(path.read_text(encoding="utf-8"))).cleared()
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

    def cleared(self) -> Ledger:
        """Without the identifiers that earlier versions put into it where a scan kept them."""
        named = (
            {key: name for key, name in each.items() if _NAME.fullmatch(name)} for each in (self.alias, self.person)
        )
        return Ledger(self.first_day, *named)


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
