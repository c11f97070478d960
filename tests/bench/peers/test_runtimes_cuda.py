"""The rows for a GPU: without one, with sessions that are made up; with one, each against the reference."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcnn.bench.peers.runtimes import bound_runner
from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.table import PEERS
from fastcnn.errors import BackendError
from fastcnn.precision import Precision


def test_bound_session_reads_and_writes_pytorchs_memory(subject: Subject, x: torch.Tensor) -> None:
    pytest.importorskip("onnxruntime")
    with subject:
        path, _ = subject.plain_onnx(x, len(x))
        run, proof = bound_runner(path, [("CPUExecutionProvider", {})], x)
        for seed in range(3):
            picture = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(run(picture), subject.model(picture).detach())
        first = run(x)
        kept = first.clone()
        run(x + 1)
        torch.testing.assert_close(first, kept, rtol=0, atol=0)
    assert (proof["provider"], proof["bound to"]) == ("CPUExecutionProvider", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_cuda_provider_without_a_gpu_never_falls_back_to_the_cpu(subject: Subject, x: torch.Tensor) -> None:
    if PEERS["onnxruntime_cuda"]().available("cuda"):
        pytest.skip("this onnxruntime has no CUDA provider")
    with subject:
        path, _ = subject.plain_onnx(x, len(x))
        with pytest.raises(Exception, match=r"(?i)cuda|CPU EP|provider"):
            bound_runner(path, [("CUDAExecutionProvider", {"device_id": "0", "prefer_nhwc": "1", "use_tf32": "0"})], x)


class FakeSession:
    """A session that got these providers and options."""

    def __init__(self, providers: list[str], options: dict[str, str]) -> None:
        self.providers, self.options = providers, options

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {self.providers[0]: self.options}


@pytest.mark.parametrize(
    ("providers", "options", "reason"),
    [
        (["CPUExecutionProvider"], {}, "runs on CPUExecutionProvider where CUDAExecutionProvider was asked for"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], {"use_tf32": "1"}, "it runs with use_tf32=1"),
    ],
)
def test_session_that_is_not_as_asked_is_an_error(
    providers: list[str], options: dict[str, str], reason: str, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    asked: dict[str, Any] = {}

    def make(path: str, session_options: Any, **keywords: Any) -> FakeSession:
        asked.update(keywords, no_cpu=session_options.get_session_config_entry("session.disable_cpu_ep_fallback"))
        return FakeSession(providers, options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    with pytest.raises(BackendError, match=reason):
        bound_runner(Path("any.onnx"), [("CUDAExecutionProvider", {"use_tf32": "0", "prefer_nhwc": "1"})], x)
    assert (asked["no_cpu"], asked["enable_fallback"]) == ("1", 0)


def test_tensorrt_that_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package, *rest: None if package == "tensorrt" else find_spec(package, *rest))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
    assert PEERS["onnxruntime_tensorrt"]().available("cuda", Precision.fp16) == "TensorRT is not installed"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert PEERS["onnxruntime_tensorrt"]().available("cuda", Precision.fp16) == "this build of onnxruntime has no TensorrtExecutionProvider"
    assert PEERS["onnxruntime_cuda"]().available("cuda") == "this build of onnxruntime has no CUDAExecutionProvider"
    assert PEERS["onnxruntime_tensorrt"]().available("cuda", Precision.fp32) == "measured in tf32, fp16, bf16 only"
