"""The pass that rounds: `quantized_decomposed` pairs around activations, weights as int8 constants with a scale per output channel.

One pair stands behind each rounded value, with constants for scale and zero point. Runtimes know a layer between two pairs and compute it in
integers; eager PyTorch computes the same numbers in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from fastcnn.errors import RequestError
from fastcnn.graph.ir import CapturedGraph, add_folded
from fastcnn.graph.plan import PassReport
from fastcnn.quantization.edges import Layer, find_edges, find_layers
from fastcnn.quantization.scheme import Grid, Scheme

quantized = torch.ops.quantized_decomposed

# int8 [K, …], and float64 scales [K] that are float32 numbers.
RoundedWeight: TypeAlias = tuple[Tensor, Tensor]

# Scales that are tried for a channel's weights, as shares of the one that reaches its largest.
_SHARES = tuple(1.0 - step / 40 for step in range(11))


def quantize(
    captured: CapturedGraph,
    grids: Mapping[str, Grid],
    scheme: Scheme,
    float_layers: Collection[str] = (),
    weights: Mapping[str, RoundedWeight] | None = None,
) -> tuple[CapturedGraph, PassReport]:
    """A copy of `captured` whose layers, but for `float_layers`, multiply 8-bit numbers.

    Args:
        captured: a graph that the other passes went over.
        grids: of every value that is rounded, by its node's name.
        weights: what `round_weights` made of the layers, by their names, where it is known already.

    Raises:
        RequestError: no layer can be rounded, or a grid is missing: they belong to another graph.
    """
    captured = captured.copy()
    report = PassReport("quantize")
    edges = find_edges(captured, float_layers)
    for value in edges.values:
        if value.name not in grids:
            raise RequestError(f"the ranges belong to another graph than that of {captured.info['name']}: {value.name} is not among them")
        _round_activation(captured, value, edges.readers[value], grids[value.name], scheme)
    for layer in edges.layers:
        rounded = weights[layer.name] if weights is not None else round_weight(captured.constant(layer.weight), scheme)
        _put_weight(captured, layer, rounded, scheme)
        report.fired += 1
    for _ in float_layers:
        report.decline("left in float")
    captured.tidy()
    return captured, report


def unrounded_activations(captured: CapturedGraph) -> CapturedGraph:
    """A copy of a quantized graph whose activations stay float, its weights as they were rounded: integers have no NaN and no infinity."""
    captured = captured.copy()
    for restored in captured.calls(quantized.dequantize_per_tensor.default):
        rounded = restored.args[0]
        assert isinstance(rounded, fx.Node)
        source = rounded.args[0]
        assert isinstance(source, fx.Node)
        captured.replace(restored, source)
    captured.tidy()
    return captured


def _round_activation(captured: CapturedGraph, value: fx.Node, readers: list[fx.Node], grid: Grid, scheme: Scheme) -> None:
    numbers = (grid.scale, grid.zero_point, *scheme.levels, scheme.dtype)
    with captured.graph.inserting_after(value):
        rounded = captured.graph.call_function(quantized.quantize_per_tensor.default, (value, *numbers))
    with captured.graph.inserting_after(rounded):
        restored = captured.graph.call_function(quantized.dequantize_per_tensor.default, (rounded, *numbers))
    rounded.meta.update(shape=value.meta["shape"], dtype=scheme.dtype, path=value.meta.get("path", ""))
    restored.meta.update(shape=value.meta["shape"], dtype=value.meta["dtype"], path=value.meta.get("path", ""))
    for reader in readers:
        reader.replace_input_with(value, restored)


def _put_weight(captured: CapturedGraph, layer: Layer, rounded: RoundedWeight, scheme: Scheme) -> None:
    name, (integers, scales), limit = layer.weight.meta["constant"], rounded, scheme.weight_limit
    constant = captured.add_constant(f"{name}.int8", integers, before=layer.node)
    scale = captured.add_constant(f"{name}.scale", scales, before=layer.node)
    zero_point = captured.add_constant(f"{name}.zero_point", torch.zeros(len(scales), dtype=torch.int8), before=layer.node)
    numbers = (constant, scale, zero_point, 0, -limit, limit, torch.int8)
    restored = captured.call(quantized.dequantize_per_channel.default, numbers, before=layer.node, like=layer.weight)
    layer.node.update_arg(1, restored)
    add_folded(layer.node, "int8")


def round_weights(captured: CapturedGraph, scheme: Scheme) -> dict[str, RoundedWeight]:
    """Name of each layer → its weights by `round_weight`."""
    return {layer.name: round_weight(captured.constant(layer.weight), scheme) for layer in find_layers(captured)}


def round_weight(weight: Tensor, scheme: Scheme) -> RoundedWeight:
    """[K, …] → (int8 of the same shape, float64 scales [K] that are float32 numbers): per output channel the scale of least squared error."""
    rows = weight.float().flatten(1)
    largest = rows.abs().amax(dim=1).clamp_min(1e-30)
    limit = scheme.weight_limit
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for share in _SHARES:
        scale = largest * (share / limit)
        error = ((rows / scale[:, None]).round_().clamp_(-limit, limit).mul_(scale[:, None]).sub_(rows)).square_().sum(dim=1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    integers = (rows / best[:, None]).round_().clamp_(-limit, limit).to(torch.int8).reshape(weight.shape)
    return integers, best.double()
