"""The part of the demo that reads handwriting; the digits are in the package, and nothing is downloaded."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from fastcnn.bench import demo
from fastcnn.bench.records.result import GroupResult, RowResult, Status
from fastcnn.data.samples import digit_files
from fastcnn.errors import ParityError
from fastcnn.graph.plan import PassReport
from fastcnn.models import create_model


def test_digits_are_those_of_mnist(shared_dir):
    from torchvision.datasets import MNIST

    test_set = MNIST(shared_dir / "data", train=False)
    files = digit_files()
    assert list(files.values()) == list(range(10))
    for file, digit in files.items():
        index = int(file.stem.removeprefix("mnist_test_"))
        with Image.open(file) as picture:
            assert picture.tobytes() == test_set.data[index].numpy().tobytes()
        assert int(test_set.targets[index]) == digit


def test_demo_shows_passes_that_found_something_and_warns_of_a_busy_machine(tmp_path, monkeypatch, capsys):
    def timed(name, subject, peers, shape, settings):
        rows = [RowResult(peer.name, peer.ours, Status.TIMED, rounds=[[0.01]] * settings.rounds) for peer in peers]
        return GroupResult(name, shape[0], shape, "float32", "cpu", 1e-5, rows)

    report = SimpleNamespace(
        passes=[PassReport("fold_batch_norm", 3), PassReport("drop_dropout")],
        bytes=1,
        sha256="00",
        seconds=1.0,
        parity=SimpleNamespace(summary=lambda: "passed"),
    )
    monkeypatch.setattr(demo, "measure_group", timed)
    monkeypatch.setattr(demo, "export_onnx", lambda *args, **options: report)
    monkeypatch.setattr(demo, "verify_file", lambda path: report.parity)
    monkeypatch.setattr(demo, "read_digits", lambda path, console: None)
    monkeypatch.setattr(demo, "load_average", lambda: 64.0 * demo.usable_cores())
    demo.run_demo("simple_cnn", tmp_path / "simple_cnn.onnx", 5)
    said = capsys.readouterr().out
    assert "fold_batch_norm: 3×" in said
    assert "drop_dropout" not in said
    assert "the machine was busy before the run" in said
    monkeypatch.setattr(demo, "load_average", lambda: 0.0)
    demo.run_demo("simple_cnn", tmp_path / "simple_cnn.onnx", 5)
    assert "busy" not in capsys.readouterr().out


def test_reads_all_digits(tmp_path):
    shown = io.StringIO()
    demo.read_digits(tmp_path / "digits.onnx", Console(file=shown, width=200))
    lines = shown.getvalue().splitlines()
    assert [line.split("shows ")[1].split(" (")[0] for line in lines[2:]] == [f"{digit}, read as {digit}" for digit in range(10)]
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]


def test_a_misread_digit_is_a_failed_check(tmp_path, monkeypatch):
    def turned(name, weights):
        model = create_model(name, weights)
        with torch.no_grad():
            for parameter in (model.fc.weight, model.fc.bias):
                parameter.copy_(parameter.roll(1, 0))
        return model

    monkeypatch.setattr(demo, "create_model", turned)
    with pytest.raises(ParityError, match=r"digits\.onnx misreads mnist_test_00003\.png, "):
        demo.read_digits(tmp_path / "digits.onnx", Console(file=io.StringIO()))
