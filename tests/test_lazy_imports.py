"""Packages that only some files need, DICOM, NIfTI, video and masks, are imported where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import absent
import bolus
from bolus import read_image
from bolus.data.readers.readers import count_frames
from bolus.encoders.families.unet import MaskDecoder
from bolus.encoders.features import FeatureShape
from bolus.errors import ImageError, MissingDecoderError, MissingPackageError, require
from bolus.evaluation.segmentation.overlap import volume_hd95
from bolus.evaluation.segmentation.segmenter import mask_loss


def at_import(tree: ast.AST) -> list[str]:
    """Packages that a module imports when it is imported itself: not in a function, and not for type checkers."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "").partition(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += at_import(node)
    return found


def test_no_module_imports_an_optional_package_with_itself() -> None:
    wrong = {
        path.name: sorted(found)
        for path in Path(bolus.__file__).parent.rglob("*.py")
        if (found := set(at_import(ast.parse(path.read_text(encoding="utf-8")))) & set(absent.OPTIONAL))
    }
    assert wrong == {}


def test_such_an_import_would_be_seen() -> None:
    text = (
        "if TYPE_CHECKING:\n    import a\ndef f():\n    import b\nclass C:\n    import c.d\ntry:\n    from e import f\n"
    )
    assert at_import(ast.parse(text + "finally:\n    pass\n")) == ["c", "e"]


@pytest.mark.parametrize(
    ("package", "name", "head", "kind"),
    [
        ("pydicom", "a.dcm", bytes(128) + b"DICM" + bytes(300), "DICOM files"),
        ("nibabel", "a.nii", (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(100), "NIfTI files"),
        ("av", "a.avi", b"RIFF\0\0\0\0AVI LIST" + bytes(400), "video files"),
    ],
)
def test_a_file_that_needs_a_package_says_so(
    package: str, name: str, head: bytes, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(head)
    monkeypatch.setitem(sys.modules, package, None)  # as Python remembers a package that is not there
    for read in (read_image, count_frames):
        with pytest.raises(MissingDecoderError) as caught:
            read(tmp_path / name)
        need = f"{name}: {kind} need the package {package}, which is not installed: pip install {package}"
        assert str(caught.value) == need
        assert isinstance(caught.value, ImageError)
        assert isinstance(caught.value, MissingPackageError)


def test_masks_that_need_monai_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    mask = np.ones((1, 4, 4), int)
    for use in (
        mask_loss,
        lambda: volume_hd95(mask, mask, 2),
        lambda: MaskDecoder(FeatureShape(8, 8, 4), 2),
    ):
        with pytest.raises(MissingPackageError, match="need the package monai, which is not installed: pip install"):
            use()


def test_a_package_that_is_there_but_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brokenpackage.py").write_text("import anotherpackage\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"which cannot be imported \(No module named 'anotherpackage'\)"):
        require("brokenpackage", "files")


@pytest.mark.slow
def test_without_optional_packages_a_run_is_trained_and_judged(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import bolus

out = Path({str(tmp_path)!r})
bolus.make_phantom(out / "cohort", num_patients=24, size=32)
cohort, cache = out / "cohort" / "cohort.yaml", out / "cache"
keys = ["encoder={{backbone: r18w32, stem_pool: false}}", "images.size=32", "sampling.batch_size=8"]
keys += ["training.max_steps=2"]
run = bolus.pretrain(cohort, recipe="simclr", out=out / "run", overrides=keys, quiet=True, cache=cache)
found = bolus.evaluate(run.folder, cohort, target="disease", probes=("linear",), draws=20, cache=cache)
print(run.record["steps"], len(found.results) > 0)
(out / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(300))
try:
    bolus.read_image(out / "a.dcm")
except bolus.BolusError as error:
    print(error)
print([name for name in {absent.OPTIONAL!r} if name in sys.modules])
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], env=absent.environment(tmp_path / "site"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    need = "a.dcm: DICOM files need the package pydicom, which is not installed: pip install pydicom"
    assert shown.stdout.splitlines() == ["2 True", need, "[]"]
