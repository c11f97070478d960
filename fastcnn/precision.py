"""What a whole network computes in, and how its float32 products are computed: exactly, or on the tensor cores with operands rounded to TF32's
10 bits of mantissa. Importing this module does not import torch: the command line names the choices."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class Precision(StrEnum):
    """`tf32` is float32 tensors whose matrix products and convolutions round their operands to 10 bits of mantissa; `fp32` forbids that.

    `int8` is float32 in and out, with products of 8-bit numbers in between: which numbers those are is observed on pictures
    (`fastcnn.quantization`).
    """

    fp32 = "fp32"
    tf32 = "tf32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the input and the output; of int8, of all that is not rounded to 8 bits."""
        import torch

        return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.value, torch.float32)

    def switches(self) -> AbstractContextManager[None]:
        """PyTorch's TF32 switches as this precision asks for inside, and as they were afterwards."""
        return float32_products(tf32=self is Precision.tf32)


def exact_float32() -> AbstractContextManager[None]:
    """TF32 and bfloat16 shortcuts in float32 matrix products and convolutions are off inside, and as they were afterwards.

    See `float32_products` for what that means to other threads.
    """
    return float32_products(tf32=False)


def float32_products(*, tf32: bool) -> AbstractContextManager[None]:
    """As `exact_float32`, or with TF32 allowed on a GPU. PyTorch's own default is neither: convolutions may use it, matrix products may not.

    PyTorch's switches belong to the process, so threads take turns: those with the same wish run side by side, one with the other wish waits until
    they have left. Contexts of one thread nest. Code outside of every context sees what those inside asked for.
    """
    return _switches.set(tf32)


def round_to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """A new float32 tensor of the same strides: the numbers of a float32 one rounded to TF32's 10 bits of mantissa, to nearest and ties away from
    zero; NaN stays NaN. What is read as TF32 without it is truncated."""
    import torch

    rounded = ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(tensor.isnan(), tensor, rounded)


class _Switches:
    """PyTorch's switches for float32 products, and the threads that rely on them.

    A thread that waits, for its first wish or for another one inside it, computes nothing: the switches may change meanwhile.
    So contexts alone cannot lock each other out for good; together with a lock or a worker thread of the caller's they could, hence the patience.
    """

    def __init__(self, patience: float = 60.0) -> None:
        self._patience = patience  # seconds
        self._changed = threading.Condition()
        self._own = threading.local()
        self._tf32 = False
        self._running = 0  # threads that compute under the present setting
        self._inside = 0  # threads in any context, those included that wait for another setting inside it
        self._before: Callable[[], None] | None = None

    @contextlib.contextmanager
    def set(self, tf32: bool) -> Iterator[None]:
        """The switches as `tf32` says inside, in this thread and each that runs meanwhile."""
        outer: bool | None = getattr(self._own, "wish", None)
        self._change(outer, tf32)
        self._own.wish = tf32
        try:
            yield
        finally:
            self._own.wish = outer
            self._change(tf32, outer)

    def _change(self, old: bool | None, new: bool | None) -> None:
        """This thread goes on with `new` instead of `old`; None is outside of every context."""
        with self._changed:
            if old is not None:
                self._running -= 1
                self._changed.notify_all()
            if new is None:
                self._leave()
                return
            try:
                if not self._changed.wait_for(lambda: not self._running or self._tf32 == new, self._patience):
                    log.warning("another thread computes float32 products otherwise and does not end: its results may be rounded as this one's")
            except BaseException:  # an interrupt: the contexts around this one are about to be left
                self._running += old is not None
                raise
            if not self._inside:
                self._before = _setting()
            self._inside += old is None
            self._running += 1
            self._tf32 = new
            _apply(new)

    def _leave(self) -> None:
        self._inside -= 1
        if not self._inside and self._before is not None:
            self._before()
            self._before = None


_switches = _Switches()


def _all_switches() -> tuple[list[Any], list[Any]]:
    """PyTorch's switches of the new kind: those of a GPU, and the others."""
    import torch

    backends: Any = torch.backends
    mkldnn = backends.mkldnn
    return [backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn], [backends, mkldnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def _setting() -> Callable[[], None]:
    """How the switches stand, as a function that puts them back.

    PyTorch ≥ 2.9 has two sets of switches and refuses to read the old one where the two disagree, as torch.compile does: both are set.
    """
    import torch

    gpu, others = _all_switches()
    before = [(switch, switch.fp32_precision) for switch in (*others, *gpu)]
    legacy: tuple[str, bool] | None
    try:
        legacy = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # the caller set the new switches to something that the old ones cannot say
        legacy = None

    def restore() -> None:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            torch.backends.cudnn.allow_tf32 = legacy[1]
        for switch, value in before:
            switch.fp32_precision = value

    return restore


def _apply(tf32: bool) -> None:
    import torch

    gpu, others = _all_switches()
    # The old switches first: they move the new ones, which have the last word.
    if tf32 or _legacy_can_be_read():
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    for switch in others:
        switch.fp32_precision = "ieee"
    for switch in gpu:
        switch.fp32_precision = "tf32" if tf32 else "ieee"


def _legacy_can_be_read() -> bool:
    import torch

    try:
        return bool(torch.get_float32_matmul_precision()) and torch.backends.cudnn.allow_tf32 is not None
    except RuntimeError:
        return False
