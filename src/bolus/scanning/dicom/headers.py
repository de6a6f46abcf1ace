"""What a DICOM header says, as plain values."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from bolus.errors import MissingPackageError, require
from bolus.scanning.dicom.elements import Elements, EmptyError, NotDicomError, TornError, read_elements

PURPOSE = "DICOM files"
TEXTS = {
    "media_class": 0x00020002,
    "sop_class": 0x00080016,
    "instance": 0x00080018,
    "image_type": 0x00080008,
    "study_date": 0x00080020,
    "series_date": 0x00080021,
    "acquisition_date": 0x00080022,
    "content_date": 0x00080023,
    "accession": 0x00080050,
    "modality": 0x00080060,
    "conversion": 0x00080064,
    "intent": 0x00080068,
    "site": 0x00080080,
    "model": 0x00081090,
    "series_description": 0x0008103E,
    "patient": 0x00100020,
    "birth": 0x00100030,
    "sex": 0x00100040,
    "age": 0x00101010,
    "body_part": 0x00180015,
    "contrast_phase": 0x00189344,
    "protocol": 0x00181030,
    "spacing_at_detector": 0x00181164,
    "view": 0x00185101,
    "cardiac_position": 0x00189236,
    "cardiac_percent": 0x00209241,
    "study": 0x0020000D,
    "series": 0x0020000E,
    "acquisition": 0x00200012,
    "number": 0x00200013,
    "place": 0x00200032,
    "orientation": 0x00200037,
    "laterality": 0x00200060,
    "image_laterality": 0x00200062,
    "temporal": 0x00200100,
    "echo": 0x00180086,
    "frames": 0x00280008,
    "spacing": 0x00280030,
    "burned_in": 0x00280301,
    "features": 0x00280302,
}
"""Field -> tag, of values that are text in the file."""
NUMBERS = {"rows": 0x00280010, "columns": 0x00280011}
"""Field -> tag, of 16-bit numbers."""
_CHARSET, _SHARED = 0x00080005, 0x52009229
_REGION, _VIEW = 0x00082218, 0x00540220
SEQUENCES = (_SHARED, _REGION, _VIEW)
TAGS = frozenset({_CHARSET, *TEXTS.values(), *NUMBERS.values(), *SEQUENCES})
FROM_SEQUENCES = ("frame_laterality", "region_code", "view_code")
FIELDS = ("found", *TEXTS, *NUMBERS, *FROM_SEQUENCES, "pixels", "fingerprint")
"""Of a record; `found` is `image`, `other`, `empty`, `absent`, `damaged` or `unopened`."""

Record = dict[str, Any]


def read_header(path: str) -> Record:
    r"""The fields of one file, empty or 0 where it does not say them; never an exception.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> found = read_header(get_testdata_file("CT_small.dcm", download=False))
        >>> found["found"], found["modality"], found["rows"], found["place"]
        ('image', 'CT', 128, '-158.135803\\-179.035797\\-75.699997')
    """
    try:
        elements = read_elements(path, TAGS)
        return _fields(elements)
    except EmptyError:
        return {"found": "empty"}
    except NotDicomError:
        return {"found": "other"}
    except TornError:
        return {"found": "damaged"}
    except FileNotFoundError:
        return {"found": "absent"}
    except OSError:
        return {"found": "unopened"}
    except MissingPackageError:
        raise
    except Exception:  # whatever pydicom raises of bytes that mean nothing
        return {"found": "damaged"}


def _fields(elements: Elements) -> Record:
    values, encodings = elements.values, None
    record: Record = {"found": "image"}
    for field, tag in TEXTS.items():
        raw = values.get(tag)
        if not raw:
            continue
        if raw.isascii() and b"\x1b" not in raw:
            text = raw.decode("ascii")
        else:
            encodings = encodings or _encodings(values.get(_CHARSET))
            text = require("pydicom.charset", PURPOSE).decode_bytes(raw, encodings, set("\\\r\n\t\f"))
        record[field] = text.strip("\0 \r\n\t")
    record.setdefault("sop_class", record.pop("media_class", None))  # all that a DICOMDIR says of itself
    for field, tag in NUMBERS.items():
        raw = values.get(tag)
        if raw is not None and len(raw) == 2:
            record[field] = struct.unpack("<H" if elements.little else ">H", raw)[0]
    record["pixels"] = int(elements.has_pixels)
    record["fingerprint"] = elements.fingerprint
    if any(tag in values for tag in SEQUENCES):
        record |= _of_sequences(elements)
    return record


def _encodings(raw: bytes | None) -> list[str]:
    names = [name.strip("\0 ") for name in (raw or b"").decode("ascii", "replace").split("\\")]
    found: list[str] = require("pydicom.charset", PURPOSE).convert_encodings(names)
    return found


def _of_sequences(elements: Elements) -> Record:
    """The side of shared functional groups, and the codes of region and view."""
    found: Record = {}
    for field, tag in (("region_code", _REGION), ("view_code", _VIEW)):
        for item in _items(elements, tag)[:1]:
            found[field] = str(item.get("CodeMeaning") or "").strip()
    for item in _items(elements, _SHARED):
        for anatomy in item.get("FrameAnatomySequence") or []:
            found["frame_laterality"] = str(anatomy.get("FrameLaterality") or "").strip()
        for measures in item.get("PixelMeasuresSequence") or []:
            found["spacing"] = "\\".join(str(number) for number in measures.get("PixelSpacing") or [])
    return found


def _items(elements: Elements, tag: int) -> list[Any]:
    """The items of a sequence, by pydicom."""
    raw = elements.values.get(tag)
    if not raw:
        return []
    read_sequence = require("pydicom.filereader", PURPOSE).read_sequence
    return list(read_sequence(BytesIO(raw), elements.implicit, elements.little, len(raw), ["iso8859"]))


def read_headers(paths: Sequence[str]) -> dict[str, list[Any]]:
    """Field -> what each file says, None where it says nothing."""
    records = [read_header(path) for path in paths]
    return {field: [record.get(field) for record in records] for field in FIELDS}
