"""The map of docs/privacy.md: names are planted in a cohort, which lives its whole life; then every byte is searched.

PYTHONPATH=src:tests python tests/private_life.py          # writes the map into docs/privacy.md, in two minutes
"""

from __future__ import annotations

import base64
import gzip
import io
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from dicom_tree import CR, Tree, noise, person, radiograph

PAGE = Path(__file__).parent.parent / "docs" / "privacy.md"
BEGIN, END = "<!-- the map: python tests/private_life.py -->", "<!-- end of the map -->"
NUM_PATIENTS = 24
SIZE = ["images.size=24", "encoder.backbone=r18w32", "encoder.pretrained=false", "sampling.batch_size=8"]
SMALL = [*SIZE, "training.max_steps=2", "training.health_epochs=null", "training.checkpoint_steps=1"]

KINDS: dict[str, tuple[str, ...]] = {
    "identifiers": ("MRN-0", "MRN0", "ACC-77"),
    "names": ("PLANTED", "Zebulon", "Quillfeather^", "Dr Quillfeather"),
    "dates": ("21800101", "2180-01-01", "21800301", "2180-03-01", "19231107", "1923-11-07"),
    "places": ("Quillfeather Hospital", "Pumpernickel"),
    "image paths": ("Marmaduke",),
    "free text": ("Wolpertinger",),
    "table's folder": ("clinic-of-origin",),
}
"""What is planted, by kind; keyed hashes, of which nobody knows before, are added to them."""
HASHES, SECRET = "keyed hashes", "the key"


@dataclass
class Life:
    """What a cohort left behind.

    Args:
        folder: of everything.
        artefacts: name of the map -> files and folders below `folder`.
        printed: what the commands said.
        needles: kind -> texts to look for.
    """

    folder: Path
    artefacts: dict[str, list[Path]] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    needles: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(KINDS))

    def call(self, *words: object, codes: tuple[int, ...] = (0,)) -> None:
        """One command, whose words are kept; it ends with one of these codes."""
        from bolus.cli import main

        told, code = io.StringIO(), 0
        with patch.object(sys, "argv", ["bolus", *map(str, words)]), redirect_stdout(told), redirect_stderr(told):
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        self.printed.append(told.getvalue())
        assert code in codes, (words, told.getvalue())

    def keep(self, name: str, *paths: Path) -> None:
        """Files or folders of the map; all must be there."""
        assert all(path.exists() for path in paths), (name, paths)
        self.artefacts.setdefault(name, []).extend(paths)

    def found(self) -> dict[str, set[str]]:
        """Artefact -> the kinds of needles in it."""
        found = {name: set().union(*map(self._kinds_in, paths)) for name, paths in self.artefacts.items()}
        return {**found, "what commands print": self._kinds_of("\n".join(self.printed).encode())}

    def _kinds_in(self, path: Path) -> set[str]:
        places = [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]
        kinds = set[str]()
        for place in places:
            if place != path:
                kinds |= self._kinds_of(place.name.encode())
            if place.is_symlink():
                kinds |= self._kinds_of(os.fsencode(place.readlink()))
            elif place.is_file():
                for piece in unpacked(place):
                    kinds |= self._kinds_of(piece)
        return kinds

    def _kinds_of(self, piece: bytes) -> set[str]:
        piece = piece.lower()
        wide = piece.replace(b"\0", b"")  # UTF-16
        return {
            kind
            for kind, needles in self.needles.items()
            if any(
                needle and (needle.lower().encode() in piece or needle.lower().encode() in wide) for needle in needles
            )
        }


