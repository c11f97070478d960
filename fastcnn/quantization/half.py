"""Which operations of a graph float16 is too narrow for, by what they are seen to compute on pictures: those are to stay in float32.

float16 ends at 65504 and its last normal number is 2⁻¹⁴. What overflows is an activation, a sum on the way to one, a weight (a folded BatchNorm
may have made it so) or a number in the code; what is too small loses its digits, and below 2⁻²⁵ all of them. The mixed-precision recipe of
Micikevicius et al. (arXiv 1710.03740) keeps such operations in float32; here they are found instead of listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.graph.ir import CapturedGraph, aten
from fastcnn.graph.plan import PassReport
from fastcnn.inputs import Inputs, as_inputs

LARGEST, SMALLEST_NORMAL, SMALLEST = 65504.0, 2.0**-14, 2.0**-24
# Other pictures than those seen may reach this much further.
MARGIN = 4.0
# Of the L2 norm of a weight, or of one of its channels: rounding a normal float16 number loses 2^-11 of it at most.
_MOST_LOST = 2.0**-8
# Below this share of the largest channel's norm, or of the output that it is added to, what a constant loses is not seen behind it.
_SEEN = 2.0**-12
_MEANS = {
    aten.mean.dim,
    aten.mean.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
}
# Linear in each operand: of operands without their signs, the result is what the sums on the way to it cannot exceed.
_PLAIN = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default}
_WEIGHTED = _PLAIN | {aten.convolution.default, aten.conv_transpose1d.default, aten.conv_transpose2d.input}
_ADDED = {aten.addmm.default, aten.baddbmm.default}
_TOTALS = {aten.sum.dim_IntList, aten.sum.default}
_SUMS = _WEIGHTED | _ADDED | _TOTALS | {aten.mm.default, aten.bmm.default, aten.matmul.default}
_SQUARES = {aten.layer_norm.default, aten.group_norm.default, aten.instance_norm.default, aten.linalg_vector_norm.default, aten.var.correction}


@dataclass(frozen=True)
class WideLayers:
    """The operations that stay in float32.

    Attributes:
        nodes: their names in the graph, and of those between them that would only cost casts.
        why: path of the layer → the first reason, for those that have one.
        pictures: how many were looked at.
    """

    nodes: frozenset[str]
    why: Mapping[str, str]
    pictures: int

    def report(self) -> PassReport:
        """The same as a line among those of the passes."""
        return PassReport("keep_in_float32", len(self.nodes))

    def description(self, source: str) -> dict[str, Any]:
        """What a file says of it; `source` is where the pictures came from."""
        return {
            "dtype": "float16",
            "observed": {"source": source, "pictures": self.pictures},
            "float32_layers": [{"layer": layer, "why": why} for layer, why in self.why.items()],
        }


def find_wide_layers(captured: CapturedGraph, batches: Iterable[Inputs], seen: Callable[[int], None] = lambda count: None) -> WideLayers:
    """Run `captured`, which the passes went over, in float32 on `batches` [N, …]; `seen` hears how many pictures each of them had."""
    graph = captured.copy()
    graph.cast_constants(torch.float32)
    watcher, pictures = _Watcher(graph), 0
    with torch.no_grad():
        for batch in batches:
            inputs = as_inputs(batch)
            watcher.run(*inputs)
            pictures += len(inputs[0])
            seen(len(inputs[0]))
    reasons = _reasons(captured, watcher)
    found = {node for node in captured.calls() if node.name in reasons}
    nodes = frozenset(node.name for node in _without_needless_casts(captured, _whole(found)))
    why: dict[str, str] = {}
    for node in captured.calls():
        if node.name in reasons:
            why.setdefault(node.meta.get("path") or node.name, reasons[node.name])
    return WideLayers(nodes, why, pictures)


class _Watcher(fx.Interpreter):
    """The largest magnitude of each value, and of each sum inside an operation where it may matter, over all runs."""

    def __init__(self, captured: CapturedGraph) -> None:
        super().__init__(captured.module)
        self.peaks: dict[str, float] = {}
        self.inside: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op not in ("call_function", "placeholder"):
            return result
        self.peaks[n.name] = max(self.peaks.get(n.name, 0.0), _peak(result))
        inside = self._inside(n, result) if n.op == "call_function" else 0.0
        if inside:
            self.inside[n.name] = max(self.inside.get(n.name, 0.0), inside)
        return result

    def _inside(self, node: fx.Node, result: Any) -> float:
        """What the sums of `node` cannot exceed; 0 where it has none, or where a glance says that they are far from float16's end."""
        target: Any = node.target
        if not isinstance(result, Tensor) or not result.numel() or target not in _MEANS | _SUMS | _SQUARES:
            return 0.0
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if target in _SQUARES:
            return _peak(args[0]) ** 2
        if target in _MEANS:
            return _peak(target(*_unsigned(args), **kwargs)) * _window(target, args, result)
        if _glance(target, args, result) < LARGEST:
            return 0.0
        return _peak(target(*_unsigned(args), **kwargs))


def _peak(value: Any) -> float:
    """The largest magnitude in a tensor, or in several; infinity where one is not finite."""
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    peaks = [float(tensor.detach().abs().max()) for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel()]
    return max((peak if math.isfinite(peak) else math.inf for peak in peaks), default=0.0)


def _unsigned(args: Any) -> Any:
    return fx.node.map_aggregate(args, lambda value: value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value)


