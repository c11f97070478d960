"""A captured graph as JSON plus named tensors, and back: plain data, no pickle, and only operations that compute.

Targets are ATen overloads by their schema names and a few pure Python functions by a fixed table, so a file cannot name code to run. Operations of
other libraries are kept too, where they only compute; but for torchvision, it is for whoever loads the file to import them (`custom`).
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastcnn.errors import FileFormatError
from fastcnn.graph.custom import find_operation, libraries_of, library_of, spelled, why_not_kept
from fastcnn.graph.ir import CapturedGraph, attribute_for
from fastcnn.graph.ops import fused_conv2d

_FUNCTIONS: dict[str, Any] = {
    "fused_conv2d": fused_conv2d,
    **{
        function.__name__: function
        for function in (
            *(operator.getitem, operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.neg),
            *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
        )
    },
}
# What stands around products of 8 bits; registered by the import of torch.ao, which takes a moment.
_QUANTIZED = ("quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel")
# ATen's operation that opens a file.
_REACHES_OUTSIDE = ("from_file",)
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
FLOATING_DTYPES = {name: dtype for name, dtype in _DTYPES.items() if dtype.is_floating_point}


def graph_to_json(captured: CapturedGraph) -> dict[str, Any]:
    """Everything but the constants, which the nodes name.

    Raises:
        TypeError: a node holds something that has no plain form; names it.
    """
    return {
        "input_shape": list(captured.input_shape),
        "input_dtype": str(captured.input_dtype),
        "output_spec": captured.output_spec,
        "info": captured.info,
        "libraries": libraries_of(captured.graph),
        "nodes": [_node_to_json(node) for node in captured.graph.nodes],
    }


def graph_from_json(data: dict[str, Any], constants: dict[str, Tensor]) -> CapturedGraph:
    """The inverse of `graph_to_json`.

    Raises:
        FileFormatError: a node names an operation or a constant that does not exist.
    """
    graph, root = fx.Graph(), nn.Module()
    nodes: dict[str, fx.Node] = {}
    attributes: dict[str, str] = {}
    for entry in data["nodes"]:
        op, target = entry["op"], entry["target"]
        args, kwargs = (_decode(entry[key], nodes) for key in ("args", "kwargs"))
        if op == "output":
            graph.output(args[0])
            continue
        if op == "get_attr" and target not in constants:
            raise FileFormatError(f"the file lacks the constant {target!r} that its graph reads")
        _check_names(op, target, kwargs)
        meta = dict(entry["meta"])
        if op == "get_attr":
            if target not in attributes:
                attributes[target] = attribute_for(target, root._buffers)
                root.register_buffer(attributes[target], constants[target])
            meta["constant"], target = target, attributes[target]
        # The name is kept: rows of the plan without a module's path go by it.
        node = graph.create_node(
            op, _target(target, data.get("libraries") or {}) if op == "call_function" else target, tuple(args), kwargs, entry["name"]
        )
        node.meta = {**meta, "shape": tuple(meta["shape"]), "dtype": _DTYPES.get(meta["dtype"]), "folded": tuple(meta["folded"])}
        nodes[entry["name"]] = node
    return CapturedGraph(
        fx.GraphModule(root, graph),
        tuple(data["input_shape"]),
        _DTYPES[data["input_dtype"]],
        data["output_spec"],
        data["info"],
    )


def _check_names(op: str, target: str, kwargs: dict[str, Any]) -> None:
    """torch.fx writes these names into Python source as they are; constants get names of our own there."""
    if op not in ("placeholder", "get_attr", "call_function"):
        raise FileFormatError(f"the file's graph has a node of kind {op!r}")
    names = list(kwargs) + ([target] if op == "placeholder" else [])
    if not all(name.isidentifier() for name in names):
        raise FileFormatError(f"the file's graph has a name that is none: {target!r}")


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": node.name, "op": node.op, "target": str(node.target), "args": _encode(node.args), "kwargs": _encode(node.kwargs)}
    if node.op == "get_attr":
        entry["target"] = node.meta["constant"]
    elif node.op == "call_function":
        entry["target"] = _NAMES[node.target] if node.target in _NAMES else _overload_name(node)
    meta = node.meta
    entry["meta"] = {
        "shape": list(meta.get("shape", ())),
        "dtype": str(meta.get("dtype")),
        "path": meta.get("path", ""),
        "folded": list(meta.get("folded", ())),
    }
    return entry


def _overload_name(node: fx.Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} calls {node.target}, which is no ATen operation")
    reason = why_not_kept(node.target) if node.target.namespace != "aten" else None
    if reason is not None:
        raise TypeError(f"operation {spelled(node.target)} of the library {library_of(node.target)} cannot be kept in a file: {reason}")
    return str(node.target)


def _target(name: str, libraries: Mapping[str, str]) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace == "aten" and packet.isidentifier() and overload.isidentifier() and packet not in _REACHES_OUTSIDE:
        target = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if isinstance(target, torch._ops.OpOverload):
            return target
    if namespace == "quantized_decomposed" and packet in _QUANTIZED and overload == "default":
        importlib.import_module("torch.ao.quantization.fx._decomposed")
        operation: Any = getattr(torch.ops.quantized_decomposed, packet).default
        return operation
    if namespace in libraries and namespace != "aten":
        found = find_operation(namespace, packet, overload)
        if found is not None:
            return found
        raise FileFormatError(
            f"the file's graph calls {namespace}::{packet}, which nothing in this process has registered: import the library that does, "
            f"{libraries[namespace]}, and load the file again"
        )
    raise FileFormatError(f"the file's graph calls {name!r}, which this version of PyTorch does not have as an ATen operation")


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # JSON has no infinities; hexadecimal keeps every bit.
        return {"float": value.hex()}
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format, torch.layout)):
        return {"torch": str(value)}
    raise TypeError(f"an argument of type {type(value).__name__} has no plain form")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "dict":
        return {key: _decode(item, nodes) for key, item in content.items()}
    if kind == "float":
        return float.fromhex(content)
    if content.startswith("torch."):
        found = getattr(torch, content.removeprefix("torch."), None)
        if isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
            return found
    return torch.device(content)
