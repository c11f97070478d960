"""Scale, shift and ReLU by channel."""

from __future__ import annotations

import pytest
import torch

from fastcnn.errors import InputError
from fastcnn.kernels import scale_bias_relu, scale_bias_relu_ref

from .compiling import CallRequest, compile_kernels
from .tensors import fake, same


def _nhwc(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device, seed: int = 0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _vectors(channels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(channels, generator=generator).to(device) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", [(2, 64, 8, 4), (1, 65, 5, 7), (3, 1, 1, 1), (1, 3, 33, 1), (2, 130, 1, 17), (0, 8, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_shapes(shape, dtype, relu, device, launches):
    x, (scale, shift) = _nhwc(*shape, dtype=dtype, device=device), _vectors(shape[1], device)
    y = scale_bias_relu(x, scale, shift, relu)

    tolerance = 1e-6 if dtype == torch.float32 else 2e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(y, scale_bias_relu_ref(x, scale, shift, relu), rtol=tolerance, atol=tolerance)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert launches["scale_bias_relu"] == (1 if shape[0] else 0)


def test_from_slice_to_slice_with_guarded_neighbours(device):
    source, target = _nhwc(2, 20, 5, 3, device=device), torch.full((2, 24, 5, 3), 7.0, device=device).contiguous(memory_format=torch.channels_last)
    scale, shift = _vectors(9, device)
    scale_bias_relu(source[:, 4:13], scale, shift, out=target[:, 8:17])

    torch.testing.assert_close(target[:, 8:17], scale_bias_relu_ref(source[:, 4:13], scale, shift))
    assert (target[:, :8] == 7).all()
    assert (target[:, 17:] == 7).all()


def test_a_crop_and_in_place(device):
    whole, (scale, shift) = _nhwc(2, 6, 8, 9, device=device), _vectors(6, device)
    crop = whole[:, :, 1:5, 2:7]
    expected = scale_bias_relu_ref(crop, scale, shift)
    outside = whole[:, :, 5:].clone()
    scale_bias_relu(crop, scale, shift, out=crop)

    torch.testing.assert_close(crop, expected)
    torch.testing.assert_close(whole[:, :, 5:], outside, rtol=0, atol=0)


def test_nan_and_infinities_stay(device):
    x = _nhwc(1, 4, 2, 2, device=device)
    x[0, :, 0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0], device=device)
    scale, shift = torch.ones(4, device=device), torch.zeros(4, device=device)

    torch.testing.assert_close(
        scale_bias_relu(x, scale, shift)[0, :, 0, 0].cpu(), torch.tensor([float("nan"), float("inf"), 0.0, 0.0]), equal_nan=True
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, s, b: (x[0], s, b), r"x must have the shape \[N, C, H, W\]"),
        (lambda x, s, b: (x.contiguous(), s, b), "must be channels_last"),
        (lambda x, s, b: (x, s[:2], b), r"scale must be contiguous, \[4\] and float32"),
        (lambda x, s, b: (x, s, b.half()), "shift must be contiguous"),
        (lambda x, s, b: (x.double(), s, b), "has dtype torch.float64"),
    ],
)
@pytest.mark.parametrize("convert", [same, fake], ids=["real", "fake"])
def test_wrong_input(change, message, convert, device):
    x, (scale, shift) = _nhwc(2, 4, 3, 3, device=device), _vectors(4, device)
    with pytest.raises(InputError, match=message):
        scale_bias_relu(*convert(change(x, scale, shift)))


def test_registered_operator(device):
    x, (scale, shift) = _nhwc(2, 4, 3, 3, device=device), _vectors(4, device)

    torch.library.opcheck(torch.ops.fastcnn.scale_bias_relu.default, (x, scale, shift, True))
    torch.library.opcheck(torch.ops.fastcnn.scale_bias_relu_out.default, (x, scale, shift, True, torch.empty_like(x)))


def test_compiled():
    calls = [
        f"scale_bias_relu(nhwc(8, {c}, 28, 28, {dtype}), torch.ones({c}), torch.zeros({c}))"
        for c in (256, 96)
        for dtype in ("torch.float16", "torch.float32")
    ]
    for binary in compile_kernels([CallRequest(call, "from fastcnn.kernels import scale_bias_relu") for call in calls]):
        binary.check_resources()
        assert binary.widest_access == 128
