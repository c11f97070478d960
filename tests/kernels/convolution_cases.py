"""What the tests of the convolution kernels share: random weights and the tolerance."""

from __future__ import annotations

import torch
from torch import Tensor


def random_weight(k: int, c: int, r: int, s: int, dtype: torch.dtype, device: torch.device, seed: int = 1) -> Tensor:
    """Weights [K, C, R, S] that keep the variance of a standard normal input."""
    values = torch.randn(k, c, r, s, generator=torch.Generator().manual_seed(seed)) / (c * r * s) ** 0.5
    return values.to(device, dtype)


def random_bias(k: int, device: torch.device, seed: int = 2) -> Tensor:
    return torch.randn(k, generator=torch.Generator().manual_seed(seed)).to(device)


def check_error(result: Tensor, exact: Tensor, own: Tensor) -> None:
    """Fails where the error of `result` against the float64 result `exact` is above twice PyTorch's `own` in the same dtype plus one rounding.

    In the mean, and at the worst element. One rounding is eps, not half of it: Triton's interpreter cuts float32 to bfloat16.
    """
    assert result.shape == exact.shape
    assert result.dtype == own.dtype
    rounding = torch.finfo(result.dtype).eps
    wide, own = result.detach().cpu().double(), own.detach().cpu().double()
    for norm in (2.0, torch.inf):
        size = torch.linalg.vector_norm(exact, norm)
        error = torch.linalg.vector_norm(wide - exact, norm)
        allowed = 2 * torch.linalg.vector_norm(own - exact, norm) + rounding * size
        assert error <= allowed, f"{norm}-norm of the error is {error:.3g}, {allowed:.3g} is allowed, of {size:.3g}"
