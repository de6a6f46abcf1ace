"""The key of the site: where it lies, who can read it, and what is said where hashes are under another one."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bolus
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.split import hash_patients, overlap, patient_keys, seen_rows
from bolus.encoders.folders.folder import lineage_of
from bolus.errors import LeakageError, UsageError
from bolus.evaluation.probing.heads import Head
from bolus.run import Run
from bolus.site_key import fingerprint_of, keys_folder, open_site_key, read_secret, say_absent, site_key_path

PATIENTS = np.array(["1000001", "1000002"])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site without a key yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BOLUS_KEY", raising=False)
    return tmp_path / "home" / "bolus" / "keys"


def test_tests_have_a_home_of_their_own() -> None:
    assert "bolus-tests-" in str(site_key_path())


def test_a_key_is_made_once_and_for_its_owner(home: Path) -> None:
    first, again = open_site_key(), open_site_key()
    assert (first.path, first.made, again.made) == (home / "site", True, False)
    assert first.fingerprint == again.fingerprint
    assert first.path.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in home.iterdir()] == ["site"]
    assert first.secret.hex() not in repr(first)


def test_the_variable_names_another_place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLUS_KEY", str(tmp_path / "safe" / "key"))
    assert open_site_key().path == tmp_path / "safe" / "key"
    assert not home.exists()


@pytest.mark.skipif(os.name != "posix", reason="files have no such modes")
def test_a_key_that_others_can_read_is_refused(home: Path) -> None:
    path = open_site_key().path
    hashed = hash_patients(PATIENTS)
    path.chmod(0o640)
    for call in (open_site_key, lambda: hash_patients(PATIENTS), lambda: seen_rows(hashed, PATIENTS)):
        with pytest.raises(UsageError, match="can be read by others; chmod 600 it"):
            call()


def test_a_home_that_cannot_be_written_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot be made: Not a directory; set BOLUS_KEY to another file"):
        open_site_key()
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    with pytest.raises(UsageError, match="no home folder to keep a key in; set BOLUS_KEY"):
        open_site_key()


def test_a_key_in_the_run_folder_is_refused_before_any_work(
    home: Path, tiny_cohort: Path, small_recipe: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOLUS_KEY", str(tmp_path / "run" / "key"))
    with pytest.raises(UsageError, match="would be given away; set BOLUS_KEY to another file"):
        bolus.pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_a_process_that_comes_second_takes_the_key_of_the_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exists, first = Path.exists, open_site_key()
    blind = [True]
    monkeypatch.setattr(Path, "exists", lambda self: False if blind and blind.pop() else exists(self))
    second = open_site_key()
    assert (second.secret, second.made) == (first.secret, False)


def test_hashes_follow_from_the_key_of_the_site_alone(home: Path) -> None:
    hashed = hash_patients(PATIENTS)
    assert hashed["key"] == open_site_key().fingerprint
    assert seen_rows(hashed, np.array(["1000002", "3"])).tolist() == [True, False]
    assert not overlap(hashed["keys"], PATIENTS, hashed["salt"]).any(), "the salt is not enough"
    assert not set(hashed["keys"]) & set(hash_patients(PATIENTS)["keys"]), "two runs cannot be joined"
    shutil.rmtree(home)
    assert seen_rows(hashed, PATIENTS) is None
    assert not home.exists(), "to look something up makes no key"
    assert seen_rows({"salt": "s", "keys": patient_keys(PATIENTS, "s")}, PATIENTS).all(), "as earlier versions hashed"


def test_another_key_in_the_folder_of_keys_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = hash_patients(PATIENTS)
    (home / "site").rename(home / "north")
    assert open_site_key().made
    assert seen_rows(hashed, PATIENTS).all()
    (home / "north").chmod(0o644)
    assert seen_rows(hashed, PATIENTS) is None


def test_seven_digits_are_not_found_by_trying_them_all(home: Path) -> None:
    """What an attacker does who has the folder and knows every identifier: all of them, without the key."""
    hashed = hash_patients(np.array(["4000123"]))
    tried = [str(number) for number in range(4_000_000, 4_001_000)]
    began = time.perf_counter()
    assert not patient_keys(np.array(tried), hashed["salt"]) & set(hashed["keys"])
    print(f"all numbers of seven digits would have taken {9000 * (time.perf_counter() - began):.0f} s")
    fingerprint = bytes.fromhex(hashed["key"])
    for guessed in (fingerprint, hashed["key"].encode(), blake2b(fingerprint, digest_size=32).digest()):
        assert not patient_keys(np.array(tried), hashed["salt"], guessed) & set(hashed["keys"])


@pytest.fixture
def run(home: Path, tiny_cohort: Path, small_recipe: dict[str, object], tmp_path: Path) -> Run:
    overrides = ["training.max_steps=2", "training.health_epochs=null"]
    return bolus.pretrain(
        tiny_cohort, recipe=small_recipe, out=tmp_path / "run", overrides=overrides, cache=tmp_path / "cache",
        quiet=True,
    )  # fmt: skip


def test_a_run_names_its_key_and_an_evaluation_says_where_it_is_not_here(
    run: Run, home: Path, tiny_cohort: Path, tmp_path: Path
) -> None:
    fingerprint, secret = open_site_key().fingerprint, (home / "site").read_text().strip()
    assert run.record["key"] == fingerprint
    assert lineage_of(run.encoder) == [run.training]
    for path in run.folder.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path
    everything = {"target": "sick", "probes": ("linear",), "draws": 20, "cache": tmp_path / "cache"}
    turned = tmp_path / "turned.yaml"
    Cohort.open(tiny_cohort, split={"seed": 9}).save(turned)
    with pytest.raises(LeakageError):
        bolus.evaluate(run.folder, turned, **everything)

    (home / "site").rename(tmp_path / "elsewhere")
    found = bolus.evaluate(run.folder, turned, **everything)
    notes = json.loads((found.folder / "notes.json").read_text())
    said = [note for note in _texts(notes) if "overlap was not checked" in note]
    assert said == [f"run: overlap was not checked: its training patients were {say_absent(fingerprint)}."]
    head = Head.load(found.folder / "head-sick-linear.safetensors")
    assert head.key == open_site_key().fingerprint != fingerprint
    frame = bolus.predict(run.folder, tiny_cohort, head="sick", cache=tmp_path / "cache")
    assert any(f"Whether run has seen these patients is not known: those it saw were hashed with the key {fingerprint}"
               in remark for remark in frame.attrs["remarks"])  # fmt: skip
    assert any("rows belong to patients that the head was fitted on" in each for each in frame.attrs["remarks"])


def _texts(data: Any) -> list[str]:
    if isinstance(data, str):
        return [data]
    return [text for each in (data.values() if isinstance(data, dict) else data) for text in _texts(each)]


def test_a_scan_and_a_run_may_share_a_key(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bolus.scanning.privacy import Key, default_key

    monkeypatch.setenv("BOLUS_KEY", str(tmp_path / "key"))
    scans = Key.open(default_key(tmp_path / "out" / "cohort.yaml"), tmp_path / "out" / "cohort.yaml")
    site = open_site_key()
    assert (scans.path, scans.secret) == (site.path, site.secret)
    assert not {scans.digest("patient", each) for each in PATIENTS} & {
        key[:16] for key in patient_keys(PATIENTS, "patient", site.secret)
    }


def test_what_is_no_key_is_said(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(UsageError, match="expected at least 16 characters, found 5"):
        read_secret(path)
    assert keys_folder().name == "keys"
    assert len(fingerprint_of(b"")) == 16


def test_the_command_line_says_it_in_a_sentence(
    call_bolus: Callable[..., tuple[int, str]], tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOLUS_KEY", "/dev/null/no/key")
    code, said = call_bolus("pretrain", tiny_cohort, "--recipe", "simclr", "--out", tmp_path / "run", "--quiet")
    assert (code, said.count("\n")) == (2, 1)
    assert said == "error: the key /dev/null/no/key cannot be made: Not a directory; set BOLUS_KEY to another file\n"
