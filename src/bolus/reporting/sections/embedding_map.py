"""A map of the embeddings: every image a point, near those that the encoder takes for alike."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.roles import PATHS
from bolus.embedding.nearest import neighbours, normalise
from bolus.embedding.projection import find_maps
from bolus.evaluation.audit.subgroups import cut_bands
from bolus.reporting.blocks import Block, Drawing, Missing, Section, Sentences, sentence
from bolus.reporting.charts.marks import NUM_SERIES, tag
from bolus.reporting.charts.points import drawn
from bolus.reporting.evidence import Embedded, Evidence
from bolus.reporting.wording import counted, plain

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_POINTS, OF_ALL_RUNS = 1000, 3000
GRID = 1000  # places across the map
NEAREST = 5
FEWEST_PATIENTS = 3
"""Patients that a value needs to have a name of its own: what fewer have may tell who they are."""
BANDS = 5  # of a number
HIDDEN = {*PATHS, "patient", "series", "order"}
"""Roles that name files and people, or count within them."""
_DATE = re.compile(r"\b(19|20)\d{2}[-./]?\d{2}[-./]?\d{2}|\b\d{1,2}[-./]\d{1,2}[-./](19|20)?\d{2}\b")
READING = (
    "Distances on the map are distorted: PCA keeps only the two directions of most spread, t-SNE only who is near "
    "whom. The size of a clump, the gap between two and an empty space mean little in t-SNE. A colour that is mixed "
    "here may still be read off all dimensions, and a colour that is sorted may be a scanner's: look at site and "
    "modality first."
)


@dataclass(frozen=True)
class Column:
    """What the points can be coloured by.

    Args:
        name: of the role.
        classes: names of the colours, the most frequent first, or bands of a number from the lowest.
        codes: int64 `[n]`, -1 where it is not known.
        ordered: whether the classes are bands.
    """

    name: str
    classes: tuple[str, ...]
    codes: npt.NDArray[np.int64]
    ordered: bool = False


def embedding_map(evidence: list[Evidence]) -> Section:
    """The section of all runs."""
    most = min(MOST_POINTS, OF_ALL_RUNS // len(evidence))
    return Section(
        "map",
        "What the encoder takes for alike",
        "Every point is an image; near points look alike to the encoder. Colour them by a column; hide some.",
        by_run={each.name: _of_run(each, f"map{number}", most) for number, each in enumerate(evidence)},
    )


def _of_run(evidence: Evidence, key: str, most: int) -> list[Block]:
    embedded = evidence.embedded
    if embedded is None or len(embedded.rows) < 3:
        command = f"bolus embed {evidence.place} {evidence.cohort_place} -o {evidence.place}/embeddings.parquet"
        return [Missing("There are no embeddings of this run to draw.", command)]
    total = len(embedded.rows)
    chosen = drawn(total, most)
    shown = Embedded(embedded.rows[chosen], embedded.vectors[chosen])
    cohort = evidence.cohort
    if cohort is not None and int(shown.rows.max()) > len(cohort):
        cohort = None
    columns = [] if cohort is None else columns_of(cohort, shown.rows - 1)
    maps, explained = find_maps(shown.vectors)
    layouts = {name: _on_grid(places) for name, places in maps.items()}
    said = f"{counted(len(chosen), 'point')}" + (
        f" of {counted(total, 'image')}, drawn at random" if total > len(chosen) else ""
    )
    said += f"; the two axes of the PCA hold {100 * explained:.0f} % of the variance."
    if cohort is None:
        said += f" There is nothing to colour them by: {evidence.without_cohort or 'rows are not of this table'}."
    data = _data(shown, cohort, layouts, columns)
    return [Sentences([sentence(said)]), Drawing(_draw(key, data, layouts, columns, shown.rows))]


def columns_of(cohort: Cohort, rows: npt.NDArray[np.int64]) -> list[Column]:
    """What a reader may colour by: split and every role but those that name files and people.

    A value that fewer than 3 patients have is `other`, and a role of which most rows would be `other` is left out, so
    that no name of a person becomes a colour; so is one that holds dates. Numbers are in bands whose outer ones are
    open; the role time is in days since the cohort's first.

    Args:
        cohort: of the rows.
        rows: int64 `[n]`, from 0.
    """
    patients = np.asarray(cohort.encoded("patient"))[rows]
    found = [_categories("split", pd.Series(cohort.split[rows]), patients)]
    for role in cohort.roles:
        if role in HIDDEN or role == "split":
            continue
        encoded = np.asarray(cohort.encoded(role))
        if encoded.dtype == np.float64:
            found.append(_bands(role, encoded[rows], patients))
        else:
            found.append(_categories(role, cohort.values(role).iloc[rows], patients))
    return [each for each in found if each is not None]


def _categories(name: str, values: pd.Series[Any], patients: npt.NDArray[Any]) -> Column | None:
    texts = values.astype("string").reset_index(drop=True)
    frame = pd.DataFrame({"value": texts, "patient": patients}).dropna()
    by_value = frame.groupby("value")["patient"].nunique().sort_values(ascending=False, kind="stable")
    named = [str(each) for each in by_value[by_value >= FEWEST_PATIENTS].index]
    if any(_DATE.search(each) for each in named):
        return None
    rest = int((~frame["value"].isin(named)).sum())
    if not named or rest > len(frame) / 2:
        return None
    named = named[: NUM_SERIES - 1] if len(named) > NUM_SERIES or rest else named
    place = {value: code for code, value in enumerate(named)}
    other = not frame["value"].isin(named).all()
    codes = [-1 if pd.isna(each) else place.get(str(each), len(named)) for each in texts]
    classes = (*(plain(each, 40) for each in named), *(["other"] if other else []))
    return Column(name, classes, np.array(codes, np.int64)) if len(classes) > 1 or -1 in codes else None


def _bands(name: str, values: npt.NDArray[np.float64], patients: npt.NDArray[Any]) -> Column | None:
    known = np.isfinite(values)
    distinct = np.unique(values[known])
    if len(distinct) < 2:
        return None
    if len(distinct) <= BANDS:
        texts = pd.Series([f"{each:g}" if np.isfinite(each) else None for each in values], dtype="string")
        return _categories(name, texts, patients)
    inner = np.quantile(values[known], np.linspace(0, 1, BANDS + 1)[1:-1])
    edges = np.unique([float(f"{each:.3g}") for each in inner])
    codes, classes = cut_bands(values, edges.tolist())  # the outer bands are open: no single value is named
    few = [len(np.unique(patients[codes == code])) < FEWEST_PATIENTS for code in range(len(classes))]
    return None if any(few) else Column(name, classes, codes, ordered=True)


def _on_grid(places: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    low, high = places.min(0), places.max(0)
    span = np.where(high > low, high - low, 1.0)
    return np.asarray(((places - low) / span * GRID).round(), np.int64)


def _data(
    shown: Embedded, cohort: Cohort | None, layouts: dict[str, npt.NDArray[np.int64]], columns: list[Column]
) -> dict[str, Any]:
    """What the page's script reads; of patients nothing but rows of the table."""
    near: list[list[int]] = []
    if cohort is not None:
        patients = np.asarray(cohort.encoded("patient"))[shown.rows - 1]
        z = normalise(shown.vectors.astype(np.float64))
        index, weight = neighbours(z, z, NEAREST, differ=(patients, patients))
        near = [found[voted > 1e-9].tolist() for found, voted in zip(index, weight, strict=True)]
    return {
        "rows": shown.rows.tolist(),
        "layouts": {name: places.ravel().tolist() for name, places in layouts.items()},
        "columns": [
            {"name": each.name, "classes": list(each.classes), "codes": each.codes.tolist(), "ordered": each.ordered}
            for each in columns
        ],
        "near": near,
    }


