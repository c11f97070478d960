"""Maximum and average pooling against PyTorch: every geometry, dtype and memory format, and what the compiler makes of it."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastcnn.errors import InputError
from fastcnn.kernels import PoolWindow, avg_pool2d, avg_pool2d_ref, max_pool2d, max_pool2d_ref, pooling

from .compiling import CallRequest, compile_kernels
from .tensors import DTYPES, Convert, activation, fake, guarded_output, one_rounding, same

Numbers = int | tuple[int, int]


@dataclass(frozen=True)
class Case:
    name: str
    window: PoolWindow
    shape: tuple[int, int, int, int] = (2, 16, 9, 11)
    launches: int = 1


CASES = (
    Case("inception branch", PoolWindow(3, 1, 1)),
    Case("inception reduction", PoolWindow(3, 2), (1, 24, 13, 13)),
    Case("resnet stem", PoolWindow(3, 2, 1), (1, 8, 14, 14)),
    Case("googlenet in ceil mode", PoolWindow(3, 2, 0, ceil_mode=True), (1, 8, 14, 14)),
    Case("ceil mode whose last window would start in the padding", PoolWindow(2, 2, 1, ceil_mode=True), (1, 8, 3, 5)),
    Case("ceil mode with padding, last window cut", PoolWindow(3, 2, 1, ceil_mode=True), (1, 8, 6, 8)),
    Case("stride defaults to the kernel", PoolWindow(2, None)),
    Case("whole image", PoolWindow((9, 11), 1)),
    Case("one tap", PoolWindow(1, 1)),
    Case("one tap, stride larger than it", PoolWindow(1, 3)),
    Case("unequal in height and width", PoolWindow((2, 5), (3, 1), (1, 2))),
    Case("large window", PoolWindow(7, 2, 3, ceil_mode=True)),
    Case("primes", PoolWindow(3, 2, 1), (3, 13, 7, 17)),
    Case("one channel", PoolWindow(3, 1, 1), (2, 1, 5, 7)),
    Case("one pixel", PoolWindow(3, 1, 1), (1, 40, 1, 1)),
    Case("one row", PoolWindow(3, 1, 1), (2, 8, 1, 9)),
    Case("exactly one block", PoolWindow(1, 1), (1, 16, 8, 8)),
    Case("one past a block", PoolWindow(3, 1, 1), (1, 1, 3, 43)),
    Case("empty batch", PoolWindow(3, 1, 1), (0, 8, 5, 5), launches=0),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_maximum_matches_pytorch(case: Case, dtype: torch.dtype, device: torch.device, launches: Counter[str]) -> None:
    x = activation(case.shape, dtype, device)
    result = max_pool2d(x, case.window)
    torch.testing.assert_close(result, F.max_pool2d(x, *case.window[:5]), rtol=0, atol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert launches == ({"max_pool2d": case.launches} if case.launches else {})


@pytest.mark.parametrize("count_include_pad", [True, False], ids=["padding counts", "padding does not count"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_average_matches_the_reference(case: Case, dtype: torch.dtype, count_include_pad: bool, device: torch.device, launches: Counter[str]) -> None:
    x = activation(case.shape, dtype, device)
    window = case.window._replace(count_include_pad=count_include_pad)
    result = avg_pool2d(x, window)
    # The order of a sum is free: float32 may differ in the last bits, and a rounding to 16 bits may so fall to the other side.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(result, avg_pool2d_ref(x, window), **tolerance)
    assert launches == ({"avg_pool2d": case.launches} if case.launches else {})


def test_every_small_geometry_counts_its_windows_as_pytorch_does() -> None:
    for size, kernel, stride, dilation, ceil_mode in itertools.product(range(1, 9), range(1, 5), range(1, 5), (1, 2), (False, True)):
        for padding in range(kernel // 2 + 1):
            if size + 2 * padding < dilation * (kernel - 1) + 1:
                continue
            expected = F.max_pool2d(torch.zeros(1, 1, size, 16), (kernel, 1), (stride, 1), (padding, 0), (dilation, 1), ceil_mode).shape[2]
            found = pooling._output_size(size, kernel, stride, padding, dilation, ceil_mode)
            assert found == expected, f"{size=} {kernel=} {stride=} {padding=} {dilation=} {ceil_mode=}"


@pytest.mark.parametrize("count_include_pad", [True, False], ids=["padding counts", "padding does not count"])
def test_small_geometries_divide_as_pytorch_does(count_include_pad: bool, device: torch.device) -> None:
    for size, kernel, stride, padding, ceil_mode in itertools.product((1, 4, 5), (2, 3), (1, 2, 3), (0, 1), (False, True)):
        if size + 2 * padding >= kernel:
            x = activation((1, 1, size, size + 1), device=device)
            arguments = (kernel, stride, padding, ceil_mode, count_include_pad)
            result = avg_pool2d(x, PoolWindow(kernel, stride, padding, 1, ceil_mode, count_include_pad))
            torch.testing.assert_close(result, F.avg_pool2d(x, *arguments), msg=f"{size=}, {arguments}", rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "size"),
    [(3, 1, 1, 2, 9), (2, 2, 1, 3, 9), ((2, 4), 1, (0, 2), (4, 2), 9), (2, 1, 1, 4, 3)],
    ids=["2", "3", "unequal", "every tap in the padding"],
)
def test_dilated_maximum(
    kernel: Numbers, stride: int, padding: Numbers, dilation: Numbers, size: int, dtype: torch.dtype, device: torch.device
) -> None:
    x = activation((2, 8, size, size), dtype, device)
    arguments = (kernel, stride, padding, dilation)
    torch.testing.assert_close(max_pool2d(x, PoolWindow(*arguments)), F.max_pool2d(x, *arguments), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("bias_dtype", ["float32", "same"])
def test_bias_and_relu(bias_dtype: str, relu: bool, dtype: torch.dtype, device: torch.device, launches: Counter[str]) -> None:
    x = activation((2, 24, 5, 7), dtype, device)
    bias = torch.randn(24, generator=torch.Generator().manual_seed(1)).to(device, torch.float32 if bias_dtype == "float32" else dtype)
    window = PoolWindow(3, 1, 1)
    largest = max_pool2d(x, window, bias, relu)
    torch.testing.assert_close(largest, max_pool2d_ref(x, window, bias, relu), **one_rounding(dtype, device))
    average = avg_pool2d(x, window, bias, relu)
    expected = avg_pool2d_ref(x, window, bias, relu)
    torch.testing.assert_close(average, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert (average < 0).any() != relu
    assert launches == {"max_pool2d": 1, "avg_pool2d": 1}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, of inf - inf
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_awkward_values(dtype: torch.dtype, relu: bool, device: torch.device) -> None:
    """One awkward value in each channel, once amid other numbers and once amid minus infinities."""
    values = torch.tensor([nan, inf, -inf, 0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny])
    x = torch.stack([torch.randn(8, 6, 6, generator=torch.Generator().manual_seed(0)), torch.full((8, 6, 6), -inf)])
    x[:, :, 2, 3] = values
    x = x.to(device, dtype).to(memory_format=torch.channels_last)
    for arguments in ((3, 1, 1), (3, 2, 1, 1, True)):
        expected = F.max_pool2d(x, *arguments)
        expected = torch.relu(expected) if relu else expected
        torch.testing.assert_close(max_pool2d(x, PoolWindow(*arguments), relu=relu), expected, rtol=0, atol=0, equal_nan=True)
    average, expected = avg_pool2d(x, PoolWindow(3, 1, 1), relu=relu), avg_pool2d_ref(x, PoolWindow(3, 1, 1), relu=relu)
    torch.testing.assert_close(average, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6, equal_nan=True)
    assert average[0, 0, 1:4, 2:5].isnan().all()


@pytest.mark.parametrize("operation", [max_pool2d, avg_pool2d], ids=["max", "avg"])
@pytest.mark.parametrize(("before", "after"), [(16, 8), (3, 5), (4, 0)])
def test_writes_its_slice_and_nothing_else(operation: Any, before: int, after: int, device: torch.device, launches: Counter[str]) -> None:
    x = activation((2, 40, 7, 9), torch.float16, device)[:, 5:29]
    out, check_neighbours = guarded_output((2, 24, 4, 5), before, after, like=x)
    bias, window = torch.randn(24, device=device), PoolWindow(3, 2, 1)
    assert operation(x, window, bias, relu=True, out=out) is out
    torch.testing.assert_close(out, operation(x, window, bias, relu=True), rtol=0, atol=0)
    check_neighbours()
    assert launches == {f"{operation.__name__}": 2}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["nchw", "channel slice", "window of a larger image", "broadcast over the batch", "flipped axes"])
def test_any_strides(name: str, dtype: torch.dtype, device: torch.device) -> None:
    x = {
        "nchw": activation((2, 24, 7, 9), dtype, device, torch.contiguous_format),
        "channel slice": activation((2, 40, 7, 9), dtype, device)[:, 8:32],
        "window of a larger image": activation((2, 24, 12, 13), dtype, device)[:, :, 2:9, 3:12],
        "broadcast over the batch": activation((1, 24, 7, 9), dtype, device).expand(2, 24, 7, 9),
        "flipped axes": activation((2, 24, 9, 7), dtype, device).transpose(2, 3),
    }[name]
    torch.testing.assert_close(max_pool2d(x, PoolWindow(3, 2, 1)), F.max_pool2d(x, 3, 2, 1), rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_offsets_of_64_bits(memory_format: torch.memory_format, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "offsets_need_int64", lambda *tensors: True)
    x = activation((2, 24, 7, 9), torch.float16, device, memory_format)
    torch.testing.assert_close(max_pool2d(x, PoolWindow(3, 2, 1)), F.max_pool2d(x, 3, 2, 1), rtol=0, atol=0)
    window = PoolWindow(3, 2, 1, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(avg_pool2d(x, window), avg_pool2d_ref(x, window), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("with_out", [False, True], ids=["new", "out"])
def test_registration(mode: str, with_out: bool, device: torch.device) -> None:
    x = activation((2, 8, 5, 5), device=device)
    arguments = (mode, x, [3, 3], [2, 2], [1, 1], [1, 1], True, True, torch.randn(8, device=device), True)
    if with_out:
        out = torch.empty(2, 8, 3, 3, device=device).to(memory_format=torch.channels_last)
        torch.library.opcheck(torch.ops.fastcnn.pool2d_out.default, (*arguments, out))
    else:
        torch.library.opcheck(torch.ops.fastcnn.pool2d.default, arguments)


X = torch.zeros(2, 8, 5, 5)
REFUSED = {
    "rank": (X[0], (3,), {}, r"\[N, C, H, W\], got \[8, 5, 5\]"),
    "dtype": (X.int(), (3,), {}, "int32"),
    "three kernel sizes": (X, ((3, 3, 3),), {}, "kernel_size must be one or two integers"),
    "kernel of zero": (X, (0,), {}, "kernel_size must be one or two integers of at least 1, got 0"),
    "stride of zero": (X, (3, 0), {}, "stride must be one or two integers of at least 1, got 0"),
    "negative padding": (X, (3, 1, -1), {}, "padding must be one or two integers of at least 0, got -1"),
    "padding beyond half": (X, (3, 1, 2), {}, r"padding \[2, 2\] must be at most half of kernel_size \[3, 3\], .*\[2, 8, 5, 5\]"),
    "window beyond the image": (X, (6,), {}, r"window \[6, 6\] .* does not fit into x of shape \[2, 8, 5, 5\]"),
    "image without pixels": (X[:, :, :0], (1,), {}, r"does not fit into x of shape \[2, 8, 0, 5\]"),
    "bias": (X, (3,), {"bias": torch.zeros(7)}, r"bias must have the shape \[8\], got \[7\]"),
    "out shape": (X, (3,), {"out": X}, r"out must have the shape \[2, 8, 1, 1\], got \[2, 8, 5, 5\]"),
    "out format": (X, (1,), {"out": X.clone()}, "must be channels_last"),
}


@pytest.mark.parametrize("convert", [same, fake], ids=["real", "fake"])
@pytest.mark.parametrize("operation", [max_pool2d, avg_pool2d], ids=["max", "avg"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused(name: str, operation: Any, convert: Convert) -> None:
    x, window, options, message = REFUSED[name]
    x, options = convert((x, options))
    with pytest.raises(InputError, match=f"{operation.__name__}: .*{message}"):
        operation(x, PoolWindow(*window), **options)


def test_a_dilated_average_is_refused() -> None:
    for operation in (avg_pool2d, avg_pool2d_ref):
        with pytest.raises(InputError, match="an average has no dilation, got 2"):
            operation(X, PoolWindow(2, dilation=2))


def test_machine_code_of_every_variant() -> None:
    calls = (
        "max_pool2d(nhwc(128, 64, 147, 147), PoolWindow(3, 2))",
        "max_pool2d(nhwc(1, 192, 28, 28, torch.bfloat16), PoolWindow(3, 1, 1))",
        "avg_pool2d(nhwc(128, 104, 35, 35), PoolWindow(3, 1, 1), torch.empty(104), True)",
        "avg_pool2d(nhwc(8, 64, 8, 8, torch.float32), PoolWindow(7, 1, 3, ceil_mode=True, count_include_pad=False))",
    )
    binaries = compile_kernels([CallRequest(call, "from fastcnn.kernels import PoolWindow, avg_pool2d, max_pool2d") for call in calls])
    assert [(binary.request, binary.sm) for binary in binaries] == list(itertools.product(range(4), (80, 89, 90, 100)))
    for binary in binaries:
        binary.check_resources()
        assert binary.widest_access == 128, f"loads and stores are narrower than 16 bytes: {binary}"
        assert binary.registers <= 128, f"too few blocks fit on a multiprocessor: {binary}"
        assert binary.shared == 0, f"values move between threads: {binary}"
