"""What every kernel shares: the launch itself and its count, the dtype policy, and the checks that a launcher makes once.

A kernel starts through `launch`, never through `kernel[grid]`: that is what `count_launches` counts, and what refuses tensors that the kernel
cannot reach. Kernels are compiled for CUDA tensors, unless the environment variable `TRITON_INTERPRET=1` was set before Triton was imported: then
Triton runs them in NumPy, on CPU tensors too.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from triton.runtime import Autotuner, Heuristics, JITFunction

from fastcnn.errors import BackendError, InputError

# The dtype policy: activations are stored in one of these, every sum and every epilogue is computed in float32, and the result is rounded once to
# the dtype of the output. A bias may be float32 beside activations of any dtype.
ACTIVATION_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# What one thread loads or stores at once, at most.
_VECTOR_BYTES = 16
INT32_LIMIT = 2**31
_counters: ContextVar[tuple[Counter[str], ...]] = ContextVar("fastcnn_launch_counters", default=())
_instead: ContextVar[Callable[..., object] | None] = ContextVar("fastcnn_instead_of_launching", default=None)


@contextlib.contextmanager
def count_launches() -> Iterator[Counter[str]]:
    """Counts the kernel launches of this thread while it is open: `{"concat_relu": 1, "max_pool2d": 2}`.

    Blocks may be nested; each sees every launch within it. Replays of a CUDA graph are not launches.
    """
    counter: Counter[str] = Counter()
    token = _counters.set((*_counters.get(), counter))
    try:
        yield counter
    finally:
        _counters.reset(token)


@contextlib.contextmanager
def instead_of_launching(function: Callable[..., object]) -> Iterator[None]:
    """While it is open, launches of this thread call `function(kernel, grid, arguments, options)` and start nothing, on any device."""
    token = _instead.set(function)
    try:
        yield
    finally:
        _instead.reset(token)


def is_interpreted(kernel: Any) -> bool:
    """Whether Triton runs `kernel` in NumPy, which it settled when the kernel was defined."""
    while isinstance(kernel, Autotuner | Heuristics):
        kernel = kernel.fn
    return not isinstance(kernel, JITFunction)


def launch(operator: str, kernel: Any, grid: tuple[int, ...], *arguments: Any, device: torch.device, **options: Any) -> None:
    """Starts `kernel` once over `grid` on the current stream of `device`, and counts it under the name `operator`.

    An empty grid starts nothing and counts nothing.

    Args:
        operator: the public name of the operation.
        arguments, options: what the kernel takes, and `num_warps`, `num_stages` and the like.
        device: where all the tensors among them are.

    Raises:
        BackendError: the tensors are not on a CUDA device and the kernel is not interpreted.
    """
    if math.prod(grid) == 0:
        return
    if (instead := _instead.get()) is not None:
        instead(kernel, grid, arguments, options)
        return
    if device.type != "cuda" and not is_interpreted(kernel):
        raise BackendError(
            f"{operator}: Triton kernels run on CUDA tensors and these are on {device}; move them to a GPU, or set TRITON_INTERPRET=1 before "
            "Python starts to run the kernels slowly on the CPU"
        )
    # Triton launches on the current device, which need not be where the tensors are.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, **options)
    for counter in _counters.get():
        counter[operator] += 1


def check_activation(operator: str, name: str, x: Tensor, like: Tensor | None = None) -> None:
    """Refuses what is not a 4-D activation [N, C, H, W] of a supported dtype, or does not share dtype and device with `like`.

    Raises:
        InputError: names the tensor and its shape, dtype or device.
    """
    if x.dim() != 4:
        raise InputError(f"{operator}: {name} must have the shape [N, C, H, W], got {list(x.shape)}")
    if x.dtype not in ACTIVATION_DTYPES:
        raise InputError(f"{operator}: {name} of shape {list(x.shape)} has dtype {x.dtype}; supported are {', '.join(map(str, ACTIVATION_DTYPES))}")
    if like is not None and (x.dtype != like.dtype or x.device != like.device):
        raise InputError(f"{operator}: {name} of shape {list(x.shape)} is {x.dtype} on {x.device}, expected {like.dtype} on {like.device}")


def check_channels_last(operator: str, x: Tensor) -> None:
    """Refuses an activation x whose channels are not next to each other in memory, or that has none.

    Raises:
        InputError: names its shape and strides.
    """
    if x.shape[1] == 0 or (x.stride(1) != 1 and x.shape[1] > 1):
        raise InputError(f"{operator}: x of shape {list(x.shape)} must be channels_last or a channel slice of it, its strides are {x.stride()}")


def check_vector(operator: str, name: str, vector: Tensor, x: Tensor) -> None:
    """Refuses what is not a dense vector in float32 of one number for each channel of `x`, on its device.

    Raises:
        InputError: names the vector and its shape, dtype or device.
    """
    shape = [x.shape[1]]
    if list(vector.shape) != shape or vector.dtype != torch.float32 or vector.device != x.device or not vector.is_contiguous():
        raise InputError(
            f"{operator}: {name} must be contiguous, {shape} and float32 on {x.device}, got {list(vector.shape)} {vector.dtype} on {vector.device}"
        )


def check_bias(operator: str, name: str, bias: Tensor | None, channels: int, x: Tensor) -> None:
    """Refuses a bias that is not a dense vector [channels] in float32 or in the dtype of `x`, on its device; None passes.

    Raises:
        InputError: names the bias and its shape, dtype or device.
    """
    if bias is None:
        return
    if bias.dim() != 1 or bias.shape[0] != channels:
        raise InputError(f"{operator}: {name} must have the shape [{channels}], got {list(bias.shape)}")
    if bias.dtype not in (torch.float32, x.dtype) or bias.device != x.device:
        raise InputError(f"{operator}: {name} is {bias.dtype} on {bias.device}, expected torch.float32 or {x.dtype} on {x.device}")
    if bias.stride(0) != 1 and channels > 1:
        raise InputError(f"{operator}: {name} of shape {list(bias.shape)} must be contiguous, its stride is {bias.stride(0)}")


def check_output(operator: str, out: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Refuses an `out` of another shape, dtype or device, or whose channels are not next to each other in memory (channels_last or a slice of it).

    Raises:
        InputError: names the shape that was expected.
    """
    if list(out.shape) != list(shape):
        raise InputError(f"{operator}: out must have the shape {list(shape)}, got {list(out.shape)}")
    if out.dtype != like.dtype or out.device != like.device:
        raise InputError(f"{operator}: out of shape {list(out.shape)} is {out.dtype} on {out.device}, expected {like.dtype} on {like.device}")
    if out.stride(1) != 1 and out.shape[1] > 1:
        raise InputError(f"{operator}: out of shape {list(out.shape)} must be channels_last or a channel slice of it, its strides are {out.stride()}")