def _window(target: Any, args: tuple[Any, ...], result: Tensor) -> float:
    """How many values a mean is of, at most."""
    if target in (aten.avg_pool1d.default, aten.avg_pool2d.default):
        sides = args[1] if isinstance(args[1], (tuple, list)) else [args[1]]
        return float(math.prod(sides) if len(sides) > 1 or target is aten.avg_pool1d.default else sides[0] ** 2)
    return math.ceil(args[0].numel() / result.numel())


def _glance(target: Any, args: tuple[Any, ...], result: Tensor) -> float:
    """A bound on any sum inside, without computing it: the largest of one operand times as much of the other as meets it."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    if target in _TOTALS:
        return _peak(args[0]) * args[0].numel() / result.numel()
    if target in _WEIGHTED:
        weight = args[1].abs()
        sums = [weight.flatten(1).sum(1)] + ([weight.transpose(0, 1).flatten(1).sum(1)] if target not in _PLAIN else [])
        return _peak(args[0]) * max(float(total.max()) for total in sums) + _peak(tensors[2:])
    (*added, first, second) = tensors[:3] if target in _ADDED else tensors[:2]
    return _peak(first) * _peak(second) * first.shape[-1] + _peak(added)


def _reasons(captured: CapturedGraph, watcher: _Watcher) -> dict[str, str]:
    """Name of each operation that cannot be in float16 → why."""
    reasons: dict[str, str] = {}
    for node in captured.calls():
        peak = watcher.peaks.get(node.name, 0.0)
        read = max((watcher.peaks.get(source.name, 0.0) for source in node.all_input_nodes), default=0.0)
        inside = watcher.inside.get(node.name, 0.0)
        if peak * MARGIN > LARGEST:
            reasons[node.name] = f"its output reaches {peak:.2g}"
        elif 0 < peak < SMALLEST_NORMAL:
            reasons[node.name] = f"its output reaches no more than {peak:.2g}"
        elif inside > LARGEST:
            reasons[node.name] = f"it adds up to {inside:.2g} inside"
        elif read * MARGIN > LARGEST:
            reasons[node.name] = f"its input reaches {read:.2g}"
        elif 0 < read < SMALLEST_NORMAL:
            reasons[node.name] = f"its input reaches no more than {read:.2g}"
        else:
            constant = next((reason for reason in _of_constants(captured, node, peak) if reason), "")
            if constant:
                reasons[node.name] = constant
    return reasons


def _of_constants(captured: CapturedGraph, node: fx.Node, peak: float) -> Iterator[str]:
    """Why float16 cannot hold a constant that `node` reads, or a number in its arguments; empty texts for those that it can."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            tensor = captured.constant(source)
            if tensor.is_floating_point() and tensor.numel():
                yield _of_tensor(source.meta["constant"], tensor, peak)
    if isinstance(node.target, torch._ops.OpOverload):
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            # The numbers that a value is added to or multiplied by become numbers of its dtype; other ones are sizes, axes and epsilons.
            if "number" in str(argument.type) and isinstance(value, (int, float)) and math.isfinite(value):
                yield _of_number(float(value))


def _of_number(value: float) -> str:
    return f"it computes with {value:.2g}" if abs(value) > LARGEST or 0 < abs(value) < SMALLEST else ""


def _of_tensor(name: str, tensor: Tensor, peak: float) -> str:
    """`peak`: of the output that the constant takes part in."""
    tensor = tensor[tensor.isfinite()] if not bool(tensor.isfinite().all()) else tensor
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if largest > LARGEST:
        return f"{name} reaches {largest:.2g}"
    channels = tensor.reshape(len(tensor), -1) if tensor.dim() > 1 else tensor.reshape(1, -1)
    norms, lost = channels.norm(dim=1), (channels - channels.half().double()).norm(dim=1)
    seen = norms >= _SEEN * float(norms.max()) if tensor.dim() > 1 else norms > (_SEEN * peak if tensor.dim() else 0.0)
    gone = seen & (norms > 0) & (lost > _MOST_LOST * norms)
    if not bool(gone.any()):
        return ""
    size, count = float(channels[gone].abs().max()), int(gone.sum())
    where = "" if count == len(gone) else f" in {count} channel{'s' * (count > 1)}"
    return f"{name} vanishes: its numbers go no further than {size:.2g}{where}"


def _is_float(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return dtype is None or dtype.is_floating_point


def _whole(nodes: set[fx.Node]) -> set[fx.Node]:
    """With every part of what is taken apart into several values: nothing can be cast in between."""
    waiting, found = list(nodes), set(nodes)
    while waiting:
        node = waiting.pop()
        related = [user for user in node.users if _is_part(user)] + ([node.args[0]] if _is_part(node) else [])
        for other in related:
            if isinstance(other, fx.Node) and other not in found:
                found.add(other)
                waiting.append(other)
    return found


def _is_part(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def _without_needless_casts(captured: CapturedGraph, wide: set[fx.Node]) -> set[fx.Node]:
    """`wide`, and every connected group of operations without weights that lies between nothing but these and the float32 borders of the graph."""
    if not wide:
        return wide
    free = {node for node in captured.calls() if node not in wide and not any(source.op == "get_attr" for source in node.all_input_nodes)}
    found, visited = set(wide), set[fx.Node]()
    for start in free:
        if start in visited:
            continue
        group, waiting, touches, enclosed = {start}, [start], False, True
        while waiting:
            node = waiting.pop()
            for other in (*node.all_input_nodes, *node.users):
                if other in free and other not in group:
                    group.add(other)
                    waiting.append(other)
                elif other in wide:
                    touches = True
                elif other not in group and other.op == "call_function":
                    enclosed = False
        visited |= group
        if touches and enclosed:
            found |= group
    return found
