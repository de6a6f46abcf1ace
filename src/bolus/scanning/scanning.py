"""`bolus scan`: a folder becomes a table, a cohort.yaml and a report; identifiers stay where they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pandas as pd
import yaml

from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.clips import rows_are_files
from bolus.data.readers.readers import count_frames
from bolus.data.text.formulas import write_csv
from bolus.data.volumes.depth import why_volumes
from bolus.errors import BolusError, CohortError, UsageError
from bolus.files import put_in_place, replacing, write_json
from bolus.scanning.joining.joining import join as join_table
from bolus.scanning.parts import Asked, find_parts
from bolus.scanning.people import links_of, make_private, write_left_out
from bolus.scanning.privacy import Key
from bolus.scanning.report import Scan, next_commands
from bolus.scanning.updating import add_rows, is_of_scan, open_key, report_path

LOOKED = 16  # files whose frames are counted to find the unit
FILMED = frozenset({"US", "IVUS", "XA", "RF", "ES", "XC"})  # modalities whose files of several frames are clips
UNITS = ("image", "slice", "clip", "volume")


def scan(
    folder: str | Path,
    out: str | Path = "cohort.yaml",
    *,
    unit: str | None = None,
    pattern: str | None = None,
    mask: str | None = None,
    modalities: Collection[str] | None = None,
    guess: bool = False,
    keep_modalities: bool = False,
    keep_captures: bool = False,
    join: str | Path | None = None,
    on: Sequence[str] = ("patient", "date"),
    within: int | None = None,
    take: Mapping[str, str] | None = None,
    keep_ids: bool = False,
    paths: Literal["links", "plain"] = "links",
    key: str | Path | None = None,
    update: bool = False,
    force: bool = False,
    processes: int | None = None,
    quiet: bool = True,
) -> Scan:
    """Find the images of a folder, and write a table of them, cohort.yaml, and a report (`STEM-scan.json`).

    Patients, series and sites become keyed hashes, dates become days since each patient's first study, paths become
    names of links; names, birth dates and descriptions are not kept. See docs/privacy.md.

    Args:
        folder: with DICOM files, BIDS data sets or a tree of images.
        out: cohort.yaml; the table gets its name, with the ending .csv.
        unit: `image`, `slice`, `clip` or `volume`; None for what the files are.
        pattern: what the paths of a tree mean: `bolus.scanning.tree.pattern`.
        mask: part of the name of the masks of a BIDS data set that are taken.
        modalities: of DICOM files; None for all.
        guess: take the side from descriptions where no field says it.
        keep_modalities: CR and DX are two modalities.
        keep_captures: derived secondary captures are images.
        join: table beside the images: `bolus.scanning.joining.joining`.
        on: its keys.
        within: days between a row of it and an image.
        take: role -> column of it, or of the tables of a BIDS data set.
        keep_ids: identifiers stay as they are, and paths too.
        paths: `links`, or `plain` for the original ones.
        key: file of the key; made where there is none. None: `bolus.scanning.privacy.default_key`.
        update: add to the table that is there.
        force: write over it.
        processes: that read DICOM headers; None for as many as there are processors, and 8 at most.
        quiet: no progress.

    Raises:
        CohortError: no image, or what the finders and `join` raise; never with an identifier.
        UsageError: options that do not go together, a cohort that is there already, or a key that would be given away.
    """
    folder, out = Path(folder), Path(out)
    if unit is not None and unit not in UNITS:
        raise UsageError(f"--unit {unit}: expected one of {', '.join(UNITS)}")
    if paths not in ("links", "plain"):
        raise UsageError(f"--paths {paths}: expected links or plain")
    if out.exists() and not (update or force):
        raise UsageError(f"{out} is there already; --update adds to it, --force writes over it")
    before = _before(out) if update else None
    place = out.with_suffix(".csv") if before is None else out.parent / before.spec.table
    if join is not None and place.resolve() == Path(join).resolve():
        raise UsageError(
            f"-o {out} would write over the table of --join; name another one, such as -o cohort/{out.name}"
        )
    if before is None and place.exists() and not force and not is_of_scan(place, out):
        raise UsageError(f"{place} is there already; name another -o, or --force writes over it")
    plain = paths == "plain" or keep_ids
    made_as = {"paths": "plain" if plain else "links", "ids": "kept" if keep_ids else "hashed"}
    secret = open_key(key, out, before, made_as)
    of_bids = take if join is None else None
    asked = Asked(unit, pattern, mask, of_bids or {}, modalities, guess, keep_modalities, keep_captures, processes)
    found = find_parts(folder, asked, private=secret.path, quiet=quiet)
    if join is not None:
        found = join_table(found, join, on=on, within=within, take=take or {})
    known = [] if before is None else before.values("patient").unique().tolist()
    table, notes = make_private(found, secret, keep_ids=keep_ids, plain_paths=plain, known=known)
    roles = {role: column for column, role in found.roles.items() if column in table}
    left_out = dict(found.left_out)
    new = len(table)
    if before is not None:
        table, of_update = add_rows(before.table, table)
        notes += of_update
        roles = {**before.spec.roles, **roles}
        new = len(table) - len(before.table)
    table, of_visits = _finish(table, roles, numbered="visit" in found.roles)
    notes += of_visits
    root = None if plain else links_of(secret)
    opened, why = _write(table, roles, out, place, before, root=root, unit=unit, first=secret.save)
    write_left_out(left_out, secret)
    shutil.rmtree(secret.beside("reading"), ignore_errors=True)
    made = _report(opened, out, secret, (*found.notes, *notes, *why), left_out, new=new, **made_as)
    write_json(report_path(out), made.facts())
    return made


def _before(out: Path) -> Cohort | None:
    """The cohort that rows are added to, if there is one."""
    if not out.exists():
        return None
    try:
        return Cohort.open(out)
    except CohortError as error:
        raise CohortError(f"--update: {error}") from error


def _finish(table: pd.DataFrame, roles: dict[str, str], *, numbered: bool) -> tuple[pd.DataFrame, list[str]]:
    """With visits numbered by days unless they are, empty columns gone, rows sorted; roles are brought up to date.

    Visits whose order contradicts their days are numbered by days, with a note.
    """
    notes = []
    if "time" in table and table["time"].notna().any():
        roles["time"] = "time"
        if numbered and _contradicts(table, roles["visit"]):
            numbered = False
            notes.append("visits are numbered by their days, which the order of their names contradicts.")
        if not numbered or table[roles["visit"]].isna().all():
            roles["visit"] = "visit"
            table["visit"] = table.groupby("patient")["time"].rank(method="dense")
    table = table.drop(columns=[name for name in table.columns if table[name].isna().all()])
    for role in [role for role, column in roles.items() if column not in table]:
        del roles[role]
    keys = [name for name in ("patient", "time", "visit", "series", "order", "image") if name in table]
    table = table.sort_values(keys, kind="stable", na_position="first").reset_index(drop=True)
    for name in table.select_dtypes("float"):
        values = table[name].dropna()
        table[name] = table[name].astype("Int64") if (values == np.round(values)).all() else table[name].round(6)
    front = [name for name in ("image", "mask", "patient", "visit", "time", "modality") if name in table]
    return table[[*front, *(name for name in table if name not in front)]], notes


def _contradicts(table: pd.DataFrame, visit: str) -> bool:
    """Whether every row has a day, and a later visit of a patient an earlier one."""
    if table["time"].isna().any():
        return False
    numbers = pd.to_numeric(table[visit], errors="coerce")
    days = table["time"].groupby([table["patient"], numbers]).min()
    return bool((days.groupby(level=0).diff() < 0).any())


def _write(
    table: pd.DataFrame, roles: dict[str, str], out: Path, place: Path, before: Cohort | None, *,
    root: Path | None, unit: str | None, first: Callable[[], None],
) -> tuple[Cohort, list[str]]:  # fmt: skip
    """The table and cohort.yaml, which are opened elsewhere before they count; what a person wrote into one stays.

    And a note on the unit, where the images of a volume are seen as one. `first` is called once both are sound.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix.lower() != ".csv":
        raise UsageError(f"--update: expected a table of a scan (.csv), found {place.name}")
    spec = CohortSpec(table=place.name) if before is None else before.spec
    spec = spec.model_copy(update={"roles": roles, "root": str(root) if root is not None else spec.root})
    with TemporaryDirectory(dir=out.parent, prefix=".scan-") as folder:
        tried = Path(folder) / place.name
        write_csv(table, tried)
        images = out.parent.absolute() if before is None else before.root.absolute()
        tried_spec = spec.model_copy(update={"table": tried.name, "root": str(root or images)})
        cohort = _opened(tried_spec, tried.with_name(out.name))
        chosen, why = (unit or spec.unit, "") if unit or spec.unit else _unit_of(cohort)
        first()
        put_in_place(tried, place)
    said = [f"a sample is a volume: {why} --unit slice takes each slice by itself."] if why else []
    return _opened(spec.model_copy(update={"unit": chosen}), out), said


