"""Each operation that is rewritten on the road to ONNX, in both runtimes against float64: all of them in one model, which is lowered once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.engines import get_engine
from fastcnn.export.standard_forms import in_standard_forms
from fastcnn.graph.capture import capture
from fastcnn.graph.ir import aten
from fastcnn.optimization import Builder


def by_channel(x: Tensor) -> Tensor:
    """A batch normalization of six channels, each another one."""
    values = torch.arange(1, 7, dtype=x.dtype)
    return F.batch_norm(x, values, values, 1 / values, -values)


# On x [N, 6, 8, 9].
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "average pool with a divisor": lambda x: F.avg_pool2d(x, (3, 2), divisor_override=2),
    "average pool with a divisor, padding and ceil mode": lambda x: F.avg_pool2d(x, 4, 3, 2, ceil_mode=True, divisor_override=3),
    "average pool in ceil mode": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "average pool in ceil mode that counts its padding": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pool in ceil mode that does not": lambda x: F.avg_pool2d(x, (3, 2), (2, 3), 1, ceil_mode=True, count_include_pad=False),
    "average pool whose ceil mode adds nothing": lambda x: F.avg_pool2d(x, 2, 1, ceil_mode=True),
    "average pool that does not count its padding": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "average pool over one side": lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "max pool in ceil mode": lambda x: F.max_pool2d(x, 3, 4, 1, ceil_mode=True),
    "max pool in ceil mode, dilated": lambda x: F.max_pool2d(x, 2, 3, 1, 2, ceil_mode=True),
    "max pool whose last window begins at the edge": lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True),
    "max pool whose ceil mode adds nothing": lambda x: F.max_pool2d(x, 2, 1, ceil_mode=True),
    "adaptive average to sizes that do not divide": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive average to larger sizes": lambda x: F.adaptive_avg_pool2d(x, (3, 12)),
    "adaptive average to sizes that divide": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive average over one side": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5),
    "adaptive maximum to sizes that do not divide": lambda x: F.adaptive_max_pool2d(x, (3, 12)),
    "adaptive maximum to sizes that divide": lambda x: F.adaptive_max_pool2d(x, (4, 3)),
    "adaptive maximum to one": lambda x: F.adaptive_max_pool2d(x, 1),
    "adaptive maximum over one side": lambda x: F.adaptive_max_pool1d(x.flatten(2), 5),
    "product with a matrix, then work on channels": lambda x: (
        F.relu(x @ torch.linspace(-1, 1, 36, dtype=x.dtype).view(9, 4)) * torch.arange(1, 7, dtype=x.dtype).view(6, 1, 1)
    ),
    "linear layer, then batch normalization": lambda x: by_channel(F.relu(F.linear(x, torch.linspace(-1, 1, 18, dtype=x.dtype).view(2, 9)))),
    "adaptive average to other sizes, then batch normalization": lambda x: by_channel(F.adaptive_avg_pool2d(x, (3, 12))),
    "area resize": lambda x: F.interpolate(x, size=(5, 4), mode="area"),
    "antialiased bilinear resize, smaller": lambda x: F.interpolate(x, size=(5, 4), mode="bilinear", antialias=True),
    "antialiased bilinear resize, larger": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", antialias=True),
    "antialiased bicubic resize": lambda x: F.interpolate(x, size=(5, 13), mode="bicubic", antialias=True, align_corners=True),
    "bicubic resize between transpositions": lambda x: F.interpolate(
        F.silu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), size=(5, 4), mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1),
    "nearest resize by a seventh and a half": lambda x: F.interpolate(x.repeat(1, 1, 7, 1), size=(8, 6)),
    "nearest resize, both larger and smaller": lambda x: F.interpolate(x, scale_factor=(1.7, 0.6)),
    "nearest resize to the middle of positions": lambda x: F.interpolate(x, size=(5, 21), mode="nearest-exact"),
    "nearest resize of one side": lambda x: F.interpolate(x.flatten(2), scale_factor=0.3) + F.interpolate(x.flatten(2), scale_factor=2)[..., :21],
    "nearest resize to whole multiples": lambda x: F.interpolate(x, scale_factor=(2, 3)),
    "resize of one position": lambda x: (
        F.interpolate(x[:, :, :1, :1], size=(3, 4), mode="bilinear") + F.interpolate(x[..., :1, :1], (3, 4), mode="bicubic")
    ),
    "max pool of a picture with zeros around": lambda x: F.max_pool2d(F.pad(-x.abs() - 1, [1, 1, 0, 2]), 4, padding=1),
    "max pool of a row with zeros around": lambda x: F.max_pool1d(F.pad(-x.abs().flatten(2) - 1, [2, 1]), 3, 2),
    "max pool with more zeros than its window has positions": lambda x: F.max_pool2d(F.pad(F.relu(x), [1, 3, 0, 2]), 2, padding=1),
    "average pool with more zeros than its window has positions": lambda x: F.avg_pool2d(F.pad(F.pad(x, [1, 1, 0, 2]), [1, 1]), 3, padding=1),
    "attention without heads": lambda x: F.scaled_dot_product_attention(x.flatten(2), x.flatten(2), x.flatten(2), is_causal=True),
    "convolution whose windows lie in the padding": lambda x: F.conv2d(
        x[:, :1], torch.ones(1, 1, 3, 2, dtype=x.dtype), torch.ones(1, dtype=x.dtype), stride=(1, 2), padding=(1, 5)
    ),
    "convolution of one side whose windows lie in the padding": lambda x: F.conv1d(
        x[:, :1, 0], torch.ones(1, 1, 2, dtype=x.dtype), padding=4, dilation=2
    ),
    "convolution whose stride leaps over the picture": lambda x: F.conv2d(
        x[:, :1, :1, :1], torch.ones(1, 1, 1, 1, dtype=x.dtype), torch.ones(1, dtype=x.dtype), stride=3, padding=3
    ),
    "transposed convolution, output padding and dilation": lambda x: F.conv_transpose2d(
        x, torch.ones(6, 2, 4, 4, dtype=x.dtype) / 16, output_padding=1, dilation=2
    ),
    "transposed convolution, output padding beyond the result": lambda x: F.conv_transpose2d(
        x, torch.ones(6, 1, 2, 2, dtype=x.dtype) / 4, bias=torch.arange(2, dtype=x.dtype), stride=2, padding=1, output_padding=2, dilation=3, groups=2
    ),
    "circular padding": lambda x: F.pad(x, [1, 2, 1, 0], mode="circular"),
    "circular padding that crops": lambda x: F.pad(x, [1, -1, -2, 3], mode="circular"),
    "reflect padding": lambda x: F.pad(x, [3, 2, 1, 0], mode="reflect"),
    "randomized ReLU": lambda x: F.rrelu(x),
    "clamp below zero and ReLU": lambda x: F.relu(x.clamp(-1.0, -0.1)) + x,
    "clamp below zero and ReLU6": lambda x: F.relu6(x.clamp(max=-0.2)) + x,
    "clamp between an integer and a fraction": lambda x: x.clamp(-1, 0.5),
    "clamp whose bounds cross": lambda x: x.clamp(0.5, 0.2).clamp(min=0.3) + x,
    "squeeze of more than one": lambda x: x.squeeze(-1) + x.squeeze((1, 2)),
    "hypotenuse": lambda x: torch.hypot(x, x + 1),
    "logarithm of a sigmoid, in its tail too": lambda x: F.logsigmoid(100 * x),
    "logarithm of two exponentials, far apart": lambda x: torch.logaddexp(100 * x, -x),
    "functions that saturate, far out": lambda x: F.softplus(100 * x) + F.mish(100 * x) + F.log_softmax(100 * x, 1),
    "median": lambda x: x.median(-1)[0] + x.median(3, keepdim=True)[0].squeeze(3),
    "logarithm of a sum of exponentials": lambda x: torch.logsumexp(x, 1) + torch.logsumexp(x, (1,), keepdim=True).squeeze(1),
    "Fourier transform": lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * 0.5, s=x.shape[-2:], norm="ortho"),
}


class Everything(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: operation(x) for name, operation in OPERATIONS.items()}


def example(count: int = 2) -> Tensor:
    return torch.randn(count, 6, 8, 9, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def builder() -> Builder:
    return Builder(Everything().eval(), example(), check=False)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_operation_in_every_runtime(builder: Builder, runtime: str) -> None:
    pytest.importorskip(runtime)
    fast, x = builder.build(get_engine(runtime)), example(3)
    found, plain, precise = fast(x), Everything()(x), Everything()(x.double())
    for name, output in found.items():
        truth = precise[name].double()
        bound = max(1e-6, 2 * float((plain[name] - truth).norm()))
        torch.testing.assert_close(output.double(), truth, rtol=1e-5, atol=1e-5 + bound, msg=lambda text, name=name: f"{name}: {text}")


def test_what_needs_no_rewriting_stays() -> None:
    """A pool in ceil mode that GoogLeNet has, and an average without padding that counts, are right as they are."""

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(F.max_pool2d(F.relu(x), 3, 2, ceil_mode=True), 3, 1, 1).clamp(0.1, 0.9)

    captured = capture(Plain().eval(), example())
    assert [node.target for node in in_standard_forms(captured).calls()] == [node.target for node in captured.calls()]


def test_a_clamp_of_a_clamp_leaves_other_readers_alone() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            low = x.clamp(-2.0, -0.5)
            return F.relu(low) + low

    x = example()
    lowered = in_standard_forms(capture(Twice().eval(), x))
    assert [node.target for node in lowered.calls()] == [aten.clamp.default, aten.clamp.default, aten.add.Tensor]
    torch.testing.assert_close(lowered.module(x)[0], x.clamp(-2.0, -0.5), rtol=0, atol=0)


def test_free_sides_leave_an_operation_as_it_is() -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x, (3, 5))

    captured = capture(Pool().eval(), example())
    for node in captured.graph.nodes:
        node.meta["shape"] = tuple(None for _ in node.meta.get("shape", ()))
    assert [node.target for node in in_standard_forms(captured).calls()] == [aten.adaptive_avg_pool2d.default]
