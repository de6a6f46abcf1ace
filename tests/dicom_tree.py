"""An export of a PACS made on the spot: folders of hashes, files without extension, twelve patients, and litter."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.fileset import FileSet

CR, DX, DX_RAW = uid.ComputedRadiographyImageStorage, "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1"
CT, US_CLIP, CAPTURE = uid.CTImageStorage, "1.2.840.10008.5.1.4.1.1.3.1", uid.SecondaryCaptureImageStorage
SR, KO, RTPLAN = uid.BasicTextSRStorage, uid.KeyObjectSelectionDocumentStorage, uid.RTPlanStorage
SEG, ECG = uid.SegmentationStorage, uid.TwelveLeadECGWaveformStorage
SIDE = 20  # pixels

PLANTED = ("PLANTED", "Zebulon", "MRN-0", "MRN0", "mrn_0", "19231107", "1923-11-07", "Quillfeather", "ACC-77")
"""Parts of names, numbers and birth dates that no output may have."""


def person(number: int, **more: Any) -> dict[str, Any]:
    """What identifies a patient, in every file of theirs."""
    return {
        "PatientID": f"MRN-0{number:04d}",
        "PatientName": f"PLANTED{number}^Zebulon",
        "PatientBirthDate": "19231107" if number == 4 else "",
        "PatientSex": "FM"[number % 2],
        "PatientAge": f"{50 + number:03d}Y",
        "OtherPatientIDs": f"MRN-0{number:04d}-B",
        "ReferringPhysicianName": "Quillfeather^Ada",
        "InstitutionName": f"Quillfeather Hospital {number % 2}",
        "AccessionNumber": f"ACC-77{number}",
        "StudyDescription": "asked by Dr Quillfeather",
        "StudyTime": "101112",
        "StudyID": f"ACC-77{number}",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        **more,
    }


class Tree:
    """Writes files below a folder, and remembers them by the short names that tests use."""

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, dict[str, Path]()
        root.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, sop_class: str, tags: dict[str, Any], pixels: Any = None, **more: Any) -> Path:
        """One file; `name` is `patient/study/series/image`, hashed."""
        parts = name.split("/")
        digests = [hashlib.sha1("/".join(parts[: n + 1]).encode()).hexdigest()[:12] for n in range(4)]
        place = self.root.joinpath(f"MRN-0-{digests[0]}", *digests[1:])
        numbers = [int(each, 16) % 10**9 for each in digests]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, uid.ExplicitVRLittleEndian
        dataset = FileDataset(str(place), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID = sop_class
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = f"1.2.3.{numbers[3]}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.1.{numbers[1]}", f"1.2.2.{numbers[2]}"
        for key, value in {**tags, **more}.items():
            setattr(dataset, key, value)
        dataset.add_new(0x00090010, "LO", "MAKER")
        dataset.add_new(0x00091001, "LO", "PLANTED private")
        if pixels is not None:
            _add_pixels(dataset, pixels)
        place.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(place, enforce_file_format=True)
        self.files[name] = place
        return place

    def name_of(self, path: Path) -> str:
        """The short name of a file."""
        return next(name for name, each in self.files.items() if each == path)


def noise(seed: int, frames: int = 0) -> Any:
    shape = (frames, SIDE, SIDE) if frames else (SIDE, SIDE)
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.uint16)


def _add_pixels(dataset: Dataset, pixels: Any) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.PixelData = pixels.tobytes()


def radiograph(modality: str, date: str, view: str, part: str, **more: Any) -> dict[str, Any]:
    return {
        "Modality": modality,
        "StudyDate": date,
        "ViewPosition": view,
        "BodyPartExamined": part,
        "ImagerPixelSpacing": [0.2, 0.2],
        "ManufacturerModelName": f"{modality} 9000",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "BurnedInAnnotation": "NO",
        **more,
    }


def slice_tags(date: str, number: int, place: float | None, **more: Any) -> dict[str, Any]:
    tags: dict[str, Any] = {
        "Modality": "CT",
        "StudyDate": date,
        "InstanceNumber": number,
        "BodyPartExamined": "CHEST",
        "ManufacturerModelName": "CT 1",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PixelSpacing": [0.7, 0.7],
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
    }
    if place is not None:
        tags |= {"ImagePositionPatient": [0, 0, place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    return tags | more


def write_export(root: Path) -> Tree:
    """The whole tree; tests state every row of what is found in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that the standard does not allow, which are meant
        return _write_export(Tree(root))


