"""The contract as a file that programs in any language read, and pictures to test them on.

docs/deploying.md says in words what every key means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor

import bolus
from bolus.data.images.preprocessing import Preprocessing
from bolus.data.pixels.quantiles import LEVELS
from bolus.data.pixels.range_rules import HAS_AIR, NUMBERS, RULES
from bolus.embedding.fresh import preprocess
from bolus.embedding.opening import Judged
from bolus.encoders.backbone import Encoder
from bolus.encoders.folders.folder import CONTRACT
from bolus.errors import BolusError
from bolus.evaluation.segmentation.saved import SavedSegmenter
from bolus.exporting.models import Reader, answers_of, describe_reader
from bolus.exporting.rows import made_rows
from bolus.files import write_json

FORMAT = 1  # of contract.json
VECTORS = "test_vectors"


def describe(encoder: Encoder, contract: Preprocessing, *, to: str, modality: str | None, reader: Reader | None,
             outputs: Sequence[str], lineage: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:  # fmt: skip
    """The contract of an export as JSON values, without what its check found.

    Args:
        encoder: that is exported.
        contract: of its images.
        to: the format.
        modality: that it is for, where each has its own; None: for all.
        reader: a head or segmenter that goes along.
        outputs: names, in order.
        lineage: of the training patients' keyed hashes; left out where empty.
    """
    side = ["batch", contract.channels, *([contract.frames] if contract.frames else []), *contract.sides]
    shapes = {"embedding": ["batch", encoder.shape.dim]}
    if isinstance(reader, SavedSegmenter):
        shapes["mask"] = ["batch", reader.num_classes, *contract.sides]
    elif reader is not None:
        shapes["prediction"] = ["batch", reader.num_classes] if reader.num_classes > 2 else ["batch"]
    found: dict[str, Any] = {
        "format": FORMAT,
        "bolus": bolus.__version__,
        "to": to,
        "modality": modality,
        "inputs": {"images": {"shape": side, "dtype": "float32", "range": [0.0, 1.0]}},
        "outputs": {name: shapes[name] for name in outputs},
        "preprocessing": {**contract.to_json(), "cached_size": contract.cached_size, "enlarge": 1.25},
        "normalisation": {
            "mean": encoder.mean.flatten().tolist(),
            "std": encoder.std.flatten().tolist(),
            "grey_repeated_to": encoder.num_channels if contract.channels < encoder.num_channels else None,
            "inside_the_model": to != "hf",
        },
        "grey": {
            "rules_of_modalities": RULES,
            "numbers_of_rules": {rule: list(numbers) for rule, numbers in NUMBERS.items()},
            "hu_if_below": HAS_AIR,
            "quantile_levels": LEVELS.tolist(),
        },
    }
    if contract.frames:
        found["inputs"]["frame_mask"] = {"shape": ["batch", contract.frames], "dtype": "bool"}
    if reader is not None:
        found["head"] = dict(describe_reader(reader))
    if lineage:
        found["lineage"] = [dict(each) for each in lineage]
    return found


def write_vectors(folder: Path, judged: Judged, modality: str | None, reader: Reader | None) -> list[dict[str, Any]]:
    """Made pictures as files, what the encoder sees of them and what bolus makes of that; no patient's pixels.

    Args:
        folder: made.
        judged: one encoder with its contract.
        modality: that the pictures are called; None: as the contract's first range is called, if it has one.
        reader: a head or segmenter that goes along.

    Returns:
        For the contract: of each its `inputs` (files, in order), `modality`, `laterality`, `tensor` (float32, as .npy),
        and `embedding`, with a head also `prediction`; or `mask`. Of volumes there are no files: a tensor, and what
        the encoder answers to it.
    """
    contract = judged.preprocessing
    folder.mkdir()
    if contract.volume is not None:
        assert isinstance(judged.encoder, Encoder)
        shown = made_rows(contract, 2, seed=11).images
        return [_vector(folder, "volumes", [], modality, None, shown, answers_of(judged.encoder, reader, shown))]
    vectors = []
    for name, deep in (("eight", False), ("sixteen", True)):
        called = modality or (next(iter(sorted(contract.ranges)), None) if deep or contract.stated else None)
        pictures = _pictures(contract, deep)
        paths = [folder / f"{name}-{number}.png" for number in range(len(pictures))]
        for path, pixels in zip(paths, pictures, strict=True):
            PIL.Image.fromarray(pixels).save(path)
        given: Any = paths if contract.frames else paths[0]
        try:
            tensor = preprocess([given], judged, modality=called, laterality=contract.mirror)
        except BolusError:  # sixteen bits, of which this contract has no range
            for path in paths:
                path.unlink()
            continue
        if isinstance(reader, SavedSegmenter):
            assert isinstance(judged.encoder, Encoder)
            said = answers_of(judged.encoder, reader, tensor)
        else:
            vector = judged.embed([given], modality=called, laterality=contract.mirror)
            said = {"embedding": vector, **({} if reader is None else {"prediction": reader.predict(vector)})}
        vectors.append(_vector(folder, name, paths, called, contract.mirror, tensor, said))
    return vectors


def _vector(
    folder: Path,
    name: str,
    paths: Sequence[Path],
    modality: str | None,
    laterality: str | None,
    tensor: Tensor,
    said: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, Any]:
    """One vector's arrays, written, and what the contract says of it."""
    names = [f"{VECTORS}/{path.name}" for path in paths]
    line: dict[str, Any] = {"inputs": names, "modality": modality, "laterality": laterality}
    for kind, values in {"tensor": tensor.numpy(), **said}.items():
        np.save(folder / f"{name}-{kind}.npy", values)
        line[kind] = f"{VECTORS}/{name}-{kind}.npy"
    return line


def write_contract(folder: Path, found: Mapping[str, Any]) -> None:
    """contract.json."""
    write_json(folder / CONTRACT, found)


def alone(judged: Judged, encoder: Encoder, contract: Preprocessing) -> Judged:
    """One encoder of several, with its own contract."""
    return replace(judged, encoder=encoder, preprocessing=contract)


def _pictures(contract: Preprocessing, deep: bool) -> list[np.ndarray[Any, Any]]:
    """Oblong pictures of blocks and ramps, one or a frame each."""
    rng = np.random.default_rng(11)
    high = 65535 if deep else 255
    if deep and contract.ranges:
        high = int(min(65535, max(255, 1.2 * max(bounds[1] for bounds in contract.ranges.values()))))
    made = []
    for _ in range(max(1, (contract.frames or 1) - 1)):  # of clips one frame fewer, so that the mask counts
        blocks = np.kron(rng.random((7, 5)), np.ones((13, 17)))
        ramp = np.linspace(0, 1, blocks.shape[1])
        values = (high * (0.7 * blocks + 0.3 * ramp)).astype(np.uint16 if deep else np.uint8)
        colour = contract.channels == 3 and not deep
        made.append(np.stack([values, values[::-1], values[:, ::-1]], axis=2) if colour else values)
    return made
