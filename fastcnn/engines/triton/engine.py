"""The `triton` engine behind `fastcnn.optimize`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fastcnn.engines.base import Lowered, require_one_picture
from fastcnn.engines.triton.matching import build_network
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.steps import Network, followers
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.passes import STANDARD_PASSES, run_passes
from fastcnn.graph.plan import PassReport, PlanRow, op_name
from fastcnn.target import Target

if TYPE_CHECKING:
    from fastcnn.engines.triton.executor import Executor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_OLDEST = (8, 0)


class TritonEngine:
    """CUDA: NHWC activations in one arena, for each convolution the fastest of our kernels and cuDNN, the whole network
    as one CUDA graph.

    Args:
        options: which techniques it may use; all of them by default.
    """

    name = "triton"

    def __init__(self, options: TritonOptions | None = None) -> None:
        self.options = options or TritonOptions()

    @property
    def passes(self) -> Sequence[str]:
        """Those of all engines that pay here, as the options allow."""
        # A depthwise convolution is what a pool with bias is to a CPU runtime; here it is one launch as it stands.
        left_out = {"pool_to_depthwise_convolution"} | (set() if self.options.move_pools else {"move_pool_behind_projection"})
        return tuple(name for name in STANDARD_PASSES if name not in left_out)

    def unavailable(self) -> str | None:
        """It needs Triton and a GPU of compute capability 8.0; Triton's interpreter serves for tests."""
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if _interprets():
            return None
        if not torch.cuda.is_available():
            return "there is no CUDA device"
        capability = torch.cuda.get_device_capability()
        return None if capability >= _OLDEST else f"the GPU has compute capability {'.'.join(map(str, capability))}, at least 8.0 is needed"

    def unsupported(self, target: Target) -> str | None:
        """It computes in float16, bfloat16 and float32, on a CUDA device."""
        if target.dtype not in _DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            return f"it computes in {known}, not {str(target.dtype).removeprefix('torch.')}"
        if target.device.type == "cuda" or (target.device.type == "cpu" and _interprets()):
            return None
        return f"it runs on a CUDA device and the model is on {target.device}: move model and example there with .cuda()"

    def unfit_for_auto(self) -> str | None:
        """Interpreted kernels say nothing about speed."""
        return "Triton interprets its kernels in this process, which is for tests" if importlib.util.find_spec("triton") and _interprets() else None

    def lower(self, captured: CapturedGraph, target: Target, artifact: bytes | None = None) -> Lowered:
        """Match the engine's steps; programs and CUDA graphs are made for each batch size when it first comes."""
        require_one_picture(captured, self.name)
        network, reports = match_network(captured, target.dtype, self.options)
        # Here, not above: without Triton the engine must still be able to say that it lacks it.
        from fastcnn.engines.triton.executor import Executor

        executor = Executor(network, target, self.options)
        return Lowered(executor.run, lambda: _rows(executor, target.usual_batch), reports, propagates_nan=True, converts=True, memory=executor.memory)


def match_network(captured: CapturedGraph, dtype: torch.dtype, options: TritonOptions) -> tuple[Network, tuple[PassReport, ...]]:
    """Fuse as the engine does and match its steps. The constants of `captured`, which it must own, become channels_last
    where they have four dimensions.

    Raises:
        BackendError: an operation cannot be placed; names it and its module.
    """
    own = [*(["merge_sibling_projections"] if options.merge_siblings else []), "fuse_convolution_epilogue"]
    # In the order of libraries and, for most channel counts, of our kernels: one copy serves both and the graph that is
    # saved.
    for name, tensor in captured.constants().items():
        if tensor.dim() == 4:
            captured.set_constant(name, tensor.contiguous(memory_format=torch.channels_last))
    fused, reports = run_passes(captured, own)
    # Merging computes in float64.
    fused.cast_constants(dtype, copy=False)
    return build_network(fused), reports


def _interprets() -> bool:
    from fastcnn.kernels.convolution_kernels import conv2d_kernel
    from fastcnn.kernels.launching import is_interpreted

    return is_interpreted(conv2d_kernel)


def _rows(executor: Executor, batch: int) -> tuple[PlanRow, ...]:
    """One row for each step of the program that serves `batch`; on a GPU with times and the share of them that its own
    ceilings allow."""
    from fastcnn.engines.triton.ceilings import measure_gpu_ceilings, work_of

    program = executor.program(batch)
    schedule = program.schedule
    work = [work_of(launch, schedule.batch, schedule.dtype.itemsize) for launch in program.launches]
    times: list[float | None] = [None] * len(work)
    shares = list(times)
    if executor.device.type == "cuda":
        times = [*executor.time_launches(batch)]
        ceilings = measure_gpu_ceilings(executor.device, schedule.dtype, executor.tf32)
        shares = [
            ceilings.milliseconds(sum(flops for flops, _ in steps), sum(bytes_ for _, bytes_ in steps)) / time if time else None
            for steps, time in zip(work, times, strict=True)
        ]
    rows: list[PlanRow] = []
    number = 0
    for launch, steps, milliseconds, share in zip(program.launches, work, times, shares, strict=True):
        runs = bool(launch.kernel)
        for step, (flops, bytes_) in zip(launch.steps, steps, strict=True):
            folded = tuple(followers(step))
            rows.append(
                PlanRow(
                    len(rows),
                    step.path,
                    op_name(step.node),
                    folded,
                    step.node.meta["shape"],
                    launch.kernel or "none",
                    launch.why,
                    number if runs else None,
                    milliseconds if runs else None,
                    share if runs else None,
                    flops,
                    bytes_,
                    fused=bool(folded),
                )
            )
        number += runs
    return tuple(rows)
