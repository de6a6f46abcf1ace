"""An encoder as a program of torch.export, or as one ONNX file; and both, run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bolus.errors import EncoderError, require
from bolus.exporting.models import Deployed, Drawing
from bolus.files import strict_json

OPSET = 18  # of ONNX: the one that torch's exporter is written in, so that nothing is converted
PROGRAM, ONNX = "model.pt2", "model.onnx"
INPUTS = ("images", "frame_mask")

Outputs = list[np.ndarray[Any, Any]]
Runner = Callable[[tuple[Tensor, ...]], Outputs]


def trace(model: Deployed | Drawing, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The graph of a model for any number of images, without the paths of the machine that it was traced on.

    Args:
        model: in evaluation mode, on the CPU.
        example: its inputs for at least two images; all axes but the first are fixed.

    Raises:
        EncoderError: torch.export cannot follow it, as an encoder of one's own that branches on its values.
    """
    assert len(example[0]) > 1, "of one image the batch would be fixed"
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name, _ in zip(INPUTS, example, strict=False)}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(model, example, dynamic_shapes=shapes)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise EncoderError(f"torch.export cannot follow this encoder: {reason}") from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
                    node.meta.pop(key, None)
    return program


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write the program; `torch.export.load` opens it."""
    with _quiet():
        torch.export.save(program, path)


def open_program(path: Path) -> Runner:
    """What is in a file of `save_program`, to run."""
    with _quiet():
        module = torch.export.load(path).module()

    def run(inputs: tuple[Tensor, ...]) -> Outputs:
        with torch.no_grad():
            return [found.numpy() for found in module(*inputs)]

    return run


def save_onnx(
    program: torch.export.ExportedProgram, path: Path, outputs: list[str], metadata: Mapping[str, Any]
) -> None:
    """Write one ONNX file, weights included, that takes any number of images.

    Args:
        program: of `trace`.
        path: of the file.
        outputs: names of what it gives.
        metadata: JSON values, kept in the file under `bolus`.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed.
        EncoderError: an operation that ONNX has not.
    """
    require("onnxscript", "ONNX exports")
    onnx = require("onnx", "ONNX exports")
    names = [name for name, _ in zip(INPUTS, program.graph_signature.user_inputs, strict=False)]
    try:
        with _quiet():
            made = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=names, output_names=outputs, verbose=False
            )
        assert made is not None
        proto = made.model_proto
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise EncoderError(f"torch.onnx cannot write this encoder: {reason}") from error
    del proto.graph.value_info[:]
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        del node.metadata_props[:]  # stack traces, with paths of this machine
        node.doc_string = ""
    del proto.graph.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
        for number, axis in enumerate(value.type.tensor_type.shape.dim):
            if number == 0 and not axis.dim_value:
                axis.dim_param = "batch"
    entry = proto.metadata_props.add()
    entry.key, entry.value = "bolus", strict_json(metadata)
    onnx.checker.check_model(proto)
    onnx.save_model(proto, path)


def open_onnx(path: Path) -> Runner:
    """What is in an ONNX file, to run by onnxruntime on the CPU.

    Raises:
        MissingPackageError: onnxruntime is not installed.
    """
    runtime = require("onnxruntime", "checks of ONNX exports")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> Outputs:
        given = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
        return list(session.run(None, given))

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave unsaid what the exporters warn of and cannot be changed here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
