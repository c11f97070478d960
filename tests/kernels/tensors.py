"""Tensors for kernel tests: random NHWC activations, outputs with guarded neighbours, and what one rounding may cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SENTINEL = -77.0
Arguments = TypeVar("Arguments")
Convert = Callable[[Any], Any]


def same(arguments: Arguments) -> Arguments:
    """The arguments themselves, beside `fake`."""
    return arguments


def fake(arguments: Arguments) -> Arguments:
    """The arguments with fake tensors, as torch.export and torch.compile trace an operator."""
    mode = FakeTensorMode()
    return tree_map_only(Tensor, mode.from_tensor, arguments)


def on_cpu(arguments: Arguments, dtype: torch.dtype | None = None) -> Arguments:
    """The arguments with tensors on the CPU, those of floating point in `dtype` if one is given."""
    return tree_map_only(Tensor, lambda t: t.cpu().to(dtype) if dtype and t.is_floating_point() else t.cpu(), arguments)


def activation(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.channels_last,
    seed: int = 0,
) -> Tensor:
    """Standard normal values [N, C, H, W]; the same seed and shape give the same values on every device and in every format."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(device=device, dtype=dtype, memory_format=memory_format)


def guarded_output(shape: Sequence[int], before: int, after: int, like: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A slice [N, C, H, W] of a channels_last buffer: `before` channels on its left, `after` on its right, and a whole image on either end.

    Returns:
        The slice, and a function that fails if anything beside the slice was written or anything in it was not.
    """
    n, c, h, w = shape
    buffer = torch.full((n + 2, before + c + after, h, w), SENTINEL, dtype=like.dtype, device=like.device).to(memory_format=torch.channels_last)
    out = buffer[1:-1, before : before + c]

    def check() -> None:
        for neighbours in (buffer[:1], buffer[-1:], buffer[:, :before], buffer[:, before + c :]):
            torch.testing.assert_close(neighbours, torch.full_like(neighbours, SENTINEL), rtol=0, atol=0)
        assert not (out == SENTINEL).any(), "a part of the output was not written"

    return out, check


def one_rounding(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Tolerances for a result that is computed in float32 as the reference's is, and rounded once.

    That is no tolerance at all, but for one case: Triton's interpreter cuts float32 to bfloat16 instead of rounding it, which costs one unit in the
    last of 8 bits.
    """
    if dtype == torch.bfloat16 and device.type == "cpu":
        return {"rtol": 2.0**-7, "atol": 0.0}
    return {"rtol": 0.0, "atol": 0.0}
