"""`bolus.scanning.bids`: every row of a small data set, and why every other file was left out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bids_tree import SHAPE, write_bids_cohort, write_mask, write_small_bids, write_text, write_volume
from bolus.data.cohort.cohort import Cohort
from bolus.data.cohort.spec import CohortSpec
from bolus.data.images.mask_rows import Native, read_masks
from bolus.errors import CohortError, UsageError
from bolus.scanning.bids.finder import find_bids, is_bids
from bolus.scanning.bids.names import parse_name
from bolus.scanning.files import walk
from bolus.scanning.found import Found

# image, patient, visit, date, modality, laterality, region, phase, sex, age, scanner, site, mask, group, mmse, quality
ROWS = """
sub-01_ses-01_FLAIR.nii.gz|01|1|2180-03-01|FLAIR|.|.|.|F|34|.|.|.|patient|27|poor
sub-01_ses-01_T1w.nii.gz|01|1|2180-03-02|T1w|.|.|.|F|34|Model A|North|lesions/sub-01_1|patient|27|good
sub-01_ses-02_ce-gadolinium_T1w.nii.gz|01|2|2181-03-05|T1w|.|.|gadolinium|F|35|Model A|North|.|patient|28|.
sub-02_ses-01_T1w.nii.gz|02|1|.|T1w|.|brain|.|M|.|Model B|.|lesions/sub-02_1|control|.|.
sub-03_ses-02_T2starw.nii|03|2|.|MR|.|.|.|.|89|.|.|.|.|30|.
sub-05_ses-01_hemi-L_run-2_T2w.nii.gz|05|1|.|T2w|left|.|.|.|.|.|.|.|.|.|.
"""
COLUMNS = [
    *("image", "patient", "visit", "date", "modality", "laterality", "region", "phase", "sex", "age", "scanner"),
    *("site", "mask", "label:group", "score:mmse", "attribute:quality"),
]
MASKS = {
    "sub-01_ses-01_space-T1w_label-lesion_mask.nii.gz": "lesions/sub-01_1",
    "sub-02_ses-01_label-lesion_mask.nii.gz": "lesions/sub-02_1",
}
LEFT_OUT = {
    "files of the operating system": 1,
    "tables and texts of the data set, which describe its images": 12,
    "files of sourcedata, code and stimuli, which BIDS does not describe": 2,
    "derived images (in derivatives), but for masks": 2,
    "names that do not follow BIDS, or contradict their folder": 2,
    "phase, real and imaginary parts of images": 1,
    "recordings that are no images (EEG, MEG, behaviour, motion, spectra and the like)": 1,
    "field maps": 1,
    "formats that are not read, such as surfaces, or NIfTI headers apart from their voxels": 1,
    "empty files": 1,
    "damaged files": 1,
    "files that are no image": 1,
    "links that lead to no file (of git-annex or DataLad: get the files first)": 1,
    "several volumes in a file (4-D: functional, diffusion or dynamic series), which are not read yet": 1,
    "masks on other voxels than their image, such as those of a standard space": 1,
    "masks without an image of their subject, session and run": 1,
    "masks of another kind than the one that was taken": 3,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bids(tmp_path_factory.mktemp("bids"))


def spelled(found: Found, columns: list[str]) -> list[list[str]]:
    """Cells as the expected table has them: files by their names, whole numbers without fraction, `.` where missing."""

    def cell(column: str, value: object) -> str:
        if pd.isna(value):  # type: ignore[call-overload]
            return "."
        if column == "image":
            return Path(str(value)).name
        if column == "mask":
            return MASKS[Path(str(value)).name]
        if isinstance(value, pd.Timestamp):
            return f"{value:%Y-%m-%d}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    return [
        [cell(name, value) for name, value in zip(columns, row, strict=True)]
        for row in found.table[columns].itertuples(index=False)
    ]


def test_every_row_of_the_table(small: Path) -> None:
    take = {"label:group": "group", "score:mmse": "mmse", "attribute:quality": "quality"}
    found = find_bids(small, unit="clip", take=take)
    expected = [[cell.strip() for cell in line.split("|")] for line in ROWS.strip().splitlines()]
    assert spelled(found, COLUMNS) == expected
    assert set(found.table) == {*COLUMNS, "spacing_row", "spacing_column"}
    assert (found.table[["spacing_row", "spacing_column"]] == 1).all(axis=None)
    assert all(Path(path).is_absolute() for path in found.table["image"])
    assert found.roles == {
        **{name: name for name in COLUMNS if name not in {"date", "sex", "age", "scanner"}},
        **{name: f"attribute:{name}" for name in ("sex", "age", "scanner")},
    }
    assert found.identifying == ("patient", "site")


def test_every_file_is_a_row_a_mask_or_left_out_for_a_reason(small: Path) -> None:
    found = find_bids(small, unit="clip")
    assert {reason: len(paths) for reason, paths in found.left_out.items()} == LEFT_OUT
    piles = [Path(path) for path in [*found.table["image"], *found.table["mask"].dropna()]]
    piles += [path for paths in found.left_out.values() for path in paths]
    assert sorted(piles) == walk(small)


def test_notes_say_what_was_taken_and_what_was_not(small: Path) -> None:
    notes = " ".join(find_bids(small, unit="clip", take={"label:group": "group"}).notes)
    for sentence in (
        "visit: the sessions (ses-...) in order by their numbers, 2 different.",
        "Masks: lesions label-lesion_mask, of 2 of 6 images; also there: brains desc-brain_mask (4 images).",
        "1 of 4 participants have no image.",
        "1 of 4 subjects with images are not in it.",
        "not taken: mmse, quality; take one with --take label:mmse=mmse",
    ):
        assert sentence in notes
    assert "sub-0" not in notes


def test_slices_are_rows_where_volumes_have_masks(small: Path) -> None:
    table = find_bids(small).table
    assert len(table) == 6 * SHAPE[2]
    assert table["order"].tolist() == [0, 1, 2, 3] * 6
    assert (table["series"] == table["image"]).all()
    volumes = table.drop_duplicates("image")
    assert volumes["mask"].notna().tolist() == [False, True, False, True, False, False]
    without = [path for path in walk(small) if "derivatives" not in path.parts]
    assert len(find_bids(small, without).table) == 6


def test_masks_lie_on_their_slices(small: Path) -> None:
    table = find_bids(small).table
    for image, rows in table[table["mask"].notna()].groupby("image"):
        mask = Path(rows["mask"].iloc[0])
        order = [int(number) for number in rows["order"]]
        found = read_masks(Path(str(image)), mask, order, [Native(SHAPE[1::-1], SHAPE[2])] * len(order))
        assert [each.wrong for each in found] == [""] * len(order)
        assert [int(each.labels.sum()) for each in found] == [0, 6, 6, 0]  # type: ignore[union-attr]
        columns = found[1].labels.nonzero()[1]  # type: ignore[union-attr]
        assert set(columns) == {SHAPE[0] - 1 - 2, SHAPE[0] - 1 - 3}  # also of the mask whose x axis is reversed


def test_a_kind_of_mask_is_taken_by_a_part_of_its_name(small: Path) -> None:
    found = find_bids(small, unit="clip", mask="brain")
    assert found.table["mask"].notna().tolist() == [True, True, True, True, False, False]
    with pytest.raises(CohortError, match=r"'tumour'.*lesions label-lesion_mask \(2 images\)") as error:
        find_bids(small, mask="tumour")
    assert "sub-" not in str(error.value)


def test_the_sidecar_names_what_a_mask_was_drawn_on(tmp_path: Path) -> None:
    write_text(tmp_path / "dataset_description.json", {"Name": "x"})
    for suffix in ("T1w", "T2w"):
        write_volume(tmp_path / f"sub-1/anat/sub-1_{suffix}.nii")
    derived = "derivatives/by-hand/sub-1/anat/sub-1_label-lesion_mask"
    write_mask(tmp_path / f"{derived}.nii")
    assert find_bids(tmp_path, unit="clip").table["mask"].notna().tolist() == [True, True]
    write_text(tmp_path / f"{derived}.json", {"Sources": ["bids:raw:sub-1/anat/sub-1_T2w.nii"]})
    assert find_bids(tmp_path, unit="clip").table["mask"].notna().tolist() == [False, True]


def test_sidecars_are_inherited_by_suffix_and_entities(tmp_path: Path) -> None:
    write_volume(tmp_path / "sub-1/ses-1/anat/sub-1_ses-1_acq-a_T1w.nii")
    write_volume(tmp_path / "sub-1/ses-1/anat/sub-1_ses-1_acq-b_T1w.nii")
    for name, scanner in (("T1w", "top"), ("acq-b_T1w", "b"), ("sub-1/sub-1_T2w", "no"), ("acq-c_T1w", "no")):
        write_text(tmp_path / f"{name}.json", {"ManufacturersModelName": scanner})
    write_text(tmp_path / "sub-1/ses-1/anat/sub-1_ses-1_acq-a_T1w.json", "{torn")
    found = find_bids(tmp_path)
    assert found.table["scanner"].tolist() == ["top", "b"]
    assert "1 sidecars (.json) could not be read" in " ".join(found.notes)


def test_ages_in_another_unit_become_years(tmp_path: Path) -> None:
    write_volume(tmp_path / "sub-1/anat/sub-1_T1w.nii")
    write_text(tmp_path / "participants.tsv", [["participant_id", "age"], ["sub-1", "18"]])
    write_text(tmp_path / "participants.json", {"age": {"Units": "months"}})
    assert find_bids(tmp_path).table["age"].tolist() == pytest.approx([1.5])


def test_a_torn_table_says_nothing_and_is_counted(tmp_path: Path) -> None:
    write_volume(tmp_path / "sub-1/anat/sub-1_T1w.nii")
    write_text(tmp_path / "participants.tsv", [["participant_id", "sex"], ["sub-1", "F", "left over"]])
    write_text(tmp_path / "sub-1/sub-1_sessions.tsv", "")
    found = find_bids(tmp_path)
    assert "sex" not in found.table
    assert "2 tables (.tsv) could not be read; they say nothing." in found.notes


@pytest.mark.parametrize(
    ("sessions", "numbers"),
    [
        (["01", "02", "10"], [1, 2, 10]),
        (["baseline", "m06", "m12"], [0, 6, 12]),
        (["post", "pre"], [2, 1]),
        (["1", "extra"], [1, 2]),  # so that no visit is taken to be before the first
    ],
)
def test_sessions_become_ordinal_numbers(tmp_path: Path, sessions: list[str], numbers: list[float]) -> None:
    for session in sessions:
        write_volume(tmp_path / f"sub-1/ses-{session}/anat/sub-1_ses-{session}_T1w.nii")
    found = find_bids(tmp_path)
    assert found.table["visit"].tolist() == numbers
    assert ("warning: visit: the sessions (ses-...) in order of" in " ".join(found.notes)) == (sessions[0] == "1")


def test_what_cannot_be_taken_is_refused_without_showing_it(small: Path, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no column 'grp'.*did you mean 'group'"):
        find_bids(small, take={"label:group": "grp"})
    with pytest.raises(UsageError, match="expected a role such as"):
        find_bids(small, take={"patient": "group"})
    write_bids_cohort(tmp_path, subjects=6)
    people = [["participant_id", "name", "born", "mrn"]]
    people += [[f"sub-{n:02d}", f"Name{'abcdef'[n - 1]}", f"19{50 + n}-02-03", f"sub-{n:02d}"] for n in range(1, 7)]
    write_text(tmp_path / "participants.tsv", people)
    for column, found in (("name", "identifiers"), ("born", "dates"), ("mrn", "identifiers")):
        with pytest.raises(CohortError, match=f"found {found}") as error:
            find_bids(tmp_path, take={"label:x": column})
        assert "Name" not in str(error.value)


def test_a_data_set_without_images_has_no_rows_but_reasons(tmp_path: Path) -> None:
    write_text(tmp_path / "sub-1/anat/sub-1_T1w.nii.gz", "")
    found = find_bids(tmp_path)
    assert found.table.empty
    assert list(found.left_out) == ["empty files"]


def test_a_volume_that_is_there_twice_is_one_row(tmp_path: Path) -> None:
    image = write_volume(tmp_path / "sub-1/anat/sub-1_T1w.nii")
    (tmp_path / "sub-2/anat").mkdir(parents=True)
    (tmp_path / "sub-2/anat/sub-2_T1w.nii").write_bytes(image.read_bytes())
    found = find_bids(tmp_path, unit="slice")
    assert found.table["patient"].tolist() == ["1"] * SHAPE[2]
    assert len(found.left_out["copies of another file (the same bytes)"]) == 1
    assert "1 files stand under several patients; each was taken once." in found.notes


def test_measures_of_phenotype_are_of_a_session_or_of_all(tmp_path: Path) -> None:
    for session in ("1", "2"):
        write_volume(tmp_path / f"sub-1/ses-{session}/anat/sub-1_ses-{session}_T1w.nii")
    write_text(tmp_path / "participants.tsv", [["participant_id", "moca"], ["sub-1", "20"]])
    by_session = [["participant_id", "session_id", "moca"], ["sub-1", "ses-2", "25"]]
    write_text(tmp_path / "phenotype/moca.tsv", by_session)
    assert find_bids(tmp_path, take={"score:moca": "moca"}).table["score:moca"].tolist() == ["20", "25"]


def test_a_mask_with_other_voxels_is_on_no_image(tmp_path: Path) -> None:
    write_volume(tmp_path / "sub-1/anat/sub-1_T1w.nii")
    write_mask(tmp_path / "derivatives/x/sub-1/anat/sub-1_label-a_mask.nii", shape=(8, 6, 5))
    found = find_bids(tmp_path)
    assert "mask" not in found.table
    assert "masks on other voxels than their image, such as those of a standard space" in found.left_out


def test_what_is_a_bids_data_set(small: Path, tmp_path: Path) -> None:
    assert is_bids(small)
    (tmp_path / "sub-01/series").mkdir(parents=True)
    write_text(tmp_path / "sub-01/anat/IM0001.dcm", "x")
    assert not is_bids(tmp_path)  # folders of subjects alone are none: they may hold DICOM
    write_text(tmp_path / "sub-02/anat/sub-02_T1w.json", "x")
    assert is_bids(tmp_path)


def test_names() -> None:
    name = parse_name("sub-01_ses-02_task-rest+eyes_bold.nii.gz")
    assert name is not None
    assert dict(name.entities) == {"sub": "01", "ses": "02", "task": "rest+eyes"}
    for wrong in ("sub-01_T1w", "sub-01__T1w.nii", "sub-01_sub-02_T1w.nii", "sub-01_acq_T1w.nii", "sub-01_T1 w.nii"):
        assert parse_name(wrong) is None


def test_the_rows_open_as_a_cohort(tmp_path: Path) -> None:
    found = find_bids(write_bids_cohort(tmp_path, subjects=4), take={"label:group": "group"})
    table = found.table.assign(time=found.table["date"].astype(str).replace("NaT", None)).drop(columns="date")
    cohort = Cohort(table, CohortSpec(table="t.csv", roles={role: column for column, role in found.roles.items()}))
    assert cohort.num_patients == 4
    assert len(cohort.samples("slice")) == len(found.table)
    assert cohort.labels("group").classes == ("a", "c")


def test_free_text_of_participants_is_refused_whatever_the_number_of_their_images(tmp_path: Path) -> None:
    for n in range(1, 61):
        for session in (1, 2, 3):
            write_volume(tmp_path / f"sub-{n:02d}/ses-{session}/anat/sub-{n:02d}_ses-{session}_T1w.nii")
    people = [["participant_id", "remark"], ["sub-01", "the remark of two"], ["sub-02", "the remark of two"]]
    people += [[f"sub-{n:02d}", f"remark {'abcdefgh'[n % 8]}{n}"] for n in range(3, 61)]
    write_text(tmp_path / "participants.tsv", people)
    with pytest.raises(CohortError, match="found 59 different texts of 60 patients: free text or identifiers"):
        find_bids(tmp_path, unit="slice", take={"label:x": "remark"})


def test_links_to_folders_are_counted(tmp_path: Path) -> None:
    write_volume(tmp_path / "set/sub-1/anat/sub-1_T1w.nii")
    write_volume(tmp_path / "elsewhere/anat/sub-2_T1w.nii")
    (tmp_path / "set/sub-2").symlink_to(tmp_path / "elsewhere")
    found = find_bids(tmp_path / "set")
    assert found.table["patient"].tolist() == ["1"]
    assert found.left_out == {"links to folders, which are not entered": [tmp_path / "set/sub-2"]}
