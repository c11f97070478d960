"""Throughput of whole models on the CPU and on CUDA; see the README beside this.

A case is checked against the float64 reference before it is timed. Each runs by itself: to compare rows with one another use
`fastcnn bench`, which takes turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastcnn.bench.peers.subject import Subject, model_under_test
from fastcnn.bench.peers.table import PEERS
from fastcnn.models import model_spec
from fastcnn.parity import verify
from fastcnn.precision import Precision

# One of each kind of network: concatenating branches, residual adds, many small concatenations, plain convolutions.
MODELS = ("inception_v3", "resnet50", "densenet121", "squeezenet1_1")
CPU = ("eager_channels_last", "fastcnn_torch", "fastcnn_onnxruntime", "fastcnn_openvino")
CUDA = ("eager_cuda_graph", "torch_compile_max_autotune", "onnxruntime_cuda", "fastcnn_torch", "fastcnn_triton")


def _cases() -> Iterator[object]:
    for model in MODELS:
        for batch_size in (1, 8):
            for row in CPU:
                yield pytest.param(model, batch_size, row, "cpu", Precision.fp32, id=f"{model}-{batch_size}-cpu-fp32-{row}")
        for batch_size in (1, 8, 32, 128):
            for row in CUDA:
                name = f"{model}-{batch_size}-cuda-fp16-{row}"
                yield pytest.param(model, batch_size, row, "cuda", Precision.fp16, id=name, marks=pytest.mark.cuda)


@pytest.mark.parametrize(("model", "batch_size", "row", "device", "precision"), tuple(_cases()))
def test_throughput(benchmark: BenchmarkFixture, model: str, batch_size: int, row: str, device: str, precision: Precision) -> None:
    """One row on one model, checked and then timed by itself."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    peer = PEERS[row]()
    reason = peer.available(device, precision)
    if reason:
        pytest.skip(reason)
    x = torch.rand(batch_size, *model_spec(model).input_size, generator=torch.Generator().manual_seed(0)).to(device, precision.dtype)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        subject = stack.enter_context(Subject(model_under_test(model), precision, device))
        stack.enter_context(precision.switches())
        if device == "cuda":
            torch.cuda.synchronize()  # model and input came to the device on another stream
            stack.enter_context(torch.cuda.stream(torch.cuda.Stream()))
        stack.callback(peer.release)
        prepared = peer.prepare(subject, x, threads)
        parity = verify(prepared.run, subject.model, x, batch_sizes=(batch_size,), dtype=precision.dtype)
        parity.require(row)
        benchmark.group = f"{model}, batch {batch_size}, {device}, {precision}"
        benchmark.extra_info.update({"threads": threads, "relative_error": parity.relative_error} | dict(prepared.proof))
        benchmark.pedantic(_to_its_end(prepared.run, device), args=(x,), rounds=20, iterations=1, warmup_rounds=5)


def _to_its_end(run: Callable[[Tensor], Tensor], device: str) -> Callable[[Tensor], Tensor]:
    """`run`, and on CUDA the wait for what it started."""
    if device == "cpu":
        return run

    def wait(x: Tensor) -> Tensor:
        output = run(x)
        torch.cuda.synchronize()
        return output

    return wait
