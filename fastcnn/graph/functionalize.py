"""Replace in-place calls by their pure forms, so that passes can reason about values.

`ExportedProgram.run_decompositions` does this for any program, but retraces it, which doubles the time of a capture. Convolutional networks write
`relu_` and `add_` on fresh values only; those are rewritten here, and whatever is less simple takes the general road.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def functionalize(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """`program` without in-place calls; the values it returns are the same."""
    inplace = [node for node in program.graph.nodes if node.op == "call_function" and _mutates(node)]
    if _are_simple(program.graph, inplace):
        for node in inplace:
            _make_pure(node)
        return program
    program = program.run_decompositions({})
    _restore_batch_norm(program.graph)
    return program


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _pure_form(node: fx.Node) -> torch._ops.OpOverload | None:
    assert isinstance(node.target, torch._ops.OpOverload)
    name = node.target._schema.name.split("::")[1]
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, node.target._overloadname, None) if packet is not None else None


def _are_simple(graph: fx.Graph, inplace: list[fx.Node]) -> bool:
    """Whether each writes to its first argument only, and that is a fresh value of which nothing else has a view by then."""
    if not inplace:
        return True
    if not all(_writes_first_argument_only(node) for node in inplace):
        return False
    # Fake tensors share storage where the real ones would; what a schema says of aliases leaves out dropout, type_as and others.
    sharers: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, (list, tuple)) else (values,):
            if isinstance(value, Tensor):
                sharers.setdefault(value.untyped_storage()._cdata, []).append(node)
    written = set(inplace)
    for group in sharers.values():
        writes = [position for position, node in enumerate(group) if node in written]
        if writes and (group[0].op != "call_function" or any(node not in written for node in group[1 : writes[-1]])):
            return False
    return True


def _writes_first_argument_only(node: fx.Node) -> bool:
    target, first = node.target, node.args[0] if node.args else None
    assert isinstance(target, torch._ops.OpOverload)
    mutated = [argument.name for argument in target._schema.arguments if argument.alias_info is not None and argument.alias_info.is_write]
    if mutated != [target._schema.arguments[0].name] or _pure_form(node) is None or not isinstance(first, fx.Node):
        return False
    # The pure form would promote to the wider dtype, the in-place one keeps its own.
    tensors = [other.meta["val"] for other in node.all_input_nodes if isinstance(other.meta.get("val"), Tensor)]
    return all(tensor.dtype == first.meta["val"].dtype for tensor in tensors)


def _make_pure(node: fx.Node) -> None:
    """Readers of the written value that stand behind the write see what was written."""
    written = node.args[0]
    assert isinstance(written, fx.Node)
    order = {other: position for position, other in enumerate(node.graph.nodes)}
    node.target = _pure_form(node)  # type: ignore[assignment]
    for user in list(written.users):
        if user is not node and order[user] > order[node]:
            user.replace_input_with(written, node)


def _restore_batch_norm(graph: fx.Graph) -> None:
    """The general road leaves evaluation-mode BatchNorm as a tuple-returning operation: give it its plain form again."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        x, weight, bias, mean, variance, momentum, eps = node.args
        with graph.inserting_before(node):
            plain = graph.call_function(aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False))
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] == 0:
                plain.meta = dict(user.meta)
                user.replace_all_uses_with(plain)
                graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)