def _opened(spec: CohortSpec, out: Path) -> Cohort:
    """The cohort of a cohort.yaml that is written here."""
    with replacing(out) as temporary:
        data = spec.model_dump(mode="json", exclude_defaults=True)
        temporary.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return Cohort.open(out)


def _report(
    cohort: Cohort, out: Path, key: Key, notes: tuple[str, ...], left_out: Mapping[str, list[Path]], *,
    new: int, paths: str, ids: str,
) -> Scan:  # fmt: skip
    visit = next((role for role in ("visit", "time") if role in cohort.roles), None)
    visits = 0
    if visit is not None:
        pairs = pd.DataFrame({"patient": cohort.encoded("patient"), "visit": cohort.encoded(visit)})
        visits = len(pairs.dropna().drop_duplicates())
    roles = cohort.roles
    if "mask" in roles:  # a few masks decide nothing
        masked = np.unique(cohort.encoded("patient")[~cohort.absent("mask")])
        roles = roles if len(masked) > cohort.num_patients / 2 else {**roles, "mask": ""}
    modalities = pd.Series(cohort.modality).value_counts() if "modality" in cohort.roles else pd.Series(dtype=int)
    return Scan(
        cohort=out,
        table=out.parent / cohort.spec.table,
        rows=len(cohort),
        patients=cohort.num_patients,
        visits=visits,
        images=len(cohort.columns.coded(cohort.roles["image"]).values),
        added=new,
        modalities={str(name): int(number) for name, number in modalities.items()},
        left_out={reason: len(each) for reason, each in left_out.items() if each},
        notes=notes,
        unit=cohort.spec.unit or "image",
        commands=next_commands(out, roles),
        key=key.path,
        paths=paths,
        ids=ids,
        fingerprint=key.fingerprint,
    )


