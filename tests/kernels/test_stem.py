"""The 3-channel convolution against PyTorch's: float images and raw pixels, every window, dtype and memory format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf, nan

import pytest
import torch
from torch import Tensor

from fastcnn.errors import InputError
from fastcnn.kernels import StemConvolution, pack_stem_weight, stem_conv2d, stem_conv2d_ref

from .compiling import SMS, CallRequest, compile_kernels
from .convolution_cases import check_error, random_bias, random_weight
from .tensors import DTYPES, Convert, activation, fake, guarded_output, on_cpu, same


@dataclass(frozen=True)
class Case:
    name: str
    k: int
    kernel: tuple[int, int]
    c: int = 3
    n: int = 2
    h: int = 11
    w: int = 13
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    launches: int = 1


CASES = (
    Case("Inception-v3", 32, (3, 3), h=15, w=15, stride=2),
    Case("VGG", 64, (3, 3), padding=1),
    Case("GoogLeNet and ResNet", 64, (7, 7), stride=2, padding=3),
    Case("AlexNet", 64, (11, 11), h=23, w=21, stride=4, padding=2),
    Case("MNIST, one channel", 10, (5, 5), c=1),
    Case("two channels, unlike strides and paddings", 7, (3, 5), c=2, stride=(1, 3), padding=(2, 0)),
    Case("four channels, primes", 67, (3, 3), c=4),
    Case("1×1", 16, (1, 1)),
    Case("one row", 8, (1, 3), h=1),
    Case("one pixel", 5, (3, 3), n=1, h=1, w=1, padding=1),
    Case("one output channel", 1, (3, 3)),
    Case("one pixel past a tile", 16, (1, 1), n=1, h=1, w=129),
    Case("empty batch", 8, (3, 3), n=0, launches=0),
)
PADDED = Case("padded", 20, (3, 3), stride=2, padding=1)


def _weights(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return pack_stem_weight(random_weight(case.k, case.c, *case.kernel, dtype, device)), random_bias(case.k, device)


def _pixels(case: Case, device: torch.device) -> Tensor:
    """[N, C, H, W] view of uint8 pixels [N, H, W, C]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (case.n, case.h, case.w, case.c), dtype=torch.uint8, generator=generator).to(device).permute(0, 3, 1, 2)


