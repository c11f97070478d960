"""Hold a graph that was lowered to ONNX against what the parser of one runtime reads, without that runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, defs, load_model_from_string, numpy_helper

from fastcnn.errors import RequestError
from fastcnn.export.profiles import Profile

_WINDOWED = {"Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool"}


def require_readable(content: bytes | Mapping[str, bytes], profile: Profile, name: str) -> None:
    """Raises RequestError where the runtime of `profile` will not read the file of the model `name`; says what it stops at."""
    if not isinstance(content, bytes):
        return
    model = load_model_from_string(content)
    broken = list(dict.fromkeys(broken_rules(model, profile)))
    if broken:
        raise RequestError(f"{name} cannot be exported for {profile.title}: {'; '.join(broken)}")


def broken_rules(model: ModelProto, profile: Profile) -> Iterator[str]:
    """What the parser would stop at, in the order of the graph; nothing where it reads all of it."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    if profile.newest_opset is not None and opset > profile.newest_opset:
        yield f"it needs opset {opset}, and {profile.opset_reason}"
    types, constants = _types(model.graph), _constants(model.graph)
    ranks = _ranks(model.graph)
    pixels = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    for node in model.graph.node:
        if profile.operators is not None and node.op_type not in profile.operators:
            yield f"it has no {node.op_type} ({node.name})"
            continue
        if node.op_type in profile.no_operators:
            yield f"{node.op_type} ({node.name}): {profile.no_operators[node.op_type]}"
        yield from mixed_types(node, opset, types)
        for position in profile.constant_inputs.get(node.op_type, ()):
            if position < len(node.input) and node.input[position] and node.input[position] not in constants:
                yield f"input {position} of {node.op_type} ({node.name}) must be a constant"
        if profile.two_or_three_d and node.op_type in _WINDOWED and ranks.get(node.input[0]) == 3:
            yield f"{node.op_type} ({node.name}) is of one dimension, and has to be of two or three"
        if profile.symmetric and node.op_type in ("QuantizeLinear", "DequantizeLinear") and not _is_symmetric(node, types, constants):
            yield f"{node.op_type} ({node.name}) has to be of int8 with its zero at 0"
        if profile.cast_first and node.op_type != "Cast" and pixels & set(node.input):
            yield f"{node.op_type} ({node.name}) reads uint8, which has to be cast first"


def mixed_types(node: NodeProto, opset: int, types: Mapping[str, int]) -> Iterator[str]:
    """Operands that the standard wants in one type and the file holds in several: what a strongly typed network is refused for."""
    schema = defs.get_schema(node.op_type, opset, node.domain)
    bound: dict[str, int] = {}
    for values, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for position, value in enumerate(values):
            formal = formals[min(position, len(formals) - 1)]
            known = types.get(value)
            # A type that is spelled out, "tensor(int64)", is no variable; one that operands of a variadic list may differ in is none either.
            if not known or formal.type_str.startswith("tensor(") or not formal.is_homogeneous:
                continue
            if bound.setdefault(formal.type_str, known) != known:
                names = " and ".join(TensorProto.DataType.Name(one).lower() for one in (bound[formal.type_str], known))
                yield f"{node.op_type} ({node.name}) mixes {names}"
                return


def _types(graph: GraphProto) -> dict[str, int]:
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _ranks(graph: GraphProto) -> dict[str, int]:
    valued = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: len(value.type.tensor_type.shape.dim) for value in valued if value.type.tensor_type.HasField("shape")}


def _constants(graph: GraphProto) -> dict[str, TensorProto | None]:
    """Names with what they hold; None for what a constant of 8 bits stands for, and for attributes of other kinds."""
    found: dict[str, TensorProto | None] = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = node.attribute[0].t if node.attribute[0].name == "value" else None
        elif node.op_type == "DequantizeLinear" and node.input[0] in found:
            found[node.output[0]] = None
    return found


def _is_symmetric(node: NodeProto, types: Mapping[str, int], constants: Mapping[str, TensorProto | None]) -> bool:
    """Whether the zero point of a rounding is a constant int8 of 0. A bias of 32 bits has none, or one of its own type."""
    if types.get(node.input[0]) == TensorProto.INT32:
        return True
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    return zero is not None and zero.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero).any()