def _unit_of(cohort: Cohort) -> tuple[str, str]:
    """What a sample of the table is, and of volumes why.

    A volume where all rows are slices of deep stacks, or deep NIfTI files, without masks: `why_volumes`. A clip where
    most files have several frames and a row each, or where all rows are frames without places. A slice where all rows
    have a place in a volume. Else an image.
    """
    why = why_volumes(cohort)
    return ("volume", why) if why else (_flat_unit(cohort), "")


def _flat_unit(cohort: Cohort) -> str:
    if rows_are_files(cohort):
        return "clip" if _mostly_clips(cohort) else "image"
    if not {"series", "order"} <= set(cohort.roles):
        return "image"
    whole = not np.isnan(cohort.encoded("order")).any() and bool((cohort.encoded("series") >= 0).all())
    if not whole:
        return "image"
    if "slice_position" in cohort.roles:
        return "image" if np.isnan(cohort.encoded("slice_position")).any() else "slice"
    return "clip" if set(cohort.modalities) <= FILMED and "mask" not in cohort.roles else "slice"


def _mostly_clips(cohort: Cohort) -> bool:
    """Whether more than half of a few files have several frames."""
    counts = []
    for row in np.unique(np.linspace(0, len(cohort) - 1, LOOKED).astype(int)).tolist():
        try:
            counts.append(count_frames(cohort.image_path(row)))
        except BolusError:
            continue
    return sum(count > 1 for count in counts) > len(counts) / 2
