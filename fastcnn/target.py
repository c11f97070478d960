"""What an engine prepares a graph for, beside the graph itself: where it runs, in which precision, and with which batch most often."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastcnn.precision import Precision


@dataclass(frozen=True)
class Target:
    """What a lowered graph is for.

    Attributes:
        device: of the input, the constants and the outputs; a CUDA device with its index.
        dtype: of the constants, and what the engine computes in; int8 means float32 around products of 8 bits.
        usual_batch: pictures in the batch that the engine prepares for, that of the example; every other batch runs too.
        allow_tf32: float32 products may round their operands to 10 bits of mantissa where the hardware is faster so.
    """

    device: torch.device
    dtype: torch.dtype
    usual_batch: int = 1
    allow_tf32: bool = False

    @property
    def tf32(self) -> bool:
        """Whether there are float32 products that may use TF32; `allow_tf32` means nothing to other dtypes."""
        return self.allow_tf32 and self.dtype == torch.float32

    @property
    def precision(self) -> Precision | None:
        """The dtype and the products as one name; None for a dtype that has none, such as float64."""
        if self.tf32:
            return Precision.tf32
        return {torch.float32: Precision.fp32, torch.float16: Precision.fp16, torch.bfloat16: Precision.bf16, torch.int8: Precision.int8}.get(
            self.dtype
        )
