"""A run or encoder goes out: written, opened again by the other program, and compared with bolus before it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bolus.data.cohort.cohort import Cohort, CohortLike
from bolus.data.images.preprocessing import Preprocessing
from bolus.embedding.opening import Judged, open_encoder
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, part_folders
from bolus.encoders.parts.norms import norms_of
from bolus.errors import BolusError, EncoderError, EvaluationError, UsageError, suggest
from bolus.evaluation.probing.heads import Head
from bolus.evaluation.segmentation.saved import DECODER, SavedSegmenter, load_segmenter
from bolus.exporting import programs
from bolus.exporting.card import STALE_NORMS, Quoted, write_card
from bolus.exporting.contract import VECTORS, alone, describe, write_contract, write_vectors
from bolus.exporting.models import Reader, answers_of, model_of
from bolus.exporting.pushing import check_name, push_folder
from bolus.exporting.rows import Shown, made_rows, rows_of
from bolus.exporting.transformers_folder import open_transformers, refuse_wrapped, save_transformers
from bolus.exporting.transformers_heads import refuse_reader
from bolus.files import check_new, making, write_text
from bolus.prediction.prediction import encoder_for, find_head

Format = Literal["hf", "onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
TOLERANCE = 1e-4  # of the largest value
SCRIPT = "embed_without_bolus.py"
OTHERS = "others"  # the part of one encoder for modalities without a size of their own


@dataclass(frozen=True)
class Exported:
    """An export that stands.

    Args:
        folder: of it; of several modalities, a folder each in it.
        to: the format.
        differences: modality, or `all` -> the largest difference from bolus, as a share of the largest value.
        rows: modality, or `all` -> what it was compared on.
        notes: what a person must know, in sentences.
    """

    folder: Path
    to: str
    differences: dict[str, float]
    rows: dict[str, str]
    notes: tuple[str, ...] = ()


def export(
    source: str | Path,
    *,
    to: Format,
    out: str | Path,
    head: str | Path | None = None,
    cohort: CohortLike | None = None,
    keep_context: bool = True,
    size: int | None = None,
    lineage: bool = False,
    push: str | None = None,
) -> Exported:
    """Write an encoder for other programs, and compare what they make of it with bolus.

    Args:
        source: run folder, encoder folder or hub name.
        to: `hf`, a folder of transformers, for plain architectures of that library; `onnx`, one file for any number of
            images; `torch`, a program of torch.export.
        out: folder to make; it is there once all is well.
        head: of an evaluation, as `bolus.predict` takes it, or its segmenter. A segmenter goes
            along in `onnx` and `torch`, a head also in `hf`, where the layer of transformers' own classifier is the
            same function.
        cohort: on rows of which it is checked; by default the run's own, and made images where there is none.
        keep_context: apply the run's MLVICX context blocks; without, a note says that BatchNorm keeps statistics of
            the network with them.
        size: input pixels of an encoder that does not state them.
        lineage: also write the keyed hashes of the training patients.
        push: OWNER/NAME on the Hugging Face hub, where the folder is uploaded once it stands; a new one is private.

    Returns:
        The folder, and how far it is from bolus.

    Raises:
        EncoderError: the encoder cannot be opened, or not be exported so; or the export differs by more than 1e-4 of
            the largest value, and no folder is left.
        EvaluationError: no such head, or one of another encoder.
        UsageError: another format, a head or segmenter that cannot go along, one without the context blocks that it
            was fitted with, or a folder that is not empty.
        BolusError: the hub cannot be reached; the folder stands.
        CohortError: the cohort that was given cannot be opened.
        MissingPackageError: onnx, onnxscript or onnxruntime is not installed: `pip install bolus[onnx]`.
    """
    out = Path(out)
    if to not in FORMATS:
        raise UsageError(f"to: expected one of {', '.join(FORMATS)}, found {to!r}; {suggest(str(to), FORMATS)}")
    check_new(out)
    if push is not None:
        check_name(push)
    given = None if cohort is None else Cohort.open(cohort)
    judged, found, quoted, notes = _open(source, head, keep_context, size)
    table, why = (given, "") if given is not None else _own_cohort(judged)
    parts = _parts(judged)
    names = part_folders([name for name in parts if name is not None])
    differences, rows = {}, {}
    with making(out) as temporary:
        for name, (encoder, contract) in parts.items():
            place = temporary if name is None else temporary / names[name]
            place.mkdir(exist_ok=True)
            part = alone(judged, encoder, contract)
            known, but = (None, tuple(judged.preprocessing.modalities)) if name == OTHERS else (name, ())
            shown = rows_of(part, table, known, contract, why, but=but)
            difference = _write(part, place, to, known, found, shown, judged.lineage if lineage else (), quoted)
            differences[name or "all"], rows[name or "all"] = difference, shown.origin
        if names:
            listed = [f"- `{folder}/`: {name}" for name, folder in names.items()]
            write_text(temporary / "README.md", "\n".join(["# Encoders of several modalities", "", *listed]) + "\n")
    if push is not None:
        notes.append(f"pushed to {push_folder(out, push)}")
    return Exported(out, to, differences, rows, tuple(notes))


def _open(
    source: str | Path, head: str | Path | None, keep_context: bool, size: int | None
) -> tuple[Judged, Reader | None, Quoted, list[str]]:
    """The encoder, the head or segmenter, what a card quotes of evaluations, and what is remarkable of them."""
    if head is None:
        judged = open_encoder(source, keep_context=keep_context, size=size)
        if keep_context or not open_encoder(source, size=size).encoder.has_context:
            return judged, None, Quoted(), []
        notes = [STALE_NORMS] if norms_of(judged.encoder) else []
        return judged, None, Quoted(bare=True, notes=tuple(notes)), notes
    if not keep_context:
        raise UsageError("a head reads the embeddings that it was fitted on: leave --no-keep-context out")
    path = find_head(source, head)
    judged, own = encoder_for(path, source, size)
    notes = [f"The head goes with its own encoder, {path.parent}, not with {source}."] if own else []
    if own and not judged.run:
        judged = replace(judged, run=open_encoder(source).run)
    if path.name == DECODER:
        segmenter = load_segmenter(path.parent)
        return replace(segmenter.judged, run=judged.run), segmenter, Quoted(trained=segmenter), notes
    found = Head.load(path)
    if found.fits(judged.encoder) is False or judged.encoder.shape.dim != len(found.mean):
        raise EvaluationError(f"the head of {found.target!r} was fitted on embeddings of other weights than these")
    return judged, found, Quoted(trained=found if own else None), notes


def _own_cohort(judged: Judged) -> tuple[Cohort | None, str]:
    """The cohort of the run, or why it is not at hand."""
    if judged.run is None:
        return None, "no cohort was given"
    try:
        return Cohort.open(judged.run.folder / "cohort.yaml"), ""
    except BolusError:
        return None, "the run's cohort cannot be opened here"


def _parts(judged: Judged) -> dict[str | None, tuple[Encoder, Preprocessing]]:
    """What becomes a model of its own: each encoder, and each size that one encoder sees."""
    encoder, contract = judged.encoder, judged.preprocessing
    if isinstance(encoder, ModalityEncoders):
        return {name: (encoder.of(name), contract.of(name)) for name in encoder.names}
    if contract.modalities:
        own: dict[str | None, tuple[Encoder, Preprocessing]] = {
            name: (encoder, contract.of(name)) for name in contract.modalities
        }
        return {**own, OTHERS: (encoder, replace(contract, modalities={}))}
    return {None: (encoder, contract)}


def _write(
    part: Judged,
    folder: Path,
    to: Format,
    modality: str | None,
    reader: Reader | None,
    shown: Shown,
    lineage: Sequence[Any],
    quoted: Quoted,
) -> float:
    """One model with its contract, card and test vectors; the largest difference from bolus."""
    encoder = part.encoder
    assert isinstance(encoder, Encoder)
    encoder.eval().cpu()
    model, reading = model_of(encoder, reader), ""
    described = describe(
        encoder, part.preprocessing, to=to, modality=modality, reader=reader, outputs=model.outputs, lineage=lineage
    )
    if to == "hf":
        refuse_wrapped(encoder, part.preprocessing)
        if reader is not None:
            refuse_reader(encoder, reader)
        assert not isinstance(reader, SavedSegmenter)
        save_transformers(encoder, part.preprocessing, folder, reader)
        run, reading = open_transformers(folder, encoder, reader)
    else:
        example = made_rows(part.preprocessing, 2).inputs
        program = programs.trace(model, example)
        if to == "torch":
            programs.save_program(program, folder / programs.PROGRAM)
            run = programs.open_program(folder / programs.PROGRAM)
        else:
            described["opset"] = programs.OPSET
            programs.save_onnx(program, folder / programs.ONNX, model.outputs, described)
            run = programs.open_onnx(folder / programs.ONNX)
            script = Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")
            write_text(folder / SCRIPT, script)
    difference = _compare(encoder, reader, run, shown)
    described["test_vectors"] = write_vectors(folder / VECTORS, part, modality, reader)
    described["check"] = {"rows": shown.origin, "largest_difference": difference, "tolerance": TOLERANCE}
    write_contract(folder, described)
    write_text(folder / "README.md", write_card(part, described, reading=reading, quoted=quoted))
    return difference


def _compare(encoder: Encoder, reader: Reader | None, run: programs.Runner, shown: Shown) -> float:
    """The largest difference from bolus, of the largest value, over all outputs; of one image alone as of several.

    Raises:
        EncoderError: it is above the tolerance, or not a number.
    """
    expected = answers_of(encoder, reader, shown.images, shown.frame_mask).values()
    worst = 0.0
    for some in (slice(None), slice(0, 1)):
        found = run(tuple(part[some].contiguous().clone() for part in shown.inputs))
        for ours, theirs in zip(expected, found, strict=True):
            largest = float(np.abs(ours).max())
            away = float(np.abs(ours[some] - theirs).max()) if theirs.shape == ours[some].shape else np.inf
            worst = max(worst, away / largest if largest > 0 else away) if np.isfinite(away) else np.inf
    if not worst <= TOLERANCE:
        raise EncoderError(
            f"the export differs from bolus by {worst:.1e} of the largest value on {shown.origin}, and at most "
            f"{TOLERANCE:g} is allowed; nothing was written"
        )
    return worst
