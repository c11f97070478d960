"""`fastcnn optimize` in the precisions that need a limit: what is saved keeps to it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fastcnn
from fastcnn.data.samples import digit_files
from fastcnn.models import create_model, model_spec
from fastcnn.pictures import open_picture


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """[60, 1, 28, 28]: the digits that this package holds, each moved by some pixels."""
    preprocessing = model_spec("simple_cnn").preprocessing
    pictures = torch.stack([preprocessing(open_picture(str(path))) for path in digit_files()])
    return torch.cat([pictures.roll((down, right), (2, 3)) for down in (-2, 0, 1) for right in (-2, -1, 0, 2)])[:60]


def test_optimize_in_8_bits_saves_what_passes_the_gate(cli, digits, tmp_path):
    np.save(tmp_path / "digits.npy", digits.numpy())
    given = (
        "optimize",
        "simple_cnn",
        "--weights",
        "mnist",
        "-o",
        tmp_path / "s.fast",
        "--precision",
        "int8",
        "--calibration",
        tmp_path / "digits.npy",
    )
    result = cli(*given, "--backend", "onnxruntime", "--json")
    assert result.exit_code == 0, result.stderr
    about = json.loads(result.stdout)
    assert (about["precision"], about["backend"], about["parity"]["dtype"]) == ("int8", "onnxruntime", "int8")
    assert about["parity"]["rows"][0]["batch_size"] == 12
    fast = fastcnn.load(tmp_path / "s.fast")
    assert fast.dtype == torch.int8
    truth = create_model("simple_cnn", "mnist")(digits[:5]).detach()
    assert 0 < float((fast(digits[:5]) - truth).norm() / truth.norm()) < 0.1

    refused = cli(*given, "--backend", "onnxruntime", "--max-error", "1e-6", "--force")
    assert refused.exit_code == 1
    assert "misses its limits in int8" in refused.stderr
    assert fastcnn.load(tmp_path / "s.fast").dtype == torch.int8


def test_optimize_in_any_precision_measures_those_that_are_near_enough(cli, digits, tmp_path):
    np.save(tmp_path / "digits.npy", digits.numpy())
    given = ("optimize", "simple_cnn", "--weights", "mnist", "-o", tmp_path / "s.fast", "--precision", "auto", "--json", "--force")
    result = cli(*given, "--max-error", "0.05", "--calibration", tmp_path / "digits.npy")
    assert result.exit_code == 0, result.stderr
    about = json.loads(result.stdout)
    timed = {one["backend"] for one in about["choice"] if one["milliseconds"] is not None}
    assert {"torch float32", "torch bfloat16", "onnxruntime int8"} <= timed
    assert about["precision"] in ("float32", "bfloat16", "int8")
    assert fastcnn.load(tmp_path / "s.fast").backend == about["backend"]
    # bfloat16 is off by more than this, and nothing else was asked for.
    about = json.loads(cli(*given, "--max-error", "1e-6").stdout)
    assert about["precision"] == "float32"
    reasons = {one["backend"]: one["why"] for one in about["choice"]}
    assert "is above max_error 1e-06" in reasons["torch bfloat16"]
    assert not any("int8" in name for name in reasons)
