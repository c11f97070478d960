"""Replace in-place calls by their pure forms, so that passes can reason about values.

`ExportedProgram.run_decompositions` does this for any program, but retraces it, which doubles the time of a capture. Convolutional networks write
`relu_` and `add_` on fresh values only; those are rewritten here, and whatever is less simple takes the general road.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

aten = torch.ops.aten

# These return their input itself, which their schemas do not say.
_IDENTITIES = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default)


def functionalize(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """`program` without in-place calls; the values it returns are the same."""
    inplace = [node for node in program.graph.nodes if node.op == "call_function" and _mutates(node)]
    if all(_is_simple(node) for node in inplace):
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


def _is_simple(node: fx.Node) -> bool:
    """Writes only to its first argument, and that is a fresh value which nothing else aliases."""
    target, written = node.target, node.args[0] if node.args else None
    assert isinstance(target, torch._ops.OpOverload)
    mutated = [argument.name for argument in target._schema.arguments if argument.alias_info is not None and argument.alias_info.is_write]
    if mutated != [target._schema.arguments[0].name] or _pure_form(node) is None or not isinstance(written, fx.Node):
        return False
    if written.op != "call_function" or written.target is operator.getitem or _is_view(written):
        return False
    return not any(_is_view(user) for user in written.users)


def _is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target in _IDENTITIES:
        return node.op == "call_function"
    schema = node.target._schema
    return not schema.is_mutable and any(argument.alias_info is not None for argument in schema.arguments)


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
