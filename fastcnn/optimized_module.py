"""What `fastcnn.optimize` returns and `fastcnn.load` brings back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import module as _modules

from fastcnn.engines.base import Engine, Lowered
from fastcnn.errors import InputError, RequestError
from fastcnn.graph.ir import CapturedGraph
from fastcnn.graph.output_structure import packer
from fastcnn.graph.plan import BackendTiming, PassReport, Plan
from fastcnn.parity.rules import LARGEST_ORDINARY_INPUT
from fastcnn.target import Target

log = logging.getLogger(__name__)

_FLOAT32 = np.dtype(np.float32)
# Values that are summed in one call of a single thread; BLAS takes several for more.
_FEW_VALUES = 8192


@dataclass(frozen=True)
class ModuleSource:
    """What an optimized module was made from.

    Attributes:
        graph: the passed graph, constants in the target's dtype and on its device.
        target: what it was lowered for.
        passes: what the passes did.
        state_dict: tensors of the reference under their original names, on the CPU; None where a slim file left them out.
        choice: what `auto` measured.
    """

    graph: CapturedGraph
    target: Target
    passes: tuple[PassReport, ...]
    state_dict: dict[str, Tensor] | None
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
        self._device, self._sizes = source.target.device, tuple(source.graph.input_shape[1:])
        self._input_dtype = lowered.input_dtype or source.target.dtype
        self._run_arrays = _array_runner(lowered, self._input_dtype, self._sizes) if lowered.run_array is not None else None
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`, and hooks run where there are some; nn.Module's own way through them costs a few microseconds more."""
        hooks = self._forward_hooks or self._forward_pre_hooks or _modules._global_forward_hooks or _modules._global_forward_pre_hooks
        if hooks or self._compiled_call_impl is not None:
            return super().__call__(*args, **kwargs)
        return self.forward(*args, **kwargs)

    def forward(self, x: Tensor) -> Any:
        """x: [N, …] as the example given to `optimize`, any N → the outputs of the reference, in the dtype of `x`.

        Raises:
            InputError: wrong rank, size, dtype or device.
        """
        if self._run_arrays is not None:
            outputs = self._run_arrays(x)
            if outputs is not None:
                return self._pack(outputs)
        self._check(x)
        if torch.is_autocast_enabled(self._device.type):
            with torch.autocast(self._device.type, enabled=False):
                return self.forward(x)
        value = x.detach() if self.lowered.converts else x.detach().to(self._input_dtype)
        outputs = self.lowered.run(value) if self._is_ordinary(value) else self._run_plainly(value.to(self.source.graph.input_dtype))
        return self._pack([_in_dtype(output, x.dtype) for output in outputs])

    def _check(self, x: Tensor) -> None:
        expected = self.source.graph.input_shape
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(f"expected a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
        if x.dim() != len(expected) or any(want is not None and want != got for want, got in zip(expected, x.shape, strict=False)):
            want = "×".join("N" if size is None else str(size) for size in expected)
            raise InputError(f"expected an input of {want}, got {'×'.join(map(str, x.shape))}")
        if x.device != self._device:
            raise InputError(f"the module is on {self._device}, the input on {x.device}")

    def _is_ordinary(self, value: Tensor) -> bool:
        if value.shape[0] == 0:
            return False
        if self.lowered.propagates_nan:
            return True
        if self._device.type == "cpu" and value.dtype != torch.bfloat16:
            # NumPy, which works in this thread alone: a parallel PyTorch operation here would leave an OpenMP thread spinning on a core that the
            # runtime is about to use, which was measured to cost 4 ms of a 25 ms run on two cores.
            return _is_ordinary_array(value.numpy())
        return _are_ordinary(*(bound.item() for bound in torch.aminmax(value)))

    def _run_plainly(self, value: Tensor) -> list[Tensor]:
        """Eager PyTorch over the passed graph: NaN and infinities come out as the reference gives them, and an empty batch has an answer."""
        if value.shape[0] and not self._warned:
            self._warned = True
            log.warning(
                "an input holds NaN, infinity or values beyond %g, which %s would lose: such batches run on plain PyTorch operations",
                LARGEST_ORDINARY_INPUT,
                self.backend,
            )
        with torch.no_grad():
            return self._plain_graph.module(value)

    @functools.cached_property
    def _plain_graph(self) -> CapturedGraph:
        if self.dtype != torch.int8:
            return self.source.graph
        from fastcnn.quantization.quantize import unrounded_activations

        return unrounded_activations(self.source.graph)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The weights of the reference under their original names, as they were before anything was folded.

        Raises:
            RequestError: the module was loaded from a slim file, which does not hold them.
        """
        if self.source.state_dict is None:
            raise RequestError("this module was saved with slim=True, without the weights of its reference: take them from the reference itself")
        prefix = kwargs.get("prefix", "")
        destination = kwargs.get("destination")
        named = {prefix + name: tensor for name, tensor in self.source.state_dict.items()}
        if destination is None:
            return named
        destination.update(named)
        return destination

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Always a RequestError: new weights go into the reference, which is then optimized again."""
        raise RequestError("an optimized module takes no new weights: load them into the reference and call fastcnn.optimize again")

    def train(self, mode: bool = True) -> OptimizedModule:
        """RequestError unless `mode` is False: there is nothing to train in a folded graph."""
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
        """Model, backend, dtype and input shape, for `print(module)`."""
        name = self.source.graph.info.get("name", "")
        return f"{name}, backend={self.backend}, dtype={self.dtype}, input={tuple(self.source.graph.input_shape)}"


def _array_runner(lowered: Lowered, dtype: torch.dtype, sizes: tuple[int | None, ...]) -> Callable[[Any], list[Tensor] | None]:
    """The way through an engine that takes arrays, for ordinary values of the right shape, dtype and device.

    It returns None for all else, which goes the long way. Nothing of PyTorch's computes on an array, so that autocast does not matter.
    A small network takes tens of microseconds, and after it the caches are cold: each call of PyTorch's costs five to eight more, each attribute
    and function call of Python's a part of one. Hence two of the former, and a closure.
    """
    run, propagates_nan = lowered.run_array, lowered.propagates_nan
    assert run is not None
    to_array, from_array, is_ordinary = Tensor.numpy, torch.from_numpy, _is_ordinary_array
    of_dtype = torch.empty(0, dtype=dtype).numpy().dtype

    def run_arrays(x: Any) -> list[Tensor] | None:
        if type(x) is not Tensor:
            return None
        try:
            array = to_array(x)
        except (TypeError, RuntimeError):  # on another device, a dtype that NumPy lacks, or part of an autograd graph
            return None
        if array.dtype is of_dtype and array.shape[1:] == sizes and array.size and (propagates_nan or is_ordinary(array)):
            return [_in_dtype(from_array(result), dtype) for result in run(array)]
        return None

    return run_arrays


def _in_dtype(output: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating-point output in the dtype of the input; class indices and the like as they are."""
    return output.to(dtype) if output.dtype is not dtype and output.is_floating_point() else output


def _is_ordinary_array(array: NDArray[Any]) -> bool:
    """Whether no value is NaN, infinite or too large for comfort; not for empty arrays."""
    # Where even the sum of squares is small enough, each value is; a NaN makes the comparison false.
    if array.dtype is _FLOAT32 and array.size <= _FEW_VALUES and np.vdot(array, array) < LARGEST_ORDINARY_INPUT**2:
        return True
    return _are_ordinary(float(np.minimum.reduce(array, axis=None)), float(np.maximum.reduce(array, axis=None)))


def _are_ordinary(smallest: float, largest: float) -> bool:
    # A NaN makes both comparisons false.
    return smallest > -LARGEST_ORDINARY_INPUT and largest < LARGEST_ORDINARY_INPUT
