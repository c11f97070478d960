"""The graph run by PyTorch itself: channels_last, convolutions with bias, residual add and ReLU in one oneDNN call over weights packed once.

On a CPU a fused step calls `mkldnn::_convolution_pointwise`, the operation that Inductor's freezing uses too. Where oneDNN has no kernel for the
dtype, and on other devices, a fused step runs as `conv2d`, `add` and `relu_`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.engines.base import Lowered
from fastcnn.graph.ir import CapturedGraph, aten
from fastcnn.graph.ops import fused_conv2d
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.graph.plan import PlanRow, StepKernel, make_rows
from fastcnn.precision import float32_products
from fastcnn.target import Target

_ENGINE_PASSES = ("fuse_convolution_epilogue",)

# Weights for batches of two and more are packed for this many pictures, unless the example says more.
_SEVERAL = 8

_mkldnn = torch.ops.mkldnn

# Their result is a fresh tensor, which a ReLU that is its only reader may overwrite.
_OWNS_ITS_RESULT = (
    _mkldnn._convolution_pointwise.default,
    _mkldnn._convolution_pointwise.binary,
    fused_conv2d,
    aten.conv2d.default,
    aten.add.Tensor,
    aten.avg_pool2d.default,
    aten.batch_norm.default,
    aten.linear.default,
    aten.cat.default,
)

# PyTorch computes them wrongly of a channels_last tensor to a width of one (2.11 to 2.14).
_ANTIALIASED = (
    *(aten._upsample_bilinear2d_aa.default, aten._upsample_bilinear2d_aa.vec),
    *(aten._upsample_bicubic2d_aa.default, aten._upsample_bicubic2d_aa.vec),
)


class TorchEngine:
    """Runs on any device that PyTorch has.

    Args:
        passes: names of the passes that run over a graph before it is lowered.
    """

    name = "torch"

    def __init__(self, passes: Sequence[str] = STANDARD_PASSES) -> None:
        self.passes = tuple(passes)

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, or None where it can."""
        return None

    def unsupported(self, target: Target) -> str | None:
        """Why it cannot run on the target's device or in its dtype, or None where it can."""
        if target.dtype == torch.int8:
            return "multiplies no 8-bit numbers: onnxruntime and openvino do"
        return None if target.dtype.is_floating_point else f"{target.dtype} is not a floating-point dtype"

    def unfit_for_auto(self) -> str | None:
        """None: `auto` always tries it."""
        return None

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        """The graph with fused steps on oneDNN's kernels where it has them, else on `conv2d`, `add` and `relu_`; `artifact` is not used."""
        fused, reports = run_passes(captured, _ENGINE_PASSES)
        if target.dtype == torch.bfloat16:
            _keep_logits_in_float32(fused)
        if not _onednn_has(target.device, target.dtype):
            plain = _Lowering(fused, packed_for=None)
            switches = target.device.type == "cuda" and target.dtype == torch.float32
            run = _with_float32_products(plain.run, tf32=target.tf32) if switches else plain.run
            return Lowered(run, lambda: plain.rows, reports, propagates_nan=True)

        # oneDNN chooses the layout of packed weights by the geometry, batch included, and silently repacks in every call that wants another one.
        # Layouts were seen to differ between batch 1 and larger ones and hardly among those, so there are at most two packings, each made when it is
        # first needed.
        lock = threading.Lock()
        packings: dict[bool, _Lowering] = {}

        def packing(several: bool) -> _Lowering:
            with lock:
                if several not in packings:
                    packings[several] = _Lowering(fused, packed_for=max(_SEVERAL, target.usual_batch) if several else 1)
                return packings[several]

        def rows() -> tuple[PlanRow, ...]:
            with lock:
                made = next(iter(packings.values()), None)
            return (made or packing(several=False)).rows

        # oneDNN's ReLU gives 0 for NaN.
        return Lowered(lambda x, *more: packing(x.shape[0] > 1).run(x, *more), rows, reports, propagates_nan=False)


def _with_float32_products(run: Callable[..., list[Tensor]], *, tf32: bool) -> Callable[..., list[Tensor]]:
    """`run` in the precision that was asked for, whatever PyTorch's switches say when it is called: by default they allow TF32 in convolutions.

    The switches belong to the process: calls of modules with the same wish run side by side, those with the other one take turns with them.
    """

    def switched(*inputs: Tensor) -> list[Tensor]:
        with float32_products(tf32=tf32):
            return run(*inputs)

    return switched


