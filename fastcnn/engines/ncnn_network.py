"""A graph written as a network of ncnn: a layer for each operation, as text, and the weights as bytes.

A blob of ncnn has no batch axis: a value [N, C, H, W] of the graph is one of C×H×W, and what touches the batch axis has no form here. What the
numbers of a layer's parameters mean stands in ncnn's docs/developer-guide/operators.md.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fastcnn.engines.ncnn_layers import Layer, Parameter, WrittenNetwork, blob_shape, refusal, sizes_of_blob, text_of_shape, with_splits
from fastcnn.errors import BackendError
from fastcnn.graph.ir import CapturedGraph, Convolution, arguments, aten, pair
from fastcnn.graph.ops import fused_conv2d
from fastcnn.graph.plan import op_name

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def write_network(captured: CapturedGraph) -> WrittenNetwork:
    """The graph as a network of ncnn, any batch of which runs picture by picture.

    Raises:
        BackendError: an operation has no form in ncnn; names the operation and its place.
    """
    return _Writer(captured).written()


class _Writer:
    def __init__(self, captured: CapturedGraph) -> None:
        self._captured = captured
        self._blobs: dict[fx.Node, str] = {captured.input_node: "input"}
        self._layers = [Layer("Input", [], ["input"], {})]
        self._made_by: dict[str, Layer] = {}
        self._parts: dict[fx.Node, list[str]] = {}
        blob_shape(captured.input_node)

    def written(self) -> WrittenNetwork:
        for node in self._captured.calls():
            if node.meta["dtype"] is None and node.target not in _IN_PARTS:
                continue  # a size, and arithmetic with sizes: they stand in the shapes of the metadata
            write = _FORMS.get(node.target)
            if write is None:
                raise refusal(node, "ncnn has no form of it here")
            write(self, node)
        outputs = []
        for number, node in enumerate(self._captured.output_nodes):
            if node not in self._blobs:
                raise BackendError(f"ncnn cannot run this graph: output {number} is a constant")
            # A layer of its own: a blob that is read twice, or that is the input, stays what it is.
            self._layers.append(Layer("Noop", [self._blobs[node]], [f"output{number}"], {}))
            outputs.append((f"output{number}", blob_shape(node)))
        return WrittenNetwork(with_splits(self._layers), outputs)

    # -- what the forms are made of ------------------------------------------------------------------------------------

    def blob(self, value: Any, reader: fx.Node) -> str:
        """The blob of an argument; constants get a layer that holds them."""
        if value not in self._blobs:
            if not self._captured.is_constant(value):
                raise refusal(reader, f"its argument {value!r} is no picture's")
            tensor = self._captured.raw_constant(value)
            self._blobs[value] = self.constant(tensor, len(reader.meta["shape"]), reader)
        return self._blobs[value]

    def constant(self, tensor: Tensor, rank: int, reader: fx.Node) -> str:
        """A blob that holds a constant as one of `rank` axes, the batch axis among them."""
        shape = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
        if shape[0] != 1 or not 2 <= rank <= 5 or not tensor.is_floating_point():
            raise refusal(reader, f"a constant of {tuple(tensor.shape)} and {tensor.dtype} is none of each picture's")
        return self.add(reader, "MemoryData", [], sizes_of_blob(shape[1:]), [(tensor, False)], helps=True)

    def add(
        self,
        node: fx.Node,
        kind: str,
        inputs: list[str],
        parameters: dict[int, Parameter],
        weights: Sequence[tuple[Tensor, bool]] = (),
        *,
        helps: bool = False,
        passes_folded: tuple[str, ...] | None = None,
    ) -> str:
        """Append a layer with one output and return that blob.

        Args:
            helps: the layer has no row of its own in the plan.
            passes_folded: what passes put into it; what the node says by default.
        """
        noted = node.meta.get("folded", ()) if passes_folded is None else passes_folded
        layer = Layer(kind, inputs, [f"blob{len(self._layers)}"], parameters, list(weights), None if helps else node, tuple(noted))
        self._layers.append(layer)
        self._made_by[layer.outputs[0]] = layer
        return layer.outputs[0]

    def set(self, node: fx.Node, blob: str) -> None:
        """`blob` is the value of `node`."""
        blob_shape(node)
        self._blobs[node] = blob

    def tensor(self, value: Any, reader: fx.Node) -> Tensor:
        """A constant argument. Raises BackendError where it is computed."""
        if not self._captured.is_constant(value):
            raise refusal(reader, "its weights are computed, not constant")
        return self._captured.raw_constant(value)

    # -- forms ---------------------------------------------------------------------------------------------------------

    def convolution(self, node: fx.Node) -> None:
        call = Convolution.of(node)
        weight, bias = self.tensor(call.weight, node), None if call.bias is None else self.tensor(call.bias, node)
        (height, width), (stride_y, stride_x), (down, right), (pad_y, pad_x) = call.kernel, call.stride, call.dilation, call.padding
        parameters: dict[int, Parameter] = {0: weight.shape[0], 1: width, 11: height, 2: right, 12: down, 3: stride_x, 13: stride_y}
        parameters |= {4: pad_x, 14: pad_y, 5: int(bias is not None), 6: weight.numel()} | ({} if call.groups == 1 else {7: call.groups})
        weights = [(weight, True)] + ([] if bias is None else [(bias, False)])
        kind = "Convolution" if call.groups == 1 else "ConvolutionDepthWise"
        blob = self.add(node, kind, [self.blob(call.input, node)], parameters, weights)
        if node.target is fused_conv2d:
            residual, relu = node.args[7], node.args[8]
            # The epilogue stands in the plan where it is computed: ncnn adds a residual in a layer of its own.
            epilogue = int(residual is not None) + int(bool(relu))
            layer = self._made_by[blob]
            layer.folded = layer.folded[: len(layer.folded) - epilogue]
            if residual is not None:
                blob = self.add(node, "BinaryOp", [blob, self.blob(residual, node)], {0: 0}, passes_folded=())
            if relu:
                blob = self.activate(node, blob, "relu", 1, ()) or self.add(node, "ReLU", [blob], {}, passes_folded=())
        self.set(node, blob)

    def activate(self, node: fx.Node, blob: str, name: str, number: int, values: Sequence[float]) -> str | None:
        """The activation as part of the layer that makes `blob`, where it can be: a convolution or a matrix product that has none yet."""
        layer = self._made_by.get(blob)
        if layer is None or layer.kind not in _WITH_ACTIVATION or layer.activation:
            return None
        if layer.node is not node and len(node.all_input_nodes[0].users) > 1:
            return None  # somebody else reads it without the activation
        layer.activation = name
        layer.folded = (*layer.folded, name)
        layer.parameters |= {9: number} | ({10: values} if values else {})
        return blob

    def linear(self, node: fx.Node) -> None:
        given = arguments(node)
        weight, bias = self.tensor(given["weight"], node), None if given["bias"] is None else self.tensor(given["bias"], node)
        if len(blob_shape(given["input"])) != 1:
            raise refusal(node, f"only of [N, C], not of {text_of_shape(given['input'])}")
        parameters: dict[int, Parameter] = {0: weight.shape[0], 1: int(bias is not None), 2: weight.numel()}
        weights = [(weight, True)] + ([] if bias is None else [(bias, False)])
        self.set(node, self.add(node, "InnerProduct", [self.blob(given["input"], node)], parameters, weights))

    def pool(self, node: fx.Node) -> None:
        given = arguments(node)
        is_maximum = node.target is aten.max_pool2d.default
        kernel = pair(given["kernel_size"])
        stride, padding = pair(given["stride"] or kernel), pair(given["padding"])
        if is_maximum and pair(given["dilation"]) != (1, 1):
            raise refusal(node, "ncnn has no dilated pools")
        if given.get("divisor_override") not in (None, math.prod(kernel)):
            raise refusal(node, "ncnn's average pools have no divisor of their own")
        counts_padding = not is_maximum and (given["divisor_override"] is not None or (given["count_include_pad"] and padding != (0, 0)))
        before, after = _image_sizes(given.get("self", given.get("input")), node), _image_sizes(node, node)
        # In ceil mode the last window may reach beyond the padding: the shape says how far. Otherwise what is left over is not read.
        needed = [(after[i] - 1) * stride[i] + kernel[i] - before[i] - padding[i] for i in range(2)]
        ends = [max(pad, need) for pad, need in zip(padding, needed, strict=True)]
        if counts_padding and tuple(ends) != padding:
            raise refusal(node, "ncnn counts the padding beyond the last window of a pool in ceil mode")
        parameters: dict[int, Parameter] = {0: int(not is_maximum), 5: 1, 6: int(counts_padding)}
        parameters |= {1: kernel[1], 11: kernel[0], 2: stride[1], 12: stride[0], 3: padding[1], 13: padding[0], 14: ends[1], 15: ends[0]}
        self.set(node, self.add(node, "Pooling", [self.blob(node.args[0], node)], parameters))

    def adaptive_pool(self, node: fx.Node) -> None:
        blob, before, after = self.blob(node.args[0], node), _image_sizes(node.args[0], node), _image_sizes(node, node)
        if after == (1, 1):
            blob = self.global_average(node, blob)
        elif before != after:
            blob = self.add(node, "Pooling", [blob], {0: 1, 7: 1, 8: after[1], 18: after[0]})
        self.set(node, blob)

    def global_average(self, node: fx.Node, blob: str) -> str:
        pooled = self.add(node, "Pooling", [blob], {0: 1, 4: 1})
        shape = blob_shape(node)
        return pooled if len(shape) == 1 else self.add(node, "Reshape", [pooled], sizes_of_blob(shape), helps=True)

    def mean(self, node: fx.Node) -> None:
        given = arguments(node)
        source = given["self"]
        rank = len(source.meta["shape"])
        if rank != 4 or {axis % rank for axis in given["dim"] or ()} != {2, 3} or given["dtype"] is not None:
            raise refusal(node, f"only over the last two axes of [N, C, H, W], not over {given['dim']} of {text_of_shape(source)}")
        self.set(node, self.global_average(node, self.blob(source, node)))

    def same(self, node: fx.Node) -> None:
        self.set(node, self.blob(node.args[0], node))

    def reshape(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        before, after = blob_shape(source), blob_shape(node)
        if math.prod(before) != math.prod(after):
            raise refusal(node, f"it moves values between pictures: {text_of_shape(source)} to {text_of_shape(node)}")
        blob = self.blob(node.args[0], node)
        if before != after:
            blob = self.add(node, "Flatten", [blob], {}) if len(after) == 1 else self.add(node, "Reshape", [blob], sizes_of_blob(after))
        self.set(node, blob)

    def permute(self, node: fx.Node) -> None:
        rank = len(node.meta["shape"])
        given = arguments(node)
        if node.target is aten.transpose.int:
            first, second = given["dim0"] % rank, given["dim1"] % rank
            order = list(range(rank))
            order[first], order[second] = second, first
        else:
            order = [axis % rank for axis in given["dims"]]
        if order[0] != 0:
            raise refusal(node, "it moves the batch axis")
        names = ("", "", "W", "HW", "CHW", "CDHW")[rank]
        # Written from the innermost axis outwards.
        spelled = "".join(names[axis - 1] for axis in reversed(order[1:]))
        numbers = _ORDERS.get(rank, ())
        blob = self.blob(node.args[0], node)
        self.set(node, self.add(node, "Permute", [blob], {0: numbers.index(spelled)}) if spelled in numbers else blob)

    def concatenate(self, node: fx.Node) -> None:
        given = arguments(node)
        axis = given["dim"] % len(node.meta["shape"])
        if axis == 0:
            raise refusal(node, "it joins pictures to a batch")
        self.set(node, self.add(node, "Concat", [self.blob(part, node) for part in given["tensors"]], {0: axis - 1}))

    def divide_into_parts(self, node: fx.Node) -> None:
        given = arguments(node)
        source, rank = given["self"], len(given["self"].meta["shape"])
        axis = given["dim"] % rank
        if axis == 0:
            raise refusal(node, "it takes a batch apart")
        total = source.meta["shape"][axis]
        if node.target is aten.split_with_sizes.default:
            sizes = list(given["split_sizes"])
        else:
            each = -(-total // given["chunks"]) if node.target is aten.chunk.default else given["split_size"]
            sizes = [min(each, total - start) for start in range(0, total, each)]
        blob = self.blob(source, node)
        if len(sizes) == 1:
            self._parts[node] = [blob]
            return
        outputs = [f"blob{len(self._layers)}_{part}" for part in range(len(sizes))]
        self._layers.append(Layer("Slice", [blob], outputs, {0: sizes, 1: axis - 1}, node=node))
        self._parts[node] = outputs

    def part(self, node: fx.Node) -> None:
        source, index = node.args
        if source not in self._parts:
            raise refusal(node, "ncnn has no form of it here")
        self.set(node, self._parts[source][index])  # type: ignore[index]

    def slice(self, node: fx.Node) -> None:
        given = arguments(node)
        source, axis = given["self"], given["dim"] % len(node.meta["shape"])
        if given["step"] == 1 and given["start"] in (None, 0) and given["end"] in (None, sys.maxsize):
            return self.same(node)
        if axis == 0 or given["step"] != 1 or not all(isinstance(given[bound], int | None) for bound in ("start", "end")):
            raise refusal(node, "ncnn cuts pictures only, one value after the other")
        total = source.meta["shape"][axis]
        start, end, _ = slice(given["start"], given["end"]).indices(total)
        return self.set(node, self.add(node, "Crop", [self.blob(source, node)], {9: [start], 10: [end], 11: [axis - 1]}))

    def pad(self, node: fx.Node) -> None:
        given = arguments(node)
        amounts = [*given["pad"], 0, 0, 0, 0][:4]
        if len(node.meta["shape"]) != 4 or len(given["pad"]) > 4 or min(amounts) < 0 or given.get("mode", "constant") != "constant":
            raise refusal(node, "only constant padding around [N, C, H, W]")
        left, right, top, bottom = amounts
        parameters: dict[int, Parameter] = {0: top, 1: bottom, 2: left, 3: right, 4: 0, 5: float(given["value"] or 0.0)}
        self.set(node, self.add(node, "Padding", [self.blob(given["self"], node)], parameters))

    def batch_norm(self, node: fx.Node) -> None:
        given = arguments(node)
        mean, variance = self.tensor(given["running_mean"], node), self.tensor(given["running_var"], node)
        scale = torch.ones_like(mean) if given["weight"] is None else self.tensor(given["weight"], node)
        shift = torch.zeros_like(mean) if given["bias"] is None else self.tensor(given["bias"], node)
        weights = [(tensor, False) for tensor in (scale, mean, variance, shift)]
        parameters: dict[int, Parameter] = {0: mean.numel(), 1: float(given["eps"])}
        self.set(node, self.add(node, "BatchNorm", [self.blob(given["input"], node)], parameters, weights))

    def softmax(self, node: fx.Node) -> None:
        given = arguments(node)
        axis = given["dim"] % len(node.meta["shape"])
        if axis == 0:
            raise refusal(node, "it compares pictures with each other")
        self.set(node, self.add(node, "Softmax", [self.blob(given["self"], node)], {0: axis - 1, 1: 1}))

    def prelu(self, node: fx.Node) -> None:
        given = arguments(node)
        slope = self.tensor(given["weight"], node)
        self.set(node, self.add(node, "PReLU", [self.blob(given["self"], node)], {0: slope.numel()}, [(slope, False)]))

    def binary(self, node: fx.Node) -> None:
        given = arguments(node)
        number = _BINARY[node.target]
        if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
            raise refusal(node, "ncnn has no form of its options")
        first, second = given["self"], given["other"]
        if isinstance(second, int | float):
            self.set(node, self.add(node, "BinaryOp", [self.blob(first, node)], {0: number, 1: 1, 2: float(second)}))
            return
        ranks = {len(value.meta["shape"]) for value in (first, second) if not self._captured.is_constant(value)}
        if ranks != {len(node.meta["shape"])}:
            raise refusal(node, f"ncnn lines up axes otherwise: {text_of_shape(first)} and {text_of_shape(second)}")
        self.set(node, self.add(node, "BinaryOp", [self.blob(first, node), self.blob(second, node)], {0: number}))

    def unary(self, node: fx.Node) -> None:
        kind, parameters, activation = _unary_form(node)
        blob = self.blob(node.args[0], node)
        fused = None if activation is None else self.activate(node, blob, op_name(node).removesuffix("_"), *activation)
        self.set(node, fused or self.add(node, kind, [blob], parameters))


def _unary_form(node: fx.Node) -> tuple[str, dict[int, Parameter], tuple[int, Sequence[float]] | None]:
    """(kind of layer, its parameters, the number and values that it has as the activation of another layer) of a function of each value."""
    given, target = arguments(node), node.target
    if target in _PLAIN:
        return _PLAIN[target]
    if target is aten.leaky_relu.default:
        slope = float(given["negative_slope"])
        return "ReLU", {0: slope}, (2, (slope,))
    if target is aten.elu.default:
        if given["scale"] != 1 or given["input_scale"] != 1:
            raise refusal(node, "ncnn has no form of its scales")
        return "ELU", {0: float(given["alpha"])}, None
    if target is aten.gelu.default:
        return "GELU", {0: int(given["approximate"] == "tanh")}, None
    low, high = (given["min_val"], given["max_val"]) if target is aten.hardtanh.default else (given["min"], given["max"])
    bounds = (-_LARGEST_FLOAT32 if low is None else float(low), _LARGEST_FLOAT32 if high is None else float(high))
    return "Clip", {0: bounds[0], 1: bounds[1]}, (3, bounds)


_PLAIN: dict[Any, tuple[str, dict[int, Parameter], tuple[int, Sequence[float]] | None]] = {
    aten.relu.default: ("ReLU", {}, (1, ())),
    aten.relu6.default: ("Clip", {0: 0.0, 1: 6.0}, (3, (0.0, 6.0))),
    aten.sigmoid.default: ("Sigmoid", {}, (4, ())),
    aten.silu.default: ("Swish", {}, None),
    aten.mish.default: ("Mish", {}, None),
    aten.tanh.default: ("TanH", {}, None),
    aten.hardswish.default: ("HardSwish", {0: 1 / 6, 1: 0.5}, (6, (1 / 6, 0.5))),
    aten.hardsigmoid.default: ("HardSigmoid", {0: 1 / 6, 1: 0.5}, None),
    aten.abs.default: ("UnaryOp", {0: 0}, None),
    aten.neg.default: ("UnaryOp", {0: 1}, None),
    aten.sqrt.default: ("UnaryOp", {0: 5}, None),
    aten.exp.default: ("UnaryOp", {0: 7}, None),
}
_BINARY: dict[Any, int] = {
    aten.add.Tensor: 0,
    aten.sub.Tensor: 1,
    aten.mul.Tensor: 2,
    aten.div.Tensor: 3,
    aten.maximum.default: 4,
    aten.minimum.default: 5,
}
_IN_PARTS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)
_WITH_ACTIVATION = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
# Axes from the innermost outwards, by the number that ncnn gives the order; by the rank with the batch axis.
_ORDERS = {
    3: ("WH", "HW"),
    4: ("WHC", "HWC", "WCH", "CWH", "HCW", "CHW"),
    5: (
        *("WHDC", "HWDC", "WDHC", "DWHC", "HDWC", "DHWC", "WHCD", "HWCD", "WCHD", "CWHD", "HCWD", "CHWD"),
        *("WDCH", "DWCH", "WCDH", "CWDH", "DCWH", "CDWH", "HDCW", "DHCW", "HCDW", "CHDW", "DCHW", "CDHW"),
    ),
}

_FORMS: dict[Any, Callable[[_Writer, fx.Node], None]] = {
    **dict.fromkeys((aten.conv2d.default, fused_conv2d), _Writer.convolution),
    aten.linear.default: _Writer.linear,
    **dict.fromkeys((aten.max_pool2d.default, aten.avg_pool2d.default), _Writer.pool),
    aten.adaptive_avg_pool2d.default: _Writer.adaptive_pool,
    aten.mean.dim: _Writer.mean,
    **dict.fromkeys((aten.contiguous.default, aten.clone.default, aten.alias.default), _Writer.same),
    **dict.fromkeys((aten.flatten.using_ints, aten.reshape.default, aten.view.default, aten.unflatten.int), _Writer.reshape),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default), _Writer.reshape),
    **dict.fromkeys((aten.transpose.int, aten.permute.default), _Writer.permute),
    aten.cat.default: _Writer.concatenate,
    **dict.fromkeys(_IN_PARTS, _Writer.divide_into_parts),
    operator.getitem: _Writer.part,
    aten.slice.Tensor: _Writer.slice,
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _Writer.pad),
    aten.batch_norm.default: _Writer.batch_norm,
    aten.softmax.int: _Writer.softmax,
    aten.prelu.default: _Writer.prelu,
    **dict.fromkeys(_BINARY, _Writer.binary),
    **dict.fromkeys((*_PLAIN, aten.leaky_relu.default, aten.elu.default, aten.gelu.default), _Writer.unary),
    **dict.fromkeys((aten.hardtanh.default, aten.clamp.default), _Writer.unary),
}


def _image_sizes(node: Any, reader: fx.Node) -> tuple[int, int]:
    shape = blob_shape(node)
    if len(shape) != 3:
        raise refusal(reader, f"only of [N, C, H, W], not of {text_of_shape(node)}")
    return shape[1], shape[2]
