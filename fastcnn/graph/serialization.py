"""A captured graph as JSON plus named tensors, and back: plain data, no pickle, and only operations that compute.

Targets are ATen overloads by their schema names and a few pure Python functions by a fixed table, so a file cannot name code to run.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.errors import FileFormatError
from fastcnn.graph.ir import CapturedGraph, module_of
from fastcnn.graph.ops import fused_conv2d

_FUNCTIONS: dict[str, Any] = {
    "fused_conv2d": fused_conv2d,
    **{
        function.__name__: function
        for function in (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg)
    },
}
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
        "nodes": [_node_to_json(node) for node in captured.graph.nodes],
    }


def graph_from_json(data: dict[str, Any], constants: dict[str, Tensor]) -> CapturedGraph:
    """The inverse of `graph_to_json`.

    Raises:
        FileFormatError: a node names an operation or a constant that does not exist.
    """
    graph, nodes = fx.Graph(), {}
    for entry in data["nodes"]:
        args, kwargs = (_decode(entry[key], nodes) for key in ("args", "kwargs"))
        if entry["op"] == "placeholder":
            node = graph.placeholder(entry["target"])
        elif entry["op"] == "get_attr":
            if entry["target"] not in constants:
                raise FileFormatError(f"the file lacks the constant {entry['target']!r} that its graph reads")
            node = graph.get_attr(entry["target"])
        elif entry["op"] == "output":
            graph.output(args[0])
            continue
        else:
            node = graph.call_function(_target(entry["target"]), tuple(args), kwargs)
        meta = entry["meta"]
        node.meta = {**meta, "shape": tuple(meta["shape"]), "dtype": _DTYPES.get(meta["dtype"]), "folded": tuple(meta["folded"])}
        nodes[entry["name"]] = node
    module = module_of(
        graph, {name: tensor for name, tensor in constants.items() if any(n.op == "get_attr" and n.target == name for n in graph.nodes)}
    )
    return CapturedGraph(module, tuple(data["input_shape"]), _DTYPES[data["input_dtype"]], data["output_spec"], data["info"])


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": node.name, "op": node.op, "target": str(node.target), "args": _encode(node.args), "kwargs": _encode(node.kwargs)}
    if node.op == "call_function":
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
    return str(node.target)


def _target(name: str) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace == "aten" and packet.isidentifier() and overload.isidentifier():
        target = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if isinstance(target, torch._ops.OpOverload):
            return target
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
