"""`bolus export` and `bolus strip`: an encoder for other programs, and for other people."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bolus.cli.commands import grouped
from bolus.cli.options import EncoderArgument, SizeOption
from bolus.cli.speaking import tell
from bolus.errors import UsageError


@grouped
def export(
    encoder: EncoderArgument,
    to: Annotated[str, typer.Option("--to", help="hf (transformers), onnx, or torch (torch.export)")] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="folder to make")] = Path("exported"),
    head: Annotated[str | None, typer.Option(help="a head or segmenter that goes along: as of bolus predict")] = None,
    cohort: Annotated[
        Path | None, typer.Option(help="rows that the export is compared on (default: the run's own cohort)")
    ] = None,
    keep_context: Annotated[bool, typer.Option(help="apply the run's context blocks")] = True,
    size: SizeOption = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="upload to the Hugging Face hub; a new one is private")
    ] = None,
    lineage: Annotated[bool, typer.Option("--lineage", help="also keyed hashes of the training patients")] = False,
) -> None:
    """Write the encoder, its contract and card for other programs, compared with bolus on real rows."""
    if not to:
        raise UsageError("--to is needed: hf, onnx or torch")

    from bolus.exporting.deploying import export as run_export

    asked: dict[str, Any] = {"keep_context": keep_context, "size": size, "lineage": lineage, "push": push}
    found = run_export(encoder, to=to, out=out, head=head, cohort=cohort, **asked)  # type: ignore[arg-type]
    lines = [
        f"{'' if name == 'all' else f'{name}: '}largest difference from bolus {difference:.1e} of the largest value "
        f"({found.rows[name]})"
        for name, difference in found.differences.items()
    ]
    facts = {"out": str(out), "to": to, "differences": found.differences, "rows": found.rows, "notes": found.notes}
    tell(facts, *lines, f"wrote {out}", *(f"note: {note}" for note in found.notes))


@grouped
def strip(
    encoder: Annotated[Path, typer.Argument(metavar="ENCODER", help="encoder folder; with -o, also a run")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="folder to make (default: the folder itself is changed)")
    ] = None,
) -> None:
    """Take out of an encoder folder what leads to the patients that it was trained on."""
    from bolus.encoders.folders.stripping import strip as strip_folder

    found = strip_folder(encoder, out)
    lines = [f"taken out: {what}" for what in found.taken] or ["there was nothing to take out"]
    lines += [f"from here on nobody can tell {what}" for what in found.lost]
    if found.left:
        where = "left as they are: look at them" if out is None else "not copied"
        lines.append(f"note: {found.left} file(s) or folder(s) that are no part of an encoder, {where}")
    tell(asdict(found) | {"folder": str(found.folder)}, *lines, f"wrote {found.folder}")
