"""What each layer's rounding does to the output: a first-order estimate for all layers at once, from a few backward passes.

The rounding of a layer changes its own output by a known δ; the output of the network changes by J·δ to first order. For a random vector v,
(vᵀJ)·δ is a number whose mean square is ‖J·δ‖² (Hutchinson 1990), and one backward pass gives vᵀJ for every layer. A run per layer would give the
same table for a hundred times the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.graph.ir import CapturedGraph
from fastcnn.quantization.edges import Edges, Layer, find_edges
from fastcnn.quantization.quantize import RoundedWeight
from fastcnn.quantization.scheme import Grid, Scheme

_PROJECTIONS = 8
PICTURES = 4


@dataclass(frozen=True)
class Sensitivity:
    """One layer's share in the error.

    Attributes:
        layer: its name.
        weights, activations: the relative error of the output that rounding its weights, and what it reads, brings alone.
        operations: multiply-adds per picture.
    """

    layer: str
    weights: float
    activations: float
    operations: int

    @property
    def square(self) -> float:
        """The squared error that goes where the layer computes in float."""
        return self.weights**2 + self.activations**2

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def sensitivities(
    captured: CapturedGraph, grids: Mapping[str, Grid], scheme: Scheme, weights: Mapping[str, RoundedWeight], pictures: Tensor
) -> list[Sensitivity]:
    """Every layer, the one that hurts most first.

    Args:
        captured: the float graph that `quantize` takes.
        weights: what `round_weights` made of its layers.
        pictures: [N, …] float32, a few.
    """
    graph = captured.copy()
    graph.cast_constants(torch.float32)
    edges = find_edges(graph)
    recorder = _Recorder(graph, {node.name for node in edges.values} | {layer.node.name for layer in edges.layers})
    (output, *_) = recorder.run(pictures.clone().requires_grad_())
    kept = recorder.kept
    changes = {("value", node.name): _rounded(kept[node.name].detach(), grids[node.name], scheme) - kept[node.name].detach() for node in edges.values}
    for layer in edges.layers:
        changes["layer", layer.name] = _weight_change(graph, layer, kept, weights[layer.name])
    places = {("value", node.name): kept[node.name] for node in edges.values} | {
        ("layer", layer.name): kept[layer.node.name] for layer in edges.layers
    }
    squares = _effects(output, places, changes)
    return _table(edges, squares, float(output.detach().double().square().sum()))


class _Recorder(fx.Interpreter):
    def __init__(self, captured: CapturedGraph, names: set[str]) -> None:
        super().__init__(captured.module)
        self._names = names
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._names:
            self.kept[n.name] = result
        return result


def _rounded(values: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    low, high = scheme.levels
    return (((values / grid.scale).round() + grid.zero_point).clamp(low, high) - grid.zero_point) * grid.scale


def _weight_change(graph: CapturedGraph, layer: Layer, kept: Mapping[str, Tensor], rounded: RoundedWeight) -> Tensor:
    weight = graph.constant(layer.weight)
    integers, scales = rounded
    change = (integers.double() * scales.reshape(-1, *[1] * (weight.dim() - 1)) - weight).float()
    source = kept.get(layer.input.name)
    if source is None:  # not rounded: with one pixel per picture the change of the weights hardly matters, and the input was not kept
        return torch.zeros_like(kept[layer.node.name])
    target = layer.node.target
    rest = list(layer.node.args[3:])
    with torch.no_grad():
        return target(source.detach(), change, None, *rest)  # type: ignore[operator]


def _effects(output: Tensor, places: Mapping[tuple[str, str], Tensor], changes: Mapping[tuple[str, str], Tensor]) -> dict[tuple[str, str], float]:
    """‖J·δ‖² of each place, the mean over random projections; a picture at a time has its own δ, so the projections keep pictures apart."""
    generator = torch.Generator().manual_seed(0)
    keys = list(places)
    squares = dict.fromkeys(keys, 0.0)
    for turn in range(_PROJECTIONS):
        projection = torch.randn(output.shape, generator=generator)
        more = turn + 1 < _PROJECTIONS
        gradients = torch.autograd.grad(output, [places[key] for key in keys], projection, retain_graph=more, allow_unused=True)
        for key, gradient in zip(keys, gradients, strict=True):
            if gradient is not None:
                per_picture = (gradient * changes[key]).flatten(1).sum(dim=1, dtype=torch.float64)
                squares[key] += float(per_picture.square().sum()) / _PROJECTIONS
    return squares


def _table(edges: Edges, squares: Mapping[tuple[str, str], float], power: float) -> list[Sensitivity]:
    activations = dict.fromkeys((layer.name for layer in edges.layers), 0.0)
    by_node, groups = {layer.node: layer.name for layer in edges.layers}, edges.groups()
    for value in edges.values:
        if _on_grid_already(groups, value):
            continue
        layers = _layers_behind(edges, value, by_node)
        for name in layers:
            activations[name] += squares["value", value.name] / len(layers)
    rows = [
        Sensitivity(layer.name, (squares["layer", layer.name] / power) ** 0.5, (activations[layer.name] / power) ** 0.5, layer.operations)
        for layer in edges.layers
    ]
    return sorted(rows, key=lambda row: -row.square)


def _on_grid_already(groups: Sequence[Sequence[fx.Node]], value: fx.Node) -> bool:
    """A concat of rounded values, or the largest of them, loses nothing more on the same grid."""
    together = next(group for group in groups if value in group)
    return any(source in together for source in value.all_input_nodes)


def _layers_behind(edges: Edges, value: fx.Node, by_node: Mapping[fx.Node, str]) -> list[str]:
    """The layers for whose sake a value is rounded: those that read it, or read what is computed from it in 8 bits."""
    found: dict[str, None] = {}
    waiting, seen = [value], {value}
    while waiting:
        for reader in edges.readers.get(waiting.pop(), ()):
            if reader in by_node:
                found[by_node[reader]] = None
                continue
            following = reader
            while following not in edges.readers and following.users:
                following = next(iter(following.users))
            if following not in seen:
                seen.add(following)
                waiting.append(following)
    return list(found)
