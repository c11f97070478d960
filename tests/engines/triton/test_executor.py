"""What the executor does around CUDA graphs: sizes, the shared arena, eviction, and running out of memory. The graphs
here run the launches again."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from graph_support import images, net
from torch import nn

from fastcnn.engines.triton import executor as executor_module
from fastcnn.engines.triton.engine import TritonEngine
from fastcnn.engines.triton.executor import Executor
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.errors import BackendError, DeviceMemoryError
from fastcnn.optimization import Builder
from fastcnn.optimized_module import OptimizedModule
from fastcnn.precision import float32_products


class FakeGraph:
    """Replays by running the program on the same memory."""

    def __init__(self, executor: Executor, ready: executor_module._Ready) -> None:
        self.executor, self.ready = executor, ready

    def replay(self) -> None:
        def one_by_one(calls):
            for call in calls:
                call()

        self.ready.outputs = self.ready.program.run(self.ready.values, self.ready.input, one_by_one)


@pytest.fixture
def captured(monkeypatch) -> list[int]:
    """The sizes that were captured so far."""
    sizes: list[int] = []

    def capture(self: Executor, ready: executor_module._Ready) -> None:
        sizes.append(ready.program.schedule.batch)
        ready.input = torch.full((ready.program.schedule.batch, *self._network.captured.input_shape[1:]), torch.nan)
        ready.graph = FakeGraph(self, ready)
        ready.outputs = []

    def replay(self: Executor, ready: executor_module._Ready, x: torch.Tensor) -> list[torch.Tensor]:
        ready.input[: x.shape[0]].copy_(x)
        ready.graph.replay()
        return ready.outputs

    init = Executor.__init__

    def with_graphs(self: Executor, *arguments: object, **options: object) -> None:
        init(self, *arguments, **options)
        self._uses_graph = True

    monkeypatch.setattr(Executor, "__init__", with_graphs)
    monkeypatch.setattr(Executor, "_capture", capture)
    monkeypatch.setattr(Executor, "_replay", replay)
    return sizes


def make(batch: int = 3) -> tuple[OptimizedModule, nn.Module, Executor]:
    model = net(lambda s, x: s.b(F.max_pool2d(F.relu(s.a(x)), 2, 1)).mean((2, 3)), a=nn.Conv2d(3, 64, 3), b=nn.Conv2d(64, 5, 1))
    fast = Builder(model, images(batch, 3, 5, 5), check=False).build(TritonEngine(TritonOptions(use_cache=False, implementations=("library",))))
    return fast, model, fast.lowered.run.__self__


def test_a_batch_runs_in_the_next_larger_graph(captured):
    fast, model, _ = make(batch=3)
    for batch in (3, 2, 1, 5, 7, 8, 3, 65, 129):
        torch.testing.assert_close(fast(images(batch, 3, 5, 5)), model(images(batch, 3, 5, 5)))

    assert list(dict.fromkeys(captured)) == [3, 2, 1, 8, 128, 192]


def test_a_batch_far_below_the_usual_one_does_not_run_in_its_graph(captured):
    _, _, executor = make(batch=512)
    sizes = {count: executor._size_for(count) for count in (1, 64, 65, 129, 449, 500, 513)}

    assert sizes == {1: 1, 64: 64, 65: 128, 129: 192, 449: 512, 500: 512, 513: 576}


def test_a_model_that_mixes_pictures_gets_a_graph_for_each_batch(captured):
    model = net(lambda s, x: s.a(x) - s.a(x).mean(0, keepdim=True), a=nn.Conv2d(3, 4, 1))
    fast = Builder(model, images(3, 3, 5, 5), check=False).build(TritonEngine(TritonOptions(use_cache=False, implementations=("library",))))
    for batch in (3, 2, 5):
        torch.testing.assert_close(fast(images(batch, 3, 5, 5)), model(images(batch, 3, 5, 5)))

    assert captured == [3, 2, 5]


def test_all_sizes_share_the_arena_of_the_largest(captured):
    fast, _, executor = make()
    fast(images(8, 3, 5, 5))
    large = executor.memory()["arena"]
    fast(images(1, 3, 5, 5))
    assert executor.memory()["arena"] == large

    fast(images(32, 3, 5, 5))
    assert executor.memory()["arena"] > large
    fast(images(8, 3, 5, 5))  # bound to the old memory before, so captured again
    assert captured == [8, 1, 32, 8]


def test_programs_that_are_not_used_make_room(captured, monkeypatch):
    monkeypatch.setattr(executor_module, "_MOST_PROGRAMS", 2)
    fast, model, executor = make()
    for batch in (1, 2, 1, 4, 1):
        fast(images(batch, 3, 5, 5))

    assert sorted(executor._programs) == [1, 4]
    torch.testing.assert_close(fast(images(2, 3, 5, 5)), model(images(2, 3, 5, 5)))


def test_out_of_memory_is_said_and_smaller_batches_still_run(captured, monkeypatch):
    fast, model, executor = make()
    fast(images(4, 3, 5, 5))
    make_room = Executor._make_room

    def limited(self: Executor, size: int) -> None:
        if size > 40_000:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        make_room(self, size)

    monkeypatch.setattr(Executor, "_make_room", limited)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**34))

    message = r"out of GPU memory at a batch of 64: its activations take 0\.00 GiB, 1\.00 of 16\.00 GiB are free; give smaller batches \(CUDA out"
    with pytest.raises(DeviceMemoryError, match=message):
        fast(images(64, 3, 5, 5))
    assert executor._ready == {}
    torch.testing.assert_close(fast(images(4, 3, 5, 5)), model(images(4, 3, 5, 5)))


def test_a_graph_made_in_inference_mode_serves_calls_outside_of_it_and_the_other_way_round(captured):
    fast, model, _ = make(batch=3)
    for batch in (2, 4):
        with torch.inference_mode():
            torch.testing.assert_close(fast(images(batch, 3, 5, 5)), model(images(batch, 3, 5, 5)))
        with torch.no_grad():
            torch.testing.assert_close(fast(images(batch - 1, 3, 5, 5)), model(images(batch - 1, 3, 5, 5)))
        output = fast(images(batch, 3, 5, 5).requires_grad_())
        assert not output.requires_grad
        assert not output.is_inference()

    assert captured == [2, 1, 4, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_copy_into_a_graph_converts(captured, dtype):
    fast, model, executor = make(batch=2)
    wanted = model(images(2, 3, 5, 5).to(dtype).float())
    output = fast(images(2, 3, 5, 5).to(dtype))

    assert output.dtype == dtype
    torch.testing.assert_close(output, wanted.to(dtype), rtol=2e-3, atol=2e-3)
    assert executor._ready[2].input.dtype == torch.float32


def test_out_of_memory_lets_go_of_what_the_failed_call_held(captured, monkeypatch):
    fast, _, executor = make()
    fast(images(4, 3, 5, 5))
    arena = weakref.ref(executor._memory)
    held = weakref.ref(executor._ready[4].input)
    freed: list[bool] = []
    monkeypatch.setattr(Executor, "_replay", lambda *arguments: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory.")))

    def empty_cache() -> None:
        gc.collect()  # the graphs of these tests and what they belong to hold on to each other
        freed.append(held() is None and arena() is None)

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**34))

    with pytest.raises(DeviceMemoryError, match="out of GPU memory at a batch of 4"):
        fast(images(4, 3, 5, 5))
    assert freed == [True]


def test_branches_come_together_again_after_an_error_too(monkeypatch):
    _, _, executor = make()
    waits: list[tuple[str, str]] = []

    class FakeStream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: FakeStream) -> None:
            waits.append((self.name, other.name))

    def fails() -> None:
        raise RuntimeError("the branch fails")

    main = FakeStream("main")
    executor._streams = [FakeStream("capture"), FakeStream("one"), FakeStream("two")]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    executor._run_side_by_side([lambda: None] * 3)
    assert waits == [("one", "main"), ("two", "main"), ("main", "one"), ("main", "two")]

    waits.clear()
    with pytest.raises(RuntimeError, match="the branch fails"):
        executor._run_side_by_side([lambda: None, fails, lambda: None])
    assert waits == [("one", "main"), ("main", "one")]


def test_a_size_that_is_tuned_does_not_keep_the_others_waiting(captured, monkeypatch):
    fast, model, _ = make()
    fast(images(2, 3, 5, 5))
    tuning, go_on = threading.Event(), threading.Event()
    make_schedule = executor_module.make_schedule

    def slow(*arguments):
        tuning.set()
        assert go_on.wait(60)
        return make_schedule(*arguments)

    monkeypatch.setattr(executor_module, "make_schedule", slow)
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(fast, images(8, 3, 5, 5))
        try:
            assert tuning.wait(60)
            ready = pool.submit(fast, images(2, 3, 5, 5)).result(60)
        finally:
            go_on.set()
        torch.testing.assert_close(new.result(60), model(images(8, 3, 5, 5)))
    torch.testing.assert_close(ready, model(images(2, 3, 5, 5)))
    assert captured == [2, 8]


def test_a_thread_that_waits_for_the_precision_of_another_holds_no_lock(captured):
    fast, model, _ = make()
    fast(images(2, 3, 5, 5))
    entered, leave = threading.Event(), threading.Event()

    def verify() -> torch.Tensor:
        with float32_products(tf32=True):
            entered.set()
            assert leave.wait(60)
            return fast(images(2, 3, 5, 5))

    with ThreadPoolExecutor(2) as pool:
        verifying = pool.submit(verify)
        assert entered.wait(60)
        planning = pool.submit(fast, images(8, 3, 5, 5))  # waits for the end of the other precision
        time.sleep(0.2)
        leave.set()
        torch.testing.assert_close(verifying.result(20), model(images(2, 3, 5, 5)))
        torch.testing.assert_close(planning.result(60), model(images(8, 3, 5, 5)))


def test_a_call_inside_a_capture_of_the_callers_is_refused(monkeypatch):
    fast, model, executor = make()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(executor, "_is_cuda", True)
    with pytest.raises(BackendError, match="call the module outside of the capture"):
        fast(images(3, 3, 5, 5))
    monkeypatch.setattr(executor, "_is_cuda", False)
    torch.testing.assert_close(fast(images(3, 3, 5, 5)), model(images(3, 3, 5, 5)))


def test_after_a_failed_capture_the_next_one_gets_a_pool_of_its_own(monkeypatch):
    _, _, executor = make()
    pools: list[int] = []

    @contextlib.contextmanager
    def failing(graph, stream, pool):
        pools.append(pool)
        yield
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    class Stream:
        def wait_stream(self, other: Stream) -> None: ...

    monkeypatch.setattr(executor_module, "capture", failing)
    monkeypatch.setattr(executor, "_streams", [Stream()])
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: len(pools))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    program = executor.program(3)
    ready = executor_module._Ready(program, program.bind(torch.zeros(program.schedule.arena.size, dtype=torch.uint8)))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="previous error during capture"):
            executor._capture(ready)
    assert pools == [0, 1]


def test_an_interrupt_while_a_program_is_made_leaves_the_module_usable(captured, monkeypatch):
    fast, model, _ = make()
    with monkeypatch.context() as patch:
        patch.setattr(executor_module.Program, "__init__", lambda self, *arguments: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fast(images(2, 3, 5, 5))

    torch.testing.assert_close(fast(images(2, 3, 5, 5)), model(images(2, 3, 5, 5)))
