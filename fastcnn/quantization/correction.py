"""Take from each layer's bias what rounding adds to the mean of its output, measured on pictures.

Rounding errors of weights and activations do not cancel over a picture: they shift the mean of a channel, and a ReLU behind it turns what was noise
into a shift. Layer by layer, with those in front corrected already, the bias is moved until each channel's mean behind its ReLU is that of the float
graph on the same pictures (Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, in its empirical form).
The bias itself stays float: runtimes round it to 32 bits, at a scale of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.graph.ir import CapturedGraph, arguments
from fastcnn.quantization.edges import CLAMPS, find_layers

# Newton's steps on a mean that is piecewise linear in the bias, and the least slope that one of them divides by.
_STEPS, _LEAST_SLOPE = 3, 0.05


def output_means(captured: CapturedGraph, pictures: Tensor) -> dict[str, Tensor]:
    """Name of each layer's node → [K] float64, the mean of each channel of its output behind the ReLU.

    Args:
        captured: a float graph with constants in float32.
        pictures: [N, …] float32.
    """
    names = {layer.node.name for layer in find_layers(captured)}
    recorder = _Recorder(captured, names)
    with torch.no_grad():
        recorder.run(pictures)
    return recorder.means


def correct_biases(quantized: CapturedGraph, means: Mapping[str, Tensor], pictures: Tensor) -> None:
    """Move the biases of `quantized`, made from the graph that `means` were found with, on the same `pictures` [N, …]."""
    graph = quantized.copy()
    graph.cast_constants(torch.float32)
    corrector = _Corrector(graph, means)
    with torch.no_grad():
        corrector.run(pictures)
    for node in list(quantized.calls()):
        if node.name in corrector.shifts:
            _shift_bias(quantized, node, corrector.shifts[node.name])
    quantized.tidy()


class _Recorder(fx.Interpreter):
    def __init__(self, captured: CapturedGraph, names: set[str]) -> None:
        super().__init__(captured.module)
        self._names = names
        self.means: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._names:
            self.means[n.name] = _channel_means(_clamped(_clamp_behind(n), result), n)
        return result


class _Corrector(fx.Interpreter):
    def __init__(self, captured: CapturedGraph, means: Mapping[str, Tensor]) -> None:
        super().__init__(captured.module)
        self._means = means
        self.shifts: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        wanted = self._means.get(n.name)
        if wanted is None:
            return result
        clamp, shift = _clamp_behind(n), torch.zeros_like(wanted)
        shifted = result
        for _ in range(1 if clamp is None else _STEPS):
            behind = _clamped(clamp, shifted)
            step = wanted - _channel_means(behind, n)
            if clamp is not None:
                step /= _channel_means((behind == shifted).float(), n).clamp_min(_LEAST_SLOPE)
            shift += step
            shifted = result + _along_channels(shift, n).to(result.dtype)
        self.shifts[n.name] = shift
        return shifted


def _clamp_behind(layer: fx.Node) -> fx.Node | None:
    """The ReLU, or whatever cuts off values, that alone reads a layer."""
    reader = next(iter(layer.users)) if len(layer.users) == 1 else None
    return reader if reader is not None and reader.target in CLAMPS else None


def _clamped(clamp: fx.Node | None, values: Tensor) -> Tensor:
    if clamp is None:
        return values
    result: Tensor = clamp.target(values, *clamp.args[1:], **clamp.kwargs)  # type: ignore[operator]
    return result


def _channel_means(values: Tensor, layer: fx.Node) -> Tensor:
    axis = _channel_axis(layer, values)
    return values.mean(dim=[other for other in range(values.dim()) if other != axis], dtype=torch.float64)


def _along_channels(shift: Tensor, layer: fx.Node) -> Tensor:
    rank = len(layer.meta["shape"])
    return shift.reshape([-1 if axis == _channel_axis(layer, rank) else 1 for axis in range(rank)])


def _channel_axis(layer: fx.Node, values: Tensor | int) -> int:
    """1 of a convolution, the last one of a linear layer."""
    rank = values if isinstance(values, int) else values.dim()
    return rank - 1 if "linear" in str(layer.target) else 1


def _shift_bias(captured: CapturedGraph, layer: fx.Node, shift: Tensor) -> None:
    values = arguments(layer)
    old = values["bias"]
    bias = shift if old is None else captured.constant(old) + shift
    weight = values["weight"].meta.get("path") or layer.name
    name = f"{weight}.bias" if old is None else old.meta["constant"]
    corrected = captured.add_constant(f"{name}.corrected", bias, before=layer)
    given = list(layer.args)
    given[2:3] = [corrected]
    layer.args = tuple(given)
    layer.kwargs = {key: value for key, value in layer.kwargs.items() if key != "bias"}
