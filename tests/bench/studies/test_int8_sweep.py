"""The sweep over models in 8 bits: crops of some photographs observe, crops of others judge, and every model gets a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastcnn.bench.studies import int8_sweep
from fastcnn.errors import ParityError, RequestError
from fastcnn.models.request import ModelRequest, SourceInfo
from fastcnn.preprocessing import Preprocessing

PREPROCESSING = Preprocessing()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six smooth pictures, every third of them red and the others blue."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(6):
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[..., 0 if number % 3 == 2 else 2] = np.linspace(40, 250, 80, dtype=np.uint8) - number
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def small(request: ModelRequest) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 16, 7, 8), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*body, nn.Linear(32, 5)).eval()
    model.__dict__["fastcnn_info"] = SourceInfo(request.model, {}, "random", (3, 224, 224), PREPROCESSING, None)
    return model


def test_crops_of_some_photographs_observe_and_those_of_others_judge(photographs: Path) -> None:
    found = int8_sweep.crops(photographs, 15, PREPROCESSING)
    assert found.shape == (15, 3, 224, 224)
    assert torch.equal(found, int8_sweep.crops(photographs, 15, PREPROCESSING))
    red = [bool(picture[0].mean() > picture[2].mean()) for picture in found]
    assert red == [number % 5 == 4 for number in range(15)]
    (photographs / "5.png").unlink()
    for number in range(3):
        (photographs / f"{number}.png").unlink()
    with pytest.raises(RequestError, match="holds 2 pictures"):
        int8_sweep.crops(photographs, 5, PREPROCESSING)


def test_every_model_gets_a_line_and_a_refused_one_its_reason(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(int8_sweep, "open_model", small)
    file = tmp_path / "sweep.json"
    common = ["sweep", "--pictures", str(photographs), "--crops", "20", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", [*common, "--models", "one"])
    int8_sweep.main()

    def refuse(*args: object, **options: object) -> None:
        raise ParityError("misses its limits")

    monkeypatch.setattr(int8_sweep, "export_onnx", refuse)
    monkeypatch.setattr(sys, "argv", [*common, "--models", "two"])
    int8_sweep.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("one: 0.")
    assert "agree" in first
    assert second == "two: refused: misses its limits"
    written = json.loads(file.read_text())
    assert written["pictures"] == [f"{number}.png" for number in range(6)]
    assert "nothing was timed" in written["says"]
    one, two = written["models"]["one"], written["models"]["two"]
    assert (one["batch"], one["observed"], one["judged"], one["verified"]) == ("batch", 16, 4, True)
    assert all(0 < figures["relative_error"] < 0.1 for figures in one["gate"].values())
    assert two["refused"] == "misses its limits"
