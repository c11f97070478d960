"""How fast the GPU lets a launch be: the time that its operations and its bytes take at the rates that the GPU itself
reached.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures",
2009. Bytes count each activation and weight once; what a launch finds in the L2 cache is faster than that, so a share
above 1 is possible.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from fastcnn.engines.triton.device_clock import device_milliseconds
from fastcnn.engines.triton.launches import Launch
from fastcnn.engines.triton.steps import is_activation
from fastcnn.precision import float32_products

# Far beyond any L2 cache, and a matrix product that fills any GPU.
_COPY_BYTES = 2**29
_GEMM_SIZE = 8192


@dataclass(frozen=True)
class GpuCeilings:
    """What the GPU reached: bytes read and written a second in a large copy, operations a second in a large matrix
    product."""

    bytes_per_second: float
    flops_per_second: float

    def milliseconds(self, flops: float, bytes_: float) -> float:
        """The least time that so many operations and bytes take: the slower of the two."""
        return 1e3 * max(flops / self.flops_per_second, bytes_ / self.bytes_per_second)


@functools.cache
def measure_gpu_ceilings(device: torch.device, dtype: torch.dtype, tf32: bool) -> GpuCeilings:
    """Measured once in a process; takes about a second and a gigabyte."""
    source = torch.rand(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copying = device_milliseconds(lambda: target.copy_(source), device)
    left, right = (torch.rand(_GEMM_SIZE, _GEMM_SIZE, device=device).sub_(0.5).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    with float32_products(tf32=tf32):
        multiplying = device_milliseconds(lambda: torch.mm(left, right, out=product), device)
    return GpuCeilings(2e3 * _COPY_BYTES / copying, 2e3 * _GEMM_SIZE**3 / multiplying)


def work_of(launch: Launch, batch: int, itemsize: int) -> list[tuple[int, int]]:
    """(floating-point operations, bytes) of each step of a launch: those of its convolution, or the activations that it
    reads and writes."""
    if launch.problems:
        return [(problem.flops, problem.bytes) for problem in launch.problems]
    if not launch.kernel:
        return [(0, 0) for _ in launch.steps]

    def size(node: fx.Node) -> int:
        return batch * prod(node.meta["shape"][1:]) * itemsize if is_activation(node) else 0

    return [(0, sum(size(node) for node in (*step.reads, *step.writes))) for step in launch.steps]