def _keep_logits_in_float32(captured: CapturedGraph) -> None:
    """Linear layers whose result is an output add up and answer in float32: among 8 bits of mantissa the largest logits are often equal, and then
    the first class wins that comes along. Their weights stay rounded."""
    for output in captured.output_nodes:
        if output.target is not aten.linear.default or len(output.users) > 1 or output.meta["dtype"] != torch.bfloat16:
            continue
        for source in output.all_input_nodes:
            if captured.is_constant(source):
                wide = captured.add_constant(f"{source.meta['constant']}.float32", captured.raw_constant(source).float(), before=output)
            else:
                wide = captured.call(aten.to.dtype, (source, torch.float32), before=output, like=source)
                wide.meta["dtype"] = torch.float32
            output.replace_input_with(source, wide)
        output.meta["dtype"] = torch.float32
    captured.tidy()


def _onednn_has(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused oneDNN convolution runs natively with this dtype on this CPU."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(_mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(_mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


class _Lowering:
    """One graph with its calls replaced by the kernels that run them. `packed_for`: the batch that oneDNN packs weights for, None to do without
    oneDNN."""

    rows: tuple[PlanRow, ...]

    def __init__(self, fused: CapturedGraph, packed_for: int | None) -> None:
        self._captured, self._packed_for = fused.copy(), packed_for
        self._kernels: dict[str, StepKernel] = {}
        for node in self._captured.calls():
            if node.target in (fused_conv2d, aten.conv2d.default):
                self._lower_convolution(node)
            elif node.target is aten.relu.default and _has_one_reader(node.args[0]):
                node.target = aten.relu_.default
                self._kernels[node.name] = StepKernel("aten::relu_", "overwrites its input, which has no other reader", ("aten::relu_",))
            else:
                if node.target in _ANTIALIASED and node.meta["shape"][-1] in (1, None):
                    plain = self._captured.call(aten.contiguous.default, (node.args[0],), before=node, like=node.args[0])  # type: ignore[arg-type]
                    node.replace_input_with(node.args[0], plain)  # type: ignore[arg-type]
                name = _operator_name(node.target)
                self._kernels[node.name] = StepKernel(name, "as captured", (name,))
        self._captured.tidy()
        self.rows = make_rows(self._captured, self._kernels)
        self._module: Callable[..., list[Tensor]] = self._captured.module

    def run(self, *inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return self._module(*(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs))

    def _lower_convolution(self, node: fx.Node) -> None:
        # A plain conv2d is a fused one without residual and ReLU; trailing defaults may be left out.
        defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1, None, False]
        given: list[Any] = list(node.args)
        x, weight, bias, stride, padding, dilation, groups, residual, relu = given + defaults[len(given) :]
        epilogue = (["add"] if residual is not None else []) + (["relu"] if relu else [])
        suffix = "".join(f" + {operation}" for operation in epilogue)
        sizes: tuple[int | None, ...] = x.meta["shape"][1:]
        constant = self._captured.is_constant(weight) and (bias is None or self._captured.is_constant(bias))
        if self._packed_for is None or not constant or len(sizes) != 3 or None in sizes:
            operations = ("aten::conv2d", *(f"aten::{operation}" for operation in epilogue))
            why = "oneDNN has no fused form for this dtype, device or shape"
            self._kernels[node.name] = StepKernel(f"aten::conv2d{suffix}", why, operations, bool(epilogue))
            return
        packed = _mkldnn._reorder_convolution_weight(
            self._captured.raw_constant(weight),
            padding,
            stride,
            dilation,
            groups,
            [self._packed_for, *sizes],
        )
        packed_node = self._captured.add_constant(f"{node.name}.packed_weight", packed, before=node)
        if residual is None:
            node.target = _mkldnn._convolution_pointwise.default
            node.args = (x, packed_node, bias, padding, stride, dilation, groups, "relu" if relu else "none", [], "")
        else:
            node.target = _mkldnn._convolution_pointwise.binary
            node.args = (x, residual, packed_node, bias, padding, stride, dilation, groups, "add", 1.0, "relu" if relu else None, [], None)
        node.kwargs = {}
        why = f"one call, weights packed for batch {self._packed_for}"
        self._kernels[node.name] = StepKernel(f"oneDNN convolution{suffix}", why, ("mkldnn::_convolution_pointwise",), bool(epilogue))


def _has_one_reader(value: Any) -> bool:
    """Whether `value` owns its memory and has one reader. An earlier reader could be a view that is read later."""
    return isinstance(value, fx.Node) and value.target in _OWNS_ITS_RESULT and len(value.users) == 1


def _operator_name(target: Any) -> str:
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
