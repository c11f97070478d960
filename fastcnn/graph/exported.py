"""From a program of `torch.export` to a `torch.fx` module whose constants stand under names of our own.

A user may call a parameter `graph`, `lambda` or `a"b`. As an attribute of a graph module such a name would shadow the module's own or break the
source that torch.fx writes, so that the attribute gets a name of ours and the user's stands beside it, in the metadata of the nodes that read it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from fastcnn.errors import CaptureError
from fastcnn.graph.ir import attribute_for

log = logging.getLogger(__name__)

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


# What the tracer leaves beside ATen's operations: sizes are computed by Python.
_OF_SIZES = ("_operator", "math", "torch")

_WAYS_OUT = {
    "cond": ("torch.cond", "compute both branches and choose with torch.where"),
    "wrap_with_autocast": ("torch.autocast", "take it out of the forward, and ask for the precision with dtype=…"),
    "lazy_load_decompositions": ("torch.vmap", "write it for the whole batch"),
    "_add_batch_dim": ("torch.vmap", "write it for the whole batch"),
}


def take_own_names(program: torch.export.ExportedProgram, prefix: str = "") -> dict[str, str]:
    """Rename the constants of `program`, whose later steps make attributes of them.

    Returns our name → the user's for each, without the `prefix` that a module around the user's put in front.
    """
    users: dict[str, str] = {}
    own: dict[str, str] = {}
    for store in (program.state_dict, program.constants):
        for name in list(store):
            own[name] = attribute_for(name.removeprefix(prefix), users)
            users[own[name]] = name.removeprefix(prefix)
            store[own[name]] = store.pop(name)
    for spec in program.graph_signature.input_specs:
        spec.target = own.get(spec.target, spec.target) if spec.target is not None else None
    return users


def to_graph_module(program: torch.export.ExportedProgram, users: dict[str, str], model: str) -> fx.GraphModule:
    """A module that takes the user's input and returns the list of the user's outputs.

    What the program writes into its input stays inside. `users` is what `take_own_names` returned, `model` a name for messages.

    Raises:
        CaptureError: the outputs depend on a buffer that the program writes, or it has an operation beyond ATen's, such as `torch.cond`.
    """
    tensors = {**program.constants, **program.state_dict}
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    graph, root = fx.Graph(), nn.Module()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        spec = inputs.get(node.name) if node.op == "placeholder" else None
        if node.op == "output":
            break
        _refuse_foreign(node, model)
        if spec is not None and spec.kind in _CONSTANTS:
            root.register_buffer(spec.target, tensors[spec.target].detach())
            copies[node] = graph.get_attr(spec.target)
            copies[node].meta = {**node.meta, "constant": users[spec.target]}
        else:
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    flat, written = program.graph.output_node().args[0], {}
    outputs = []
    for spec, value in zip(program.graph_signature.output_specs, flat, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT:
            outputs.append(copies[value] if isinstance(value, fx.Node) else value)
        elif spec.kind is not OutputKind.USER_INPUT_MUTATION:
            written[spec.target] = users.get(spec.target, str(spec.target))
    graph.output(outputs)
    graph.eliminate_dead_code()
    _refuse_state(graph, written, model)
    return fx.GraphModule(root, graph)


def _refuse_state(graph: fx.Graph, written: dict[str, str], model: str) -> None:
    """A buffer that calls write is state where an output depends on it; where none does, leaving it alone changes no answer."""
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    state = [name for attribute, name in written.items() if attribute in read]
    if state:
        raise CaptureError(
            f"{model} keeps state between calls: it writes to its buffer {state[0]!r}, which its outputs depend on; "
            "only pure functions can be optimized"
        )
    for name in written.values():
        log.warning("%s writes to its buffer %r in every call; no output depends on it, and what is made of the model leaves it alone", model, name)


def _refuse_foreign(node: fx.Node, model: str) -> None:
    """Operations that hold a graph of their own, and functions that only the tracer understands."""
    target: Any = node.target
    if node.op == "get_attr":
        target = next(iter(node.users), node).target
    elif node.op != "call_function" or isinstance(target, torch._ops.OpOverload) or getattr(target, "__module__", "") in _OF_SIZES:
        return
    name = getattr(target, "__name__", str(target))
    operation, way_out = _WAYS_OUT.get(name, (name, "write it in plain tensor operations"))
    raise CaptureError(f"operation {operation} of {model} is none of PyTorch's tensor operations, and cannot be captured: {way_out}")
