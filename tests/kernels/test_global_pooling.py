"""Global average pooling against PyTorch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf, nan

import pytest
import torch

from fastcnn.kernels import global_avg_pool2d, global_avg_pool2d_ref, global_pooling

from .compiling import CallRequest, compile_kernels
from .tensors import DTYPES, SENTINEL, Convert, activation, fake, same


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, int, int, int]
    launches: int = 1


CASES = (
    Case("inception_v3", (1, 2048, 8, 8)),
    Case("googlenet", (2, 1024, 7, 7)),
    Case("primes", (3, 67, 5, 11)),
    Case("one pixel", (2, 64, 1, 1)),
    Case("one channel", (2, 1, 4, 4)),
    Case("one past a block", (1, 65, 3, 11)),
    Case("one row", (2, 8, 1, 40)),
    Case("empty batch", (0, 8, 4, 4), launches=0),
    Case("no channels", (2, 0, 4, 4), launches=0),
)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_reference(
    case: Case, dtype: torch.dtype, memory_format: torch.memory_format, device: torch.device, launches: Counter[str]
) -> None:
    x = activation(case.shape, dtype, device, memory_format)
    # The order of a sum is free: float32 may differ in the last bits, and a rounding to 16 bits may so fall to the other side.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(global_avg_pool2d(x), global_avg_pool2d_ref(x), **tolerance)
    assert launches == ({"global_avg_pool2d": case.launches} if case.launches else {})


def test_sums_in_float32(device: torch.device) -> None:
    x = torch.full((1, 8, 32, 32), 1000.0, dtype=torch.float16, device=device).to(memory_format=torch.channels_last)  # the sum is beyond fp16
    torch.testing.assert_close(global_avg_pool2d(x), x[:, :, 0, 0], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, of inf - inf
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_awkward_values(dtype: torch.dtype, device: torch.device) -> None:
    x = activation((1, 6, 4, 4), dtype, device)
    x[0, :5, 1, 2] = torch.tensor([nan, inf, -inf, inf, -0.0]).to(device, dtype)
    x[0, 3, 2, 2] = -inf
    expected = global_avg_pool2d_ref(x)
    assert expected[0, [0, 3]].isnan().all()
    torch.testing.assert_close(global_avg_pool2d(x), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6, equal_nan=True)


def test_reads_and_writes_slices(device: torch.device) -> None:
    x = activation((3, 60, 9, 9), torch.float16, device)[:, 7:31, 1:8, 2:9]
    buffer = torch.full((3, 50), SENTINEL, dtype=torch.float16, device=device)
    out = buffer[:, 9:33]
    assert global_avg_pool2d(x, out=out) is out
    torch.testing.assert_close(out, global_avg_pool2d_ref(x), rtol=2e-3, atol=1e-6)
    assert (buffer[:, :9] == SENTINEL).all()
    assert (buffer[:, 33:] == SENTINEL).all()


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_pooling, "offsets_need_int64", lambda *tensors: True)
    x = activation((2, 67, 5, 11), device=device)
    torch.testing.assert_close(global_avg_pool2d(x), global_avg_pool2d_ref(x), rtol=1e-5, atol=1e-6)


def test_registration(device: torch.device) -> None:
    x = activation((2, 8, 3, 3), device=device)
    torch.library.opcheck(torch.ops.fastcnn.global_avg_pool2d.default, (x,))
    torch.library.opcheck(torch.ops.fastcnn.global_avg_pool2d_out.default, (x, torch.empty(2, 8, device=device)))


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (torch.zeros(8, 3, 3), None, r"\[N, C, H, W\], got \[8, 3, 3\]"),
        (torch.zeros(2, 8, 0, 3), None, r"x of shape \[2, 8, 0, 3\] has no pixels"),
        (torch.zeros(2, 8, 3, 3), torch.zeros(2, 7), r"out must be \[2, 8\], .* got \[2, 7\]"),
        (torch.zeros(2, 8, 3, 3), torch.zeros(2, 8).half(), r"got \[2, 8\], torch.float16"),
    ],
    ids=["rank", "no pixels", "out shape", "out dtype"],
)
@pytest.mark.parametrize("convert", [same, fake], ids=["real", "fake"])
def test_a_wrong_request_is_refused(x: torch.Tensor, out: torch.Tensor | None, message: str, convert: Convert) -> None:
    with pytest.raises(ValueError, match=message):
        global_avg_pool2d(*convert((x, out)))


def test_machine_code() -> None:
    calls = ("global_avg_pool2d(nhwc(128, 2048, 8, 8))", "global_avg_pool2d(nhwc(1, 1024, 7, 7, torch.float32))")
    binaries = compile_kernels([CallRequest(call, "from fastcnn.kernels import global_avg_pool2d") for call in calls])
    assert len(binaries) == 2 * 4
    for binary in binaries:
        binary.check_resources()
        assert binary.widest_access == 128, f"loads are narrower than 16 bytes: {binary}"