def _normalisation(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift that leave black far from zero, as ImageNet's do."""
    scale = 1 / (255 * torch.tensor([0.229, 0.224, 0.225, 0.25]))
    shift = -torch.tensor([0.485, 0.456, 0.406, 0.4]) / torch.tensor([0.229, 0.224, 0.225, 0.25])
    return scale[: case.c].to(device), shift[: case.c].to(device)


def _check(result: Tensor, stem: StemConvolution) -> None:
    check_error(result, stem_conv2d_ref(on_cpu(stem, torch.float64)), stem_conv2d_ref(on_cpu(stem)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float_images(case: Case, dtype: torch.dtype, device: torch.device, launches: Counter[str]) -> None:
    x = activation((case.n, case.c, case.h, case.w), dtype, device)
    stem = StemConvolution(x, *_weights(case, dtype, device), case.stride, case.padding)
    result = stem_conv2d(stem)
    assert launches.total() == case.launches
    if case.n == 0:
        assert list(result.shape) == [0, 8, 9, 11]
    else:
        assert result.is_contiguous(memory_format=torch.channels_last)
        _check(result, stem)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[:6], ids=lambda case: case.name)
def test_pixels_normalised_on_the_way(case: Case, dtype: torch.dtype, device: torch.device, launches: Counter[str]) -> None:
    weight, bias = _weights(case, dtype, device)
    stem = StemConvolution(_pixels(case, device), weight, bias, case.stride, case.padding, *_normalisation(case, device))
    _check(stem_conv2d(stem), stem)
    assert launches == {"stem_conv2d": 1}


def test_padding_is_zero_after_the_normalisation(device: torch.device) -> None:
    pixels = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8, device=device)
    weight = pack_stem_weight(torch.ones(1, 3, 3, 3, device=device))
    scale, shift = torch.full((3,), 1 / 255, device=device), torch.full((3,), 7.0, device=device)
    corner, edge, inside = 4 * 3 * 8.0, 6 * 3 * 8.0, 9 * 3 * 8.0
    expected = torch.tensor([corner, edge, edge, corner], device=device)
    result = stem_conv2d(StemConvolution(pixels, weight, None, 1, 1, scale, shift))
    torch.testing.assert_close(result[0, 0, 0], expected)
    torch.testing.assert_close(result[0, 0, 1, 1].item(), inside)


@pytest.mark.parametrize("name", ["nchw", "nhwc", "every second pixel", "slice of four channels", "one image for the whole batch"])
@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.float32, torch.float16], ids=str)
def test_any_strides_and_image_dtype(image_dtype: torch.dtype, name: str, device: torch.device) -> None:
    plain = _pixels(PADDED, device).to(image_dtype)
    x = {
        "nchw": plain.contiguous(),
        "nhwc": plain,
        "every second pixel": plain.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, :, ::2, ::2],
        "slice of four channels": torch.cat([plain, plain[:, :1]], dim=1)[:, :3],
        "one image for the whole batch": plain[:1].expand(2, -1, -1, -1),
    }[name]
    weight, bias = _weights(PADDED, torch.float16, device)
    stem = StemConvolution(x, weight, bias, PADDED.stride, PADDED.padding, *_normalisation(PADDED, device))
    _check(stem_conv2d(stem), stem)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_its_slice_and_nothing_else(dtype: torch.dtype, relu: bool, device: torch.device, launches: Counter[str]) -> None:
    x = activation((2, 3, 11, 13), dtype, device)
    stem = StemConvolution(x, *_weights(PADDED, dtype, device), 2, 1, relu=relu)
    out, check_neighbours = guarded_output((2, 20, 6, 7), 3, 5, like=x)
    assert stem_conv2d(stem, out=out) is out
    _check(out, stem)
    check_neighbours()
    assert launches == {"stem_conv2d": 1}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy, of inf - inf
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_awkward_values(dtype: torch.dtype, device: torch.device) -> None:
    x = activation((1, 3, 9, 9), dtype, device)
    x[0, 0, 1, 1], x[0, 1, 6, 7], x[0, 2, 4, 0] = nan, inf, -0.0
    weight, bias = _weights(PADDED, dtype, device)
    bias[:3] = torch.tensor([nan, inf, -inf])
    stem = StemConvolution(x, weight, bias, 2, 1)
    result = stem_conv2d(stem).cpu().float()
    expected = stem_conv2d_ref(on_cpu(stem, torch.float32))
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert result[:, 3:].isnan().any()
    assert not result[:, 3:].isnan().all()


def test_packed_weight_has_aligned_rows() -> None:
    weight = torch.randn(5, 3, 3, 2)
    packed = pack_stem_weight(weight)
    assert packed.stride() == (32, 6, 3, 1)
    torch.testing.assert_close(packed.permute(0, 3, 1, 2), weight, rtol=0, atol=0)


@pytest.mark.parametrize("with_out", [False, True], ids=["new", "out"])
def test_registration(with_out: bool, device: torch.device) -> None:
    pixels = _pixels(PADDED, device)
    weight, bias = _weights(PADDED, torch.float32, device)
    arguments = (pixels, weight, bias, [2, 2], [1, 1], *_normalisation(PADDED, device), True)
    if with_out:
        out = torch.empty(2, 20, 6, 7, device=device).to(memory_format=torch.channels_last)
        torch.library.opcheck(torch.ops.fastcnn.stem_conv2d_out.default, (*arguments, out, "ieee"))
    else:
        torch.library.opcheck(torch.ops.fastcnn.stem_conv2d.default, (*arguments, "ieee"))


