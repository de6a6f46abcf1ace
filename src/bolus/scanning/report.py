"""What a scan did, for people and programs: rows, what was left out and why, and the commands that go on from here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scan:
    """What a scan found and wrote.

    Args:
        cohort: cohort.yaml.
        table: beside it.
        rows: of the table; `patients`, `visits` and `images` (files) of these rows.
        patients: different ones.
        visits: of all patients together; 0 where no visit or time is known.
        images: files.
        added: rows that the table did not have before.
        modalities: name -> rows.
        left_out: a reason -> how many files; which ones stands in the private list only.
        notes: what else is to be known, without an identifier.
        unit: that `plan` is to use.
        commands: that go on from here, in order.
        key: the key file; beside it lie the links and the list of files that were left out.
        paths: `links`, or `plain` where the table has the original paths.
        ids: `hashed`, or `kept`.
        fingerprint: of the key, so that an update with another one is refused.
    """

    cohort: Path
    table: Path
    rows: int
    patients: int
    visits: int
    images: int
    added: int
    modalities: Mapping[str, int]
    left_out: Mapping[str, int]
    notes: tuple[str, ...]
    unit: str
    commands: tuple[str, ...]
    key: Path
    paths: str
    ids: str
    fingerprint: str

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def render(self) -> str:
        """For a person, as lines."""
        kinds = ", ".join(f"{number:,} {name}" for name, number in self.modalities.items())
        visits = f", {self.visits:,} visits" if self.visits else ""
        of = f"{visits} ({kinds})" if kinds else visits
        lines = [f"{self.rows:,} rows of {self.images:,} files, {self.patients:,} patients{of}"]
        if self.added != self.rows:
            lines.append(f"{self.added:,} rows are new")
        if self.left_out:
            total = sum(self.left_out.values())
            lines += ["", f"left out: {total:,} files"]
            width = len(f"{max(self.left_out.values()):,}")
            ranked = sorted(self.left_out.items(), key=lambda each: (-each[1], each[0]))
            lines += [f"  {number:>{width},}  {reason}" for reason, number in ranked]
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        lines += ["", *self._privacy(), "", "next:", *(f"  {command}" for command in self.commands)]
        return "\n".join(lines)

    def _privacy(self) -> Sequence[str]:
        hashed = self.ids == "hashed"
        what = "keyed hashes of patients, series and sites" if hashed else "identifiers as they are, since you asked"
        where = (
            "paths as they are, which may hold identifiers"
            if self.paths == "plain"
            else "images by the names of links, which lie beside the key and lead to the original paths"
        )
        return (
            f"privacy: the table holds {what}; days in place of dates; {where}.",
            f"         The key is {self.key}: keep it, and give it to no one who gets the table. The list of the files",
            "         left out lies beside it. Pixels are not looked at: what is burnt into them stays there.",
        )


def next_commands(cohort: Path, roles: Mapping[str, str]) -> tuple[str, ...]:
    """The command lines from a cohort to a judged encoder.

    Args:
        cohort: cohort.yaml.
        roles: role -> column, empty of one that no question is to be about.

    Example:
        >>> roles = {"image": "image", "label:sick": "sick"}
        >>> for line in next_commands(Path("cohort.yaml"), roles): print(line)
        bolus check cohort.yaml -o cohort.yaml
        bolus plan cohort.yaml -o recipe.yaml
        bolus pretrain cohort.yaml --recipe recipe.yaml --out runs/a
        bolus evaluate classify runs/a cohort.yaml --target sick
    """
    here, folder = shlex.quote(str(cohort)), cohort.parent
    stem = "" if cohort.stem == "cohort" else f"{cohort.stem}-"
    recipe, run = (shlex.quote(str(folder / name)) for name in (f"{stem}recipe.yaml", f"runs/{stem}a"))
    return (
        f"bolus check {here} -o {here}",
        f"bolus plan {here} -o {recipe}",
        f"bolus pretrain {here} --recipe {recipe} --out {run}",
        f"bolus evaluate {_question(roles, run, here)}",
    )


def _question(roles: Mapping[str, str], run: str, cohort: str) -> str:
    """A task that the columns allow, with its arguments."""
    names = {
        kind: sorted(role.partition(":")[2] for role in roles if role.startswith(kind)) for kind in ("label:", "score:")
    }
    if names["label:"]:
        return f"classify {run} {cohort} --target {shlex.quote(names['label:'][0])}"
    if names["score:"]:
        return f"regress {run} {cohort} --target {shlex.quote(names['score:'][0])}"
    if roles.get("mask"):
        return f"segment {run} {cohort}"
    if "attribute:age" in roles:
        return f"regress {run} {cohort} --target age"
    return f"retrieve {run} {cohort}"
