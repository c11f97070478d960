"""Throughput of whole models on the CPU, for following over commits with pytest-benchmark's own storage and compare:

    pytest bench --benchmark-only --benchmark-autosave
    pytest-benchmark compare

A case is checked against the float64 reference before it is timed. Each runs by itself: to compare rows with one another use
`fastcnn bench`, which takes turns.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastcnn.bench.peers import PEERS, Subject
from fastcnn.models.registry import create_model, model_spec
from fastcnn.parity import verify

# One of each kind of network: concatenating branches, residual adds, many small concatenations, plain convolutions.
MODELS = ("inception_v3", "resnet50", "densenet121", "squeezenet1_1")
ROWS = ("eager_channels_last", "fastcnn_torch", "fastcnn_onnxruntime", "fastcnn_openvino")
BATCH_SIZES = (1, 8)


@cache
def _model(name: str) -> torch.nn.Module:
    return create_model(name)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("model", MODELS)
def test_throughput(benchmark: BenchmarkFixture, model: str, batch_size: int, row: str) -> None:
    peer = PEERS[row]()
    reason = peer.available()
    if reason:
        pytest.skip(reason)
    x = torch.rand(batch_size, *model_spec(model).input_size, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    with Subject(_model(model)) as subject:
        prepared = peer.prepare(subject, x, threads)
        parity = verify(prepared.run, subject.model, x, batch_sizes=(batch_size,))
        parity.require(row)
        benchmark.group = f"{model} batch {batch_size}"
        benchmark.extra_info.update({"threads": threads, "relative_error": parity.relative_error} | dict(prepared.proof))
        benchmark.pedantic(prepared.run, args=(x,), rounds=20, iterations=1, warmup_rounds=5)
        peer.release()
