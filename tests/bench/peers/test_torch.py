from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from fastcnn.bench.peers.subject import Subject
from fastcnn.bench.peers.table import PEERS
from fastcnn.bench.peers.torch import TorchCompile, TorchCompileFreezing
from fastcnn.errors import BackendError

from .preparing import COMPILED, THREADS, prepare_row


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_row_computes_the_model_and_leaves_the_switches(name: str, subject: Subject, x: torch.Tensor) -> None:
    import torch._inductor.config as inductor

    before = inductor.freezing
    prepared = prepare_row(name, subject, x)
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


def test_compile_keeps_a_warning_about_the_cuda_toolkit_away(
    subject: Subject, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("torch.utils.cpp_extension")

    def warns(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
        logger.warning("something else")
        return model

    monkeypatch.setattr(torch, "compile", warns)
    monkeypatch.setattr(logger, "propagate", False)  # releases of PyTorch differ in what stands above it
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    with pytest.raises(BackendError, match="ran eagerly"):
        TorchCompile().prepare(subject, x, THREADS)
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert not logger.filters


def test_compile_without_a_compiler_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = TorchCompile().available()
    assert reason is not None
    assert "no-such-compiler" in reason
