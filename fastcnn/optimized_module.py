"""What `fastcnn.optimize` returns and `fastcnn.load` brings back."""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import module as _modules

from fastcnn.engines.base import Engine, Lowered
from fastcnn.errors import BackendError, InputError, RequestError
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
    `optimize` again for others. It belongs to the process that made it: a process forked from that has none of the runtime's threads, and is told.
    A batch that holds NaN, an infinity or a value beyond 1e10 runs on PyTorch's plain operations where the engine would lose them, and says so once.
    """

    def __init__(self, source: ModuleSource, engine: Engine, lowered: Lowered) -> None:
        super().__init__()
        self.source, self.engine, self.lowered = source, engine, lowered
        self._pack = packer(source.graph.output_spec)
        self._device = source.target.device
        self._inputs = [(node.meta["shape"], node.meta["dtype"]) for node in source.graph.input_nodes]
        self._input_dtype = lowered.input_dtype or source.target.dtype
        takes_one = len(self._inputs) == 1 and self._inputs[0][1].is_floating_point
        fast = takes_one and lowered.run_array is not None
        self._run_arrays = _array_runner(lowered, self._input_dtype, self._inputs[0][0][1:]) if fast else None
        self._plan: Plan | None = None
        self._warned = False
        self._left_behind = False
        self.training = False
        _ALIVE.add(self)

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

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        """Inputs [N, …] as the examples given to `optimize`, any N → the outputs of the reference, in the dtype of the first floating-point input;
        where all are integers, in float32, or float64 if the module computes in it.

        Raises:
            InputError: wrong number of inputs, rank, size, dtype or device.
            BackendError: it was made before this process was forked.
        """
        if self._run_arrays is not None and not more:
            outputs = self._run_arrays(x)
            if outputs is not None:
                return self._pack(outputs)
        if self._left_behind:
            raise BackendError(
                f"this module was made before the process was forked, and its threads ({self.backend}) stayed behind: make it in the new process with"
                ' fastcnn.load or fastcnn.optimize, or start that with multiprocessing\'s "spawn"'
            )
        inputs = (x, *more)
        self._check(inputs)
        if torch.is_autocast_enabled(self._device.type):
            with torch.autocast(self._device.type, enabled=False):
                return self.forward(*inputs)
        values = [self._converted(one, self._input_dtype, keep=self.lowered.converts) for one in inputs]
        if all(map(self._is_ordinary, values)):
            outputs = self.lowered.run(*values)
        else:
            outputs = self._run_plainly(*(self._converted(value, self._graph_dtype) for value in values))
        wanted = next((one.dtype for one in inputs if one.is_floating_point()), None)
        wanted = wanted or (torch.float64 if self.dtype == torch.float64 else torch.float32)
        return self._pack([_in_dtype(output, wanted) for output in outputs])

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self._inputs):
            raise InputError(f"expected {_inputs(len(self._inputs))}, got {len(inputs)}")
        for position, (x, (expected, dtype)) in enumerate(zip(inputs, self._inputs, strict=True)):
            which = "" if len(inputs) == 1 else f" for input {position}"
            if not isinstance(x, Tensor) or (x.dtype != dtype and not (x.is_floating_point() and dtype.is_floating_point)):
                kind = "a floating-point" if dtype.is_floating_point else f"a {str(dtype).removeprefix('torch.')}"
                raise InputError(f"expected {kind} tensor{which}, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
            if x.dim() != len(expected) or any(want is not None and want != got for want, got in zip(expected, x.shape, strict=False)):
                want = "×".join("N" if size is None else str(size) for size in expected)
                raise InputError(f"expected an input of {want}{which}, got {'×'.join(map(str, x.shape))}")
            if x.shape[0] != inputs[0].shape[0]:
                raise InputError(f"expected one batch size, got {inputs[0].shape[0]} in the first input and {x.shape[0]}{which}")
            if x.device != self._device:
                raise InputError(f"the module is on {self._device}, the input on {x.device}")

    def _converted(self, x: Tensor, dtype: torch.dtype, *, keep: bool = False) -> Tensor:
        return x.detach() if keep or not x.is_floating_point() else x.detach().to(dtype)

    @property
    def _graph_dtype(self) -> torch.dtype:
        """Of the graph's floating-point inputs."""
        return torch.float32 if self.dtype == torch.int8 else self.dtype

    def _is_ordinary(self, value: Tensor) -> bool:
        if value.shape[0] == 0:
            return False
        if self.lowered.propagates_nan or not value.is_floating_point():
            return True
        if self._device.type == "cpu" and value.dtype != torch.bfloat16:
            # NumPy, which works in this thread alone: a parallel PyTorch operation here would leave an OpenMP thread spinning on a core that the
            # runtime is about to use, which was measured to cost 4 ms of a 25 ms run on two cores.
            return _is_ordinary_array(value.numpy())
        return _are_ordinary(*(bound.item() for bound in torch.aminmax(value)))

    def _run_plainly(self, *inputs: Tensor) -> list[Tensor]:
        """Eager PyTorch over the passed graph: NaN and infinities come out as the reference gives them, and an empty batch has an answer."""
        if inputs[0].shape[0] and not self._warned:
            self._warned = True
            log.warning(
                "an input holds NaN, infinity or values beyond %g, which %s would lose: such batches run on plain PyTorch operations",
                LARGEST_ORDINARY_INPUT,
                self.backend,
            )
        with torch.no_grad():
            return self._plain_graph.module(*inputs)

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
        shapes = [shape for shape, _ in self._inputs]
        takes = f"input={shapes[0]}" if len(shapes) == 1 else f"inputs={shapes}"
        return f"{name}, backend={self.backend}, dtype={self.dtype}, {takes}"


# The modules of this process. A fork has copies of them, without the threads that compute: a call would wait for ever, or crash.
_ALIVE: weakref.WeakSet[OptimizedModule] = weakref.WeakSet()


def _leave_behind() -> None:
    for module in list(_ALIVE):
        module._left_behind, module._run_arrays = True, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_behind)


def _inputs(count: int) -> str:
    return "one input" if count == 1 else f"{count} inputs"


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
