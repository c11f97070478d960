"""What the machine can do at most, measured on it: how fast it copies memory, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from fastcnn.bench.measuring.measure import pinned_threads
from fastcnn.bench.measuring.timing import Instruments, Timer
from fastcnn.bench.records.result import MachineCeilings
from fastcnn.precision import Precision

_REPEATS = 9
_COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
# Matrices grow until a product takes this long: more would gain nothing, and on a busy CPU meet another process in every run.
_GEMM_SECONDS = 0.005
_LARGEST_GEMM = 8192


def measure_machine_ceilings(device: str, precision: Precision, threads: int) -> MachineCeilings:
    """Medians of a copy far larger than the caches and of a large square matrix product."""
    with pinned_threads(threads), precision.switches(), torch.inference_mode():
        timer = Instruments.of(device).timer
        copied, copying = _time_copy(device, timer)
        size, multiplying = _time_product(device, precision.dtype, timer)
    how = (
        f"medians of {_REPEATS} runs: a copy of {copied / 2**20:.0f} MiB, bytes read and written counted; a product of two {size}×{size} matrices "
        f"in {precision}" + (f" by the faster of torch.mm and oneDNN with packed weights, {threads} threads" if device == "cpu" else "")
    )
    return MachineCeilings(2 * copied / copying, 2 * size**3 / multiplying, str(precision.dtype).removeprefix("torch."), how)


def _time_copy(device: str, timer: Timer) -> tuple[int, float]:
    """How many bytes were copied, and the seconds of one copy."""
    # Random, not zeros: a page of zeros may be shared in memory, and zeros draw less power on their way.
    source = torch.rand(_copy_bytes(device) // 4, device=device)
    target = torch.empty_like(source).fill_(1.0)
    return source.nbytes, _median_seconds(lambda: target.copy_(source), timer)


def _time_product(device: str, dtype: torch.dtype, timer: Timer) -> tuple[int, float]:
    """The size of the matrices, and the seconds of one product."""
    size = 256
    while True:
        left, right = (torch.rand(size, size, device=device).sub_(0.5).to(dtype) for _ in range(2))
        ways = list(_products(left, right))
        once = min(timer.time(way).seconds for _ in range(2) for way in ways)
        if size >= _LARGEST_GEMM or once > _GEMM_SECONDS:
            return size, min(_median_seconds(way, timer) for way in ways)
        size *= 2


def _median_seconds(run: Callable[[], object], timer: Timer) -> float:
    run()
    run()
    return statistics.median(timer.time(run).seconds for _ in range(_REPEATS))


def _copy_bytes(device: str) -> int:
    """Four times the last cache at least, and never more than a sixteenth of the memory, as far as they are known."""
    wanted = _COPY_BYTES[device]
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return min(wanted, free // 16)
    with suppress(OSError, ValueError):
        sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
        wanted = max([wanted, *(4 * 1024 * int(size.removesuffix("K")) for size in sizes)])
    with suppress(OSError, ValueError, AttributeError):
        wanted = min(wanted, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16)
    return wanted


def _products(left: Tensor, right: Tensor) -> Iterator[Callable[[], object]]:
    """Ways to compute `left` @ `right`, two square matrices of size n.

    On a CPU PyTorch's own library is not the last word: on an AMD EPYC torch.mm reached 105 GFLOP/s a core, oneDNN with packed weights 246.
    """
    product = torch.empty_like(left)
    yield lambda: torch.mm(left, right, out=product)
    if not left.is_cuda:
        with suppress(RuntimeError):  # oneDNN does not have every dtype on every CPU
            n, convolution = left.shape[0], torch.ops.mkldnn._convolution_pointwise
            # n pixels of n channels, channels_last: the left matrix as it lies in memory.
            pixels, window = left.view(1, n // 32, 32, n).permute(0, 3, 1, 2), ([0, 0], [1, 1], [1, 1], 1)
            packed = torch.ops.mkldnn._reorder_convolution_weight(right.t().contiguous().view(n, n, 1, 1), *window, list(pixels.shape))
            convolution(pixels, packed, None, *window, "none", [], "")
            yield lambda: convolution(pixels, packed, None, *window, "none", [], "")
