"""An encoder folder without what leads to patients, and what is said where it is judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import bolus
from bolus.checksums import without_checksums
from bolus.data.copies.seen import name_of, remember_images
from bolus.data.images.preprocessing import Preprocessing
from bolus.encoders.building import build_encoder
from bolus.encoders.folders.folder import lineage_of, save_encoder
from bolus.encoders.folders.modality_folder import save_encoders
from bolus.encoders.folders.stripping import PRIVATE, strip
from bolus.errors import EncoderError, UsageError
from bolus.evaluation.probing.heads import Head
from bolus.recipe import EncoderSpec
from test_modalities import small_encoders
from test_prediction import make_head

LINEAGE = [{"salt": "5a17", "key": "f1", "keys": ["abcd", "ef01"]}, {"salt": "0b", "keys": ["2345"]}]
NEEDLES = (b"5a17", b"abcd", b"ef01", b"2345", b"5e55")
KEPT = Path(__file__).parent / "kept"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder with a head, as fine-tuning saves them."""
    encoder = build_encoder(EncoderSpec(backbone="r18w32"), seed=0).eval()
    images = np.random.default_rng(0).normal(size=(5, 32, 32)).astype(np.float32)
    seen = {name_of("5a17"): remember_images(images, np.arange(5), "5a17")}
    about: dict[str, Any] = {"card": "# card\n", "lineage": LINEAGE, "seen": seen}
    save_encoder(encoder, tmp_path / "e", preprocessing=Preprocessing(24).to_json(), **about)
    make_head(tmp_path / "e" / "head.safetensors", 256, 2, patients=("abcd",), salt="5e55", key="f1")
    (tmp_path / "e" / "of Mrs Doe.png").write_bytes(b"abcd")
    return tmp_path / "e"


def holding(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and any(n in path.read_bytes() for n in NEEDLES)}


def test_a_copy_has_the_same_weights_and_nothing_that_leads_to_patients(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = strip(folder, tmp_path / "new" / "s")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "the source stays"
    assert (found.folder, found.left) == (tmp_path / "new" / "s", 1)
    assert found.taken == tuple(private.what for private in PRIVATE[:3])
    assert found.lost == tuple(private.lost for private in PRIVATE[:3])
    names = {path.name for path in found.folder.iterdir()}
    assert names == {"encoder.json", "model.safetensors", "head.safetensors", "README.md"}
    assert holding(found.folder) == set()
    assert (found.folder / "model.safetensors").read_bytes() == before["model.safetensors"]
    assert lineage_of(found.folder) == []
    bolus.load_encoder(found.folder)
    one, other = (Head.load(each / "head.safetensors") for each in (folder, found.folder))
    assert one.predicts_as(other)
    assert (other.patients, other.salt, other.key) == ((), "", "")


def test_a_path_that_the_encoder_began_from_is_taken_out(folder: Path, tmp_path: Path) -> None:
    described = json.loads((folder / "encoder.json").read_text())
    for name, kept in (("/data/klinik-mueller/encoder", False), ("owner/name", True), ("mine.nets:small", True)):
        described["spec"]["backbone"] = name
        (folder / "encoder.json").write_text(json.dumps(described))
        (folder / "README.md").write_text(f"# card\n- Inflated: {name} is a network of images\n")
        found = strip(folder, tmp_path / name.replace("/", "-"))
        assert [(name in (found.folder / file).read_text()) for file in ("encoder.json", "README.md")] == [kept] * 2
        assert ("the path of the folder that it began from" in found.taken) is not kept
        bolus.load_encoder(found.folder)
        assert strip(found.folder).taken == ()


def test_in_place_the_folder_itself_is_changed_and_twice_is_once(folder: Path) -> None:
    assert len(strip(folder).taken) == 3
    assert holding(folder) == {"of Mrs Doe.png"}
    again = strip(folder)
    assert (again.taken, again.lost, again.left) == ((), (), 1)
    bolus.load_encoder(folder)


def test_encoders_of_modalities_are_all_stripped(tmp_path: Path) -> None:
    contract = Preprocessing(32, modalities={"CFP": Preprocessing(48, 3)})
    save_encoders(small_encoders(), tmp_path / "e", contract, card=lambda name: f"# {name}\n", lineage=LINEAGE)
    found = strip(tmp_path / "e", tmp_path / "s")
    assert holding(tmp_path / "e") == {"encoder.json"}
    assert holding(found.folder) == set()
    assert bolus.open_encoder(found.folder).lineage == []


@pytest.mark.parametrize("version", ["8aa6ec3", "06c8476"])
def test_encoders_of_earlier_versions_are_stripped(version: str, tmp_path: Path) -> None:
    run = KEPT / version / "finished"
    salt = json.loads((run / "run.json").read_text())["salt"].encode()
    found = strip(run, tmp_path / "s")
    assert not any(salt in path.read_bytes() for path in found.folder.iterdir())
    assert bolus.open_encoder(found.folder).lineage == []


def test_what_cannot_be_stripped_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a run, which keeps what it knows; name a folder for its encoder with -o"):
        strip(KEPT / "06c8476" / "finished")
    with pytest.raises(UsageError, match="is there already"):
        strip(folder, folder)
    with pytest.raises(EncoderError, match="expected an encoder folder"):
        strip(tmp_path)
    (folder / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(EncoderError, match="damaged, so that nothing can be taken out of it"):
        strip(folder, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_segmenters_patients_are_taken_out(folder: Path) -> None:
    from safetensors.numpy import save_file

    about = {"labels": [1], "names": ["organ"], "salt": "5e55", "key": "f1", "keys": ["abcd"]}
    path, weights = folder / "decoder.safetensors", {"w": np.ones(3, np.float32)}
    save_file(weights, path, metadata={"bolus_segmenter": json.dumps(about)})
    assert len(strip(folder).taken) == 4
    with safe_open(path, "np") as file:
        notes = without_checksums(json.loads(file.metadata()["bolus_segmenter"]))
        assert notes == {**about, "salt": "", "key": "", "keys": []}
        assert (file.get_tensor("w") == weights["w"]).all()


def test_the_command_line_says_what_was_taken_and_evaluate_that_nobody_can_tell(
    folder: Path, tiny_cohort: Path, tmp_path: Path, call_bolus: Callable[..., tuple[int, str]]
) -> None:
    shutil.copytree(folder, tmp_path / "given")
    code, said = call_bolus("strip", tmp_path / "given", "-o", tmp_path / "s")
    assert code == 0, said
    assert "taken out: keyed hashes of the training patients\n" in said
    assert "from here on nobody can tell whether test patients were trained on\n" in said
    assert "1 file(s) or folder(s) that are no part of an encoder, not copied" in said
    assert "Doe" not in said
    asked: dict[str, Any] = {"target": "sick", "probes": ("linear",), "draws": 20, "cache": tmp_path / "cache"}
    found = bolus.evaluate(tmp_path / "s", tiny_cohort, out=tmp_path / "out", **asked)
    notes = (found.folder / "notes.json").read_text()
    assert "which patients it was trained on is not known here, so overlap was not checked" in notes
