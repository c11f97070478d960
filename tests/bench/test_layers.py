"""`fastcnn bench layers`, its device replaced by the interpreter and its clock by a table."""

from __future__ import annotations

import importlib.util
import json

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import torch
from interpreting import interpret_kernels, interpreter_stays_on  # noqa: F401

from fastcnn.bench.studies.layers import table_of, time_layers, write_layers
from fastcnn.cli.bench.layers import layers
from fastcnn.engines.triton import survey
from fastcnn.engines.triton.choices import parse_choices
from fastcnn.engines.triton.options import IMPLEMENTATIONS
from fastcnn.errors import BackendError, RequestError, UnknownNameError
from fastcnn.precision import Precision

interpret_kernels()


@pytest.fixture
def report(monkeypatch):
    prices = iter(range(1, 10_000))
    monkeypatch.setattr(survey, "device_milliseconds", lambda run, device: float(next(prices)))
    seen: list[str] = []
    report = time_layers("simple_cnn", [1], Precision.fp32, device="cpu", progress=lambda done, total, what: seen.append(f"{done}/{total} {what}"))
    assert seen == ["0/2 conv1", "1/2 conv2"]
    return report


def test_every_variant_of_every_layer(report, tmp_path):
    assert [len(layer.names) for layer in report.layers] == [1, 1]
    for layer in report.layers:
        assert {candidate.implementation for candidate in layer.candidates} == set(IMPLEMENTATIONS)
        assert all((candidate.milliseconds is None) == (candidate.reason is not None) for candidate in layer.candidates)
        assert layer.flops > 0
    first, second = report.layers
    assert first.best("triton_stem") is not None
    assert first.best("triton") is None  # the network's input is read as it comes
    assert second.best("triton") is not None
    columns, rows = table_of(report)
    assert columns[:3] == ("layer", "batch", "times")
    assert len(rows) == 2

    write_layers(report, tmp_path / "layers.json")
    stored = json.loads((tmp_path / "layers.json").read_text(encoding="utf-8"))
    assert stored["schema"] == "fastcnn-layers/1"
    assert stored["layers"][0]["candidates"]


def test_choices_are_those_that_the_engine_reads(report):
    chosen = parse_choices(report.choices(torch.device("cpu")))

    assert chosen.keys() == {layer.key for layer in report.layers}
    for layer in report.layers:
        best = layer.best()
        assert best is not None
        assert (chosen[layer.key].implementation, chosen[layer.key].variant) == (best.implementation, best.variant)


def test_wrong_requests():
    with pytest.raises(RequestError, match="batch sizes must be whole numbers from 1"):
        time_layers("simple_cnn", [0], Precision.fp32, device="cpu")
    with pytest.raises(UnknownNameError, match="unknown convolution implementation 'tritn'"):
        time_layers("simple_cnn", [1], Precision.fp32, device="cpu", names=["tritn"])


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="there is no CUDA device"):
        layers("simple_cnn", batch_size="1")