def has_flat_pixels(x: Tensor) -> bool:
    """Whether pixel (n, h, w) of x [N, C, H, W] lies at ((n·H + h)·W + w)·stride(3) and its channels lie next to each other.

    True for channels_last and for any channel slice of it: the kernel then needs one stride instead of four. Dimensions of size 1 do not count.
    """
    n, c, h, w = x.shape
    stride_n, stride_c, stride_h, stride_w = x.stride()
    pixel = stride_w if w > 1 else pixel_stride(x)
    return (c == 1 or stride_c == 1) and (h == 1 or stride_h == w * pixel) and (n == 1 or stride_n == h * w * pixel)


def pixel_stride(x: Tensor) -> int:
    """Elements from one pixel of x [N, C, H, W] to the next; where a row holds one pixel, to the next row, and so on."""
    n, c, h, w = x.shape
    stride_n, _, stride_h, stride_w = x.stride()
    if w > 1:
        return stride_w
    if h > 1:
        return stride_h
    return stride_n if n > 1 else c


def vector_width(channels: Sequence[int], tensors: Sequence[Tensor]) -> int:
    """Channels of the widest vector, at most 16 bytes, that divides all of `channels` and at a multiple of which every pixel of `tensors` starts.

    The tensors [N, C, H, W] are of one dtype and have their channels next to each other.
    """
    multiples = list(channels)
    for tensor in tensors:
        multiples.append(tensor.data_ptr() // tensor.element_size())
        multiples += [tensor.stride(axis) for axis in (0, 2, 3) if tensor.shape[axis] > 1]
    return math.gcd(_VECTOR_BYTES // tensors[0].element_size(), *multiples)


def offsets_need_int64(*tensors: Tensor) -> bool:
    """Whether an offset into one of the tensors, or an index over its elements, can pass what 32 bits hold.

    A quarter of the range is left to the last block, whose masked lanes may count past the end.
    """
    furthest = (sum((size - 1) * abs(stride) for size, stride in zip(t.shape, t.stride(), strict=True)) for t in tensors if t.numel())
    return max([*furthest, *(t.numel() for t in tensors)], default=0) >= INT32_LIMIT * 3 // 4


def ceil_div(count: int, size: int) -> int:
    """Blocks of `size` that hold `count`. Triton's own takes microseconds of every launch."""
    return -(-count // size)


def passes_int32(count: int) -> bool:
    """Whether `count` is 2^31 or more. A symbolic one is not looked at: tracing must not bound it, and every call looks again."""
    return isinstance(count, int) and count >= INT32_LIMIT


def pixel_strides(t: Tensor, flat: bool) -> tuple[int, int, int]:
    """Strides of t [N, C, H, W] over n, h and w; with `flat` the last is that from one pixel to the next, and the only one the kernels use."""
    return (t.stride(0), t.stride(2), pixel_stride(t) if flat else t.stride(3))


@functools.lru_cache
def device_limits(device: torch.device) -> tuple[int, int]:
    """Compute capability (10·major + minor) and number of multiprocessors; those of an H100 for a CPU, which only interprets."""
    if device.type != "cuda":
        return 90, 132
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def needs_upcast(kernel: object, x: Tensor) -> bool:
    """Whether `kernel` must multiply x in float32: Triton's interpreter multiplies the bits of bfloat16 as integers."""
    return x.dtype == torch.bfloat16 and not isinstance(kernel, JITFunction)
