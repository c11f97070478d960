"""Runs a network at any batch size: a program for each size, on a GPU as a CUDA graph over one arena.

On a GPU a graph is captured for the batch of the example and for sizes of a ladder; a batch between two of them runs in the larger one, its results
cut off. All graphs share one arena, that of the largest. A graph reads its input from a fixed address and leaves its results at another, so a call
copies in, replays and copies out; calls from several threads and streams follow one another on the GPU, by an event, and do not wait on the CPU.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcnn.engines.triton.choices import ChoiceStore
from fastcnn.engines.triton.convolutions import ConvWeights
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.program import Program, Values
from fastcnn.engines.triton.steps import Network, is_picture
from fastcnn.engines.triton.tuning import Chooser
from fastcnn.errors import DeviceMemoryError
from fastcnn.precision import float32_products

log = logging.getLogger(__name__)

# A batch is filled up to the next of these; from the last one on, to the next multiple of it.
_SIZES = (1, 2, 4, 8, 16, 32, 64)
# Programs and graphs that are kept; the one used longest ago makes room.
_MOST_PROGRAMS = 16


@dataclass
class _Ready:
    """A program bound to memory. `graph` is None where each launch is started from Python."""

    program: Program
    values: Values
    input: Tensor | None = None
    outputs: list[Tensor] | None = None
    graph: torch.cuda.CUDAGraph | None = None


class Executor:
    """Thread-safe; one for each optimized module."""

    def __init__(self, network: Network, device: torch.device, dtype: torch.dtype, options: TritonOptions) -> None:
        self._network, self.device, self._dtype, self._options = network, device, dtype, options
        self._chooser = Chooser(device, options, ChoiceStore(device, on_disk=options.use_cache))
        self._weights = {step: ConvWeights(step) for step in network.convolutions}
        self._programs: dict[int, Program] = {}
        self._ready: dict[int, _Ready] = {}
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._lock = threading.RLock()
        self._is_cuda = device.type == "cuda"
        self._uses_graph = self._is_cuda and options.cuda_graph
        self._pool: Any = None
        self._finished: torch.cuda.Event | None = None
        self._side_streams: list[torch.cuda.Stream] = []

    def run(self, x: Tensor) -> list[Tensor]:
        """x: [N, …], N ≥ 1, any memory format → new tensors.

        Raises:
            DeviceMemoryError: the GPU has no room for this batch; smaller ones still run.
        """
        count = x.shape[0]
        with self._lock, torch.no_grad(), self._context():
            ready = self._prepare(self._size_for(count))
            if self._finished is not None:
                torch.cuda.current_stream().wait_event(self._finished)
            try:
                outputs = self._replay(ready, x) if self._uses_graph else self._start(ready, x)
                results = [output[:count].clone() for output in outputs]
            except torch.cuda.OutOfMemoryError as error:
                raise self._out_of_memory(count, error) from error
            if self._is_cuda:
                self._finished = torch.cuda.Event()
                self._finished.record()
            return results

    def program(self, batch: int) -> Program:
        """The program that serves a batch, made if there is none yet."""
        with self._lock, torch.no_grad(), self._context():
            return self._program(self._size_for(batch))

    def time_launches(self, batch: int) -> list[float]:
        """Milliseconds of each launch of the program that serves a batch, one after the other on an idle GPU; 0 for steps without a launch."""
        from fastcnn.engines.triton.tuning import device_milliseconds

        with self._lock, torch.no_grad(), self._context():
            ready = self._prepare(self._size_for(batch))
            x = self._take_in(ready.program, torch.randn(self._input_shape(ready.program), device=self.device).to(self._dtype))
            times: list[float] = []
            launches = iter(ready.program.launches)

            def timed(calls: list[Callable[[], None]]) -> None:
                for call in calls:
                    launch = next(launches)
                    call()
                    times.append(device_milliseconds(call, self.device) if launch.kernel else 0.0)

            ready.program.run(ready.values, x, timed)
            return times

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
        if not self._uses_graph or not self._network.per_picture or count in self._ready:
            return count
        usual = self._network.captured.usual_batch
        step = _SIZES[-1]
        larger = [size for size in (*_SIZES, usual) if size >= count] or [-(-count // step) * step]
        return min(larger)

    def _program(self, size: int) -> Program:
        if size not in self._programs:
            self._chooser.start_clock()
            try:
                self._programs[size] = Program(self._network, size, self._dtype, self._chooser, self._weights)
            finally:
                self._chooser.store.save()
            for dropped in [*self._programs][: -_MOST_PROGRAMS or None]:
                del self._programs[dropped]
                self._ready.pop(dropped, None)
        return self._programs[size]

    def _prepare(self, size: int) -> _Ready:
        if size in self._ready:
            self._programs[size] = self._programs.pop(size)  # the youngest now
            return self._ready[size]
        try:
            program = self._program(size)
            self._make_room(program.arena.size)
            ready = _Ready(program, program.bind(self._memory))
            if self._uses_graph:
                self._capture(ready)
        except torch.cuda.OutOfMemoryError as error:
            raise self._out_of_memory(size, error) from error
        self._ready[size] = ready
        return ready

    def _make_room(self, size: int) -> None:
        """An arena of at least `size` bytes; when it grows, what is bound to the old one is bound anew when next used."""
        if self._memory.numel() >= size:
            return
        self._forget()
        self._memory = torch.empty(size, dtype=torch.uint8, device=self.device)

    def _forget(self) -> None:
        if self._is_cuda:
            # Replays on other streams than that of the allocation may still use what is about to be freed.
            torch.cuda.synchronize(self.device)
        self._ready.clear()
        self._pool = None
        self._memory = torch.empty(0, dtype=torch.uint8, device=self.device)

    def _out_of_memory(self, count: int, error: Exception) -> DeviceMemoryError:
        arena = self._programs[count].arena.size if count in self._programs else 0
        self._forget()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        need = f"its activations take {arena / 2**30:.2f} GiB" if arena else "it could not be planned"
        return DeviceMemoryError(
            f"out of GPU memory at a batch of {count}: {need}, {free / 2**30:.2f} of {total / 2**30:.2f} GiB are free; give smaller batches "
            f"({str(error).splitlines()[0][:120]})"
        )

    # -- running -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        """The device and the precision in which everything here runs and is captured, whatever the caller's are."""
        with contextlib.ExitStack() as stack:
            if self._is_cuda:
                stack.enter_context(torch.cuda.device(self.device))
            stack.enter_context(float32_products(tf32=self._network.captured.allow_tf32))
            yield

    def _input_shape(self, program: Program) -> tuple[int, ...]:
        sizes = self._network.captured.input_shape[1:]
        return (program.batch, *(size for size in sizes if size is not None))

    def _take_in(self, program: Program, x: Tensor) -> Tensor:
        """The input in the memory format that the program reads."""
        if program.input_as_it_is or not is_picture(self._network.captured.input_node):
            return x.contiguous()
        return x.contiguous(memory_format=torch.channels_last)

    def _start(self, ready: _Ready, x: Tensor) -> list[Tensor]:
        def one_by_one(calls: list[Callable[[], None]]) -> None:
            for call in calls:
                call()

        return ready.program.run(ready.values, self._take_in(ready.program, x), self._run_side_by_side if self._is_cuda else one_by_one)

    def _replay(self, ready: _Ready, x: Tensor) -> list[Tensor]:
        assert ready.input is not None
        assert ready.outputs is not None
        assert ready.graph is not None
        ready.input[: x.shape[0]].copy_(x)
        ready.graph.replay()
        return ready.outputs

    def _capture(self, ready: _Ready) -> None:
        program = ready.program
        ready.input = self._take_in(program, torch.zeros(self._input_shape(program), dtype=self._dtype, device=self.device))
        # One run first: kernels are compiled and libraries set up, none of which may happen during a capture.
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            program.run(ready.values, ready.input, self._run_side_by_side)
        torch.cuda.current_stream().wait_stream(warm)
        torch.cuda.synchronize(self.device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        ready.graph = torch.cuda.CUDAGraph()
        # Other threads of a service may allocate and launch meanwhile.
        with torch.cuda.graph(ready.graph, pool=self._pool, capture_error_mode="thread_local"):
            ready.outputs = program.run(ready.values, ready.input, self._run_side_by_side)

    def _run_side_by_side(self, calls: list[Callable[[], None]]) -> None:
        """The calls of one level, each on a stream of its own; in a CUDA graph they become branches without order."""
        if not self._options.concurrent or len(calls) < 2:
            for call in calls:
                call()
            return
        while len(self._side_streams) < len(calls) - 1:
            self._side_streams.append(torch.cuda.Stream(self.device))
        main = torch.cuda.current_stream()
        sides = self._side_streams[: len(calls) - 1]
        for side, call in zip(sides, calls[1:], strict=True):
            side.wait_stream(main)
            with torch.cuda.stream(side):
                call()
        calls[0]()
        for side in sides:
            main.wait_stream(side)
