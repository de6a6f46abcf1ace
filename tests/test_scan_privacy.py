"""What a scan hides, and what stays the same from scan to scan."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bolus.data.cohort.cohort import Cohort
from bolus.errors import CohortError, UsageError
from bolus.scanning.files import walk
from bolus.scanning.found import Found
from bolus.scanning.people import make_private
from bolus.scanning.privacy import Key, default_key
from bolus.scanning.scanning import _finish, scan
from bolus.scanning.updating import add_rows
from dicom_tree import PLANTED, Tree, noise, person, radiograph, slice_tags

CR, CT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.2"
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "private" / "key"
    monkeypatch.setenv("BOLUS_KEY", str(path))
    return path


def add_study(tree: Tree, patient: int, study: str, date: str) -> Path:
    tags = person(patient) | radiograph("CR", date, "PA", "CHEST")
    return tree.write(f"{patient}/{study}/a/0", CR, tags, noise(patient * 100 + len(tree.files)))


def by_file(cohort: Cohort, tree: Tree) -> dict[str, tuple[str, float, float]]:
    """File -> patient, visit and time."""
    columns = zip(cohort.values("patient"), cohort.encoded("visit"), cohort.encoded("time"), strict=True)
    return {tree.name_of(cohort.image_path(row).readlink()): each for row, each in enumerate(columns)}


def test_the_key_lies_elsewhere_and_is_its_owners_alone(tmp_path: Path, key: Path) -> None:
    tree = Tree(tmp_path / "MRN-0-tree")
    add_study(tree, 1, "x", "21800101")
    found = scan(tree.root, tmp_path / "out" / "cohort.yaml", processes=1)
    assert found.key == key
    assert key.stat().st_mode & 0o777 == 0o600
    for path in [key.parent, *key.parent.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path.name
    assert not (key.parent / "key.reading").exists()
    for path in (key, key.with_name("key.ledger.json")):
        assert not any(planted in path.read_text() for planted in PLANTED)
    assert str(tree.files["1/x/a/0"]) not in (tmp_path / "out" / "cohort.csv").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cohort-scan.json",
        "cohort.csv",
        "cohort.yaml",
    ]


def test_a_key_that_would_be_given_away_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="given away"):
        Key.open(tmp_path / "out" / "below" / "key", tmp_path / "out" / "cohort.yaml")
    Key.open(tmp_path / ".config" / "key", tmp_path / "cohort.yaml")  # of a person who works in their home folder
    open_key = tmp_path / "open"
    open_key.write_text("0" * 64)
    open_key.chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others"):
        Key.open(open_key, tmp_path / "out" / "cohort.yaml")
    open_key.chmod(0o600)
    open_key.write_text("short")
    with pytest.raises(UsageError, match="expected at least 16 characters, found 5"):
        Key.open(open_key, tmp_path / "out" / "cohort.yaml")


def test_without_a_variable_each_cohort_has_a_key_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOLUS_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "conf"))
    one, other = (default_key(tmp_path / name / "cohort.yaml") for name in "ab")
    assert one != other
    assert one.parent == tmp_path / "conf" / "bolus" / "keys"
    assert default_key(tmp_path / "a" / ".." / "a" / "cohort.yaml") == one


def test_the_same_key_gives_the_same_names_and_another_key_others(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "tree")
    for patient in (1, 2):
        add_study(tree, patient, "x", "21800101")
    tables = []
    for out, name in (("a", "k1"), ("b", "k1"), ("c", "k2")):
        scan(tree.root, tmp_path / out / "cohort.yaml", key=tmp_path / "keys" / name, processes=1)
        tables.append(pd.read_csv(tmp_path / out / "cohort.csv"))
    assert tables[0].equals(tables[1])
    assert not set(tables[0]["patient"]) & set(tables[2]["patient"])
    assert not set(tables[0]["image"]) & set(tables[2]["image"])
    assert not set(tables[0]["site"]) & set(tables[2]["site"])


def test_new_studies_are_added_and_days_stay(tmp_path: Path, key: Path) -> None:
    tree, out = Tree(tmp_path / "tree"), tmp_path / "out" / "cohort.yaml"
    add_study(tree, 1, "second", "21800111")
    add_study(tree, 2, "only", "21800101")
    scan(tree.root, out, processes=1)
    before = by_file(Cohort.open(out), tree)
    labelled = pd.read_csv(out.with_suffix(".csv")).assign(opinion=["x", "y"])
    labelled.to_csv(out.with_suffix(".csv"), index=False)
    edited = out.read_text().replace("roles:", "split:\n  seed: 15\nroles:\n  label:opinion: opinion")
    out.write_text(edited)

    add_study(tree, 1, "third", "21800211")
    add_study(tree, 1, "first", "21800101")
    add_study(tree, 3, "new", "21800301")
    found = scan(tree.root, out, update=True, processes=1)
    cohort = Cohort.open(out)
    after = by_file(cohort, tree)
    patient = {int(name.partition("/")[0]): each[0] for name, each in after.items()}
    assert after == {
        "1/first/a/0": (patient[1], 1, -10),
        "1/second/a/0": (patient[1], 2, 0),
        "1/third/a/0": (patient[1], 3, 31),
        "2/only/a/0": (patient[2], 1, 0),
        "3/new/a/0": (patient[3], 1, 0),
    }
    assert {name: each[0] for name, each in before.items()} == {name: after[name][0] for name in before}
    assert (found.rows, found.added) == (5, 3)
    assert cohort.spec.split.seed == 15
    assert cohort.values("label:opinion").notna().sum() == 2
    again = scan(tree.root, out, update=True, processes=1)
    assert (again.rows, again.added) == (5, 0)
    assert by_file(Cohort.open(out), tree) == after

    only_new = Tree(tmp_path / "monday")
    add_study(only_new, 2, "later", "21800201")
    scan(only_new.root, out, update=True, processes=1)
    last = pd.read_csv(out.with_suffix(".csv"))
    assert sorted(last.loc[last["patient"] == patient[2], "time"]) == [0, 31]
    assert len(last) == 6


def test_slices_that_were_missing_are_taken_only_with_their_series(tmp_path: Path, key: Path) -> None:
    tree, out = Tree(tmp_path / "tree"), tmp_path / "out" / "cohort.yaml"
    for number in (1, 3, 5):
        tree.write(f"1/0/a/{number}", CT, person(1) | slice_tags("21800101", number, number), noise(number))
    scan(tree.root, out, processes=1)
    for number in (2, 4):
        tree.write(f"1/0/a/{number}", CT, person(1) | slice_tags("21800101", number, number), noise(number))
    scan(tree.root, out, update=True, processes=1)
    cohort = Cohort.open(out)
    names = [tree.name_of(cohort.image_path(row).readlink()) for row in range(len(cohort))]
    assert [names[place][-1] for place in cohort.encoded("order").argsort()] == list("12345")


def test_two_spellings_are_one_patient_by_their_birth_date_only(key: Path) -> None:
    table = pd.DataFrame({"image": list("abcd"), "patient": ["P01", "p1", "Q_2", "q 02"]})
    birth = pd.Series(np.array(["1950-01-02", "1950-01-02", "NaT", "NaT"], "datetime64[s]"))
    found = Found("dicom", table.assign(birth=birth), {"image": "image", "patient": "patient"}, ("patient",))
    secret = Key(key, b"0" * 32)
    made, notes = make_private(found, secret, plain_paths=True)
    assert made["patient"].nunique() == 3
    assert made["patient"][0] == made["patient"][1]
    assert any("1 identifiers are other spellings" in note for note in notes)
    assert any("1 groups of identifiers differ only by case" in note for note in notes)
    assert "birth" not in made
    later = Found("dicom", found.table.iloc[[1]], found.roles, ("patient",))
    assert make_private(later, secret, plain_paths=True)[0]["patient"].tolist() == [made["patient"][0]]


def test_identifiers_stay_where_a_person_says_so(tmp_path: Path, key: Path) -> None:
    tree = Tree(tmp_path / "tree")
    path = add_study(tree, 1, "x", "21800101")
    found = scan(tree.root, tmp_path / "out" / "cohort.yaml", keep_ids=True, processes=1)
    table = pd.read_csv(found.table)
    assert table["patient"].tolist() == ["MRN-00001"]
    assert table["image"].tolist() == [str(path)]
    assert (found.ids, found.paths) == ("kept", "plain")
    assert "identifiers as they are, since you asked" in found.render()
    assert "PLANTED" not in Path(found.table).read_text()
    plain = scan(tree.root, tmp_path / "out" / "cohort.yaml", paths="plain", force=True, processes=1)
    assert pd.read_csv(plain.table)["patient"].str.startswith("pa-").all()
    assert "paths as they are, which may hold identifiers" in plain.render()


def test_a_joined_table_is_hashed_and_dated_alike(tmp_path: Path, key: Path, call_bolus: Call) -> None:
    tree, out = Tree(tmp_path / "tree"), tmp_path / "out" / "cohort.yaml"
    for patient, date in ((1, "21800101"), (1, "21800401"), (2, "21800101")):
        add_study(tree, patient, date, date)
    (tmp_path / "labels.csv").write_text(
        "MRN,StudyDate,Finding,Remark\nMRN-00001,2180-01-03,edema,asked by Quillfeather\nMRN-00009,2180-01-01,none,x\n"
    )
    out.parent.mkdir()
    code, shown = call_bolus("scan", tree.root, "-o", out, "--join", tmp_path / "labels.csv", "--on", "patient,date",
                             "--within", "30", "--take", "label:finding=Finding")  # fmt: skip
    assert code == 0, shown
    cohort = Cohort.open(out)
    told = cohort.values("label:finding").fillna("").tolist()
    assert sorted(told) == ["", "", "edema"]
    assert cohort.encoded("time")[told.index("edema")] == 0
    assert "1 of 2 rows belong to an image" in shown
    assert f"bolus evaluate classify {out.parent}/runs/a {out} --target finding" in shown
    texts = [shown, *(path.read_text() for path in walk(out.parent))]
    assert not [planted for planted in PLANTED for text in texts if planted in text]


def test_links_that_cannot_be_made_are_told(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path / "tree")
    add_study(tree, 1, "x", "21800101")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "no links here", str(tree.root))

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(UsageError, match="--paths plain") as error:
        scan(tree.root, tmp_path / "out" / "cohort.yaml", processes=1)
    assert str(tree.root) not in str(error.value)


def test_the_report_is_strict_json_with_counts(tmp_path: Path, key: Path) -> None:
    tree = Tree(tmp_path / "tree")
    add_study(tree, 1, "x", "21800101")
    (tree.root / "empty").touch()
    scan(tree.root, tmp_path / "out" / "cohort.yaml", processes=1)
    report = json.loads((tmp_path / "out" / "cohort-scan.json").read_text())
    assert (report["rows"], report["patients"], report["left_out"]) == (1, 1, {"empty files": 1})
    listed = pd.read_csv(key.with_name("key.left-out.csv"))
    assert listed["path"].tolist() == [str(tree.root / "empty")]


def test_identifiers_that_one_scan_kept_stand_in_no_other(tmp_path: Path, key: Path) -> None:
    born = np.array(["1950-01-02"] * 2, "datetime64[s]")
    table = pd.DataFrame({"image": list("ab"), "patient": ["MRN-77", "mrn 77"], "birth": born})
    found = Found("dicom", table, {"image": "image", "patient": "patient"}, ("patient",))
    kept, _ = make_private(found, first := Key.open(key, tmp_path / "out" / "c.yaml"), keep_ids=True, plain_paths=True)
    assert kept["patient"].tolist() == ["MRN-77", "MRN-77"]
    first.save()
    later = Found("dicom", table.iloc[[1]], found.roles, ("patient",))
    added, _ = make_private(later, Key.open(key, tmp_path / "out" / "c.yaml"), keep_ids=True, plain_paths=True,
                            known=["MRN-77"])  # fmt: skip
    assert added["patient"].tolist() == ["MRN-77"], "as the table that the row is added to spells it"
    assert "MRN-77" not in key.with_name("key.ledger.json").read_text()
    again, _ = make_private(found, Key.open(key, tmp_path / "out" / "c.yaml"), plain_paths=True)
    assert again["patient"].str.startswith("pa-").all()
    ledger = json.loads(key.with_name("key.ledger.json").read_text())
    ledger["person"] = dict.fromkeys(ledger["person"], "MRN-77")  # as earlier versions wrote it
    key.with_name("key.ledger.json").write_text(json.dumps(ledger))
    assert make_private(found, Key.open(key, tmp_path / "out" / "c.yaml"), plain_paths=True)[0].equals(again)


def test_sites_and_ages_that_another_table_brought_are_hidden_too(key: Path) -> None:
    columns = {"image": list("abc"), "patient": list("pqr"), "clinic": ["St Mary", "St Mary", None],
               "PatientAge": ["093Y", "058Y", "95"], "age_months": ["100", "5", "6"]}  # fmt: skip
    roles = {"image": "image", "patient": "patient", "clinic": "site", "PatientAge": "score:at_exam",
             "age_months": "score:age"}  # fmt: skip
    made, notes = make_private(Found("tree", pd.DataFrame(columns), roles, ("patient",)), Key(key, b"0" * 32),
                               plain_paths=True)  # fmt: skip
    assert made["clinic"].str.startswith("si-").tolist()[:2] == [True, True]
    assert made["PatientAge"].tolist() == ["90", "058Y", "90"]
    assert made["age_months"].tolist() == ["100", "5", "6"], "months are no years"
    assert "score:at_exam: above 89 years in 2 rows, written 90." in notes


def test_an_update_goes_on_only_as_the_last_scan_went(tmp_path: Path, key: Path) -> None:
    tree, out = Tree(tmp_path / "tree"), tmp_path / "out" / "cohort.yaml"
    add_study(tree, 1, "x", "21800101")
    scan(tree.root, out, processes=1)
    written, report = out.with_suffix(".csv").read_text(), out.with_name("cohort-scan.json")
    for options, said in (
        ({"key": tmp_path / "private" / "other"}, "the key of the last scan is not there"),
        ({"paths": "plain"}, "paths as links, this one would write them as plain"),
        ({"keep_ids": True}, "paths as links"),
    ):
        with pytest.raises(UsageError, match=said):
            scan(tree.root, out, update=True, processes=1, **options)  # type: ignore[arg-type]
    (tmp_path / "private" / "other").write_text("1" * 64)
    (tmp_path / "private" / "other").chmod(0o600)
    with pytest.raises(UsageError, match="found another one"):
        scan(tree.root, out, update=True, processes=1, key=tmp_path / "private" / "other")
    here = tree.root / ".." / tree.root.name
    assert scan(here, out, update=True, processes=1).added == 0, "by whatever name the folder goes"
    assert out.with_suffix(".csv").read_text() == written
    report.unlink()
    with pytest.raises(UsageError, match=r"expected cohort-scan\.json of the last scan"):
        scan(tree.root, out, update=True, processes=1)


def test_a_table_that_is_no_scans_is_not_written_over(tmp_path: Path, key: Path) -> None:
    tree, out = Tree(tmp_path / "tree"), tmp_path / "out" / "cohort.yaml"
    add_study(tree, 1, "x", "21800101")
    labels = out.with_suffix(".csv")
    labels.parent.mkdir()
    labels.write_text("MRN,Finding\nMRN-00001,edema\n")
    joined = {"join": labels, "on": ["patient=MRN"], "take": {"label:finding": "Finding"}}
    for options, said in (
        ({}, "is there already"),
        (joined, "write over the table of --join"),
        ({**joined, "force": True}, "write over the table of --join"),
    ):
        with pytest.raises(UsageError, match=said):
            scan(tree.root, out, processes=1, **options)  # type: ignore[arg-type]
    assert labels.read_text() == "MRN,Finding\nMRN-00001,edema\n"


def test_what_an_earlier_join_said_stays_where_the_next_says_nothing() -> None:
    old = pd.DataFrame({"image": ["a", "b", "c"], "patient": list("ppq"), "finding": ["x", "y", None]})
    new = pd.DataFrame({"image": ["a", "b", "d"], "patient": list("ppr"), "finding": [None, "z", None]})
    made, notes = add_rows(old, new)
    assert made.set_index("image")["finding"].fillna("").to_dict() == {"a": "x", "b": "z", "c": "", "d": ""}
    assert "1 cells that this scan found nothing for keep what the table said." in notes


def test_an_update_that_cannot_be_opened_leaves_all_as_it_was(tmp_path: Path, key: Path) -> None:
    tree, out = Tree(tmp_path / "tree"), tmp_path / "out" / "cohort.yaml"
    add_study(tree, 1, "x", "21800101")
    scan(tree.root, out, processes=1)
    table = out.with_suffix(".csv")
    pd.read_csv(table).assign(side="train").to_csv(table, index=False)
    out.write_text(out.read_text().replace("roles:", "roles:\n  split: side"))
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    ledger = key.with_name("key.ledger.json").read_text()
    add_study(tree, 2, "y", "21800101")
    with pytest.raises(CohortError):  # of the new row nobody said on which side it is
        scan(tree.root, out, update=True, processes=1)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    assert key.with_name("key.ledger.json").read_text() == ledger


def test_visits_whose_names_contradict_their_days_are_numbered_by_days() -> None:
    table = pd.DataFrame({"image": list("abc"), "patient": list("ppq"), "visit": [2, 1, 1], "time": [0.0, 30.0, 0.0]})
    for days, visits in (([0.0, 30.0, 0.0], [1, 2, 1]), ([30.0, 0.0, 0.0], [1, 2, 1]), ([0.0, np.nan, 0.0], [2, 1, 1])):
        made, notes = _finish(table.assign(time=days), {"visit": "visit", "patient": "patient"}, numbered=True)
        assert made.set_index("image").loc[list("abc") if days[0] < 30 else list("bac"), "visit"].tolist() == visits
        assert bool(notes) == (days == [0.0, 30.0, 0.0])
