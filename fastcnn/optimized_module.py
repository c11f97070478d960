"""What `fastcnn.optimize` returns and `fastcnn.load` brings back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fastcnn.engines.base import Engine, Lowered
from fastcnn.errors import InputError, RequestError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.output_structure import packer
from fastcnn.graph.plan import BackendTiming, PassReport, Plan
from fastcnn.target import Target

log = logging.getLogger(__name__)

# Activations scale with the input, and a LayerNorm squares them: with inputs below this, a gain of 10^9 and a square stay clear of float32's end.
_LARGEST_ORDINARY_INPUT = 1e10


@dataclass(frozen=True)
class ModuleSource:
    """What an optimized module was made from.

    Attributes:
        graph: the passed graph, constants in the target's dtype and on its device.
        target: what it was lowered for.
        passes: what the passes did.
        state_dict: tensors of the reference under their original names, on the CPU.
        choice: what `auto` measured.
    """

    graph: CapturedGraph
    target: Target
    passes: tuple[PassReport, ...]
    state_dict: dict[str, Tensor]
    choice: tuple[BackendTiming, ...] = ()


class OptimizedModule(nn.Module):
    """A drop-in replacement for the reference in deployment code: same input, same outputs, in the dtype of the input.

    Takes any batch size, an empty one too. Calls are thread-safe; where PyTorch itself computes float32 on a GPU, those of modules that differ in
    `allow_tf32` take turns (see `fastcnn.precision.float32_products`). Inference only, and its device and dtype are fixed:
    `optimize` again for others.
    A batch that holds NaN, an infinity or a value beyond 1e10 runs on PyTorch's plain operations where the engine would lose them, and says so once.
    """

    def __init__(self, source: ModuleSource, engine: Engine, lowered: Lowered) -> None:
        super().__init__()
        self.source, self.engine, self.lowered = source, engine, lowered
        self._pack = packer(source.graph.output_spec)
        self._plan: Plan | None = None
        self._warned = False
        self.training = False

    @property
    def backend(self) -> str:
        """Name of the engine that runs the module."""
        return self.engine.name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that weights are stored in and the engine was asked to compute in."""
        return self.source.target.dtype

    @property
    def allow_tf32(self) -> bool:
        """Whether float32 products may round their operands to 10 bits of mantissa on a GPU."""
        return self.source.target.allow_tf32

    @property
    def info(self) -> dict[str, Any]:
        """What the reference said of itself: name, options, where its weights are from, preprocessing."""
        return dict(self.source.graph.info)

    @property
    def plan(self) -> Plan:
        """What runs: one row per fused step, one report per pass, and what `auto` measured."""
        if self._plan is None:
            self._plan = Plan(self.backend, self.lowered.rows(), (*self.source.passes, *self.lowered.reports), self.source.choice)
        return replace(self._plan, memory=self.lowered.memory())

    def forward(self, x: Tensor) -> Any:
        """x: [N, …] as the example given to `optimize`, any N → the outputs of the reference, in the dtype of `x`.

        Raises:
            InputError: wrong rank, size, dtype or device.
        """
        self._check(x)
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x)
        value = x.detach() if self.lowered.converts else x.detach().to(self.lowered.input_dtype or self.dtype)
        outputs = self.lowered.run(value) if self._is_ordinary(value) else self._run_plainly(value.to(self.dtype))
        if any(output.dtype != x.dtype for output in outputs):
            outputs = [output.to(x.dtype) if output.is_floating_point() else output for output in outputs]
        return self._pack(outputs)

    def _check(self, x: Tensor) -> None:
        expected = self.source.graph.input_shape
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(f"expected a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
        if x.dim() != len(expected) or any(want is not None and want != got for want, got in zip(expected, x.shape, strict=False)):
            want = "×".join("N" if size is None else str(size) for size in expected)
            raise InputError(f"expected an input of {want}, got {'×'.join(map(str, x.shape))}")
        if x.device != self.source.target.device:
            raise InputError(f"the module is on {self.source.target.device}, the input on {x.device}")

    def _is_ordinary(self, value: Tensor) -> bool:
        if value.shape[0] == 0:
            return False
        if self.lowered.propagates_nan:
            return True
        if value.device.type == "cpu" and value.dtype != torch.bfloat16:
            # NumPy, which works in this thread alone: a parallel PyTorch operation here would leave an OpenMP thread spinning on a core that the
            # runtime is about to use, which was measured to cost 4 ms of a 25 ms run on two cores.
            array = value.numpy()
            smallest, largest = float(array.min()), float(array.max())
        else:
            smallest, largest = (bound.item() for bound in torch.aminmax(value))
        # A NaN makes both comparisons false.
        return bool(smallest > -_LARGEST_ORDINARY_INPUT and largest < _LARGEST_ORDINARY_INPUT)

    def _run_plainly(self, value: Tensor) -> list[Tensor]:
        """Eager PyTorch over the passed graph: NaN and infinities come out as the reference gives them, and an empty batch has an answer."""
        if value.shape[0] and not self._warned:
            self._warned = True
            log.warning(
                "an input holds NaN, infinity or values beyond %g, which %s would lose: such batches run on plain PyTorch operations",
                _LARGEST_ORDINARY_INPUT,
                self.backend,
            )
        with torch.no_grad():
            return self.source.graph.module(value)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The weights of the reference under their original names, as they were before anything was folded."""
        prefix = kwargs.get("prefix", "")
        destination = kwargs.get("destination")
        named = {prefix + name: tensor for name, tensor in self.source.state_dict.items()}
        if destination is None:
            return named
        destination.update(named)
        return destination

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RequestError("an optimized module takes no new weights: load them into the reference and call fastcnn.optimize again")

    def train(self, mode: bool = True) -> OptimizedModule:
        if mode:
            raise RequestError("an optimized module is for inference only: train the reference and call fastcnn.optimize again")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise RequestError(
            "an optimized module's device and dtype are fixed: call fastcnn.optimize with a model and example on that device, or with dtype=…"
        )

    def __getstate__(self) -> NoReturn:
        raise RequestError("an optimized module cannot be pickled or deep-copied: use fastcnn.save and fastcnn.load")

    def extra_repr(self) -> str:
        name = self.source.graph.info.get("name", "")
        return f"{name}, backend={self.backend}, dtype={self.dtype}, input={tuple(self.source.graph.input_shape)}"
