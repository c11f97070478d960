"""The roofline: how fast the machine lets each step of a plan be, and how near it comes.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures" (2009). A step has to
do its floating-point operations and to move its bytes, each activation and weight read once and the output written once; the slower of the two
at the machine's measured ceilings bounds it. A step may stay under its bound's time where its input is still in a cache.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.profiler import ProfilerActivity, profile, record_function

from fastcnn.bench.records.result import MachineCeilings, RooflineStep, RooflineTotal
from fastcnn.graph.ir import CapturedGraph, aten, pair
from fastcnn.graph.ops import fused_conv2d
from fastcnn.graph.passes import run_passes
from fastcnn.graph.plan import PlanRow, op_name
from fastcnn.optimized_module import OptimizedModule

# They give another view of their input's memory and do no work. `flatten` of a channels_last tensor of more than one pixel copies; the
# models here have one.
_VIEWS = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "getitem", "detach", "alias", "slice", "dropout", "expand")

_STEP_RUNS = 15


@dataclass(frozen=True)
class StepCost:
    """What one call of a graph has to do for a whole batch."""

    name: str
    op: str
    flops: int
    bytes: int


# -- what a graph has to do --------------------------------------------------------------------------------------------


def step_costs(captured: CapturedGraph, batch_size: int) -> list[StepCost]:
    """Operations and bytes of every call in a captured graph, in order."""
    return [_cost(node, batch_size) for node in captured.calls()]


def _cost(node: fx.Node, batch_size: int) -> StepCost:
    op, shape = op_name(node), _sizes(node, batch_size)
    name = node.meta.get("path") or node.name
    if op.rstrip("_") in _VIEWS or not shape:
        return StepCost(name, op, 0, 0)
    read = sum(_bytes(source, batch_size) for source in node.all_input_nodes)
    return StepCost(name, op, _flops(node, op, shape, batch_size), read + _bytes(node, batch_size))


def _flops(node: fx.Node, op: str, shape: tuple[int, ...], batch_size: int) -> int:
    """A multiply-add counts as two; what an epilogue adds to a convolution counts as one for each value."""
    outputs = prod(shape)
    if node.target in (aten.conv2d.default, fused_conv2d):
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        epilogue = sum(argument is not None for argument in (*node.args[2:3], *node.args[7:8])) + (len(node.args) > 8 and bool(node.args[8]))
        return outputs * (2 * prod(_sizes(weight, batch_size)[1:]) + epilogue)
    if op in ("linear", "addmm", "mm"):
        weight = node.all_input_nodes[1 if op != "addmm" else 2]
        return 2 * outputs * _sizes(weight, batch_size)[-1 if op == "linear" else 0]
    if op in ("max_pool2d", "avg_pool2d"):
        return outputs * prod(pair(node.args[1]))  # type: ignore[arg-type]
    if op in ("adaptive_avg_pool2d", "mean"):
        return prod(_sizes(node.all_input_nodes[0], batch_size))
    return 0 if op in ("cat", "clone", "contiguous", "_to_copy", "to") else outputs


def _bytes(node: fx.Node, batch_size: int) -> int:
    dtype = node.meta.get("dtype")
    return prod(_sizes(node, batch_size)) * (dtype.itemsize if isinstance(dtype, torch.dtype) else 0) if _sizes(node, batch_size) else 0


def _sizes(node: fx.Node, batch_size: int) -> tuple[int, ...]:
    return tuple(batch_size if size is None else size for size in node.meta.get("shape") or ())


# -- what it comes to --------------------------------------------------------------------------------------------------


def roofline_of(module: OptimizedModule, x: Tensor, ceilings: MachineCeilings, seconds: float | None) -> tuple[list[RooflineStep], RooflineTotal]:
    """The steps of an optimized module, and all together.

    Args:
        x: [N, C, H, W], what a run takes.
        seconds: of one run of the whole module, where it was timed.

    The torch engine runs its plan step by step, and each step's time is measured. The triton engine's plan holds the work and the time of each
    launch. Other engines run graphs of their own, which are bounded by the same steps: those of the fused graph.
    """
    if module.backend == "triton":
        return _sum_up(_launches_of(module, ceilings), module.backend, seconds)
    fused, _ = run_passes(module.source.graph, ("fuse_convolution_epilogue",))
    costs = step_costs(fused, x.shape[0])
    rows = module.plan.rows
    aligned = len(rows) == len(costs) and all(row.name == cost.name for row, cost in zip(rows, costs, strict=True))
    times: Sequence[float | None] = _step_seconds(module, x) if aligned and module.backend == "torch" else [None] * len(costs)
    steps = []
    for number, (cost, taken) in enumerate(zip(costs, times, strict=True)):
        row = rows[number] if aligned else None
        steps.append(_step(number, cost, row.op if row else cost.op, row.kernel if row else "", taken, ceilings))
    return _sum_up(steps, module.backend, seconds)


def _launches_of(module: OptimizedModule, ceilings: MachineCeilings) -> list[RooflineStep]:
    """The launches of the triton engine: one step for each, whatever number of convolutions is in it."""
    launches: dict[int, list[PlanRow]] = {}
    for row in module.plan.rows:
        if row.launch is not None:
            launches.setdefault(row.launch, []).append(row)
    steps = []
    for number, rows in launches.items():
        first = rows[0]
        cost = StepCost(" | ".join(row.name for row in rows), first.op, sum(row.flops or 0 for row in rows), sum(row.bytes or 0 for row in rows))
        taken = None if first.milliseconds is None else first.milliseconds / 1e3
        steps.append(_step(number, cost, first.op, first.kernel, taken, ceilings))
    return steps


def _step(number: int, cost: StepCost, op: str, kernel: str, taken: float | None, ceilings: MachineCeilings) -> RooflineStep:
    moving, computing = cost.bytes / ceilings.copy_bytes_per_second, cost.flops / ceilings.gemm_flops_per_second
    bound = max(moving, computing)
    return RooflineStep(
        step=number,
        name=cost.name,
        op=op,
        kernel=kernel,
        flops=cost.flops,
        bytes=cost.bytes,
        seconds=taken,
        bound_seconds=bound,
        bound="compute" if computing > moving else "memory",
        share=bound / taken if taken and bound else None,
    )


def _sum_up(steps: list[RooflineStep], backend: str, seconds: float | None) -> tuple[list[RooflineStep], RooflineTotal]:
    bounds = sum(step.bound_seconds for step in steps)
    total = RooflineTotal(
        backend=backend,
        steps=len(steps),
        flops=sum(step.flops for step in steps),
        bytes=sum(step.bytes for step in steps),
        bound_seconds=bounds,
        seconds=seconds,
        share=bounds / seconds if seconds else None,
    )
    return steps, total


def _step_seconds(module: OptimizedModule, x: Tensor) -> list[float | None]:
    """The median time of each plan row of the torch engine, by PyTorch's profiler; None for all where its account does not fit the plan.

    A row is one operation, but for a fused step that oneDNN does not have: that one is `conv2d`, `add` and `relu` in a row.
    """
    wanted = [row.operations for row in module.plan.rows]
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would write to stderr that it starts, stops, and finds no GPU
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if x.is_cuda else [])
    with torch.inference_mode():
        for _ in range(3):
            module(x)
        with profile(activities=activities) as record:
            for _ in range(_STEP_RUNS):
                with record_function("fastcnn.run"):
                    module(x)
                if x.is_cuda:
                    torch.cuda.synchronize(x.device)
    runs = [_match(event.cpu_children, wanted, x.is_cuda) for event in record.events() or () if event.name == "fastcnn.run" and event.cpu_children]
    samples = [taken for taken in runs if taken is not None]
    if len(samples) < _STEP_RUNS:
        return [None] * len(wanted)
    return [statistics.median(values) for values in zip(*samples, strict=True)]


def _match(events: Sequence[Any], wanted: Sequence[Sequence[str]], cuda: bool) -> list[float] | None:
    """Seconds of each row from the events of one run, in order; what stands between rows (a change of the input's layout) is passed over."""
    remaining, taken = iter(events), []
    for names in wanted:
        seconds = 0.0
        for name in names:
            event = next((event for event in remaining if re.sub(r"\.\w+$", "", event.name) == name), None)
            if event is None:
                return None
            seconds += (event.device_time_total if cuda else event.cpu_time_total) / 1e6
        taken.append(seconds)
    return taken
