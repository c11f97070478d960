"""cuDNN's graph API: a stand-in for the package computes what it is told of on CPU memory; see
test_cudnn_graph_installed.py for the package itself."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch

from fastcnn.engines.triton.choices import ChoiceStore
from fastcnn.engines.triton.implementations import cudnn_graph
from fastcnn.engines.triton.implementations.cudnn_graph import CudnnGraphConvolution, layout_of
from fastcnn.engines.triton.implementations.table import BY_NAME
from fastcnn.engines.triton.options import TritonOptions
from fastcnn.engines.triton.problem import ConvOperands, ConvProblem
from fastcnn.engines.triton.trial import Trial, make_operands
from fastcnn.engines.triton.tuning import Chooser
from fastcnn.errors import BackendError

from ..problems import CPU, step_of, weights_of
from ..problems import PROBLEM as ANY_PROBLEM
from .cudnn_stand_in import DataType, Mode, Note, make_module

CUDA = torch.device("cuda", 0)
PROBLEM = dataclasses.replace(
    ANY_PROBLEM, dtype=torch.float16, in_channels=8, out_channels=16, in_pitch=24, pieces=(16,), out_pitches=(40,), concats=()
)


@pytest.fixture(autouse=True)
def forget():
    cudnn_graph.load.cache_clear()
    cudnn_graph.missing.cache_clear()
    yield
    cudnn_graph.load.cache_clear()
    cudnn_graph.missing.cache_clear()


@pytest.fixture
def cudnn(monkeypatch, tmp_path):
    """The stand-in in place of the package, on CPU tensors, with a cache folder of its own."""
    module = make_module()
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=7))
    return module


def run(implementation: CudnnGraphConvolution, problem: ConvProblem = PROBLEM, rank: int = 0) -> torch.Tensor:
    operands = make_operands(problem, CPU)
    implementation.run(problem, (rank,), weights_of(problem), operands)
    return operands.destinations[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"residual": True, "dtype": torch.bfloat16},
        {"relu": False, "bias": False, "dtype": torch.float32},
        {"stride": (2, 1), "dilation": (2, 1), "padding": (2, 3)},
        {"kernel": (1, 1), "padding": (0, 0), "height": 1, "width": 1, "batch": 1},
        {"in_channels": 1, "in_pitch": 1, "out_channels": 1, "pieces": (1,), "out_pitches": (3,)},
    ],
    ids=["slices", "residual bf16", "plain fp32", "geometry", "one pixel", "one channel"],
)
def test_what_is_described_is_the_convolution(cudnn, changes):
    problem = dataclasses.replace(PROBLEM, **changes)

    assert Trial(problem, step_of(problem), CPU).check(CudnnGraphConvolution(), (0,)) is None


def test_the_graph(cudnn):
    run(CudnnGraphConvolution(), dataclasses.replace(PROBLEM, residual=True))
    (graph,) = cudnn.graphs
    tensors = graph.tensors

    assert [name for name, _ in graph.operations] == ["conv_fprop", "add", "add", "relu"]
    assert graph.types == {
        "name": "convolution",
        "io_data_type": DataType.HALF,
        "intermediate_data_type": DataType.FLOAT,
        "compute_data_type": DataType.FLOAT,
    }
    assert {name: tensor.dim for name, tensor in tensors.items()} == {
        "x": [2, 8, 7, 5],
        "weight": [16, 8, 3, 1],
        "bias": [1, 16, 1, 1],
        "residual": [2, 16, 7, 5],
        "y": [2, 16, 7, 5],
    }
    assert {name: tensor.stride for name, tensor in tensors.items()} == {
        "x": [7 * 5 * 24, 1, 5 * 24, 24],
        "weight": [3 * 8, 1, 8, 8],
        "bias": [16, 1, 16, 16],
        "residual": [7 * 5 * 16, 1, 5 * 16, 16],
        "y": [7 * 5 * 40, 1, 5 * 40, 40],
    }
    assert {name for name, tensor in tensors.items() if tensor.data_type is DataType.FLOAT} == {"bias"}  # what makes cuDNN fuse
    assert len({tensor.uid for tensor in tensors.values()}) == len(tensors)
    assert graph.settings == {"modes": [Mode.A, Mode.FALLBACK], "notes": [Note.NONDETERMINISTIC], "workspace": 64 << 20}


@pytest.mark.parametrize(("tf32", "forbidden"), [(False, {"TENSOR_CORE", "DOWN_CONVERT_INPUTS"}), (True, {"DOWN_CONVERT_INPUTS"})])
def test_float32_is_not_computed_in_less(cudnn, tf32, forbidden):
    run(CudnnGraphConvolution(), dataclasses.replace(PROBLEM, dtype=torch.float32, tf32=tf32))

    assert {note.name for note in cudnn.graphs[0].settings["notes"]} == forbidden | {"NONDETERMINISTIC"}


@pytest.mark.parametrize("first", [8, 3], ids=["aligned", "not aligned"])
def test_only_its_slice_is_written(cudnn, first):
    memory = torch.full((2, 7, 5, 40), 3.0, dtype=torch.float16).permute(0, 3, 1, 2)
    trial = Trial(PROBLEM, step_of(PROBLEM), CPU)
    wide = torch.empty(2, 7, 5, 24, dtype=torch.float16).permute(0, 3, 1, 2)
    x = wide[:, first : first + 8].copy_(trial.operands.x)
    CudnnGraphConvolution().run(PROBLEM, (0,), trial.weights, ConvOperands(x, None, (memory[:, first : first + 16],)))

    torch.testing.assert_close(memory[:, first : first + 16].float(), trial.expected, rtol=5e-3, atol=5e-3)
    assert (memory[:, :first] == 3).all()
    assert (memory[:, first + 16 :] == 3).all()


def test_threads_share_one_plan(cudnn):
    implementation, results = CudnnGraphConvolution(), []
    barrier = threading.Barrier(6)

    def work():
        barrier.wait()
        results.append(run(implementation))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert cudnn.builds == [0]
    assert len(cudnn.streams) == 1
    assert len(results) == 6
    assert all(torch.equal(result, results[0]) for result in results)


def test_other_strides_and_other_ranks_are_other_plans(cudnn):
    implementation = CudnnGraphConvolution()
    run(implementation)
    run(implementation, rank=2)
    run(implementation, dataclasses.replace(PROBLEM, in_pitch=32))

    assert cudnn.builds == [0, 2, 0]


def test_the_next_process_reads_the_plan(cudnn, tmp_path):
    expected = run(CudnnGraphConvolution())
    (file,) = (tmp_path / "cudnn-plans").iterdir()
    assert file.suffix == ".plan"

    torch.testing.assert_close(run(CudnnGraphConvolution()), expected)
    assert cudnn.builds == [0]

    cudnn.backend_version = lambda: 92700  # another library's kernels
    run(CudnnGraphConvolution())
    assert cudnn.builds == [0, 0]
    assert len(list(file.parent.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"not a plan"])
def test_a_damaged_file_is_replaced(cudnn, tmp_path, content):
    run(CudnnGraphConvolution())
    (file,) = (tmp_path / "cudnn-plans").iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)

    run(CudnnGraphConvolution())
    assert cudnn.builds == [0, 0]
    assert file.read_bytes() == whole


def test_a_plan_that_cannot_be_kept_still_runs(cudnn, tmp_path, monkeypatch):
    cudnn.serialises = False
    run(CudnnGraphConvolution())
    assert not (tmp_path / "cudnn-plans").exists()

    cudnn.serialises = True
    monkeypatch.setattr(Path, "replace", lambda source, target: (_ for _ in ()).throw(OSError("no space left")))
    run(CudnnGraphConvolution())
    assert list((tmp_path / "cudnn-plans").iterdir()) == []


@pytest.mark.parametrize(("rank", "broken", "built"), [(1, {1}, 2), (3, {3}, 0), (9, set(), 1)], ids=["the next", "from the start", "fewer plans"])
def test_a_rank_that_is_not_there_gives_another(cudnn, rank, broken, built):
    cudnn.broken = broken
    run(CudnnGraphConvolution(), rank=rank)

    assert cudnn.graphs[-1].built == built


def test_no_plan_is_an_error_of_the_backend(cudnn):
    cudnn.broken = {0, 1, 2, 3}
    with pytest.raises(BackendError, match=r"no plan for HALF .* with weight \(16, 8, 3, 1\): plan 3 does not compile$"):
        run(CudnnGraphConvolution())
    cudnn.plans = 0
    with pytest.raises(BackendError, match="none is offered"):
        run(CudnnGraphConvolution())


def test_the_tuner_times_its_plans_and_passes_over_what_does_not_run(cudnn, monkeypatch, tmp_path):
    monkeypatch.setitem(BY_NAME, "cudnn_graph", CudnnGraphConvolution())
    monkeypatch.setattr(CudnnGraphConvolution, "why_not", lambda self, problem, device: None)
    monkeypatch.setattr(Chooser, "_can_measure", lambda self: self._has_time())
    prices = {"cudnn_graph plan 1": 0.5}
    monkeypatch.setattr(Chooser, "_time", lambda self, call, what: (call(), next((p for name, p in prices.items() if name in what), 1.0))[1])

    def choose():
        chooser = Chooser(CPU, TritonOptions(use_cache=False, implementations=("cudnn_graph", "library")), ChoiceStore(CPU, on_disk=False))
        chooser.start_clock()
        return chooser.choose_all([(PROBLEM, step_of(PROBLEM))])[0]

    choice = choose()
    assert (choice.implementation, choice.variant) == ("cudnn_graph", (1,))
    assert set(cudnn.builds) == set(range(cudnn_graph.TIMED_PLANS))

    cudnn.plans = 0
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path / "empty"))
    monkeypatch.setitem(BY_NAME, "cudnn_graph", CudnnGraphConvolution())
    assert choose().implementation == "library"


@pytest.mark.parametrize(
    ("changes", "device", "why"),
    [
        ({}, CPU, "a cpu device"),
        ({"pieces": (8, 8), "out_pitches": (40, 8)}, CUDA, "several destinations"),
        ({"groups": 2}, CUDA, "groups"),
        ({"input_channels_last": False}, CUDA, "not channels_last"),
        ({"dtype": torch.float64}, CUDA, "torch.float64"),
        ({}, CUDA, None),
    ],
)
def test_why_not(cudnn, changes, device, why):
    reason = CudnnGraphConvolution().why_not(dataclasses.replace(PROBLEM, **changes), device)

    assert reason is None if why is None else why in reason


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", None)

    assert "pip install 'fastcnn[cudnn]'" in CudnnGraphConvolution().why_not(PROBLEM, CUDA)


def test_a_package_that_is_too_old(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", make_module("1.9.0"))

    assert CudnnGraphConvolution().why_not(PROBLEM, CUDA) == "nvidia-cudnn-frontend is 1.9.0; 1.14 or newer is needed"


def test_a_survey_looks_at_more_plans():
    implementation = CudnnGraphConvolution()

    assert len(implementation.variants(PROBLEM, CUDA, None)) > len(implementation.variants(PROBLEM, CUDA)) == cudnn_graph.TIMED_PLANS


@pytest.mark.parametrize("size", [(1, 8, 1, 1), (2, 8, 1, 1), (3, 8, 4, 1), (3, 8, 1, 4), (1, 8, 2, 3), (2, 1, 3, 4)], ids=str)
def test_strides_of_sizes_of_one_are_those_of_nhwc(size):
    n, c, h, w = size
    tensor = torch.empty(n, h, w, c).permute(0, 3, 1, 2)
    odd = tensor.as_strided(size, [stride if length > 1 else 999 for stride, length in zip(tensor.stride(), size, strict=True)])

    assert layout_of(odd) == (size, (h * w * c, 1, w * c, c))


def test_it_is_imported_when_it_is_used():
    code = "import sys, fastcnn.engines.triton.implementations.table; print('cudnn' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
