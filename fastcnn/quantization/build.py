"""From a float graph, ranges and limits to the 8-bit graph that holds them: layers that hurt most for what they save go back to float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcnn.errors import ParityError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.plan import PassReport
from fastcnn.parity.reference import flatten
from fastcnn.parity.rules import Expected, Outputs, Slice
from fastcnn.quantization.correction import correct_biases, output_means
from fastcnn.quantization.gate import HeldOut, Judgement, joined, judge
from fastcnn.quantization.quantize import quantize, round_weights
from fastcnn.quantization.ranges import Ranges
from fastcnn.quantization.request import Limits
from fastcnn.quantization.scheme import Scheme
from fastcnn.quantization.sensitivity import PICTURES, Sensitivity, sensitivities

# Of the bound on the error, what eager PyTorch may use up: runtimes round ties otherwise.
_SHARE = 0.97
# Choices of float layers that are tried; the estimate is near, so that halving needs few.
_ATTEMPTS = 8
# Of the layers found, those that are tried in 8 bits again: together they may do what one of them is not needed for.
_RETURNS = 3


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
    held_out: HeldOut,
    *,
    table: bool = False,
    say: Callable[[str], None] = lambda stage: None,
) -> Quantized:
    """Round as many layers of `captured` as the limits allow.

    Args:
        reference: what the model returns for slices of the pictures of `held_out`, in float64.
        table: work out the sensitivity in any case.

    Raises:
        ParityError: the limits do not hold even with the layers that hurt in float; names those that hurt most.
    """
    pictures, labels = held_out.pictures, held_out.labels
    whole, grids = joined(reference.reference), ranges.of(scheme)
    weights, kept = round_weights(captured, scheme), ranges.kept.values()
    say("means to correct by")
    means = output_means(in_float32(captured), kept)
    rows: list[Sensitivity] = []

    def attempt(float_layers: tuple[str, ...]) -> Quantized:
        say(f"quantize {len(weights) - len(float_layers)} of {len(weights)} layers")
        graph, report = quantize(captured, grids, scheme, float_layers, weights)
        correct_biases(graph, means, kept)
        judgement = judge(simulate(in_float32(graph), pictures, reference.slices), whole, limits, runtime="eager PyTorch", labels=labels)
        return Quantized(graph, report, judgement, float_layers, len(weights), tuple(rows))

    made = attempt(())
    holds = _holds(made.judgement, limits)
    if table or not holds:
        say("sensitivity of each layer")
        rows += sensitivities(captured, grids, scheme, weights, pictures[:PICTURES])
    if holds:
        return replace(made, sensitivity=tuple(rows))
    return _relaxed(attempt, made.judgement, rows, limits, captured.info["name"])


def _relaxed(attempt: Callable[[tuple[str, ...]], Quantized], first: Judgement, rows: Sequence[Sensitivity], limits: Limits, name: str) -> Quantized:
    """The graph with the fewest layers in float that holds the limits, of those that take layers back in the order of their gain per operation.

    The estimate says where to look; from there on the number of layers is halved in on by what was measured.
    """
    order = _by_gain(rows)[: len(rows) - 1]  # with all of them in float it would be no 8-bit graph
    count = _enough(rows, order, (limits.max_error / first.relative_error) ** 2)
    fails, enough, last = 0, 0, first
    found: Quantized | None = None
    for _ in range(_ATTEMPTS):
        made = attempt(order[:count])
        if _holds(made.judgement, limits):
            found, enough = made, count
        else:
            fails, last = count, made.judgement
        if found is None:
            if fails == len(order):
                break
            count = min(len(order), 2 * count)
        elif enough - fails < 2:
            break
        else:
            count = (fails + enough) // 2
    if found is not None:
        return _given_back(attempt, found, rows, limits)
    worst = ", ".join(f"{row.layer} ({row.square**0.5:.2g})" for row in rows[:3])
    raise ParityError(
        f"{name} misses its limits in int8: {last.reason or 'the error is too near its bound'}, "
        f"with {fails} of {len(rows)} layers in float; the layers that hurt most: {worst}"
    )


def _given_back(attempt: Callable[[tuple[str, ...]], Quantized], found: Quantized, rows: Sequence[Sensitivity], limits: Limits) -> Quantized:
    """`found` without those of its float layers that the limits hold without: the dearest are tried. The last one that was taken is needed."""
    operations = {row.layer: row.operations for row in rows}
    for layer in sorted(found.float_layers[:-1], key=operations.__getitem__, reverse=True)[:_RETURNS]:
        made = attempt(tuple(other for other in found.float_layers if other != layer))
        if _holds(made.judgement, limits):
            found = made
    return found


def _holds(judgement: Judgement, limits: Limits) -> bool:
    return judgement.passed and judgement.relative_error <= _SHARE * limits.max_error


def _by_gain(rows: Sequence[Sensitivity]) -> tuple[str, ...]:
    """The layers in the order in which they go back to float; one that brings next to nothing is no gain at any price, and is not among them."""
    least = sum(row.square for row in rows) / (20 * len(rows))
    ordered = sorted(rows, key=lambda row: row.square / row.operations, reverse=True)
    return tuple(row.layer for row in ordered if row.square >= least) or tuple(row.layer for row in ordered)


def _enough(rows: Sequence[Sensitivity], order: Sequence[str], wanted: float) -> int:
    """How many of `order` it takes, by the estimate, until the share `wanted` of the squared error is left."""
    squares = {row.layer: row.square for row in rows}
    remaining = total = sum(squares.values())
    for count, layer in enumerate(order, 1):
        remaining -= squares[layer]
        if remaining <= wanted * total:
            return count
    return len(order)


def simulate(captured: CapturedGraph, pictures: Tensor, slices: Sequence[Slice]) -> Outputs:
    """What eager PyTorch makes of the slices of `pictures` [N, …], one after the other, with constants in the dtypes that they have."""
    with torch.no_grad():
        return joined([flatten(captured.module(pictures[start:stop])) for start, stop in slices])


def in_float32(captured: CapturedGraph) -> CapturedGraph:
    """A copy whose floating-point constants are float32."""
    graph = captured.copy()
    graph.cast_constants(torch.float32)
    return graph
