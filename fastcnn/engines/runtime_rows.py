"""Plan rows from what a runtime says of its own graph: which nodes it fused, and with which kernel it runs them."""

from __future__ import annotations

from typing import Any

from fastcnn.graph.ir import CapturedGraph, aten
from fastcnn.graph.plan import PlanRow


def rows_of_onnx(captured: CapturedGraph, optimized: Any, source: Any) -> tuple[PlanRow, ...]:
    """Rows of the graph that ONNX Runtime wrote after its own fusions.

    Args:
        captured: the graph that was lowered; tells what passes had folded before.
        optimized: the runtime's `onnx.ModelProto`, `com.microsoft.nchwc::Conv` with its `activation` and all.
        source: the model that was given to the runtime.
    """
    outputs = {output: node for node in source.graph.node for output in node.output}
    shapes = {value.name: value for value in (*source.graph.value_info, *source.graph.output)}
    passes_folded = _folded_by_passes(captured)
    rows = []
    for step, node in enumerate(optimized.graph.node):
        # Nodes in the runtime's blocked layout are named after the value that they stand for.
        value = node.output[0] if node.output[0] in outputs else node.name.removesuffix("_nchwc")
        produced = _convolution_before(outputs, value) if node.op_type in ("Conv", "FusedConv") else outputs.get(value)
        activation = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "activation"), None)
        # A fused convolution with the sum of a residual has a fourth input.
        folded = (["add"] if node.op_type in ("Conv", "FusedConv") and len(node.input) > 3 and node.input[3] else []) + (
            [activation.lower()] if activation else []
        )
        shape = _onnx_shape(shapes.get(value))
        domain = f"{node.domain}::" if node.domain else ""
        name = produced.name if produced is not None else node.name or node.output[0]
        folded = [*passes_folded.get(name, ()), *folded]
        kernel = f"ONNX Runtime {domain}{node.op_type}"
        rows.append(PlanRow(step, name, node.op_type, tuple(folded), shape, kernel, "chosen by the runtime", fused=bool(folded)))
    return tuple(rows)


def rows_of_openvino(captured: CapturedGraph, runtime_model: Any) -> tuple[PlanRow, ...]:
    """Rows of OpenVINO's executable graph; a row's name is the first of the layers that were fused into it."""
    passes_folded = _folded_by_passes(captured)
    rows: list[PlanRow] = []
    for operation in runtime_model.get_ordered_ops():
        info = operation.get_rt_info()
        kind = _text(info, "layerType")
        if kind in ("Input", "Output", "Const", "Constant", "Result", "Parameter", ""):
            continue
        # "a/WithoutBiases,a,relu": the layers that one kernel computes, a convolution's bias addition under the name of the convolution itself.
        layers = [layer for layer in _text(info, "originalLayersNames").split(",") if layer]
        layers = list(dict.fromkeys(layer.removesuffix("/WithoutBiases") for layer in layers))
        shape = operation.get_output_partial_shape(0)
        sizes = tuple(dimension.get_length() if dimension.is_static else None for dimension in shape) if shape.rank.is_static else ()
        name = layers[0] if layers else operation.get_friendly_name()
        folded = (*passes_folded.get(name, ()), *(layer.rpartition("/")[2].lower() for layer in layers[1:]))
        kernel = f"OpenVINO {_text(info, 'primitiveType')}"
        rows.append(PlanRow(len(rows), name, kind, folded, sizes, kernel, "chosen by the runtime", fused=bool(folded)))
    return tuple(rows)


def _convolution_before(outputs: dict[str, Any], value: str) -> Any:
    """The convolution in the source whose epilogue ends in `value`: one ReLU and one addition back at most."""
    node = outputs.get(value)
    for _ in range(2):
        if node is None or node.op_type == "Conv":
            break
        producers = [outputs[name] for name in node.input if name in outputs]
        node = next((producer for producer in producers if producer.op_type == "Conv"), producers[0] if producers else None)
    return node


def _folded_by_passes(captured: CapturedGraph) -> dict[str, tuple[str, ...]]:
    """What passes folded into a convolution, by the name that its ONNX node has."""
    return {f"{node.meta['path']}/Conv": tuple(node.meta["folded"]) for node in captured.calls(aten.conv2d.default) if node.meta["path"]}


def _text(info: Any, key: str) -> str:
    if key not in info:
        return ""
    value = info[key]
    return str(getattr(value, "value", value))


def _onnx_shape(value: Any) -> tuple[int | None, ...]:
    if value is None:
        return ()
    return tuple(dimension.dim_value or None for dimension in value.type.tensor_type.shape.dim)
