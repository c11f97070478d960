"""What a graph is lowered for: its precision as one name."""

from __future__ import annotations

import pytest
import torch

from fastcnn.precision import Precision
from fastcnn.target import Target


@pytest.mark.parametrize(
    ("dtype", "allow_tf32", "precision"),
    [
        (torch.float32, False, Precision.fp32),
        (torch.float32, True, Precision.tf32),
        (torch.float16, False, Precision.fp16),
        # Allowed, but there are no float32 products that could use it.
        (torch.float16, True, Precision.fp16),
        (torch.bfloat16, True, Precision.bf16),
        (torch.float64, True, None),
    ],
)
def test_precision(dtype: torch.dtype, allow_tf32: bool, precision: Precision | None) -> None:
    target = Target(torch.device("cpu"), dtype, 8, allow_tf32)

    assert target.precision is precision
    assert target.tf32 == (precision is Precision.tf32)
    if precision is not None:
        assert precision.dtype == dtype
