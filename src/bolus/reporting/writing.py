"""Runs as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bolus.files import check_ending, write_text
from bolus.reporting.blocks import Section
from bolus.reporting.evidence import Evidence, gather
from bolus.reporting.page import render
from bolus.reporting.pictures import Pictured
from bolus.reporting.sections.ablated import ablated
from bolus.reporting.sections.benefit import benefit
from bolus.reporting.sections.embedding_map import embedding_map
from bolus.reporting.sections.glance import glance
from bolus.reporting.sections.groups import groups
from bolus.reporting.sections.health import health
from bolus.reporting.sections.people import people
from bolus.reporting.sections.predictions.failures import failures
from bolus.reporting.sections.predictions.trust import trust
from bolus.reporting.sections.provenance import provenance
from bolus.reporting.wording import joined, plain


def report(
    runs: str | Path | Sequence[str | Path],
    *,
    out: str | Path = "report.html",
    ablation: str | Path | None = None,
    embeddings: Sequence[str | Path] = (),
    thumbnails: bool = False,
    cache: Path | None = None,
    watched: bool = False,
) -> Path:
    """Write what is known of one or several runs to one HTML file that loads nothing and opens anywhere.

    Read are the files of the run folders alone: metrics, quarantine, evaluations, and the table that the run was
    trained on, for counts and colours. Where there is no evidence for a section, it says so with the command that would
    give it. No patient identifier is written: images are numbered by their rows in the table (from 1).

    Args:
        runs: a run folder, or several to be shown side by side.
        out: the HTML file; it appears whole or not at all.
        ablation: folder of an ablation, or its ablation.json, for a section of its own.
        embeddings: Parquet files of `bolus embed`, one a run in their order; where there are none, `embeddings.parquet`
            in each run folder is taken if it is there.
        thumbnails: draw the hardest test images, as the encoder sees them. The file then holds pictures of patients.
        cache: cache folder for these pictures; the user's where None.
        watched: as while the run is training: the page loads itself again, and embeddings are left alone.

    Returns:
        The file.

    Raises:
        UsageError: no run, one twice, another ending than .html, or another number of embeddings than runs.
        BolusError: a folder that is no run or no ablation, damaged files, or embeddings of another encoder.

    >>> report("nowhere")
    Traceback (most recent call last):
    bolus.errors.BolusError: no run in nowhere: expected run.json there
    """
    path = Path(out)
    check_ending(path, "-o", ".html", ".htm")
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    evidence = gather(folders, embeddings=embeddings, watched=watched)
    pictured = Pictured(cache) if thumbnails else None
    sections = _sections(evidence, None if ablation is None else Path(ablation), pictured)
    title = f"Report on {joined(plain(each.name, 60) for each in evidence)}"
    refresh = watched and any(each.run.status == "running" for each in evidence)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(title, sections, pictures=thumbnails, refresh=refresh))
    return path


def _sections(evidence: list[Evidence], ablation: Path | None, pictured: Pictured | None) -> list[Section]:
    return [
        glance(evidence),
        people(evidence),
        health(evidence),
        benefit(evidence),
        *([] if ablation is None else [ablated(ablation)]),
        groups(evidence),
        trust(evidence),
        failures(evidence, pictured),
        embedding_map(evidence),
        provenance(evidence),
    ]
