"""An ONNX file needs ONNX Runtime, Pillow and NumPy: what a process that predicts with one imports, and that it answers the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_support import write_pictures

from fastcnn.export import export_onnx
from fastcnn.models import create_model
from fastcnn.prediction.loading import load_predictor
from fastcnn.prediction.run import read_input

HEAVY = ("torch", "torchvision", "onnx", "onnxscript", "openvino", "safetensors", "matplotlib")

# Runs the command line on the arguments, and says at the end which of HEAVY it imported.
RUN = f"""
import sys
from fastcnn.cli import main
try:
    main()
finally:
    print("imported:", *[name for name in (*{HEAVY}, "onnxruntime") if name in sys.modules], file=sys.stderr)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RUN, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("preprocess", ["none", "normalize", "resize"])
def test_a_file_predicts_without_torch_and_gives_the_same_answers(tmp_path: Path, preprocess: str) -> None:
    files = write_pictures(tmp_path / "pictures", 5)
    model = create_model("simple_cnn", "mnist")
    export_onnx(model, tmp_path / "m.onnx", torch.rand(1, 1, 28, 28), preprocess=preprocess)
    done = run(tmp_path, "predict", "m.onnx", "pictures", "--json", "--top-k", "10")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "imported: onnxruntime"
    predictor = load_predictor(model, backend="reference")
    expected = predictor.probabilities(predictor.run([read_input(predictor, file) for file in files]))
    for line, row in zip(map(json.loads, done.stdout.splitlines()), expected, strict=True):
        given = {guess["class"]: guess["probability"] for guess in line["top"]}
        # Probabilities are rounded to six digits; in the file, resizing does not round to whole levels.
        np.testing.assert_allclose([given[index] for index in range(10)], row, atol=1e-6 if preprocess != "resize" else 2e-2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone.onnx", "pictures"], "gone.onnx does not exist"),
        (["r50.pth", "pictures"], "r50.pth holds weights without a network (a state dict)"),
        (["text.onnx", "pictures"], "text.onnx is truncated, or neither ONNX"),
        (["simple_cn", "pictures"], "did you mean simple_cnn"),
        (["simple_cnn", "pictures", "--weights", "gone.pth"], "weight file gone.pth does not exist"),
        (["m.onnx", "gone.png"], "no picture or folder gone.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_is_told_before_anything_heavy_is_imported(tmp_path: Path, arguments: list[str], said: str) -> None:
    write_pictures(tmp_path / "pictures", 1)
    (tmp_path / "text.onnx").write_text("no model")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "r50.pth")
    done = run(tmp_path, "predict", *arguments)
    assert done.returncode == 2
    error, imported = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert imported.strip() == "imported:"
