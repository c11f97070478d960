"""cuDNN's graph API as the package has it, where it is installed: planned for a GPU that need not be there, and run where one is."""

from __future__ import annotations

import dataclasses
import json
import zlib

import pytest
import torch

from fastcnn.engines.triton.implementations import cudnn_graph
from fastcnn.engines.triton.implementations.cudnn_graph import ConvGraph, CudnnGraphConvolution, layout_of
from fastcnn.engines.triton.trial import Trial
from fastcnn.errors import BackendError

from ..problems import PROBLEM as ANY_PROBLEM
from ..problems import step_of
from .cudnn_stand_in import TORCH_TYPES, Note

CUDA = torch.device("cuda", 0)
PROBLEM = dataclasses.replace(
    ANY_PROBLEM, dtype=torch.float16, in_channels=8, out_channels=16, in_pitch=24, pieces=(16,), out_pitches=(40,), concats=()
)

H100 = {
    "deviceName": "H100",
    "cudaDeviceId": 0,
    "deviceVer": 900,
    "driverVer": 13000,
    "multiProcessorCount": 132,
    "regsPerBlock": 65536,
    "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024,
    "oversizedSharedMemoryPerBlock": 0,
    "maxRegistersPerSM": 65536,
    "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "pciDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
    "totalGlobalMem": 80 << 30,
    "smClockRateKHz": 1980000,
    "memClockRateKHz": 2619000,
    "l2CacheSize": 50 << 20,
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
}


@pytest.fixture
def installed():
    """The package itself and a GPU that it may plan for without having it."""
    module = pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
    try:
        return module, module.create_device_properties(json.dumps(H100))
    except RuntimeError as error:
        pytest.skip(f"this cuDNN cannot plan for a GPU that is not there: {error}")


def graph_of(dtype: str, *, residual: bool = False, relu: bool = True, tf32: bool = False) -> ConvGraph:
    x, y = layout_of(torch.empty(2, 17, 17, 64).permute(0, 3, 1, 2)[:, :32]), layout_of(torch.empty(2, 17, 17, 96).permute(0, 3, 1, 2)[:, 8:40])
    other = layout_of(torch.empty(2, 32, 17, 17).to(memory_format=torch.channels_last))
    return ConvGraph(dtype, x, (32, 32, 1, 7), other if residual else None, y, (1, 1), (0, 3), (1, 1), relu, tf32)


@pytest.mark.parametrize("dtype", TORCH_TYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_package_takes_the_graph(installed, dtype, residual, relu):
    module, gpu = installed
    graph = graph_of(dtype, residual=residual, relu=relu).describe(module, device_property=gpu)

    graph.validate()
    graph.build_operation_graph()
    assert all(hasattr(module.numerical_note, note.name) for note in Note)


def test_the_package_plans_and_keeps_the_plan(installed, tmp_path):
    module, gpu = installed
    file = tmp_path / "folder" / "one.plan"
    plan = graph_of("FLOAT").plan(module, 0, device_property=gpu)  # precompiled: needs no driver
    cudnn_graph._write(plan, file)

    assert 0 <= plan.get_workspace_size() <= 64 << 20
    assert [entry.name for entry in file.parent.iterdir()] == ["one.plan"]
    if tuple(map(int, module.__version__.split(".")[:2])) >= (1, 30):  # that reads plans without a GPU
        again = module.pygraph(device_property=gpu)
        again.deserialize(list(zlib.decompress(file.read_bytes())))
        assert again.get_workspace_size() == plan.get_workspace_size()


def test_the_package_says_why_there_is_no_plan(installed):
    module, gpu = installed
    with pytest.raises(BackendError, match="no plan for HALF"):
        dataclasses.replace(graph_of("HALF"), weight=(32, 31, 1, 7)).plan(module, 0, device_property=gpu)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_on_a_gpu(tmp_path, monkeypatch, dtype, residual):
    """In a slice, launched by itself and from a CUDA graph, by a plan that was built and one that was read."""
    pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setenv("FASTCNN_CACHE", str(tmp_path))
    problem = dataclasses.replace(PROBLEM, dtype=dtype, residual=residual, in_channels=32, in_pitch=96)
    step = step_of(problem)
    step.weight, step.bias = step.weight.to(CUDA), step.bias.to(CUDA)
    trial = Trial(problem, step, CUDA)
    (destination,) = trial.operands.destinations

    for implementation in (CudnnGraphConvolution(), CudnnGraphConvolution()):
        assert trial.check(implementation, (0,)) is None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            trial.run(implementation, (0,))
        destination.zero_()
        graph.replay()
        torch.testing.assert_close(destination.float(), trial.expected, rtol=3e-2, atol=3e-2)
