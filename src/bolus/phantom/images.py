"""A synthetic cohort whose truth is known, for the demo and for tests: drawn by numpy, the same bytes for a seed.

Patients come for one to three visits at irregular days; each visit images a left and a right organ in two modalities.
A hidden disease that drifts with time brings bright lesions, age coarsens the texture, the side mirrors the picture,
the phase and the slice change its size, the site shifts its brightness and is commoner among the ill (a shortcut), and
sex does nothing. Every row is one still picture: there are no clips, hence no series and no order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image as PillowImage

from bolus.errors import UsageError
from bolus.phantom.writing import write_tables

MODALITIES: Final = ("MR", "XR")  # MR: 16-bit files of which 12 bits are used, dark organ; XR: 8-bit, bright organ
SIDES: Final = ("left", "right")
PHASES: Final = ("empty", "full")
NUM_LESIONS: Final = 8  # at the highest severity
HARMONICS: Final = 4  # of the organ's outline
SEVERITY_MISSING: Final = -99
ROLES: Final = {
    "image": "image",
    "mask": "mask",
    "patient": "patient",
    "visit": "visit",
    "time": "days",
    "modality": "modality",
    "laterality": "side",
    "phase": "phase",
    "slice_position": "slice_position",
    "site": "site",
    "attribute:sex": "sex",
    "score:age": "age",
    "score:severity": "severity",
    "label:disease": "disease",
    "label:findings": "findings",
}
OPTIONAL: Final = tuple(
    column for role, column in ROLES.items() if role not in {"image", "patient", "modality", "visit"}
)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Anatomy:
    """What n pictures show; every field is float32 with n in front.

    Args:
        outline: `[n, HARMONICS, 2]`, cosine and sine coefficients of the organ's radius, relative.
        radius: of the organ, 1 is half the picture.
        mirror: 1 on the right side, -1 on the left.
        size: relative, from phase and slice.
        slice_position: 0..1, moves the hilum towards the rim.
        tilt: radians, and `shift` `[n, 2]`: how the patient lay.
        severity: 0..10, brings the lesions.
        lesions: `[n, NUM_LESIONS, 3]`, radius and angle of the place, and radius of the lesion, all within the organ.
        grain: amplitude of the texture.
        effusion: 0..1, a bright crescent at the bottom of the organ.
        fibrosis: 0..1, streaks; `streaks` `[n]` their angle in radians.
        dark_organ: 1 in MR, 0 in XR.
        brightness: added to all pixels; `gain` multiplies them.
    """

    outline: Floats
    radius: Floats
    mirror: Floats
    size: Floats
    slice_position: Floats
    tilt: Floats
    shift: Floats
    severity: Floats
    lesions: Floats
    grain: Floats
    effusion: Floats
    fibrosis: Floats
    streaks: Floats
    dark_organ: Floats
    brightness: Floats
    gain: Floats

    def take(self, rows: slice | npt.NDArray[np.int64]) -> Anatomy:
        """The pictures of these rows."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def make_phantom(
    folder: str | Path, *, num_patients: int = 120, size: int = 64, seed: int = 0, missing: float = 0.1
) -> Path:
    """Write a synthetic cohort: table.csv, cohort.yaml, truth.csv, images/ and masks/.

    About eight rows a patient. Images are grey PNG, masks label maps of the same size (0 background, 1 organ,
    2 lesion). truth.csv holds, row for row, what the table leaves out or gives with errors. The same arguments give the
    same bytes, on one machine with one version of Pillow.

    Args:
        folder: made where absent; files of the same names are replaced.
        num_patients: at least 2.
        size: side of the pictures in pixels, at least 16.
        seed: of everything that is drawn.
        missing: share of the patients (age, sex, site) or rows (the rest) without a value, rounded up, in every column
            but image, patient, visit and modality; severity is then -99, elsewhere the cell is empty.

    Returns:
        The path of table.csv; cohort.yaml lies beside it.

    Raises:
        UsageError: an argument out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = make_phantom(folder, num_patients=2, size=16)
        ...     table.name, (table.parent / "cohort.yaml").is_file()
        ('table.csv', True)
    """
    for name, value, fine, expected in (
        ("num_patients", num_patients, num_patients >= 2, "at least 2"),
        ("size", size, size >= 16, "at least 16 pixels"),
        ("missing", missing, 0 <= missing < 1, "0 <= missing < 1"),
    ):
        if not fine:
            raise UsageError(f"{name}: expected {expected}, found {value}")
    folder = Path(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    table, truth, anatomy = _sample(num_patients, seed)
    for start in range(0, len(table), 128):
        rows = slice(start, start + 128)
        noise = np.random.default_rng([seed, 2, start])
        part = table.iloc[rows]
        pictures, masks = _draw(anatomy.take(rows), size, noise)
        for picture, mask, name, modality in zip(pictures, masks, part["image"], part["modality"], strict=True):
            levels = (4095, np.uint16) if modality == "MR" else (255, np.uint8)
            pixels = np.rint(picture * levels[0]).astype(levels[1])
            PillowImage.fromarray(pixels).save(folder / name)
            PillowImage.fromarray(mask).save(folder / name.replace("images/", "masks/"))
    table = _lose(table, missing, seed)
    return write_tables(folder, table, truth, ROLES, missing={"severity": [SEVERITY_MISSING]})


def _sample(num_patients: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, Anatomy]:
    """The table without gaps, the truth, and what the pictures show."""
    rng = np.random.default_rng([seed, 0])
    # Per patient.
    start = rng.normal(0, 1, num_patients)
    slope = rng.normal(0.4, 0.4, num_patients)  # of the disease, a year
    age = rng.uniform(30, 80, num_patients)
    sex = rng.choice(["F", "M"], num_patients)
    north = rng.random(num_patients) < np.where(start > 0, 0.35, 0.65)
    wetness = 0.5 * start + rng.normal(0, 0.9, num_patients)
    stiffness = 0.03 * (age - 55) + rng.normal(0, 0.8, num_patients)
    radius = rng.uniform(0.58, 0.72, num_patients)
    outline = rng.normal(0, 1, (num_patients, HARMONICS, 2)) * np.array([0.05, 0.09, 0.05, 0.03])[:, None]
    num_visits = rng.choice([1, 2, 3], num_patients, p=[0.3, 0.4, 0.3])
    streaks = rng.uniform(0, np.pi, num_patients)
    lesions = np.stack(
        [
            0.78 * np.sqrt(rng.uniform(0.02, 1, (num_patients, 2, NUM_LESIONS))),
            rng.uniform(0, 2 * np.pi, (num_patients, 2, NUM_LESIONS)),
            rng.uniform(0.09, 0.16, (num_patients, 2, NUM_LESIONS)),
        ],
        axis=-1,
    )
    # Per visit.
    patient = np.repeat(np.arange(num_patients), num_visits)
    visit = np.concatenate([np.arange(1, count + 1) for count in num_visits])
    gap = rng.integers(30, 500, len(patient))
    days = np.array(
        [gap[(patient == p) & (visit > 1) & (visit <= v)].sum() for p, v in zip(patient, visit, strict=True)]
    )
    disease = start[patient] + slope[patient] * days / 365.25
    label = (disease > 0.4) ^ (rng.random(len(patient)) < 0.08)
    # Per side, and per row: a modality of a side.
    side_visit, side = (index.ravel() for index in np.indices((len(patient), 2)))
    of_side = disease[side_visit] + rng.normal(0, 0.3, len(side_visit))
    row_side, modality = (index.ravel() for index in np.indices((len(side_visit), 2)))
    row_visit, row_patient, side = side_visit[row_side], patient[side_visit[row_side]], side[row_side]
    num_rows = len(row_side)
    severity = np.round(10 / (1 + np.exp(-1.2 * (of_side[row_side] - 0.3))), 1)
    phase = rng.integers(0, 2, num_rows)
    position = np.round(rng.uniform(0.15, 0.85, num_rows), 3)
    row_days = days[row_visit]
    row_age = age[row_patient] + row_days / 365.25
    effusion = wetness[row_patient] > 0.6
    fibrosis = stiffness[row_patient] > 0.5
    nodule = severity * NUM_LESIONS / 10 >= 3

    names = [
        f"P{p + 1:04d}_v{v}_{SIDES[s]}_{MODALITIES[m]}"
        for p, v, s, m in zip(row_patient, visit[row_visit], side, modality, strict=True)
    ]
    findings = [
        "|".join(name for name, has in zip(("effusion", "fibrosis", "nodule"), row, strict=True) if has) or "no finding"
        for row in zip(effusion, fibrosis, nodule, strict=True)
    ]
    table = pd.DataFrame(
        {
            "image": [f"images/{name}.png" for name in names],
            "mask": [f"masks/{name}.png" for name in names],
            "patient": [f"P{p + 1:04d}" for p in row_patient],
            "visit": visit[row_visit],
            "days": row_days,
            "modality": np.array(MODALITIES)[modality],
            "side": np.array(SIDES)[side],
            "phase": np.array(PHASES)[phase],
            "slice_position": position,
            "site": np.where(north[row_patient], "north", "south"),
            "sex": sex[row_patient],
            "age": np.round(row_age, 1),
            "severity": severity,
            "disease": label[row_visit].astype(int),
            "findings": findings,
        }
    )
    truth = pd.DataFrame(
        {
            "image": table["image"],
            "disease_latent": disease[row_visit],
            "disease_true": (disease[row_visit] > 0.4).astype(int),
            "disease_slope": slope[row_patient],
            "severity": severity,
            "age": row_age,
            **{name: table[name] for name in ("days", "side", "phase", "slice_position", "site", "sex", "findings")},
            "radius": radius[row_patient],
        }
    )
    scanner = np.random.default_rng([seed, 1])
    values: dict[str, npt.NDArray[Any]] = {
        "outline": outline[row_patient],
        "radius": radius[row_patient],
        "mirror": np.where(side == 1, 1.0, -1.0),
        "size": np.where(phase == 1, 1.0, 0.8) * np.sqrt(1 - 0.6 * (2 * position - 1) ** 2),
        "slice_position": position,
        "tilt": scanner.normal(0, 0.1, num_rows),
        "shift": scanner.normal(0, 0.05, (num_rows, 2)),
        "severity": severity,
        "lesions": lesions[row_patient, side],
        "grain": 0.015 + 0.055 * np.clip((row_age - 30) / 50, 0, 1.2),
        "effusion": effusion,
        "fibrosis": fibrosis,
        "streaks": streaks[row_patient],
        "dark_organ": modality == 0,
        "brightness": np.where(north[row_patient], -0.02, 0.02) + scanner.normal(0, 0.02, num_rows),
        "gain": scanner.uniform(0.85, 1.1, num_rows),
    }
    return table, truth, Anatomy(**{name: value.astype(np.float32) for name, value in values.items()})


def _draw(anatomy: Anatomy, size: int, rng: np.random.Generator | None) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Pictures in [0, 1] and label maps, both `[n, size, size]`; without a generator there is no grain and no noise."""
    each = _spread(anatomy)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    # Into the organ's own frame: mirror, then shift, tilt and size.
    x = axis[None, None, :] * each["mirror"] - anatomy.shift[:, :1, None]
    y = axis[None, :, None] - anatomy.shift[:, 1:, None]
    cos, sin = np.cos(each["tilt"]), np.sin(each["tilt"])
    x, y = (cos * x + sin * y) / each["size"], (cos * y - sin * x) / each["size"]
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    rim = np.ones_like(distance)
    for harmonic in range(HARMONICS):
        for part, wave in enumerate((np.cos, np.sin)):
            rim += anatomy.outline[:, harmonic, part, None, None] * wave((harmonic + 1) * angle)
    rim = np.maximum(rim, 0.5) * each["radius"]
    inside = _soft(rim - distance, 0.04)
    depth = distance / rim  # 0 at the centre, 1 at the rim

    organ = 0.42 - 0.1 * depth**2
    hilum = 0.25 + 0.2 * each["slice_position"]  # on the medial side: the sides are mirror images of each other
    organ += 0.22 * np.exp(-((x - hilum) ** 2 + (y - 0.05) ** 2) / (2 * 0.07**2))
    organ += 0.05 * each["fibrosis"] * np.sin(36 * (x * np.cos(each["streaks"]) + y * np.sin(each["streaks"])))
    organ += 0.16 * each["effusion"] * _soft(y - 0.45 * rim, 0.04)
    found = np.zeros_like(distance)
    load = np.clip(each["severity"] / 10 * NUM_LESIONS - np.arange(NUM_LESIONS, dtype=np.float32), 0, 1)[:, 0]
    for index in range(NUM_LESIONS):
        reach, direction, width = (anatomy.lesions[:, index, part, None, None] * 1.0 for part in range(3))
        width = width * np.sqrt(load[:, index, None, None])
        reach = reach * each["radius"]
        away = np.hypot(x - reach * np.cos(direction), y - reach * np.sin(direction))
        np.maximum(found, _soft(width - away, 0.02) * (width > 0.02), out=found)
    if rng is not None:
        white = rng.standard_normal(distance.shape, dtype=np.float32)
        coarse = sum(np.roll(white, (dy, dx), (1, 2)) for dy in (0, 1) for dx in (0, 1)) / 2
        organ += each["grain"] * coarse

    background = 0.12 + 0.06 * (1 - axis[None, :, None] ** 2)
    dark = each["dark_organ"]
    organ = np.where(dark > 0, 0.75 - organ, organ)  # the hilum and the crescent are dark there as well
    organ += 0.2 * found * (0.7 + 0.3 * dark)  # lesions are bright in both
    background = np.where(dark > 0, 0.85 - background, background)
    pictures = background + (organ - background) * inside
    pictures = pictures * each["gain"] + each["brightness"]
    if rng is not None:
        pictures += 0.02 * rng.standard_normal(distance.shape, dtype=np.float32)
    masks = (distance < rim).astype(np.uint8)
    masks[(found > 0.5) & (masks == 1)] = 2
    return np.clip(pictures, 0, 1).astype(np.float32), masks


def _soft(signed: npt.NDArray[np.floating[Any]], softness: float) -> Floats:
    """0 to 1 across an edge, with signed distances in half pictures."""
    edge: Floats = np.clip(signed / softness + 0.5, 0, 1).astype(np.float32)
    return edge


def _spread(anatomy: Anatomy) -> dict[str, Floats]:
    """Fields of one number a picture as `[n, 1, 1]`."""
    values = {field.name: getattr(anatomy, field.name) for field in fields(anatomy)}
    return {name: value[:, None, None] for name, value in values.items() if value.ndim == 1}


def _lose(table: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The table with gaps, drawn anew for each column; age, sex and site are lost for a whole patient."""
    rng = np.random.default_rng([seed, 3])
    table = table.astype(dict.fromkeys(OPTIONAL, object))
    patients = table["patient"].unique()
    for column in OPTIONAL:
        whole = column in {"age", "sex", "site"}
        among = patients if whole else np.arange(len(table))
        lost = rng.permutation(len(among))[: int(np.ceil(share * len(among) - 1e-9))]
        rows = table["patient"].isin(patients[lost]).to_numpy() if whole else np.isin(np.arange(len(table)), lost)
        table.loc[rows, column] = SEVERITY_MISSING if column == "severity" else None
    return table
