"""What kernels share: counting, refusing, choosing the width of offsets; and that the package needs no Triton until a kernel is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastcnn.errors import BackendError
from fastcnn.kernels import PoolWindow, count_launches, global_avg_pool2d, launching, max_pool2d

from .compiling import CallRequest, compile_kernels


def test_counts_nest(device: torch.device) -> None:
    x = torch.zeros(1, 4, 3, 3, device=device)
    with count_launches() as outer:
        max_pool2d(x, PoolWindow(3))
        with count_launches() as inner:
            global_avg_pool2d(x)
            global_avg_pool2d(x)
    global_avg_pool2d(x)
    assert inner == {"global_avg_pool2d": 2}
    assert outer == {"max_pool2d": 1, "global_avg_pool2d": 2}


def test_a_compiled_kernel_refuses_tensors_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "is_interpreted", lambda kernel: False)
    with count_launches() as launches, pytest.raises(BackendError, match=r"max_pool2d: .* on cpu; .*TRITON_INTERPRET=1"):
        max_pool2d(torch.zeros(1, 4, 3, 3), PoolWindow(3))
    assert not launches


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((1, 64, 4096, 4096), None, False),
        ((2, 64, 4096, 4096), None, True),
        ((1, 1, 1, 2), (1, 1, 1, 2**31), True),
        ((2**16, 1, 2**8, 2**8), (0, 0, 0, 0), True),
        ((0, 64, 4096, 4096), None, False),
    ],
    ids=["one billion elements", "two billion elements", "far apart", "all at one address", "empty"],
)
def test_width_of_offsets(shape: tuple[int, ...], strides: tuple[int, ...] | None, expected: bool) -> None:
    x = torch.empty(shape, device="meta") if strides is None else torch.empty_strided(shape, strides, device="meta")
    assert launching.offsets_need_int64(torch.empty(1, device="meta"), x) is expected


@pytest.mark.parametrize(
    ("x", "flat", "stride"),
    [
        (torch.empty(2, 8, 3, 4).to(memory_format=torch.channels_last), True, 8),
        (torch.empty(2, 8, 3, 4).to(memory_format=torch.channels_last)[:, 2:5], True, 8),
        (torch.empty(2, 8, 3, 4), False, 1),
        (torch.empty(2, 8, 3, 4).to(memory_format=torch.channels_last)[:, :, 1:], False, 8),
        (torch.empty(2, 8, 3, 1).to(memory_format=torch.channels_last), True, 8),
        (torch.empty(2, 8, 1, 1).to(memory_format=torch.channels_last)[:, :3], True, 8),
        (torch.empty(2, 1, 3, 4), True, 1),
    ],
    ids=["channels_last", "channel slice", "nchw", "rows cut off", "one column", "one pixel, sliced", "one channel"],
)
def test_flat_pixels(x: torch.Tensor, flat: bool, stride: int) -> None:
    assert launching.has_flat_pixels(x) is flat
    assert launching.pixel_stride(x) == stride


def test_import_needs_neither_torch_nor_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import fastcnn.kernels
assert "torch" not in sys.modules
from fastcnn.errors import BackendError
try:
    fastcnn.kernels.concat_relu
except BackendError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fastcnn.kernels.concat_relu needs Triton, which is not installed")


def test_the_compile_harness_sees_spills_and_wide_accesses() -> None:
    """The harness itself: a kernel with few registers to spend spills, and the same kernel without the limit does not."""
    call = "launching.launch('pool', pooling._pool2d_kernel, (1,), *arguments, **constants, device=x.device, maxnreg={limit}, num_warps=4)"
    setup = """
from fastcnn.kernels import launching, pooling
x = nhwc(1, 64, 9, 9)
arguments = (x, None, x, 8, 72, 1, 72, 8, 648, 72, 8, 81, 9, 9, 9, 9)
constants = dict(KERNEL_H=3, KERNEL_W=3, STRIDE_H=1, STRIDE_W=1, PADDING_H=1, PADDING_W=1, DILATION_H=1, DILATION_W=1, IS_MAX=True,
    FULL_WINDOWS=True, COUNT_INCLUDE_PAD=True, HAS_BIAS=False, RELU=False, CHANNELS_LAST=True, INT64=False, VEC=8, BLOCK_V=512, UNROLL=9)
"""
    tight, free = compile_kernels([CallRequest(call.format(limit=limit), setup) for limit in (32, 255)], sms=(90,))
    assert tight.spills > 0
    with pytest.raises(AssertionError, match="spills"):
        tight.check_resources()
    free.check_resources()
    assert free.widest_access == 128
