from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastcnn.bench.peers.base import Peer, Prepared
from fastcnn.bench.peers.runtimes import OnnxRuntime, onnxruntime_runner
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.table import PEERS, select_peers
from fastcnn.bench.peers.torch import TorchCompile, TorchCompileFreezing
from fastcnn.errors import BackendError, UnknownNameError

COMPILED = ("torch_compile", "torch_compile_freezing")
THREADS = 2


@pytest.fixture
def x(input_shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(input_shape, generator=torch.Generator().manual_seed(0))


def _prepared(name: str, subject: Subject, x: torch.Tensor) -> Prepared:
    peer = PEERS[name]()
    reason = peer.available()
    if reason:
        pytest.skip(reason)
    torch.set_num_threads(THREADS)
    with subject:
        return peer.prepare(subject, x, THREADS)


@pytest.fixture(autouse=True)
def _same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if "cpu" in peer.devices and name not in COMPILED])
def test_row_computes_the_model_and_keeps_it_as_it_was(name: str, subject: Subject, x: torch.Tensor) -> None:
    before = copy.deepcopy(subject.model.state_dict())
    prepared = _prepared(name, subject, x)
    with torch.inference_mode():
        torch.testing.assert_close(prepared.run(x), subject.model(x))
        first = prepared.run(x)
        kept = first.clone()
        prepared.run(x + 1)
        torch.testing.assert_close(first, kept, rtol=0, atol=0)  # the next run does not write into what the last one gave back
    torch.testing.assert_close(dict(subject.model.state_dict()), dict(before), rtol=0, atol=0)
    assert all(parameter.is_contiguous() for parameter in subject.model.parameters())
    assert prepared.proof


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_row_computes_the_model_and_leaves_the_switches(name: str, subject: Subject, x: torch.Tensor) -> None:
    import torch._inductor.config as inductor

    before = inductor.freezing
    prepared = _prepared(name, subject, x)
    assert inductor.freezing == before
    with torch.inference_mode():
        torch.testing.assert_close(prepared.run(x), subject.model(x))
    assert prepared.proof["graphs"] == "1"
    assert prepared.proof["graph breaks"] == "0"
    assert prepared.proof["from PyTorch's cache"] in ("yes", "no")
    PEERS[name]().release()


def test_freezing_is_switched_off_again_after_an_error(subject: Subject, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    seen = []

    def broken(*args: Any, **options: Any) -> None:
        seen.append(inductor.freezing)
        raise RuntimeError("no")

    monkeypatch.setattr(torch, "compile", broken)
    before = inductor.freezing
    with pytest.raises(RuntimeError, match="no"):
        TorchCompileFreezing().prepare(subject, x, THREADS)
    assert seen == [True]
    assert inductor.freezing == before


def test_compile_that_compiled_nothing_is_an_error(subject: Subject, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    with pytest.raises(BackendError, match="ran eagerly"):
        TorchCompile().prepare(subject, x, THREADS)


def test_compile_without_a_compiler_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = TorchCompile().available()
    assert reason is not None
    assert "no-such-compiler" in reason


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_runtime_that_is_not_installed_is_absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package, *rest: None if package == name else find_spec(package, *rest))
    assert PEERS[name]().available() == f"{name} is not installed"
    assert PEERS[f"fastcnn_{name}"]().available() is not None


def test_onnxruntime_on_another_provider_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **options: session)
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        onnxruntime_runner(Path("any.onnx"), THREADS)


def test_plain_export_is_made_once_and_counted_for_each_row(subject: Subject, x: torch.Tensor) -> None:
    if OnnxRuntime().available():
        pytest.skip("onnxruntime is not installed")
    with subject:
        first = OnnxRuntime().prepare(subject, x, THREADS)
        path, seconds = subject.plain_onnx(x)
        written = path.stat().st_mtime_ns
        second = OnnxRuntime().prepare(subject, x[:1], THREADS)
        assert path.stat().st_mtime_ns == written
        assert first.reused_seconds == 0.0
        assert second.reused_seconds == seconds > 0
        for size in (1, 3):
            batch = torch.rand(size, *x.shape[1:])
            torch.testing.assert_close(second.run(batch), subject.model(batch).detach())
    assert not path.parent.exists()


def test_fastcnn_row_with_another_backend_is_an_error(subject: Subject, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastcnn

    monkeypatch.setattr(fastcnn, "optimize", lambda *args, **options: SimpleNamespace(backend="torch"))
    with pytest.raises(BackendError, match="gave back the backend torch where onnxruntime was asked for"):
        PEERS["fastcnn_onnxruntime"]().prepare(subject, x, THREADS)


def test_selecting_rows() -> None:
    def names(chosen: list[Peer]) -> list[str]:
        return [peer.name for peer in chosen]

    assert names(select_peers(None)) == [name for name, peer in PEERS.items() if "cpu" in peer.devices]
    assert names(select_peers(None, "cuda")) == [name for name, peer in PEERS.items() if "cuda" in peer.devices]
    assert names(select_peers(["openvino", "eager", "eager"])) == ["eager", "openvino"]
    assert names(select_peers(["fastcnn_o*", "fastcnn"])) == ["fastcnn_onnxruntime", "fastcnn_openvino", "fastcnn"]
    assert names(select_peers(["*_tensorrt", "eager*"], "cuda")) == [
        "eager",
        "eager_channels_last",
        "eager_cuda_graph",
        "onnxruntime_tensorrt",
        "fastcnn_file_tensorrt",
    ]
    assert names(select_peers(["eager_cuda_graph"])) == ["eager_cuda_graph"]  # named in full: it is listed as absent
    with pytest.raises(UnknownNameError, match="did you mean onnxruntime"):
        select_peers(["onnxruntim"])
