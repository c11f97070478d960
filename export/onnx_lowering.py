"""Lower a graph to ONNX in operators of the standard domain only, with nothing in it that depends on where or when it was made."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import onnx
import torch
from torch import fx

from fastcnn.errors import RequestError
from fastcnn.export.lowering import default_output_names, dynamic_sizes, examples_for, input_names, refuse_foreign, refuse_free_rank
from fastcnn.export.opsets import WRITTEN, drop_allowzero, lowest_opset, to_opset
from fastcnn.export.program import to_program
from fastcnn.export.standard_forms import in_standard_forms
from fastcnn.export.standard_pools import spell_out_ceil_mode
from fastcnn.graph.capture import tracing
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import op_name

log = logging.getLogger(__name__)

# protobuf's limit for one message.
_LARGEST = 2**31 - 1


def lower_to_onnx(
    captured: CapturedGraph, *, opset: int | None = None, batch_size: int | None = None, output_names: Sequence[str] | None = None
) -> onnx.ModelProto:
    """The graph as an ONNX model with input `input`, of several those of `lowering.input_names`; its batch dimension is called `batch` unless
    `batch_size` fixes it.

    Args:
        captured: constants in the dtypes that the file shall have.
        opset: version of the operator set, 13 to 23; by default the lowest of these that the graph needs.
        output_names: one per output; by default `logits`, or `output_0`, `output_1` and so on.

    Raises:
        RequestError: an operation that ONNX has no standard operators for, a model above 2 GB, or an opset that lacks one of the operators.
    """
    name, written = captured.info["name"], max(opset or WRITTEN, WRITTEN)
    refuse_foreign(captured, "ONNX")
    refuse_free_rank(captured, "ONNX")
    outputs = list(output_names or default_output_names(captured))
    size = sum(tensor.nbytes for tensor in captured.constants().values())
    if size > _LARGEST:
        raise RequestError(f"{name} has {size / 1e9:.1f} GB of weights; an ONNX file holds at most 2 GB (a .pt2 file has no such limit)")
    captured = in_standard_forms(captured)
    model = _to_onnx(captured, written, batch_size, outputs)
    _name_nodes(model.graph, captured)
    _name_constants(model.graph, captured)
    spell_out_ceil_mode(model.graph)
    _strip(model)
    _check_standard(model, name)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions != {"": written}:
        raise RequestError(f"{name} cannot be lowered to opset {written}: PyTorch made {versions}")
    drop_allowzero(model)
    if opset is None or opset < WRITTEN:
        to_opset(model, opset or lowest_opset(model), name)
    # The oldest format that has the opset: older runtimes can then read the file.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    return model


def _to_onnx(captured: CapturedGraph, opset: int, batch_size: int | None, outputs: list[str]) -> onnx.ModelProto:
    sizes = dynamic_sizes(captured, batch_size)

    def export(graph: torch.export.ExportedProgram | fx.GraphModule, *example: torch.Tensor) -> onnx.ModelProto:
        options: dict[str, Any] = {"opset_version": opset, "input_names": input_names(captured, outputs), "output_names": outputs, "verbose": False}
        program = torch.onnx.export(graph, example, dynamo=True, dynamic_shapes=sizes, **options)
        assert program is not None
        return program.model_proto

    with tracing(), torch.no_grad(), _quiet():
        try:
            return export(to_program(captured, batch_size))
        except Exception as error:  # PyTorch's, of any kind
            log.debug("%s is traced again for ONNX: %s", captured.info["name"], error)
        try:
            return export(captured.module.eval(), *examples_for(captured, batch_size))
        except Exception as error:  # the exporter's own exceptions are private to PyTorch
            raise RequestError(f"{captured.info['name']} cannot be lowered to ONNX: {_describe(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's prints, warnings and logs speak of its own code, not of the user's model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe(error: BaseException) -> str:
    """The operation at fault and why, from the depth of a chained exception; or else the first line of the deepest reason."""
    chain = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    for cause in chain:
        missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>", str(cause))
        if missing:
            return f"ONNX has no standard operators for {missing[1]}.{missing[2]}"
    reason = next((line.strip() for line in str(chain[-1]).splitlines() if line.strip()), type(chain[-1]).__name__)
    called = next((found for cause in chain if (found := re.search(r"target=torch\.ops\.([\w.]+)", str(cause)))), None)
    # The reason may go on with signatures; its first sentence says what is wrong.
    return f"{called[1] + ': ' if called else ''}{reason.partition('. ')[0]}"


def _name_nodes(graph: onnx.GraphProto, captured: CapturedGraph) -> None:
    """Names such as `Mixed_5b.branch1x1.conv/Conv`: the module's path and the operator.

    Calls are numbered per operation (conv2d, conv2d_1, …) in our order, by our program as by a trace of the graph: the number finds the path.
    """
    paths: dict[str, list[str]] = {}
    for call in captured.calls():
        paths.setdefault(op_name(call), []).append(call.meta.get("path") or "")
    taken: Counter[str] = Counter()
    for node in graph.node:
        source = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.fx_node"), "")
        found = re.match(r"%([A-Za-z]\w*?)(?:_(\d+))? : .*target=torch\.ops\.aten\.(\w+)\.", source)
        path = ""
        if found and found[1] == found[3]:
            calls, number = paths.get(found[1], []), int(found[2] or 0)
            path = calls[number] if number < len(calls) else ""
        name = f"{path}/{node.op_type}" if path else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"


def _name_constants(graph: onnx.GraphProto, captured: CapturedGraph) -> None:
    """Weights under the names that they have in the model's state dict, wherever nothing else in the file is called so."""
    taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)} | {name for node in graph.node for name in node.output}
    names = {str(node.target): node.meta["constant"] for node in captured.graph.nodes if node.op == "get_attr" and node.meta["constant"] not in taken}
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _strip(model: onnx.ModelProto) -> None:
    """Take out stack traces and other notes: they hold paths of the machine that made the file."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.graph.name = "fastcnn"
    for graph in _graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for item in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
            item.doc_string = ""
            del item.metadata_props[:]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)


def _check_standard(model: onnx.ModelProto, name: str) -> None:
    foreign = sorted(
        {f"{node.domain}::{node.op_type}" for graph in _graphs(model.graph) for node in graph.node if node.domain not in ("", "ai.onnx")}
    )
    if foreign or model.functions:
        what = ", ".join(foreign) or ", ".join(function.name for function in model.functions)
        raise RequestError(f"{name} needs operators outside the ONNX standard: {what}")