def _write_export(tree: Tree) -> Tree:
    for study, date in enumerate(("21800105", "21800301", "21810105")):
        tree.write(f"1/{study}/a/0", CR, person(1) | radiograph("CR", date, "PA", "CHEST"), noise(10 + study))
    tree.write("2/0/a/0", DX, person(2) | radiograph("DX", "21800201", "PA", "CHEST"), noise(20), InstanceNumber=1)
    tree.write("2/0/a/1", DX, person(2) | radiograph("DX", "21800201", "LL", "CHEST"), noise(21), InstanceNumber=2)
    hand = radiograph("CR", "21800401", "ap", "Hand")
    tree.write("3/0/a/0", CR, person(3) | hand, noise(30), ImageLaterality="L")
    tree.write("3/0/b/0", CR, person(3) | hand, noise(31), Laterality="R")
    tree.write("4/0/a/0", CR, person(4) | radiograph("CR", "21800501", "PA", "CHEST"), noise(40))
    other = person(4, PatientID="mrn_0004")
    tree.write("4/1/a/0", CR, other | radiograph("CR", "21800511", "PA", "CHEST"), noise(41))
    clip = {
        "Modality": "US",
        "StudyDate": "21800601",
        "BurnedInAnnotation": "YES",
        "ImageType": ["ORIGINAL", "PRIMARY"],
    }
    tree.write("5/0/a/0", US_CLIP, person(5) | clip, noise(50, 3))
    for number, place in ((1, 9.0), (2, 6.0), (3, 3.0), (4, 0.0)):  # numbers run against positions
        tree.write(f"6/0/a/{number}", CT, person(6) | slice_tags("21800701", number, place), noise(60 + number))
    scout = slice_tags("21800701", 1, 0.0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    tree.write("6/0/b/0", CT, person(6) | scout, noise(65))
    for number in (1, 2):
        tree.write(f"6/0/c/{number}", CT, person(6) | slice_tags("21800701", number, 2.0 * number), noise(66 + number))
    for number in (1, 2, 3):
        tree.write(f"7/0/a/{number}", CT, person(7) | slice_tags("21800801", number, None), noise(70 + number))
    knee = radiograph("DX", "21800901", "AP", "KNEE")
    tree.write("8/0/a/0", DX, person(8) | knee, noise(80), PresentationIntentType="FOR PRESENTATION")
    tree.write("8/0/b/0", DX_RAW, person(8) | knee, noise(81), PresentationIntentType="FOR PROCESSING")
    child = person(9, PatientAge="006M") | radiograph("CR", "21801001", "AP", "Schaedel nach Sturz, Zebulon")
    first = tree.write("9/0/a/0", CR, child, noise(90))
    shutil.copy(first, tree.root / "zz-copy-of-a-study")
    tree.write("9/1/z/0", CR, child, noise(90))  # sent again, under another number
    old = person(10, PatientAge="095Y") | radiograph(
        "DX", "21801101", "AP", "KNEE", ProtocolName="KNEE LT Quillfeather"
    )
    tree.write("10/0/a/0", DX, old, noise(100))
    two = person(11, PatientBirthDate="19231107") | radiograph("CR", "19851201", "AP", "FOOT", Laterality="L")
    tree.write("11/0/a/0", CR, two, noise(110), ImageLaterality="R")
    for number, place in ((1, 0.0), (2, 5.0), (3, 10.0)):
        tree.write(f"12/0/a/{number}", CT, person(12) | slice_tags("21801201", number, place), noise(120 + number))
    _write_segmentation(tree, [f"12/0/a/{number}" for number in (1, 2, 3)])
    _write_litter(tree)
    return tree


def _write_segmentation(tree: Tree, images: list[str]) -> None:
    """Two segments: the first on the second slice, the second on the third; the first slice is empty."""
    uids = {name: f"1.2.3.{int(tree.files[name].name, 16) % 10**9}" for name in images}
    frames = np.zeros((2, SIDE, SIDE), np.uint8)
    frames[0, 2:5, 2:6], frames[1, 8:10, 8:10] = 1, 1
    groups = []
    for number, name in ((1, images[1]), (2, images[2])):
        source, derivation, segment, group = Dataset(), Dataset(), Dataset(), Dataset()
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = CT, uids[name]
        derivation.SourceImageSequence, segment.ReferencedSegmentNumber = [source], number
        group.DerivationImageSequence, group.SegmentIdentificationSequence = [derivation], [segment]
        groups.append(group)
    referred = []
    for name in images:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uids[name]
        referred.append(item)
    series = Dataset()
    series.ReferencedInstanceSequence = referred
    tags = {"Modality": "SEG", "StudyDate": "21801201", "SegmentationType": "BINARY", "NumberOfFrames": 2, "Rows": SIDE,
            "Columns": SIDE, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 1,
            "BitsStored": 1, "HighBit": 0, "PixelRepresentation": 0, "ReferencedSeriesSequence": [series],
            "PerFrameFunctionalGroupsSequence": groups,
            "PixelData": np.packbits(frames.ravel(), bitorder="little").tobytes()}  # fmt: skip
    tree.write("12/0/s/0", SEG, person(12) | tags)


def _write_litter(tree: Tree) -> None:
    tree.write("1/0/r/0", SR, person(1) | {"Modality": "SR"})
    tree.write("1/0/k/0", KO, person(1) | {"Modality": "KO"})
    tree.write("1/0/e/0", ECG, person(1) | {"Modality": "ECG"})
    tree.write("2/0/p/0", RTPLAN, person(2) | {"Modality": "RTPLAN"})
    screen = {"Modality": "CR", "StudyDate": "21800201", "ImageType": ["DERIVED", "SECONDARY"], "ConversionType": "WSD"}
    tree.write("2/0/w/0", CAPTURE, person(2) | screen, noise(25))
    tree.write("13/0/a/0", CR, person(13, PatientID="") | radiograph("CR", "21800201", "PA", "CHEST"), noise(130))
    whole = tree.write("14/0/a/0", CR, person(14) | radiograph("CR", "21800201", "PA", "CHEST"), noise(140))
    whole.write_bytes(whole.read_bytes()[:-100])
    (tree.root / "empty").touch()
    (tree.root / "README.TXT").write_text("exported for Zebulon PLANTED1")
    (tree.root / "garbage").write_bytes(bytes(range(256)) * 4)
    (tree.root / ".DS_Store").write_bytes(b"\0" * 8)
    directory = FileSet()
    directory.add(pydicom.dcmread(tree.files["1/0/a/0"]))
    with_directory = tree.root.parent / f"{tree.root.name}-directory"
    directory.write(with_directory)
    shutil.copy(with_directory / "DICOMDIR", tree.root / "DICOMDIR")
    shutil.rmtree(with_directory)
