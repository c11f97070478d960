"""From a float graph, ranges and limits to the 8-bit graph that holds them: layers that hurt most for what they save go back to float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcnn.errors import ParityError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import PassReport
from fastcnn.parity.reference import flatten
from fastcnn.parity.rules import Expected, Outputs, Slice
from fastcnn.quantization.edges import find_layers
from fastcnn.quantization.gate import Judgement, joined, judge
from fastcnn.quantization.quantize import quantize
from fastcnn.quantization.ranges import Ranges
from fastcnn.quantization.request import Limits
from fastcnn.quantization.scheme import Scheme
from fastcnn.quantization.sensitivity import PICTURES, Sensitivity, sensitivities

# Of the bound, what the estimate aims at: it is of first order, and runtimes round ties otherwise.
_AIM = 0.9
_ATTEMPTS = 5


@dataclass(frozen=True)
class Quantized:
    """An 8-bit graph that holds its limits in eager PyTorch.

    Attributes:
        graph: constants in float64 and int8.
        judgement: eager PyTorch's figures; a runtime that computes what the graph says has nearly the same.
        float_layers: those that went back to float, in that order.
        layers: how many layers there are.
        sensitivity: the table, where it was asked for or needed.
    """

    graph: CapturedGraph
    report: PassReport
    judgement: Judgement
    float_layers: tuple[str, ...]
    layers: int
    sensitivity: tuple[Sensitivity, ...]


def build(
    captured: CapturedGraph,
    ranges: Ranges,
    scheme: Scheme,
    limits: Limits,
    reference: Expected,
    pictures: Tensor,
    *,
    table: bool = False,
    say: Callable[[str], None] = lambda stage: None,
) -> Quantized:
    """Round as many layers of `captured` as the limits allow.

    Args:
        reference: what the model returns for slices of `pictures` [N, …] float32, in float64.
        table: work out the sensitivity in any case.

    Raises:
        ParityError: the limits do not hold even with the layers that hurt in float; names those that hurt most.
    """
    names = [layer.name for layer in find_layers(captured)]
    whole = joined(reference.reference)
    rows: list[Sensitivity] = []
    chosen: tuple[str, ...] = ()
    aim = limits.max_error
    for _ in range(_ATTEMPTS):
        say(f"quantize {len(names) - len(chosen)} of {len(names)} layers")
        graph, report = quantize(captured, ranges.of(scheme), scheme, chosen, ranges.means)
        judgement = judge(simulate(in_float32(graph), pictures, reference.slices), whole, limits, runtime="eager PyTorch")
        if (table or not judgement.passed) and not rows:
            say("sensitivity of each layer")
            rows = sensitivities(captured, ranges.of(scheme), scheme, pictures[:PICTURES])
        if judgement.passed:
            return Quantized(graph, report, judgement, chosen, len(names), tuple(rows))
        aim = min(aim, judgement.relative_error) * _AIM
        more = _cheapest(rows, judgement.relative_error, aim, chosen)
        if len(more) >= len(names):
            break
        chosen = more
    worst = ", ".join(f"{row.layer} ({row.square**0.5:.2g})" for row in rows[:3])
    raise ParityError(
        f"{captured.info['name']} misses its limits in int8: {judgement.reason}, "
        f"with {len(chosen)} of {len(names)} layers in float; "
        f"the layers that hurt most: {worst}"
    )


def _cheapest(rows: Sequence[Sensitivity], error: float, aim: float, chosen: Sequence[str]) -> tuple[str, ...]:
    """`chosen` and the layers that take the error below `aim` with the least work in float, by the estimate scaled to the `error` that was seen."""
    left = {row.layer: row for row in rows if row.layer not in chosen}
    total = sum(row.square for row in left.values())
    if not total:
        return tuple(row.layer for row in rows)
    remaining, wanted = 1.0, (aim / error) ** 2
    found = list(chosen)
    for row in sorted(left.values(), key=lambda row: row.square / row.operations, reverse=True):
        if remaining <= wanted:
            break
        # A layer that brings next to nothing is no gain at any price.
        if row.square < total / (20 * len(left)):
            continue
        remaining -= row.square / total
        found.append(row.layer)
    return tuple(found) if len(found) > len(chosen) else tuple(row.layer for row in rows)


def simulate(captured: CapturedGraph, pictures: Tensor, slices: Sequence[Slice]) -> Outputs:
    """What eager PyTorch makes of the slices of `pictures` [N, …], one after the other, with constants in the dtypes that they have."""
    with torch.no_grad():
        return joined([flatten(captured.module(pictures[start:stop])) for start, stop in slices])


def in_float32(captured: CapturedGraph) -> CapturedGraph:
    """A copy whose floating-point constants are float32."""
    graph = captured.copy()
    graph.cast_constants(torch.float32)
    return graph
