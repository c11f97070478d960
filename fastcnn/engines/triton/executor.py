"""Runs a network at any batch size: a program for each size, on a GPU as a CUDA graph over one arena.

On a GPU a graph is captured for the batch of the example and for sizes of a ladder; a batch between two of them runs in
the larger one, its results cut off. All graphs share one arena, that of the largest. A graph reads its input from a
fixed address and leaves its results at another, so a call copies in, replays and copies out; calls from several threads
and streams follow one another on the GPU, by an event, and do not wait on the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastcnn.engines.triton.choices import ChoiceStore
from fastcnn.engines.triton.compile_ahead import compile_jobs, note_jobs
from fastcnn.engines.triton.device_clock import CAPTURING, capture, device_milliseconds
from fastcnn.engines.triton.launches import Values
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.problem import ConvWeights
from fastcnn.engines.triton.program import Program
from fastcnn.engines.triton.schedule import make_schedule
from fastcnn.engines.triton.steps import Network, is_activation
from fastcnn.engines.triton.streams import run_side_by_side
from fastcnn.engines.triton.tuning import Chooser
from fastcnn.errors import BackendError, DeviceMemoryError
from fastcnn.precision import float32_products
from fastcnn.target import Target

log = logging.getLogger(__name__)

# A batch is filled up to the next of these; from the last one on, to the next multiple of it.
_SIZES = (1, 2, 4, 8, 16, 32, 64)
# Programs and graphs that are kept; the one used longest ago makes room.
_MOST_PROGRAMS = 16
# The most that compiling ahead takes; what is left over is compiled where it is launched.
_COMPILE_SECONDS = 120.0


Result = TypeVar("Result")


@dataclass
class _Ready:
    """A program bound to memory. `graph` is None where each launch is started from Python."""

    program: Program
    values: Values
    input: Tensor | None = None
    outputs: list[Tensor] | None = None
    graph: torch.cuda.CUDAGraph | None = None


class Executor:
    """Thread-safe; one for each optimized module.

    Args:
        target: its usual batch is a size beside those of the ladder that a graph is captured for.
    """

    def __init__(self, network: Network, target: Target, options: TritonOptions) -> None:
        device = target.device
        self._network, self.device, self._dtype, self._options = network, device, target.dtype, options
        self.tf32, self._usual_batch = target.tf32, target.usual_batch
        self._chooser = Chooser(device, options, ChoiceStore(device, on_disk=options.use_cache))
        self._weights = {step: ConvWeights(step, tf32=target.tf32) for step in network.convolutions}
        self._programs: dict[int, Program] = {}
        self._ready: dict[int, _Ready] = {}
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        # One program is planned at a time, for as long as tuning takes, and meanwhile those that are ready run. Entered in
        # this order: `_planning`, `_context`, `_lock`; a thread in `_context` may keep one with another precision waiting,
        # so it must not wait for one that plans, and `_lock` is only held by threads that come to an end.
        self._planning = threading.RLock()
        self._lock = threading.RLock()
        self._is_cuda = device.type == "cuda"
        self._uses_graph = self._is_cuda and options.cuda_graph
        self._pool: Any = None
        self._finished: torch.cuda.Event | None = None
        self._streams: list[torch.cuda.Stream] = []

    def run(self, x: Tensor) -> list[Tensor]:
        """x: [N, …], N ≥ 1, any memory format and floating-point dtype → new tensors, the floating-point ones in the
        dtype of x.

        Raises:
            DeviceMemoryError: the GPU has no room for this batch; smaller ones still run.
            BackendError: the caller captures a CUDA graph of its own.
        """
        if self._is_cuda and torch.cuda.is_current_stream_capturing():
            raise BackendError(
                "backend 'triton' replays CUDA graphs of its own and cannot run while the current stream is captured: "
                "call the module outside of the capture"
            )
        return self._in_memory(x.shape[0], lambda size: self._run(x, size))

    def program(self, batch: int) -> Program:
        """The program that serves a batch, made if there is none yet. Raises as `run`."""
        return self._in_memory(batch, self._program)

    def time_launches(self, batch: int) -> list[float]:
        """Milliseconds of each launch of the program that serves a batch, one after the other on an idle GPU; 0 for
        steps without a launch. Raises as `run`."""
        return self._in_memory(batch, self._time_launches)

    def memory(self) -> dict[str, int]:
        """Bytes held now: packed weights, the arena of all activations, and inputs and outputs of the graphs."""
        with self._lock:
            held = [tensor for ready in self._ready.values() for tensor in ([ready.input] if ready.input is not None else [])]
            return {
                "weights": sum(weights.bytes() for weights in self._weights.values()),
                "arena": self._memory.numel(),
                "inputs": sum(tensor.numel() * tensor.element_size() for tensor in held),
            }

    # -- sizes and programs --------------------------------------------------------------------------------------------

    def _size_for(self, count: int) -> int:
        """The size of the program that serves `count` pictures."""
        if not self._uses_graph or not self._network.per_picture or count in self._ready:  # one look-up: needs no lock
            return count
        step = _SIZES[-1]
        multiple = -(-count // step) * step
        return min(size for size in (*_SIZES, self._usual_batch, multiple) if size >= count)

    def _program(self, size: int) -> Program:
        """The program of a size, planned and tuned if there is none: without `_lock`, for the sizes that are ready go on
        serving."""
        with self._planning:
            with self._lock:
                known = self._programs.get(size)
            if known is not None:
                return known
            self._chooser.start_clock()
            try:
                with self._context():
                    schedule = make_schedule(self._network, size, self._dtype, self.tf32, self._chooser)
                    program = Program(schedule, self._weights)
            finally:
                self._chooser.store.save()
            with self._lock:
                self._keep(size, program)
            return program

    def _keep(self, size: int, program: Program) -> None:
        """Keep a program as the one used last; the one used longest ago makes room."""
        self._programs.pop(size, None)
        self._programs[size] = program
        for dropped in [*self._programs][: -_MOST_PROGRAMS or None]:
            del self._programs[dropped]
            if dropped in self._ready:
                self._wait_for_gpu()
                del self._ready[dropped]

    def _prepare(self, size: int, program: Program) -> _Ready:
        self._keep(size, program)
        if size in self._ready:
            return self._ready[size]
        self._make_room(program.schedule.arena.size)
        ready = _Ready(program, program.bind(self._memory))
        if self._is_cuda:
            x = self._take_in(program, torch.zeros(self._input_shape(program), dtype=self._dtype, device=self.device))
            compile_jobs(note_jobs([lambda: program.run(ready.values, x, _one_by_one)]), _COMPILE_SECONDS)
        if self._uses_graph:
            self._capture(ready)
        self._ready[size] = ready
        return ready

    def _make_room(self, size: int) -> None:
        """An arena of at least `size` bytes; when it grows, what is bound to the old one is bound anew when next
        used."""
        if self._memory.numel() >= size:
            return
        self._forget()
        self._memory = torch.empty(size, dtype=torch.uint8, device=self.device)

    def _wait_for_gpu(self) -> None:
        """To the end of every call: those on other streams than that of an allocation may still use what is about to be
        freed or overwritten."""
        if self._is_cuda:
            with CAPTURING:
                torch.cuda.synchronize(self.device)

    def _forget(self) -> None:
        self._wait_for_gpu()
        self._ready.clear()
        self._pool = None
        self._memory = torch.empty(0, dtype=torch.uint8, device=self.device)

    def _out_of_memory(self, count: int, size: int, reason: str) -> DeviceMemoryError:
        with self._lock:
            arena = self._programs[size].schedule.arena.size if size in self._programs else 0
            self._forget()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        need = f"its activations take {arena / 2**30:.2f} GiB" if arena else "it could not be planned"
        return DeviceMemoryError(
            f"out of GPU memory at a batch of {count}: {need}, {free / 2**30:.2f} of {total / 2**30:.2f} GiB are free; give smaller batches "
            f"({reason.partition(chr(10))[0][:120]})"
        )

    # -- running -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        """The device and the modes in which everything here runs and is captured, whatever the caller's are; a replay
        needs none of it.

        No inference mode: a tensor made in it could not be written to by a call outside of it.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            if self._is_cuda:
                stack.enter_context(torch.cuda.device(self.device))
            stack.enter_context(float32_products(tf32=self.tf32))
            yield

    def _input_shape(self, program: Program) -> tuple[int, ...]:
        sizes = self._network.captured.input_shape[1:]
        return (program.schedule.batch, *(size for size in sizes if size is not None))

    def _take_in(self, program: Program, x: Tensor) -> Tensor:
        """The input in the dtype and memory format that the program reads."""
        x = x.to(self._dtype)
        if program.schedule.input_as_it_is or not is_activation(self._network.captured.input_node):
            return x.contiguous()
        return x.contiguous(memory_format=torch.channels_last)

    def _in_memory(self, count: int, work: Callable[[int], Result]) -> Result:
        """`work(size)` for the size that serves `count` pictures; out of memory, everything is let go and the error is
        a clear one."""
        size = self._size_for(count)
        try:
            return work(size)
        except torch.cuda.OutOfMemoryError as error:
            reason = str(error)
        # Not while the error is handled: its traceback holds on to the memory that is to be freed.
        raise self._out_of_memory(count, size, reason)

    def _time_launches(self, size: int) -> list[float]:
        program = self._program(size)
        with self._context(), self._lock:
            return self._time_launches_of(size, program)

    def _time_launches_of(self, size: int, program: Program) -> list[float]:
        # The arena is written to: calls that are under way on other streams come to their end first.
        self._wait_for_gpu()
        ready = self._prepare(size, program)
        noise = torch.randn(self._input_shape(ready.program), generator=torch.Generator(self.device).manual_seed(0), device=self.device)
        times: list[float] = []
        launches = iter(ready.program.launches)

        def timed(calls: list[Callable[[], None]]) -> None:
            for call in calls:
                launch = next(launches)
                call()
                times.append(device_milliseconds(call, self.device) if launch.kernel else 0.0)

        ready.program.run(ready.values, self._take_in(ready.program, noise), timed)
        self._wait_for_gpu()
        return times

    def _run(self, x: Tensor, size: int) -> list[Tensor]:
        with self._lock:
            ready = self._ready.get(size)
            if ready is not None and self._uses_graph:
                self._keep(size, ready.program)
                return self._run_in_turn(x, functools.partial(self._replay, ready, x))
        program = self._program(size)
        with self._context(), self._lock:
            return self._run_in_turn(x, functools.partial(self._make_and_run, size, program, x))

    def _make_and_run(self, size: int, program: Program, x: Tensor) -> list[Tensor]:
        ready = self._prepare(size, program)
        return self._replay(ready, x) if self._uses_graph else self._start(ready, x)

    def _run_in_turn(self, x: Tensor, run: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The outputs that `run` gives, cut to the pictures in x, as tensors of their own; on the GPU after all earlier
        calls and before all later ones."""
        count = x.shape[0]
        # Before anything else is started: making a graph ready writes to the arena too.
        stream = torch.cuda.current_stream(self.device) if self._is_cuda else None
        if stream is not None and self._finished is not None:
            stream.wait_event(self._finished)
        outputs = run()
        results = [_own(output if output.shape[0] == count else output[:count], x.dtype) for output in outputs]
        if stream is not None:
            if self._finished is None:
                self._finished = torch.cuda.Event()
            self._finished.record(stream)
        return results

    def _start(self, ready: _Ready, x: Tensor) -> list[Tensor]:
        run_level = self._run_side_by_side if self._is_cuda else _one_by_one
        return ready.program.run(ready.values, self._take_in(ready.program, x), run_level)

    def _replay(self, ready: _Ready, x: Tensor) -> list[Tensor]:
        assert ready.input is not None
        assert ready.outputs is not None
        assert ready.graph is not None
        # The copy converts dtype and memory format on its way.
        (ready.input if ready.input.shape[0] == x.shape[0] else ready.input[: x.shape[0]]).copy_(x)
        ready.graph.replay()
        return ready.outputs

    def _capture(self, ready: _Ready) -> None:
        program = ready.program
        ready.input = self._take_in(program, torch.zeros(self._input_shape(program), dtype=self._dtype, device=self.device))
        stream = self._stream(0)
        # One run first, on the stream of the capture: kernels are loaded, libraries set up and given their workspace,
        # none of which should happen during a capture. The outer stream context: a capture that cannot be ended would
        # leave its own stream the current one.
        with CAPTURING, torch.cuda.stream(torch.cuda.current_stream()):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                program.run(ready.values, ready.input, self._run_side_by_side)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize(self.device)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            ready.graph = torch.cuda.CUDAGraph()
            try:
                with capture(ready.graph, stream, self._pool):
                    ready.outputs = program.run(ready.values, ready.input, self._run_side_by_side)
            except BaseException:
                # The graphs that were captured before keep the pool that they have.
                self._pool = None
                raise

    def _stream(self, index: int) -> torch.cuda.Stream:
        """Streams of this executor; the first is that of captures. They are different ones, made in a row: PyTorch
        deals out 32 in turn."""
        while len(self._streams) <= index:
            self._streams.append(torch.cuda.Stream(self.device))
        return self._streams[index]

    def _run_side_by_side(self, calls: list[Callable[[], None]]) -> None:
        """The calls of one level, each on a stream of its own; in a CUDA graph they become branches without order."""
        if not self._options.concurrent or len(calls) < 2:
            _one_by_one(calls)
            return
        self._stream(len(calls) - 1)
        run_side_by_side(calls, self._streams[1:])


def _one_by_one(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _own(output: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, a floating-point one in `dtype`."""
    return output.to(dtype, copy=True) if output.is_floating_point() else output.clone()
