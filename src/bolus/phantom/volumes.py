"""A synthetic cohort of volumes whose truth is known: heads in MR as NIfTI files, drawn by numpy, the same for a seed.

Each patient is scanned at two visits. A hidden severity widens the ventricles and brightens the lesions, and rises
between the visits, each patient's at a pace of its own. Nothing simple gives it away: a cyst as dark as the ventricles
and bright vessels have sizes of their own, heads differ in size, and each scan has its own place, turn, bias field,
gain and noise. Scanners differ in spacing, one has thick slices and stores them from right to left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bolus.errors import UsageError
from bolus.phantom.writing import write_tables

MASK_LABELS: Final = ("background", "brain", "ventricles", "lesion")
"""What the numbers 0, 1, 2, 3 of a mask mean."""

ROLES: Final = {
    "image": "image",
    "mask": "mask",
    "patient": "patient",
    "visit": "visit",
    "time": "days",
    "modality": "modality",
    "attribute:scanner": "scanner",
    "attribute:sex": "sex",
    "attribute:age": "age",
    "score:severity": "severity",
}
FIELD: Final = 192.0  # mm that the first scanner sees along every axis
HEAD: Final = (60.0, 74.0, 64.0)  # mm, half axes x, y, z of a head of mean size
VENTRICLES: Final = ((0.2, -0.02, 0.06), (0.15, 0.34, 0.21))  # place and half axes of the right one, in half axes
NUM_LESIONS, NUM_VESSELS, NUM_WAVES = 5, 4, 4

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scanner:
    """How a scanner makes voxels.

    Args:
        field: mm that it sees along every axis, in `FIELD`s.
        thickness: of a slice, in sides of its pixels.
        gain: of the stored numbers.
        noise: standard deviation, where tissue is about 0.5.
        leftwards: whether its voxels run from right to left.
    """

    field: float
    thickness: float
    gain: float
    noise: float
    leftwards: bool

    def grid(self, size: int) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """Voxels and their spacing in mm, along D, H and W."""
        side = self.field * FIELD / size
        slices = round(size / self.thickness)
        return (slices, size, size), (self.field * FIELD / slices, side, side)


SCANNERS: Final = {
    "north": Scanner(1.0, 1.0, 900.0, 0.03, leftwards=False),
    "south": Scanner(1.0, 1.5, 1500.0, 0.02, leftwards=True),
    "west": Scanner(0.92, 1.0, 600.0, 0.04, leftwards=False),
}


@dataclass(frozen=True)
class Head:
    """What one scan shows. Places and sizes are in half axes of the head, before it is turned and moved.

    Args:
        half_axes: mm, `[3]`.
        rim: width of the fluid about the brain.
        widening: of the ventricles, 1 is their mean size.
        lesions: `[n, 4]`, place and radius; `contrast` is how much brighter than tissue they are.
        cyst: `[4]`, place and radius.
        vessels: `[n, 4]`, place and radius.
        waves: `[n, 4]`, direction in cycles and phase of the texture.
        turn: `[3, 3]`, rotation of the head.
        shift: mm, `[3]`.
        bias: `[6]`, of x, y, z and their squares: the logarithm of the bias field.
    """

    half_axes: Numbers
    rim: float
    widening: float
    lesions: Numbers
    contrast: float
    cyst: Numbers
    vessels: Numbers
    waves: Numbers
    turn: Numbers
    shift: Numbers
    bias: Numbers


def make_volume_phantom(folder: str | Path, *, num_patients: int, size: int = 48, seed: int = 0) -> Path:
    """Write a synthetic cohort of volumes: table.csv, cohort.yaml, truth.csv, images/ and masks/.

    Two rows a patient, each a NIfTI file of a head, int16 and gzipped. Masks are label maps on the voxels of their
    image (`MASK_LABELS`). truth.csv holds, row for row, what drives the voxels. The same arguments give the same bytes,
    on one machine with one version of nibabel.

    Args:
        folder: made where absent; files of the same names are replaced.
        num_patients: at least 2.
        size: voxels along each axis, at least 16; thick slices are two thirds as many. Voxels have 192 mm / size.
        seed: of everything that is drawn.

    Returns:
        The path of table.csv; cohort.yaml lies beside it.

    Raises:
        UsageError: an argument out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = make_volume_phantom(folder, num_patients=2, size=16)
        ...     table.name, sorted(path.name for path in (table.parent / "images").iterdir())
        ('table.csv', ['P0001_v1.nii.gz', 'P0001_v2.nii.gz', 'P0002_v1.nii.gz', 'P0002_v2.nii.gz'])
    """
    for name, value, least, what in (("num_patients", num_patients, 2, ""), ("size", size, 16, " voxels")):
        if value < least:
            raise UsageError(f"{name}: expected at least {least}{what}, found {value}")
    folder = Path(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    table, truth, heads = _sample(num_patients, seed)
    for row, head in enumerate(heads):
        scanner = SCANNERS[table["scanner"][row]]
        shape, spacing = scanner.grid(size)
        picture, mask = draw_head(head, shape, spacing)
        noise = np.random.default_rng([seed, 2, row]).standard_normal(shape, dtype=np.float32)
        stored = np.rint(np.clip(picture + scanner.noise * noise, 0, 30) * scanner.gain).astype(np.int16)
        for voxels, column in ((stored, "image"), (mask, "mask")):
            _write(folder / table[column][row], voxels, spacing, leftwards=scanner.leftwards)
    return write_tables(folder, table, truth, ROLES)


def _sample(num_patients: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, list[Head]]:
    """The table, the truth, and what each scan shows."""
    rng = np.random.default_rng([seed, 0])
    age = rng.uniform(50, 85, num_patients)
    sex = rng.choice(["F", "M"], num_patients)
    start = np.clip(3 + 0.05 * (age - 65) + rng.normal(0, 2.2, num_patients), 0, 9)
    slope = np.clip(rng.normal(1.0, 0.9, num_patients), 0, None)  # of the severity, a year
    gap = rng.integers(180, 900, num_patients)
    own_scanner = rng.choice(list(SCANNERS), num_patients)
    rows: list[dict[str, Any]] = []
    known: list[dict[str, Any]] = []
    heads: list[Head] = []
    for p in range(num_patients):
        size = (1.03 if sex[p] == "M" else 0.97) * rng.normal(1, 0.03)
        half_axes = np.array(HEAD) * np.clip(size * rng.normal(1, 0.02, 3), 0.88, 1.12)
        anatomy = _anatomy(np.random.default_rng([seed, 1, p]))
        wide = np.exp(rng.normal(0, 0.04))
        for visit in (1, 2):
            days = 0 if visit == 1 else int(gap[p])
            severity = round(float(np.clip(start[p] + slope[p] * days / 365.25, 0, 10)), 1)
            scanner = str(own_scanner[p] if rng.random() < 0.8 else rng.choice(list(SCANNERS)))
            now = age[p] + days / 365.25
            degrees, shift = rng.uniform(-8, 8, 3), rng.uniform(-7, 7, 3)
            head = Head(
                half_axes=half_axes,
                rim=float(0.03 + 0.05 * np.clip((now - 50) / 35, 0, 1) + 0.01 * rng.random()),
                widening=float(min(wide * (0.35 + 0.13 * severity) ** (1 / 3), 1.3)),
                contrast=0.05 + 0.035 * severity,
                turn=_rotation(np.deg2rad(degrees)),
                shift=shift,
                bias=rng.normal(0, 0.12, 6),
                **anatomy,
            )
            heads.append(head)
            name = f"P{p + 1:04d}_v{visit}.nii.gz"
            person = {"patient": f"P{p + 1:04d}", "visit": visit, "days": days}
            rows.append(
                {"image": f"images/{name}", "mask": f"masks/{name}", **person, "modality": "MR", "scanner": scanner,
                 "sex": sex[p], "age": round(float(now), 1), "severity": severity}
            )  # fmt: skip
            volume = 2 * 4 / 3 * np.pi * np.prod(half_axes * VENTRICLES[1]) * head.widening**3
            known.append(
                {"image": f"images/{name}", "severity": severity, "severity_slope": slope[p], "age": now,
                 "ventricles_ml": volume / 1000, "lesion_contrast": head.contrast, "head_size": size,
                 **{f"turn_{axis}": value for axis, value in zip("xyz", degrees, strict=True)},
                 **{f"shift_{axis}": value for axis, value in zip("xyz", shift, strict=True)}}
            )  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(known), heads


def _anatomy(rng: np.random.Generator) -> dict[str, Numbers]:
    """What stays with a patient and says nothing of the severity."""

    def blobs(number: int, reach: tuple[float, float], radius: tuple[float, float]) -> Numbers:
        direction = rng.normal(0, 1, (number, 3))
        direction[:, 0] = np.abs(direction[:, 0]) * rng.choice([-1, 1], number)
        place = direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(*reach, (number, 1))
        return np.concatenate([place, rng.uniform(*radius, (number, 1))], axis=1)

    return {
        "lesions": blobs(NUM_LESIONS, (0.45, 0.68), (0.09, 0.14)),
        "cyst": blobs(1, (0.4, 0.6), (0.05, 0.3))[0],
        "vessels": blobs(NUM_VESSELS, (0.3, 0.75), (0.03, 0.1)),
        "waves": np.concatenate([rng.normal(0, 1.2, (NUM_WAVES, 3)), rng.uniform(0, 1, (NUM_WAVES, 1))], axis=1),
    }


def draw_head(
    head: Head, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """A scan without noise, tissue about 0.5, and its label map, both `[D, H, W]` of so many voxels of so many mm.

    A voxel's value is that of its middle, with edges as soft as a voxel is wide; where slices are thick, the mean of
    two thinner ones.
    """
    thin = 2 if spacing[0] > 1.2 * spacing[1] else 1
    counts = (shape[0] * thin, *shape[1:])
    steps = (spacing[0] / thin, *spacing[1:])
    z, y, x = np.meshgrid(
        *(((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32) for n, mm in zip(counts, steps, strict=True)),
        indexing="ij",
        sparse=True,
    )
    moved = [axis - np.float32(shift) for axis, shift in zip((x, y, z), head.shift, strict=True)]
    turn = (head.turn / head.half_axes).astype(np.float32)  # from the scanner into the head: its transpose
    u, v, w = (sum(moved[i] * turn[i, j] for i in range(3)) for j in range(3))
    soft = np.float32(np.mean(steps) / np.mean(head.half_axes))

    def edge(signed: Floats) -> Floats:
        softened: Floats = np.clip(signed / soft + np.float32(0.5), 0, 1)
        return softened

    def ball(place: Numbers) -> Floats:
        distance = np.sqrt((u - place[0]) ** 2 + (v - place[1]) ** 2 + (w - place[2]) ** 2)
        return edge(np.float32(place[3]) - distance)

    radius = np.sqrt(u**2 + v**2 + w**2)
    texture = sum(np.sin(2 * np.pi * (a * u + b * v + c * w + d)) for a, b, c, d in head.waves.astype(np.float32))
    brain = edge(np.float32(0.86 - head.rim) + np.float32(0.008) * texture - radius)
    place, axes = np.array(VENTRICLES[0]), np.array(VENTRICLES[1]) * head.widening
    distance = np.sqrt(((np.abs(u) - place[0]) / axes[0]) ** 2 + ((v - place[1]) / axes[1]) ** 2
                       + ((w - place[2]) / axes[2]) ** 2)  # fmt: skip
    ventricles = edge(((1 - distance) * np.float32(np.cbrt(axes.prod()))).astype(np.float32))
    lesions = np.maximum.reduce([ball(each) for each in head.lesions])
    vessels = np.maximum.reduce([ball(each) for each in head.vessels])

    value = 0.5 + 0.1 * edge(np.float32(0.6) - radius) + 0.02 * texture
    value += np.float32(head.contrast) * lesions
    value += (0.95 - value) * vessels
    fluid = np.maximum(ventricles, ball(head.cyst))
    value += (0.2 - value) * fluid
    value = 0.2 + (value - 0.2) * brain  # fluid about the brain
    value += (0.06 - value) * edge(radius - np.float32(0.86))  # bone
    value += (0.7 - value) * edge(radius - np.float32(0.93))  # skin
    value *= edge(1 - radius)
    terms = [u, v, w, u**2 - 0.3, v**2 - 0.3, w**2 - 0.3]
    value *= np.exp(sum(np.float32(b) * term for b, term in zip(head.bias, terms, strict=True)))

    value, brain, ventricles, lesions = (
        each.reshape(shape[0], thin, *shape[1:]).mean(1) for each in (value, brain, ventricles, lesions)
    )
    mask = (brain > 0.5).astype(np.uint8)
    mask[(lesions > 0.5) & (mask > 0)] = 3
    mask[(ventricles > 0.5) & (mask > 0)] = 2
    return value.astype(np.float32), mask


def _rotation(radians: Numbers) -> Numbers:
    """About x, then y, then z."""
    found = np.eye(3)
    for axis, angle in enumerate(radians):
        one, other = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        found = turn @ found
    return found


def _write(path: Path, voxels: npt.NDArray[Any], spacing: tuple[float, float, float], *, leftwards: bool) -> None:
    """A NIfTI file of `[D, H, W]` voxels about the origin of the world."""
    import nibabel

    steps = np.array(spacing[::-1])
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = -(np.array(voxels.shape[::-1]) - 1) / 2 * steps
    stored = voxels.transpose(2, 1, 0)
    if leftwards:
        stored, affine[0] = stored[::-1], -affine[0]
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nibabel.save(image, path)
