"""From a passed graph to the steps of the engine.

Every activation of the graph is computed by a step of ours where there is one for its operation; what is left runs as
PyTorch's own operation between them (`AtenStep`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.engines.triton.steps import (
    AffineStep,
    AtenStep,
    ConcatStep,
    ConvolutionStep,
    GlobalPoolStep,
    Network,
    Piece,
    PoolStep,
    Step,
    is_activation,
)
from fastcnn.errors import BackendError
from fastcnn.graph.ir import CapturedGraph, Convolution, arguments, aten, only_user, pair
from fastcnn.graph.ops import fused_conv2d

# As many slices of one convolution's output as a launch writes to.
MAX_PIECES = 4


def build_network(captured: CapturedGraph) -> Network:
    """Match steps in a graph that was fused by `fuse_convolution_epilogue`.

    Raises:
        BackendError: an operation cannot be placed; names it and its module.
    """
    return _Matcher(captured).network()


class _Matcher:
    def __init__(self, captured: CapturedGraph) -> None:
        self.captured = captured
        self.steps: list[Step] = []
        self.views: dict[fx.Node, tuple[fx.Node, int]] = {}
        self.done: set[fx.Node] = set()
        self.per_picture = True

    def network(self) -> Network:
        positions = {node: index for index, node in enumerate(self.captured.graph.nodes)}
        for node in self.captured.calls():
            if node not in self.done:
                self._match(node)
        self.steps.sort(key=lambda step: positions[step.node])
        return Network(self.captured, tuple(self.steps), self.views, self.per_picture)

    def _match(self, node: fx.Node) -> None:
        step: Step | None = None
        if is_activation(node):
            if node.target in (fused_conv2d, aten.conv2d.default):
                step = self._convolution(node)
            elif node.target in (aten.max_pool2d.default, aten.avg_pool2d.default):
                step = self._pool(node)
            elif node.target is aten.adaptive_avg_pool2d.default or node.target is aten.mean.dim:
                step = self._global_pool(node)
            elif node.target is aten.batch_norm.default:
                step = self._affine(node)
            elif node.target is aten.cat.default:
                step = self._concat(node)
            elif node.target is aten.slice.Tensor and self._is_view(node):
                self.done.add(node)
                return
        if step is None:
            step = self._aten(node)
        self.done.update(step.writes)
        self.done.add(step.node)
        self.steps.append(step)

    def _convolution(self, node: fx.Node) -> ConvolutionStep | None:
        convolution = Convolution.of(node)
        last_two: tuple[Any, ...] = node.args[7:] if node.target is fused_conv2d else (None, False)
        residual, relu = last_two
        constant = self.captured.is_constant(convolution.weight) and (convolution.bias is None or self.captured.is_constant(convolution.bias))
        if not constant or not is_activation(convolution.input) or (residual is not None and not is_activation(residual)):
            return None
        weight = self.captured.raw_constant(convolution.weight)
        bias = None if convolution.bias is None else self.captured.raw_constant(convolution.bias)
        pieces = _pieces(node)
        reads: tuple[fx.Node, ...] = (convolution.input,) if residual is None else (convolution.input, residual)
        return ConvolutionStep(
            node=node,
            reads=reads,
            writes=tuple(piece.node for piece in pieces),
            convolution=convolution,
            weight=weight,
            bias=bias,
            residual=residual,
            relu=bool(relu),
            pieces=pieces,
        )

    def _pool(self, node: fx.Node) -> PoolStep | None:
        values = arguments(node)
        if not is_activation(values["self"]) or values.get("divisor_override") is not None:
            return None
        names = ("kernel_size", "stride", "padding", "dilation") if node.target is aten.max_pool2d.default else ("kernel_size", "stride", "padding")
        window: dict[str, Any] = {name: pair(values[name]) if values[name] else None for name in names}
        window["padding"] = pair(values["padding"])
        window["ceil_mode"] = values["ceil_mode"]
        if "count_include_pad" in values:
            window["count_include_pad"] = values["count_include_pad"]
        last, bias = node, None
        add = only_user(node)
        if add is not None and add.target is aten.add.Tensor:
            bias = self._channel_constant(node, add)
            if bias is not None:
                self.done.add(add)
                last = add
        last, relu = self._take_relu(last)
        reduction = "max" if node.target is aten.max_pool2d.default else "avg"
        return PoolStep(node=last, reads=(values["self"],), writes=(last,), reduction=reduction, window=window, bias=bias, relu=relu)

    def _channel_constant(self, value: fx.Node, add: fx.Node) -> Tensor | None:
        """The constant [C] that `add` adds to the channels of `value`."""
        values = arguments(add)
        other = values["other"] if values["self"] is value else values["self"]
        if values["alpha"] != 1 or not self.captured.is_constant(other) or add.meta.get("shape") != value.meta["shape"]:
            return None
        constant, channels = self.captured.raw_constant(other), value.meta["shape"][1]
        return constant.reshape(-1) if tuple(constant.shape[-3:]) == (channels, 1, 1) and constant.numel() == channels else None

    def _take_relu(self, node: fx.Node) -> tuple[fx.Node, bool]:
        """The ReLU that is the only reader of `node` and True, or `node` and False."""
        user = only_user(node)
        if user is None or user.target is not aten.relu.default:
            return node, False
        return user, True

    def _global_pool(self, node: fx.Node) -> GlobalPoolStep | None:
        values = arguments(node)
        source = values["self"]
        if not is_activation(source) or node.meta["shape"][2:] != (1, 1):
            return None
        if node.target is aten.mean.dim and (sorted(axis % 4 for axis in values["dim"]) != [2, 3] or values["dtype"] is not None):
            return None
        return GlobalPoolStep(node=node, reads=(source,), writes=(node,))

    def _affine(self, node: fx.Node) -> AffineStep | None:
        values = arguments(node)
        parameters = [values[name] for name in ("running_mean", "running_var", "weight", "bias")]
        if values["training"] or not is_activation(values["input"]) or not all(v is None or self.captured.is_constant(v) for v in parameters):
            return None
        if parameters[0] is None or parameters[1] is None:
            return None
        mean, variance, weight, bias = (None if value is None else self.captured.constant(value) for value in parameters)
        assert mean is not None
        assert variance is not None
        scale = (torch.ones_like(mean) if weight is None else weight) / torch.sqrt(variance + values["eps"])
        shift = (torch.zeros_like(mean) if bias is None else bias) - mean * scale
        last, relu = self._take_relu(node)
        return AffineStep(node=last, reads=(values["input"],), writes=(last,), scale=scale.float(), shift=shift.float(), relu=relu)

    def _concat(self, node: fx.Node) -> ConcatStep | None:
        values = arguments(node)
        members = tuple(values["tensors"])
        if values["dim"] % 4 != 1 or not all(is_activation(member) for member in members):
            return None
        return ConcatStep(node=node, reads=members, writes=(node,))

    def _is_view(self, node: fx.Node) -> bool:
        """Whether `node` is some channels of another activation, next to each other; notes it in `views`."""
        bounds = _channel_slice(node)
        if bounds is None or not is_activation(node.args[0]):
            return False
        self.views[node] = (node.args[0], bounds[0])  # type: ignore[assignment]
        return True

    def _aten(self, node: fx.Node) -> AtenStep:
        target = node.target
        where = f"the operation {getattr(target, '__name__', target)} of {node.meta.get('path') or node.name}"
        if isinstance(target, torch._ops.OpOverload):
            for tag, why in _UNPLACEABLE.items():
                if tag in target.tags:
                    raise BackendError(f"backend 'triton' cannot place {where}: {why}; use backend='torch'")
        elif target is not fused_conv2d and getattr(operator, getattr(target, "__name__", ""), None) is not target:
            raise BackendError(f"backend 'triton' cannot place {where}: it is no ATen operation; use backend='torch'")
        self.per_picture &= _keeps_pictures_apart(self.captured, node)
        return AtenStep(node=node, reads=tuple(value for value in node.all_input_nodes if value.op != "get_attr"), writes=(node,))


# What a static plan and a CUDA graph cannot hold.
_UNPLACEABLE = {
    torch.Tag.dynamic_output_shape: "the shape of its result depends on the data",
    torch.Tag.data_dependent_output: "its result leaves the GPU while the network runs",
    torch.Tag.nondeterministic_seeded: "it draws random numbers",
}

_ELEMENTWISE = (
    *(aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.sigmoid.default, aten.silu.default, aten.gelu.default, aten.clone.default),
    *(aten.hardswish.default, aten.hardsigmoid.default, aten.leaky_relu.default, aten.clamp.default, aten.tanh.default, aten.elu.default),
    *(aten.contiguous.default, aten.mul.Scalar, aten.add.Scalar, aten.div.Scalar),
)
_BROADCASTING = (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.div.Tensor)
_WINDOWED = (
    *(aten.conv2d.default, aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.linear.default),
    *(fused_conv2d, aten.adaptive_max_pool2d.default),
)


def _keeps_pictures_apart(captured: CapturedGraph, node: fx.Node) -> bool:
    """Whether picture n of the result depends on picture n of the arguments only; False where that is not known."""
    target = node.target
    if target in _ELEMENTWISE or target in _WINDOWED:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    values = arguments(node)
    shape = node.meta.get("shape")
    if shape is None or not shape or shape[0] is not None or None in shape[1:]:
        return False
    rank = len(shape)
    if target in _BROADCASTING:
        operands = [value for value in (values["self"], values["other"]) if isinstance(value, fx.Node) and not captured.is_constant(value)]
        constants = [value for value in (values["self"], values["other"]) if captured.is_constant(value)]
        return all(len(value.meta.get("shape") or ()) == rank for value in operands) and all(
            len(value.meta["shape"]) < rank or value.meta["shape"][0] == 1 for value in constants
        )
    if target is aten.batch_norm.default:
        return not values["training"]
    if target is aten.flatten.using_ints:
        return bool(values["start_dim"] % len(values["self"].meta["shape"]) >= 1)
    if target is aten.cat.default:
        return bool(values["dim"] % rank)
    if target in (aten.softmax.int, aten.log_softmax.int, aten.slice.Tensor):
        return bool(values["dim"] % rank)
    if target is aten.mean.dim and values["dim"] is not None:
        source_rank = len(values["self"].meta["shape"])
        return all(axis % source_rank for axis in values["dim"])
    return False


def _pieces(node: fx.Node) -> tuple[Piece, ...]:
    """The slices that share out the output channels of a convolution among all its readers, or the whole as one
    piece."""
    channels = node.meta["shape"][1]
    whole = (Piece(node, 0, channels),)
    pieces = []
    for user in node.users:
        bounds = _channel_slice(user)
        if bounds is None:
            return whole
        pieces.append(Piece(user, *bounds))
    pieces.sort(key=lambda piece: piece.start)
    ends = [0, *(piece.stop for piece in pieces)]
    if not 2 <= len(pieces) <= MAX_PIECES or ends[:-1] != [piece.start for piece in pieces] or ends[-1] != channels:
        return whole
    return tuple(pieces)


def _channel_slice(node: fx.Node) -> tuple[int, int] | None:
    """(start, stop) where `node` slices channels of an activation in steps of one."""
    if node.target is not aten.slice.Tensor or not is_activation(node):
        return None
    values = arguments(node)
    if values["dim"] != 1 or values["step"] != 1 or not is_activation(values["self"]):
        return None
    start, stop, _ = slice(values["start"], values["end"]).indices(values["self"].meta["shape"][1])
    return (start, stop) if stop > start else None
