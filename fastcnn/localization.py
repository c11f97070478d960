"""Where an engine's module parts from its reference: which operation a user has to rewrite, or report to the runtime's authors."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fastcnn.engines.base import Engine
from fastcnn.errors import FastcnnError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import op_name
from fastcnn.inputs import copies
from fastcnn.parity.rules import relative_error
from fastcnn.target import Target

log = logging.getLogger(__name__)

_Values = dict[str, Tensor]


def first_that_differs(graph: CapturedGraph, engine: Engine, target: Target, inputs: Sequence[Tensor], tolerance: float) -> str | None:
    """The operation that `engine` computes wrongly though it computes right what that operation reads, as in `aten.avg_pool2d (features.3)`.

    The graph is lowered again and again, each time up to one operation, about twice the logarithm of its length; a runtime that fuses that operation
    with what stands before it is seen at the last one of those that it fuses.

    Args:
        graph: passed, as the engine lowered it.
        inputs: [N, …] each, that the engine gives wrong outputs for, floating-point ones in the target's dtype, on its device.
        tolerance: relative L2 error beyond which a value is wrong, or twice eager PyTorch's own where that is more.

    Returns:
        None where the engine computes every output right when nothing else is asked for, or the graph itself is at fault.
    """
    plain, precise = _values_of(graph, inputs), _values_of(_in_float64(graph), copies(inputs, torch.float64))

    @functools.cache
    def is_wrong(node: fx.Node) -> bool:
        truth = precise[node.name]
        bound = max(tolerance, 2 * _error(plain[node.name], truth))
        try:
            with torch.no_grad():
                (found,) = engine.lower(_up_to(graph, node), target).run(*inputs)
        except FastcnnError as error:  # what cannot be lowered alone says nothing of the whole
            log.debug("%s alone: %s", node.name, error)
            return False
        return found.shape != truth.shape or not _error(found, truth) <= bound

    suspect = next((output for output in graph.output_nodes if output.name in precise and is_wrong(output)), None)
    if suspect is None:
        return None
    while True:
        suspect = _first(is_wrong, _read_by(suspect, precise))
        # The search takes it that what follows a wrong value is wrong: branches that join are looked at one by one.
        deeper = next((source for source in suspect.all_input_nodes if source.name in precise and is_wrong(source)), None)
        if deeper is None:
            return _described(suspect)
        suspect = deeper


def _described(node: fx.Node) -> str:
    call: Any = node.args[0] if node.target is operator.getitem else node
    path = node.meta.get("path")
    return f"aten.{op_name(call)}" + (f" ({path})" if path else "")


def _first(is_wrong: Callable[[fx.Node], bool], nodes: list[fx.Node]) -> fx.Node:
    """A node that is wrong while the one in front of it is not; the last is."""
    right, wrong = -1, len(nodes) - 1
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (right, middle) if is_wrong(nodes[middle]) else (middle, wrong)
    return nodes[wrong]


def _read_by(node: fx.Node, known: _Values) -> list[fx.Node]:
    """`node` and what it is computed from, in the order of the graph, as far as its values are known."""
    needed, left = {node}, [node]
    while left:
        for source in left.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                left.append(source)
    return [other for other in node.graph.nodes if other in needed and other.name in known]


def _up_to(graph: CapturedGraph, node: fx.Node) -> CapturedGraph:
    """A copy whose one output is `node`."""
    part = graph.copy()
    (last,) = (copied for copied in part.graph.nodes if copied.name == node.name)
    part.graph.output_node().args = ([last],)
    part.tidy()
    return part


def _in_float64(graph: CapturedGraph) -> CapturedGraph:
    precise = graph.copy()
    precise.cast_constants(torch.float64)
    return precise


def _values_of(graph: CapturedGraph, inputs: Sequence[Tensor]) -> _Values:
    """What each call of the graph gives, where that is a floating-point tensor."""
    values: _Values = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
                values[node.name] = value
            return value

    with torch.no_grad():
        Recorder(graph.module).run(*inputs)
    return values


def _error(found: Tensor, truth: Tensor) -> float:
    arrays = [tensor.double().cpu().numpy() for tensor in (found, truth)]
    return relative_error(arrays[0], arrays[1], np.isfinite(arrays[1]))
