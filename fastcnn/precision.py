"""What a whole network computes in, and how its float32 products are computed: exactly, or on the tensor cores with operands rounded to TF32's
10 bits of mantissa. Importing this module does not import torch: the command line names the choices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

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
        return float32_products(tf32=self is Precision.tf32)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 and bfloat16 shortcuts in float32 matrix products and convolutions are off inside, and as they were afterwards.

    PyTorch ≥ 2.9 has two sets of switches and refuses to read the old one where the two disagree, as torch.compile does: both are set.
    """
    import torch

    backends = torch.backends
    switches = [backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn]  # type: ignore[attr-defined]
    switches += [backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        legacy = (torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32)
    except RuntimeError:  # the caller set the new switches to something that the old ones cannot say
        legacy = None
    try:
        if legacy is not None:
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            backends.cudnn.allow_tf32 = legacy[1]
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextlib.contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """As `exact_float32`, or with TF32 allowed on a GPU. PyTorch's own default is neither: convolutions may use it, matrix products may not."""
    import torch

    with exact_float32():
        if tf32:
            backends = torch.backends
            torch.set_float32_matmul_precision("high")
            backends.cudnn.allow_tf32 = True
            # The new switches too: what reads both sets refuses to run where they disagree.
            switches: list[Any] = [backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn]  # type: ignore[attr-defined]
            for switch in switches:
                switch.fp32_precision = "tf32"
        yield
