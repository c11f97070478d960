"""What a whole run computes in. Importing this module does not import torch: the command line names the choices."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """`tf32` is float32 tensors whose matrix products and convolutions round their operands to 10 bits of mantissa; `fp32` forbids that."""

    fp32 = "fp32"
    tf32 = "tf32"
    fp16 = "fp16"
    bf16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the input and the output."""
        import torch

        return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.value, torch.float32)

    def switches(self) -> AbstractContextManager[None]:
        """PyTorch's TF32 switches as this precision asks for inside, and as they were afterwards."""
        from fastcnn.precision import float32_products

        return float32_products(tf32=self is Precision.tf32)
