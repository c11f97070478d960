"""The Inception branch concat against PyTorch: every placement, dtype and memory format, and what the compiler makes of it."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from math import inf, nan

import pytest
import torch
from torch import Tensor

from fastcnn.kernels import concat, concat_relu, concat_relu_ref

from .compiling import CallRequest, compile_kernels
from .tensors import DTYPES, Convert, activation, fake, guarded_output, one_rounding, same


@dataclass(frozen=True)
class Case:
    name: str
    channels: tuple[int, ...]
    n: int = 2
    h: int = 5
    w: int = 7
    launches: int = 1


CASES = (
    Case("one branch", (32,)),
    Case("two branches", (16, 48)),
    Case("inception block A", (64, 64, 96, 32), h=3, w=3),
    Case("inception block E has six", (40, 48, 48, 48, 48, 24), n=1, h=3, w=3),
    Case("seven branches", (8, 16, 24, 32, 8, 16, 24), h=2),
    Case("eight branches", (8,) * 8),
    Case("nine branches take two launches", (8,) * 9, launches=2),
    Case("seventeen branches take three launches", (1, 2, 3) * 5 + (4, 5), n=1, h=2, w=2, launches=3),
    Case("primes", (7, 13, 31), n=3),
    Case("one channel each", (1, 1, 1)),
    Case("one pixel", (64, 17, 8), n=1, h=1, w=1),
    Case("one pixel for each image", (24, 40), n=5, h=1, w=1),
    Case("one row", (24, 40), h=1),
    Case("one column", (24, 40), w=1),
    Case("exactly one block", (16, 8), n=1, h=8, w=8),
    Case("one past a block", (1, 1), n=1, h=1, w=129),
    Case("a branch without channels", (8, 0, 8)),
    Case("empty batch", (8, 16), n=0, launches=0),
    Case("no channels at all", (0, 0), launches=0),
)


def _branches(case: Case, dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format = torch.channels_last) -> list[Tensor]:
    return [activation((case.n, c, case.h, case.w), dtype, device, memory_format, seed) for seed, c in enumerate(case.channels)]


def _biases(case: Case, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
    """Every third branch has none."""
    generator = torch.Generator().manual_seed(99)
    return [torch.randn(c, generator=generator).to(device, dtype) if i % 3 != 1 else None for i, c in enumerate(case.channels)]


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bias_and_relu_match_the_reference(case: Case, dtype: torch.dtype, device: torch.device, launches: Counter[str]) -> None:
    branches, biases = _branches(case, dtype, device), _biases(case, torch.float32, device)
    result = concat_relu(branches, biases)
    torch.testing.assert_close(result, concat_relu_ref(branches, biases), **one_rounding(dtype, device))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert launches == ({"concat_relu": case.launches} if case.launches else {})


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_concat_alone_copies_every_bit(dtype: torch.dtype, memory_format: torch.memory_format, device: torch.device, launches: Counter[str]) -> None:
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    limits = torch.iinfo(integers)
    generator = torch.Generator().manual_seed(0)
    branches = []
    for c in (16, 8, 5):
        bits = torch.randint(limits.min, limits.max, (2, c, 3, 11), generator=generator, dtype=integers)  # NaN of every payload among them
        branches.append(bits.to(device).contiguous(memory_format=memory_format).view(dtype))
    result = concat_relu(branches, relu=False)
    assert result.isnan().any()
    assert torch.equal(_bits(result), torch.cat([_bits(branch) for branch in branches], dim=1))
    assert launches == {"concat_relu": 1}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, of inf - inf
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("bias_dtype", ["float32", "same"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_awkward_values(dtype: torch.dtype, bias_dtype: str, relu: bool, device: torch.device) -> None:
    values = torch.tensor([nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny], dtype=dtype, device=device)
    branches = [values.view(1, 9, 1, 1).expand(2, 9, 2, 2).contiguous(memory_format=torch.channels_last) for _ in range(3)]
    bias = torch.tensor([1.0, -inf, inf, 0.0, -0.0, nan, 1.0, inf, 0.0], device=device).to(torch.float32 if bias_dtype == "float32" else dtype)
    result = concat_relu(branches, [bias, None, torch.zeros_like(bias)], relu)
    torch.testing.assert_close(result, concat_relu_ref(branches, [bias, None, torch.zeros_like(bias)], relu), rtol=0, atol=0, equal_nan=True)
    assert result[:, [0, 1, 2, 5, 9, 18]].isnan().all()


def test_a_branch_without_bias_keeps_negative_zero(device: torch.device) -> None:
    zeros = torch.full((1, 8, 2, 2), -0.0, device=device).to(memory_format=torch.channels_last)
    result = concat_relu([zeros, zeros], [torch.ones(8, device=device), None], relu=False)
    assert torch.signbit(result[:, 8:]).all()


@pytest.mark.parametrize(("before", "after"), [(16, 8), (3, 5), (4, 0), (0, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_its_slice_and_nothing_else(dtype: torch.dtype, before: int, after: int, device: torch.device, launches: Counter[str]) -> None:
    case = Case("slice", (16, 24, 9))
    branches, biases = _branches(case, dtype, device), _biases(case, dtype, device)
    out, check_neighbours = guarded_output((2, 49, 5, 7), before, after, like=branches[0])
    assert concat_relu(branches, biases, out=out) is out
    torch.testing.assert_close(out, concat_relu_ref(branches, biases), **one_rounding(dtype, device))
    check_neighbours()
    assert launches == {"concat_relu": 1}


def test_reads_channel_slices(device: torch.device) -> None:
    whole = activation((2, 100, 5, 7), torch.float16, device)
    branches = [whole[:, 8:40], whole[:, 3:20], whole[:, 99:]]
    torch.testing.assert_close(concat_relu(branches), concat_relu_ref(branches), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", ["nchw", "nchw and nhwc", "window of a larger image", "every second pixel", "broadcast over the batch", "flipped axes"]
)
def test_any_strides(name: str, dtype: torch.dtype, device: torch.device, launches: Counter[str]) -> None:
    shape = (2, 24, 5, 7)
    plain = activation(shape, dtype, device)
    branches = {
        "nchw": [plain.contiguous(), activation((2, 7, 5, 7), dtype, device, torch.contiguous_format)],
        "nchw and nhwc": [plain.contiguous(), plain],
        "window of a larger image": [activation((2, 24, 9, 9), dtype, device)[:, :, 2:7, 1:8], plain],
        "every second pixel": [activation((2, 16, 10, 14), dtype, device)[:, :, ::2, ::2], plain],
        "broadcast over the batch": [plain[:1].expand(shape), plain],
        "flipped axes": [activation((2, 24, 7, 5), dtype, device).transpose(2, 3), plain],
    }[name]
    biases = [torch.randn(branch.shape[1], device=device) for branch in branches]
    torch.testing.assert_close(concat_relu(branches, biases), concat_relu_ref(branches, biases), **one_rounding(dtype, device))
    assert launches == {"concat_relu": 1}


def test_an_output_that_is_a_window_of_a_larger_image(device: torch.device) -> None:
    branches = [activation((2, 8, 5, 7), device=device), activation((2, 16, 5, 7), device=device)]
    buffer = torch.full((2, 24, 8, 9), nan, device=device).to(memory_format=torch.channels_last)
    concat_relu(branches, out=buffer[:, :, 1:6, 2:9])
    torch.testing.assert_close(buffer[:, :, 1:6, 2:9], concat_relu_ref(branches), rtol=0, atol=0)
    assert buffer.isnan().sum() == buffer.numel() - 2 * 24 * 5 * 7


@pytest.mark.parametrize("wide_offsets", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize("large_blocks", [False, True], ids=["small blocks", "large blocks"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_what_only_large_tensors_take(
    wide_offsets: bool, large_blocks: bool, memory_format: torch.memory_format, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concat, "_LARGE_FROM_VECTORS", 0 if large_blocks else 2**40)
    monkeypatch.setattr(concat, "offsets_need_int64", lambda *tensors: wide_offsets)
    case = Case("three programs of 1024 vectors and one vector", (64, 8, 24), n=1, h=13, w=79)
    branches, biases = _branches(case, torch.float16, device, memory_format), _biases(case, torch.float32, device)
    torch.testing.assert_close(concat_relu(branches, biases), concat_relu_ref(branches, biases), rtol=0, atol=0)


@pytest.mark.parametrize("with_out", [False, True], ids=["new", "out"])
def test_registration(with_out: bool, device: torch.device) -> None:
    case = Case("small", (8, 3), h=2, w=2)
    arguments = (_branches(case, torch.float32, device), _biases(case, torch.float32, device), True)
    if with_out:
        out = torch.empty(2, 11, 2, 2, device=device).to(memory_format=torch.channels_last)
        torch.library.opcheck(torch.ops.fastcnn.concat_relu_out.default, (*arguments, out))
    else:
        torch.library.opcheck(torch.ops.fastcnn.concat_relu.default, arguments)


X = torch.zeros(2, 8, 3, 3)
NHWC = torch.channels_last
REFUSED = {
    "no branch": ({"branches": []}, "at least one branch"),
    "rank": ({"branches": [X[0]]}, r"\[N, C, H, W\], got \[8, 3, 3\]"),
    "dtype": ({"branches": [X.double()]}, "float64"),
    "mixed dtypes": ({"branches": [X, X.half()]}, r"branch 1 of shape \[2, 8, 3, 3\] is torch.float16"),
    "image size": ({"branches": [X, X[..., :2]]}, r"branch 1 of shape \[2, 8, 3, 2\]"),
    "batch": ({"branches": [X, X[:1]]}, r"branch 1 of shape \[1, 8, 3, 3\]"),
    "bias count": ({"branches": [X, X], "biases": [None]}, "each of 2 branches, got 1"),
    "bias size": ({"branches": [X], "biases": [torch.zeros(7)]}, r"bias 0 must have the shape \[8\], got \[7\]"),
    "bias dtype": ({"branches": [X], "biases": [torch.zeros(8).double()]}, "bias 0 is torch.float64"),
    "bias dtypes": ({"branches": [X.half()] * 2, "biases": [torch.zeros(8), torch.zeros(8).half()]}, "share one dtype"),
    "bias strides": ({"branches": [X], "biases": [torch.zeros(16)[::2]]}, "must be contiguous"),
    "out shape": (
        {"branches": [X], "out": torch.zeros(2, 9, 3, 3).to(memory_format=NHWC)},
        r"the shape \[2, 8, 3, 3\], got \[2, 9, 3, 3\]",
    ),
    "out dtype": ({"branches": [X], "out": X.half().to(memory_format=NHWC)}, "expected torch.float32"),
    "out format": ({"branches": [X], "out": X.clone()}, "must be channels_last"),
}


@pytest.mark.parametrize("convert", [same, fake], ids=["real", "fake"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused(name: str, convert: Convert) -> None:
    arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        concat_relu(**convert(arguments))


def test_machine_code_of_every_variant() -> None:
    def call(channels: tuple[int, ...], n: int, dtype: str, bias: str = "None", relu: bool = True) -> CallRequest:
        return CallRequest(
            f"concat_relu([nhwc({n}, c, 17, 17, {dtype}) for c in {channels}], {bias}, {relu})", "from fastcnn.kernels import concat_relu"
        )

    block_e = (320, 384, 384, 384, 384, 192)
    requests = [
        call(block_e, 1, "torch.float16", f"[torch.empty(c) for c in {block_e}]"),
        call(block_e, 128, "torch.float16", f"[torch.empty(c) for c in {block_e}]"),
        call(block_e, 128, "torch.bfloat16", f"[torch.empty(c) for c in {block_e}]"),
        call((104, 24), 128, "torch.float32", relu=False),
    ]
    binaries = compile_kernels(requests)
    assert [(binary.request, binary.sm) for binary in binaries] == list(itertools.product(range(4), (80, 89, 90, 100)))
    for binary in binaries:
        binary.check_resources()
        assert binary.widest_access == 128, f"loads and stores are narrower than 16 bytes: {binary}"
        assert binary.registers <= 128, f"too few blocks fit on a multiprocessor: {binary}"
        assert binary.shared == 0, f"values move between threads: {binary}"
