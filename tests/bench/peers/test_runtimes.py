from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastcnn.bench.peers.runtimes import onnxruntime_runner
from fastcnn.bench.peers.table import PEERS
from fastcnn.errors import BackendError

THREADS = 2


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
