"""The page of `bolus report`: whole, offline, without a name of a patient, and harmless whatever a table holds."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from PIL import Image as PillowImage
from typer.main import get_command

import bolus
from bolus.cli import app
from bolus.data.cohort.cohort import Cohort
from bolus.errors import BolusError, UsageError
from bolus.evaluation.statistics.results import Result, write_results
from bolus.reporting.evidence import gather
from bolus.reporting.page import render
from bolus.reporting.sections.embedding_map import columns_of
from bolus.reporting.sections.predictions.calibration import _benefit, _bins, _slope
from bolus.reporting.sections.verdicts import gaps, verdicts
from bolus.reporting.watching import watch

SMALL = ["encoder.backbone=r18w32", "images.size=24", "sampling.batch_size=8", "training.max_steps=2",
         "training.log_steps=1"]  # fmt: skip
SICK = '"><img src=x onerror=alert(1)>'
SITES = ("<script>alert(2)</script>", "שלום\u202eolleh", "x" * 10_000)
SECTIONS = ["glance", "people", "health", "benefit", "groups", "trust", "failures", "map", "provenance"]
KEPT = Path(__file__).parent / "kept"


class Page(HTMLParser):
    """Elements with their attributes, the text of scripts and styles, and the text that a person sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.code: list[tuple[str, dict[str, str | None], str]] = []
        self.seen: list[str] = []
        self.open: tuple[str, dict[str, str | None]] | None = None
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is None:
            self.seen.append(data)
        else:
            self.code.append((*self.open, data))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.seen).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hostile table, a run that was judged and audited, another that was not, and embeddings."""
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    (folder / "img").mkdir()
    rows = []
    for number in range(72):
        patient, visit = divmod(number, 2)
        name = f"img/Surname{patient:02d}-{visit}.png"
        pixels = rng.integers(40, 90, (24, 24)) + 60 * (patient % 2)
        PillowImage.fromarray(pixels.astype(np.uint8)).save(folder / name)
        level, site, who = patient % 2 + visit / 4 + rng.random(), SITES[patient % 3], f"Name Surname{patient:02d}"
        rows.append((name, f"Surname{patient:02d}", SICK if patient % 2 else "no", level, site, who))
    (folder / "img/Surname07-0.png").write_bytes(b"torn")
    table = pd.DataFrame(rows, columns=["image", "patient", "sick", "severity", "site", "who"])
    table.to_csv(folder / "table.csv", index=False)
    (folder / "cohort.yaml").write_text(
        "table: table.csv\nroles: {'label:sick': sick, 'score:severity': severity, 'attribute:who': who}\n"
        "split: {val: 0.2, test: 0.4}\n"
    )
    cohort, cache = folder / "cohort.yaml", folder / "cache"
    for seed, name in enumerate(("a", "b")):
        keys = [*SMALL, f"training.seed={seed}"]
        bolus.pretrain(cohort, recipe="simclr", out=folder / name, overrides=keys, cache=cache, quiet=True)
    run: dict[str, Any] = {"cohort": cohort, "cache": cache}
    bolus.evaluate(folder / "a", **run, target="sick", probes=("linear",), draws=30, fractions=(0.5, 1.0), repeats=2)
    bolus.evaluate(folder / "a", **run, task="regress", target="severity", probes=("linear",), draws=30)
    bolus.evaluate_audit(folder / "a", **run, target="sick", by=["site"], draws=30)
    bolus.embed(folder / "a", cohort, out=folder / "a" / "embeddings.parquet", cache=cache)
    return folder


@pytest.fixture(scope="module")
def page(desk: Path) -> Page:
    return Page(bolus.report(desk / "a", out=desk / "a.html"))


def test_every_section_is_there_and_says_something(page: Page) -> None:
    assert [each["id"] for each in page.all("section")] == SECTIONS
    assert len(page.all("h1")) == 1
    assert page.all("html")[0]["lang"] == "en"
    for said in ("72 rows, 36 patients", "1 row", "Last look", "Gain in AUROC", "was predicted and", "Bland-Altman",
                 "hardest test rows", "Nearest rows of other patients", "bolus pretrain"):  # fmt: skip
        assert said in page.text, said
    assert "There are no" not in page.text
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    assert {each["href"] for each in page.all("a")} <= {f"#{name}" for name in ids}
    assert all(each.get("aria-label") for each in page.all("svg") if each.get("class") in ("chart", "map"))
    assert {each.get("for") for each in page.all("label")} == {each.get("id") for each in page.all("select")}


def test_the_page_loads_nothing_and_runs_only_its_own_script(page: Page) -> None:
    assert len(page.html.encode()) < 3_000_000
    assert "http:" not in page.html.replace("http-equiv", "")
    assert "https:" not in page.html
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "img-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        run = [
            text for tag, attributes, text in page.code if tag == kind and attributes.get("type") != "application/json"
        ]
        digests = [f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in run]
        assert digests == re.findall(rf"{kind}-src ([^;]+)", policy), "one of a kind, and the policy knows it"
    for tag, attributes in page.elements:
        assert not {"style", "src", "srcset", "action", "srcdoc"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not [each for each in page.all("meta") if each.get("http-equiv") == "refresh"]


def test_hostile_cells_are_text(page: Page) -> None:
    assert len(page.all("script")) == 2, "the data of the map, and what runs"
    known = {"img": 0, "iframe": 0, "object": 0, "link": 0, "form": 0, "base": 0}
    assert {tag: len(page.all(tag)) for tag in known} == known
    assert "<script>alert(2)" in page.text, "a group by that name is shown as it is"
    assert "x" * 200 not in page.html
    assert not re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", page.html)
    data = [json.loads(text) for _, attributes, text in page.code if attributes.get("type") == "application/json"]
    assert [set(each) for each in data] == [{"rows", "layouts", "columns", "near"}]
    assert "</script" not in json.dumps([text for _, _, text in page.code])


def test_no_patient_and_no_file_is_named(page: Page) -> None:
    assert "Surname" not in page.html
    assert "img/" not in page.html


def test_verdicts_are_those_that_evaluations_print(desk: Path, page: Page) -> None:
    (evidence,) = gather([desk / "a"])
    for question in evidence.asked("classify", "regress"):
        found = verdicts(question)
        assert found
        assert all(each.text in page.text for each in found)
    audit = bolus.evaluate_audit(
        desk / "a", desk / "cohort.yaml", target="sick", by=["site"], draws=30, cache=desk / "cache"
    )
    said = [each.text for question in evidence.asked("audit") for each in gaps(question)]
    assert said
    assert all(each in audit.text() for each in said)
    again = bolus.evaluate(desk / "a", desk / "cohort.yaml", target="sick", probes=("linear",), draws=30,
                           fractions=(0.5, 1.0), repeats=2, cache=desk / "cache")  # fmt: skip
    (classify,) = evidence.asked("classify")
    printed = next(iter(again.summaries().values())).splitlines()
    assert [f"{each.target}: {each.text}" for each in verdicts(classify)] == printed[-1:]


def test_a_run_that_was_asked_nothing_says_so_with_commands_that_exist(desk: Path) -> None:
    found = Page(bolus.report(desk / "b", out=desk / "b.html"))
    assert [each["id"] for each in found.all("section")] == SECTIONS
    lines = [line for text in found.seen for line in text.splitlines() if re.match("bolus [a-z]", line)]
    assert len(lines) >= 8
    top: Any = get_command(app)
    for line in lines:
        words = line.split()[1:]
        command: click.Command = top.commands[words[0]]
        if words[0] == "evaluate":
            command = command.commands[words[1]]  # type: ignore[attr-defined]
        options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options, line
    for said in ("No question has been asked", "not been audited", "no embeddings", "no case can be named"):
        assert said in found.text


def test_runs_stand_side_by_side_and_are_compared_on_the_same_patients(desk: Path) -> None:
    alone = Page(bolus.report([desk / "a", desk / "b"], out=desk / "two.html"))
    assert "not compared" in alone.text
    place = {"cohort": desk / "cohort.yaml", "cache": desk / "cache"}
    shutil.copytree(desk / "b", desk / "c")
    bolus.evaluate(desk / "c", **place, target="sick", probes=("linear",), draws=30)  # type: ignore[arg-type]
    found = Page(bolus.report([desk / "a", desk / "c"], out=desk / "two.html"))
    assert re.search(r"sick: c against a: \S+ \[", found.text)
    assert found.text.count("Report on a and c") == 2


def test_what_cannot_be_reported_is_told(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stands twice"):
        bolus.report([desk / "a", desk / "a"], out=tmp_path / "x.html")
    with pytest.raises(UsageError, match=r"ends in \.html"):
        bolus.report(desk / "a", out=tmp_path / "x.pdf")
    with pytest.raises(UsageError, match="one file a run, 2, found 1"):
        bolus.report([desk / "a", desk / "b"], out=tmp_path / "x.html", embeddings=[desk / "e.parquet"])
    with pytest.raises(BolusError, match="no ablation in"):
        bolus.report(desk / "a", out=tmp_path / "x.html", ablation=tmp_path)
    other = tmp_path / "other"
    shutil.copytree(desk / "b", other)
    recipe = (other / "recipe.yaml").read_text().replace("batch_size: 8", "batch_size: 12")
    (other / "recipe.yaml").write_text(recipe)
    with pytest.raises(BolusError, match="holds embeddings of recipe"):
        bolus.report(other, out=tmp_path / "x.html", embeddings=[desk / "a" / "embeddings.parquet"])
    pd.read_csv(desk / "table.csv", dtype=str)[::-1].to_csv(desk / "turned.csv", index=False)
    (desk / "turned.yaml").write_text((desk / "cohort.yaml").read_text().replace("table.csv", "turned.csv"))
    assert Cohort.open(desk / "turned.yaml").split_hash == Cohort.open(desk / "cohort.yaml").split_hash
    bolus.embed(desk / "a", desk / "turned.yaml", out=tmp_path / "turned.parquet", cache=desk / "cache")
    with pytest.raises(BolusError, match="holds embeddings of another table"):
        bolus.report(desk / "a", out=tmp_path / "x.html", embeddings=[tmp_path / "turned.parquet"])
    assert not list(tmp_path.glob("*.html"))


def test_a_table_that_is_gone_or_changed_costs_counts_and_colours_only(desk: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    shutil.copytree(desk / "a", run)
    spec = (run / "cohort.yaml").read_text()
    (run / "cohort.yaml").write_text(re.sub("table: .*", "table: gone.csv", spec))
    gone = Page(bolus.report(run, out=tmp_path / "a.html"))
    assert "cannot be opened any more" in gone.text
    assert [each["id"] for each in gone.all("section")] == SECTIONS
    (run / "cohort.yaml").write_text(spec.replace("test: 0.4", "test: 0.6"))
    changed = Page(bolus.report(run, out=tmp_path / "a.html"))
    assert "has changed since the training" in changed.text


@pytest.mark.parametrize("version", ["06c8476", "8aa6ec3"])
def test_runs_of_earlier_versions_are_reported(version: str, tmp_path: Path) -> None:
    found = Page(bolus.report(KEPT / version / "finished", out=tmp_path / "old.html"))
    assert [each["id"] for each in found.all("section")] == SECTIONS


def test_an_ablation_has_a_section_of_its_own(desk: Path, tmp_path: Path) -> None:
    blank: dict[str, Any] = {"task": "classify", "target": "sick", "metric": "auroc", "num_samples": 60}
    blank |= {"num_patients": 30, "versions": {}, "seeds": 3, "probe": "linear"}
    other, less = "without <b>", {"baseline": "all", "detectable": 0.15}
    results = [
        Result(**blank, estimate=0.7, ci_low=0.6, ci_high=0.8, encoder="all"),
        Result(**blank, estimate=0.6, ci_low=0.5, ci_high=0.7, encoder=other),
        Result(**{**blank, **less}, estimate=-0.1, ci_low=-0.2, ci_high=0.0, encoder=other),
    ]
    write_results(tmp_path / "results.jsonl", results)
    about: dict[str, Any] = {"question": "classify sick", "on": "validation", "seeds": [0, 1, 2], "passes": 100}
    about |= {"arms": {"all": {}, other: {}}, "failed": {"only c": "failed: <i>"}}
    (tmp_path / "ablation.json").write_text(json.dumps(about))
    (tmp_path / "table.txt").write_text("head\n\n- b earns its place: without it auroc falls\n")
    found = Page(bolus.report(desk / "b", out=tmp_path / "x.html", ablation=tmp_path / "ablation.json"))
    assert "ablation" in [each["id"] for each in found.all("section")]
    assert "b earns its place: without it auroc falls" in found.text
    assert "only c: failed: <i>" in found.text
    assert not found.all("b")
    (tmp_path / "ablation.json").write_text("{}")
    with pytest.raises(BolusError, match="damaged"):
        bolus.report(desk / "b", out=tmp_path / "x.html", ablation=tmp_path)


def test_pictures_are_drawn_only_where_they_are_asked_for(desk: Path) -> None:
    found = Page(bolus.report(desk / "a", out=desk / "pictures.html", thumbnails=True, cache=desk / "cache"))
    sources = [each["src"] for each in found.all("img")]
    assert sources
    assert all(source and source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(re.match("(near: )?row [0-9]+$", each["alt"] or "") for each in found.all("img"))
    assert "img-src data:" in found.html
    assert "holds pictures of patients" in found.text
    assert "Surname" not in found.html


def test_a_watched_page_loads_itself_until_the_training_has_ended(desk: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(desk / "b", run)
    record = json.loads((run / "run.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (run / "metrics.jsonl").write_text(lines[0])
    out, said, steps = tmp_path / "live.html", list[str](), list[str]()

    def sleep(seconds: float) -> None:
        steps.append(out.read_text())
        if len(steps) == 2:
            (run / "metrics.jsonl").write_text("".join(lines))
        if len(steps) == 3:
            (run / "run.json").write_text(json.dumps(record))

    watch([run], out=out, say=said.append, sleep=sleep)
    assert len(steps) == 3
    assert steps[0] == steps[1] != steps[2]
    assert all('http-equiv="refresh"' in each for each in steps)
    assert 'http-equiv="refresh"' not in out.read_text()
    assert len(said) == 1


def test_watching_ends_with_a_key(desk: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(desk / "b", run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    assert 'http-equiv="refresh"' not in watch([run], out=tmp_path / "x.html", say=[].append, sleep=sleep).read_text()


def test_colours_are_no_names(desk: Path) -> None:
    cohort = Cohort.open(desk / "cohort.yaml")
    found = {each.name: each for each in columns_of(cohort, np.arange(len(cohort)))}
    assert set(found) == {"split", "site", "label:sick", "score:severity"}, "attribute:who has a value a patient"
    assert found["score:severity"].ordered
    assert set(found["split"].classes) == {"train", "test", "val"}
    days = [f"2024-01-{1 + row % 9:02d}" for row in range(72)]
    frame = cohort.table.assign(site=["rare"] * 2 + ["usual"] * 70, seen=days, age=np.linspace(30, 97, 72))
    few = Cohort.open(frame, roles={"site": "site", "attribute:seen": "seen", "attribute:age": "age"})
    named = {each.name: each.classes for each in columns_of(few, np.arange(len(few)))}
    assert "attribute:seen" not in named
    assert (named["attribute:age"][0], named["attribute:age"][-1]) == ("below 43.4", "83.6 and above")
    site = next(each for each in columns_of(few, np.arange(len(few))) if each.name == "site")
    assert site.classes == ("usual", "other")


def test_calibration_and_net_benefit_are_what_their_formulas_say() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 400)
    y = (rng.random(400) < p).astype(float)
    for threshold, value in _benefit(y, p)[::8]:
        gain = 0.0
        for truth, score in zip(y, p, strict=True):  # Vickers and Elkin (2006), eq. 1, one by one
            if score >= threshold:
                gain += 1 / 400 if truth else -threshold / (1 - threshold) / 400
        assert value == pytest.approx(gain)
    slope, low, high = _slope(y, p, np.ones((60, 400), np.int32))
    assert 0.8 < slope < 1.2
    assert low == pytest.approx(high), "draws without a difference"
    bins = _bins(p)
    assert sorted(np.concatenate(bins).tolist()) == list(range(400))
    assert {len(each) for each in bins} == {40}
    assert np.isnan(_slope((p > 0.5).astype(float), p, np.ones((60, 400), np.int32))[0]), "separable"


def test_the_command_writes_and_refuses(desk: Path, call_bolus: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, said = call_bolus("report", desk / "b", "-o", tmp_path / "r.html")
    assert code == 0, said
    assert "open it in a browser" in said
    assert (tmp_path / "r.html").is_file()
    code, said = call_bolus("report", desk / "b", "--watch", "--thumbnails", "-o", tmp_path / "r.html")
    assert code == 2
    assert call_bolus("report", desk / "b", "-o", tmp_path / "r.txt")[0] == 2
    assert call_bolus("report", tmp_path, "-o", tmp_path / "r.html")[0] == 1


def test_an_empty_page_is_a_page(tmp_path: Path) -> None:
    from bolus.reporting.blocks import Section

    path = tmp_path / "x.html"
    path.write_text(render("<t>", [Section("a", "b", "c")]))
    assert [each["id"] for each in Page(path).all("section")] == ["a"]


@pytest.mark.slow
def test_a_browser_runs_the_page_and_no_cell(desk: Path, page: Page, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium here")
    shown = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom",
         (desk / "a.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    assert shown.count('aria-pressed="true"') >= 3, "the script made the keys of the map"
    assert "<img" not in shown
    assert shown.count("<script") == page.html.count("<script")