def _draw(
    key: str,
    data: dict[str, Any],
    layouts: dict[str, npt.NDArray[np.int64]],
    columns: list[Column],
    rows: npt.NDArray[np.int64],
) -> Markup:
    from markupsafe import Markup

    first = next(iter(layouts.values()))
    codes = columns[0].codes if columns else np.full(len(rows), -1)
    points = [
        tag("circle", cx=int(x), cy=int(GRID - y), r=7, class_=f"p {_colour(int(code), False)}")
        for (x, y), code in zip(first, codes, strict=True)
    ]
    box = f"-20 -20 {GRID + 40} {GRID + 40}"
    drawn = tag("svg", *points, viewBox=box, class_="map", role="img", tabindex=0, aria_describedby=f"{key}-help",
                aria_label=f"Map of {len(rows)} embeddings")  # fmt: skip
    layout = _choice(f"{key}-layout", "Layout", list(layouts))
    colour = _choice(f"{key}-colour", "Colour by", [plain(each.name, 40) for each in columns]) if columns else None
    text = (
        json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )
    stored = Markup(f'<script type="application/json">{text}</script>')
    helped = "Hover a point for its row and nearest rows, or focus the map and step with the arrow keys."
    return tag(
        "div",
        tag("div", layout, colour, class_="controls"),
        tag("ul", class_="legend keys", aria_label="Show or hide"),
        tag("svg", tag("circle", cx=6, cy=6, r=5), viewBox="0 0 12 12", class_="sample", aria_hidden="true"),
        drawn,
        tag("p", helped, id=f"{key}-help", class_="help"),
        tag("p", READING, class_="reading"),
        stored,
        class_="mapped",
        id=key,
    )


def _colour(code: int, ordered: bool) -> str:
    return "none" if code < 0 else f"{'q' if ordered else 'f'}{code % NUM_SERIES}"


def _choice(key: str, name: str, options: list[str]) -> Markup:
    listed = [tag("option", each, value=number) for number, each in enumerate(options)]
    return tag("label", name, " ", tag("select", *listed, id=key), for_=key)