def unpacked(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and those that are compressed or encoded in it."""
    raw = path.read_bytes()
    yield raw
    if raw[:4] == b"PAR1":
        table = pq.read_table(path)
        yield str(table.schema.metadata).encode()
        yield pd.DataFrame(table.to_pandas()).to_csv().encode()
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    if raw[:2] == b"PK":
        with zipfile.ZipFile(path) as bundle:
            for name in bundle.namelist():
                yield name.encode()
                yield bundle.read(name)
    for encoded in re.findall(rb"base64,([A-Za-z0-9+/=]{16,})", raw):
        with suppress(ValueError):
            yield base64.b64decode(encoded)


def write_clinic(folder: Path) -> Path:
    """A table as a hospital has it, with pictures of its patients and whatever must not leave."""
    rng, lines = np.random.default_rng(0), []
    (folder / "Marmaduke").mkdir(parents=True)
    for patient in range(NUM_PATIENTS):
        sick = patient % 2
        for visit in range(2):
            pixels = rng.integers(40, 90, (24, 24)) + 90 * sick * (np.indices((24, 24)).sum(0) > 24)
            name = f"Marmaduke/p{patient}_{visit}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            lines.append(
                {
                    "image": name,
                    "patient": f"MRN-0{patient:04d}",
                    "date": ("2180-01-01", "2180-03-01")[visit],
                    "hospital": "Pumpernickel",
                    "sex": "FM"[patient % 3 == 0],
                    "age": 40 + patient,
                    "finding": ("none", "mass")[sick],
                    "report": f"PLANTED{patient} Zebulon, seen by a Wolpertinger",
                }
            )
    (folder / "Marmaduke" / "p3_1.png").write_bytes(b"no image of a Wolpertinger")
    table = folder / "table.csv"
    pd.DataFrame(lines).to_csv(table, index=False)
    return table


def write_export(folder: Path) -> Path:
    """DICOM files, whose headers name patients, and whose paths do."""
    tree = Tree(folder / "Marmaduke")
    for patient in range(NUM_PATIENTS // 2):
        for study, date in enumerate(("21800101", "21800301")):
            tags = person(patient, PatientBirthDate="19231107") | radiograph("CR", date, "PA", "CHEST")
            tree.write(f"{patient}/{study}/a/0", CR, tags, noise(10 * patient + study))
    (tree.root / "MRN-00001 notes.txt").write_text("no image")
    return tree.root


def live(folder: Path, *, whole: bool) -> Life:
    """The life of a cohort; of its first days only, without training, where not `whole`.

    Args:
        folder: to live in; `XDG_CONFIG_HOME` and `BOLUS_CACHE` must lie in it, too.
        whole: train, evaluate, report and export.
    """
    life, home = Life(folder), folder / "clinic-of-origin"
    table = write_clinic(home)
    export, scanned = write_export(folder / "pacs"), folder / "scanned" / "cohort.yaml"
    key = folder / "private" / "key"
    life.call("scan", export, "-o", scanned, "--key", key)
    life.keep("a scan: `cohort.csv`", scanned.with_suffix(".csv"))
    life.keep("a scan: `cohort.yaml`", scanned)
    life.keep("a scan: `cohort-scan.json`", scanned.with_name("cohort-scan.json"))
    for name in ("ledger.json", "links", "left-out.csv"):
        life.keep(f"beside a scan's key: `KEY.{name}`", key.with_name(f"key.{name}"))

    cohort = folder / "work" / "cohort.yaml"
    roles = ["--role", "label:finding=finding", "--role", "site=hospital"]
    life.call("check", table, *roles, "-o", cohort, codes=(1,))  # an image cannot be read
    life.keep("a hospital's own table", table)
    life.keep("check: `cohort.yaml`", cohort)
    life.keep("check: `cohort-check.json`", cohort.with_name("cohort-check.json"))
    run = folder / "runs" / "a"
    if whole:
        _train(life, cohort, run)
    else:
        _pretend(cohort, run)
    encoder = run / "encoder"
    life.keep("a run: `encoder/`", encoder)
    head = next(run.glob("evaluations/*/head-finding*-linear.safetensors"))
    life.keep("an evaluation: heads", head)
    out = folder / "out"
    life.call("embed", run if whole else encoder, cohort, "-o", out / "e.parquet", "--map")
    life.call("predict", run if whole else encoder, cohort, "--head", head, "-o", out / "p.csv")
    life.call("predict", run if whole else encoder, cohort, "--head", head, "-o", out / "q.csv", "--columns",
              "patient,date")  # fmt: skip
    life.call("strip", encoder, "-o", out / "stripped")
    life.keep("embed: `embeddings.parquet`", out / "e.parquet")
    life.keep("predict: `predictions.csv`", out / "p.csv")
    life.keep("predict `--columns patient,date`", out / "q.csv")
    life.keep("strip: the encoder folder", out / "stripped")
    if whole:
        life.call("report", run, "--embeddings", out / "e.parquet", "-o", out / "report.html")
        life.call("export", run, "--to", "torch", "-o", out / "exported")
        life.keep("report: `report.html`", out / "report.html")
        life.keep("export", out / "exported")
    life.keep("the cache of images", Path(os.environ["BOLUS_CACHE"]))
    site = Path(os.environ["XDG_CONFIG_HOME"]) / "bolus" / "keys" / "site"
    life.keep("the site's key", site)
    hashes = [text for each in _trainings(run) for text in (each["salt"], *each["keys"])]
    life.needles |= {HASHES: tuple(hashes), SECRET: (site.read_text().strip(), key.read_text().strip())}
    life.keep("the key of a scan", key)
    return life


def _trainings(run: Path) -> Iterator[Mapping[str, Any]]:
    """What the encoders and heads of a run say of whom they have seen."""
    from bolus.encoders.folders.folder import lineage_of
    from bolus.evaluation.probing.heads import Head

    for folder in (run / "encoder", *run.glob("evaluations/*/finetuned-*")):
        yield from lineage_of(folder)
    for path in run.glob("evaluations/**/head*.safetensors"):
        head = Head.load(path)
        yield {"salt": head.salt, "keys": head.patients}


def _train(life: Life, cohort: Path, run: Path) -> None:
    """Plan, train two steps, the second after a pause, and evaluate."""
    life.call("plan", cohort, "-o", cohort.with_name("recipe.yaml"), "encoder.backbone=r18w32",
              "encoder.pretrained=false")  # fmt: skip
    life.keep("plan: `recipe.yaml`", cohort.with_name("recipe.yaml"))
    words = ("pretrain", cohort, "--recipe", "simclr", "--out", run, *SMALL)
    life.call(*words, "training.max_hours=1e-9")
    life.call(*words, "--resume", "training.max_hours=null")
    for name in ("run.json", "cohort.yaml", "recipe.yaml", "metrics.jsonl", "quarantine.jsonl", "checkpoints"):
        life.keep(f"a run: `{name}{'/' if name == 'checkpoints' else ''}`", run / name)
    life.call("evaluate", "classify", run, cohort, "--target", "finding", "--probes", "linear,finetune", "--epochs", 1)
    (folder,) = run.glob("evaluations/classify-*")
    for name in ("results.jsonl", "notes.json", "predictions.parquet"):
        life.keep(f"an evaluation: `{name}`", folder / name)
    life.keep("an evaluation: fine-tuned encoders", *folder.glob("finetuned-*"))


def _pretend(cohort: Path, run: Path) -> None:
    """An encoder that says whom it was trained on, and a head, without training either."""
    from bolus.data.cohort.cohort import Cohort
    from bolus.data.cohort.split import hash_patients
    from bolus.data.images.preprocessing import Preprocessing
    from bolus.encoders.building import build_encoder
    from bolus.encoders.folders.folder import save_encoder
    from bolus.recipe import EncoderSpec
    from test_prediction import make_head

    patients = Cohort.open(cohort).patients
    encoder, contract = build_encoder(EncoderSpec(backbone="r18w32"), seed=0).eval(), Preprocessing(24).to_json()
    save_encoder(encoder, run / "encoder", preprocessing=contract, lineage=[hash_patients(patients)])
    hashed = hash_patients(patients)
    make_head(run / "evaluations" / "a" / "head-finding-linear.safetensors", 256, 2, key=hashed["key"],
              salt=hashed["salt"], patients=tuple(hashed["keys"]))  # fmt: skip


def as_table(found: Mapping[str, set[str]]) -> str:
    """The map as Markdown: a line an artefact, a column a kind."""
    kinds = [*KINDS, HASHES, SECRET]
    lines = [f"| where | {' | '.join(kinds)} |", f"|---|{':-:|' * len(kinds)}"]
    lines += [f"| {name} | {' | '.join('yes' if k in held else '' for k in kinds)} |" for name, held in found.items()]
    return "\n".join(lines)


def read_map(page: Path = PAGE) -> dict[str, set[str]]:
    """The map as it stands in the documentation."""
    text = page.read_text(encoding="utf-8")
    rows = [line.strip("| ").split("|") for line in text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()]
    kinds = [each.strip() for each in rows[0][1:]]
    found = {}
    for line in text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|"))
        found[name] = {kind for kind, cell in zip(kinds, cells, strict=True) if cell == "yes"}
    return found


def write_map(found: Mapping[str, set[str]], page: Path = PAGE) -> None:
    """Put the map into the documentation, in place of the one that is there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{as_table(found)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"XDG_CONFIG_HOME": f"{place}/home", "BOLUS_CACHE": f"{place}/cache"}
        os.environ.pop("BOLUS_KEY", None)
        write_map(live(Path(place), whole=True).found())
