"""`bolus scan`: a folder of images becomes a cohort."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from bolus.cli.commands import grouped
from bolus.cli.options import names, once, pairs
from bolus.cli.speaking import say, talkative, tell
from bolus.errors import UsageError
from bolus.files import check_ending

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="DICOM files, a BIDS data set, or a tree")]


@dataclass(frozen=True)
class What:
    """What is taken of the folder, and how its paths are read."""

    unit: Annotated[str | None, typer.Option(help="image, slice, clip or volume (default: what the files are)")] = None
    pattern: Annotated[
        str | None, typer.Option(help="a tree: what its paths mean, such as '{label:finding}/{patient}/{image}'")
    ] = None
    mask: Annotated[str | None, typer.Option(help="BIDS: part of the name of the masks to take")] = None
    modality: Annotated[str | None, typer.Option(help="DICOM: only these, by commas, such as CR,DX")] = None
    guess: Annotated[bool, typer.Option("--guess", help="DICOM: the side from descriptions, if need be")] = False
    keep_modalities: Annotated[
        bool, typer.Option("--keep-modalities", help="DICOM: CR and DX are two modalities, not one (XR)")
    ] = False
    keep_captures: Annotated[
        bool, typer.Option("--keep-captures", help="DICOM: derived secondary captures are images")
    ] = False

    def keywords(self) -> dict[str, Any]:
        """As `bolus.scan` takes them."""
        given = dict(vars(self))
        return {"modalities": names(given.pop("modality")), **given}


@dataclass(frozen=True)
class Beside:
    """A table beside the images, and which of its columns are taken."""

    join: Annotated[Path | None, typer.Option(help="table beside the images: CSV, TSV or Parquet")] = None
    on: Annotated[
        str, typer.Option(help="keys by commas: patient, date, accession, instance, image; KEY=COLUMN if need be")
    ] = "patient,date"
    within: Annotated[int | None, typer.Option(help="days between a row and an image (default: 0)")] = None
    take: Annotated[
        list[str],
        typer.Option("--take", metavar="ROLE=COLUMN", help="column to take, such as label:x=X; repeatable"),
    ] = field(default_factory=list)

    def keywords(self) -> dict[str, Any]:
        """As `bolus.scan` takes them."""
        if self.join is None and (self.within is not None or self.on != "patient,date"):
            raise UsageError("--on and --within are for --join TABLE")
        taken = once(pairs(self.take, "--take", "ROLE=COLUMN"), "--take") or None
        return {"join": self.join, "on": names(self.on) or [], "within": self.within, "take": taken}


@dataclass(frozen=True)
class Private:
    """What of persons and paths stays in the table."""

    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="identifiers and paths stay as they are")] = False
    paths: Annotated[str, typer.Option(help="links (beside the key), or plain: paths as they are")] = "links"
    key: Annotated[
        Path | None, typer.Option(help="file of the key (default: BOLUS_KEY, or one in the user's configuration)")
    ] = None


@grouped
def scan(
    folder: FolderArgument,
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="cohort.yaml to write; the table lies beside it")] = Path(
        "cohort.yaml"
    ),
    what: What,
    beside: Beside,
    private: Private,
    update: Annotated[bool, typer.Option("--update", help="add to the cohort that is there")] = False,
    force: Annotated[bool, typer.Option("--force", help="write over the cohort that is there")] = False,
    processes: Annotated[int | None, typer.Option(help="that read DICOM headers (default: 1 a processor)")] = None,
) -> None:
    """Make a table and cohort.yaml of a folder of DICOM, BIDS, NIfTI, pictures or videos, without identifiers."""
    check_ending(out, "-o", ".yaml", ".yml")
    if update and force:
        raise UsageError("--update adds to the cohort, --force writes over it: give one of them")
    given = {**what.keywords(), **beside.keywords(), **vars(private)}

    from bolus.scanning.scanning import scan as run_scan

    found = run_scan(folder, out, **given, update=update, force=force, processes=processes, quiet=not talkative())
    report = out.with_name(f"{out.stem}-scan.json")
    say(found.render(), "")
    tell(found.facts(), f"wrote {found.cohort}, {found.table} and {report}")