X = torch.zeros(2, 3, 5, 5)
WEIGHT = pack_stem_weight(torch.zeros(4, 3, 3, 3))
REFUSED = {
    "rank": ({"x": X[0]}, r"\[N, C, H, W\] with 1 to 4 channels, got \[3, 5, 5\]"),
    "channels": ({"x": torch.zeros(2, 5, 5, 5)}, r"with 1 to 4 channels, got \[2, 5, 5, 5\]"),
    "dtype": ({"x": X.double()}, "float64"),
    "unpacked weight": ({"weight": torch.zeros(4, 3, 3, 3).transpose(1, 2)}, "must come from pack_stem_weight"),
    "weight of other channels": ({"x": X[:, :1]}, r"\[K, R, S, 1\], got \[4, 3, 3, 3\]"),
    "weight dtype": ({"weight": WEIGHT.double()}, "weight is torch.float64"),
    "bias size": ({"bias": torch.zeros(5)}, r"bias must have the shape \[4\], got \[5\]"),
    "scale alone": ({"scale": torch.ones(3)}, "scale and shift come together"),
    "scale size": ({"scale": torch.ones(2), "shift": torch.ones(3)}, r"scale must be contiguous, \[3\] and float32"),
    "shift dtype": ({"scale": torch.ones(3), "shift": torch.ones(3).half()}, "shift must be contiguous"),
    "stride": ({"stride": 0}, "stride and dilation must be positive"),
    "image smaller than the window": ({"x": X[..., :2]}, r"\[2, 3, 5, 2\] is smaller than the window"),
    "out shape": ({"out": X.to(memory_format=torch.channels_last)}, r"the shape \[2, 4, 3, 3\], got \[2, 3, 5, 5\]"),
    "out dtype": ({"out": torch.zeros(2, 4, 3, 3).half().to(memory_format=torch.channels_last)}, "expected torch.float32"),
    "input precision": ({"input_precision": "bf16"}, "ieee, tf32, got 'bf16'"),
}


@pytest.mark.parametrize("convert", [same, fake], ids=["real", "fake"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused(name: str, convert: Convert) -> None:
    changes, message = REFUSED[name]
    arguments = convert({"x": X, "weight": WEIGHT, "bias": torch.zeros(4), **changes})
    stem = StemConvolution(**{name: arguments.pop(name) for name in StemConvolution._fields if name in arguments})
    with pytest.raises(InputError, match=message):
        stem_conv2d(stem, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("sm", SMS)
def test_machine_code(sm: int) -> None:
    setup = """
from fastcnn.kernels import StemConvolution, pack_stem_weight, stem_conv2d

def stem(c, size, k, r, dtype, stride, padding, precision="ieee", image=None):
    x = torch.empty(8, size, size, c, dtype=image or dtype).permute(0, 3, 1, 2)
    vector = None if image is None else torch.empty(c)
    weight = pack_stem_weight(torch.empty(k, c, r, r, dtype=dtype))
    return stem_conv2d(StemConvolution(x, weight, torch.empty(k), stride, padding, vector, vector), input_precision=precision)
"""
    calls = {
        "stem(3, 299, 32, 3, torch.float16, 2, 0)": True,
        "stem(3, 299, 32, 3, torch.bfloat16, 2, 0, image=torch.uint8)": True,
        "stem(3, 224, 64, 7, torch.float16, 2, 3, image=torch.uint8)": True,
        "stem(3, 224, 64, 7, torch.float32, 2, 3, 'tf32', torch.uint8)": True,
        "stem(3, 224, 64, 7, torch.float32, 2, 3, image=torch.uint8)": False,
        "stem(1, 28, 10, 5, torch.float32, 1, 0)": False,
    }
    instruction = {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[sm]
    binaries = compile_kernels([CallRequest(call, setup) for call in calls], (sm,))
    for (call, uses_tensor_cores), binary in zip(calls.items(), binaries, strict=True):
        binary.check_resources()
        assert binary.mma == ((instruction,) if uses_tensor_cores else ()), f"{call}: {binary}"
