"""`optimize(dtype=torch.int8)`: 8-bit products in the runtimes that have them, the same from a file, and never unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.data.samples import digit_files
from fastcnn.engines import available_backends
from fastcnn.errors import BackendError, ParityError, RequestError
from fastcnn.models import create_model

RUNTIMES = [name for name in ("onnxruntime", "openvino") if available_backends()[name] is None]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return create_model("residual_mnist", "mnist")


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """[120, 1, 28, 28]: the digits that this package holds, each moved by some pixels."""
    from fastcnn.models import model_spec
    from fastcnn.pictures import open_picture

    preprocessing = model_spec("residual_mnist").preprocessing
    pictures = torch.stack([preprocessing(open_picture(str(path))) for path in digit_files()])
    return torch.cat([pictures.roll((down, right), (2, 3)) for down in (-2, 0, 1) for right in (-2, -1, 0, 2)])[:120]


@pytest.mark.parametrize("backend", RUNTIMES)
def test_an_int8_module_is_close_and_comes_back_from_its_file(model: nn.Module, digits: torch.Tensor, backend: str, tmp_path: Path) -> None:
    fast = fastcnn.optimize(model, digits[:2], dtype=torch.int8, backend=backend, calibration=digits)
    assert (fast.dtype, fast.backend) == (torch.int8, backend)
    assert any(report.name == "quantize" and report.fired == 7 for report in fast.plan.passes)
    with torch.no_grad():
        truth = model(digits[:30])
    output = fast(digits[:30])
    assert output.dtype == torch.float32
    assert 0 < float((output - truth).norm() / truth.norm()) < 0.05
    assert torch.equal(output.argmax(1), truth.argmax(1))
    again = fastcnn.load(fastcnn.save(fast, tmp_path / "model.fast"))
    assert again.dtype == torch.int8
    assert torch.equal(again(digits[:5]), fast(digits[:5]))
    lost = fast(torch.full((1, 1, 28, 28), float("nan")))
    assert bool(lost.isnan().all()) == bool(model(torch.full((1, 1, 28, 28), float("nan"))).isnan().all())


def test_auto_takes_the_fastest_that_multiplies_integers(model: nn.Module, digits: torch.Tensor) -> None:
    fast = fastcnn.optimize(model, digits[:1], dtype=torch.int8, calibration=digits)
    assert fast.backend in RUNTIMES
    assert next(timing.why for timing in fast.plan.choice if timing.backend == "torch").startswith("multiplies no 8-bit numbers")


def test_what_cannot_be_is_told(model: nn.Module, digits: torch.Tensor) -> None:
    with pytest.raises(RequestError, match="needs calibration="):
        fastcnn.optimize(model, digits[:1], dtype=torch.int8)
    with pytest.raises(RequestError, match=r"are for dtype=torch\.int8"):
        fastcnn.optimize(model, digits[:1], calibration=digits)
    with pytest.raises(BackendError, match="multiplies no 8-bit numbers"):
        fastcnn.optimize(model, digits[:1], dtype=torch.int8, backend="torch", calibration=digits)
    with pytest.raises(ParityError, match="misses its limits in int8"):
        fastcnn.optimize(model, digits[:1], dtype=torch.int8, backend="onnxruntime", calibration=digits, max_error=1e-6)


def test_auto_takes_a_faster_precision_only_where_it_was_asked_for(model: nn.Module, digits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcnn import optimization

    def times(modules: dict[str, nn.Module], example: torch.Tensor) -> dict[str, float]:
        return {name: 1.0 if "int8" in name else 2.0 if "bfloat16" in name else 3.0 for name in modules}

    monkeypatch.setattr(optimization, "time_in_turns", times)
    asked = {"dtype": "auto", "backend": "onnxruntime", "max_error": 0.1}
    assert fastcnn.optimize(model, digits[:2], **asked, calibration=digits).dtype == torch.int8
    assert fastcnn.optimize(model, digits[:2], **asked).dtype == torch.float32  # no bfloat16 there
    bfloat16 = fastcnn.optimize(model, digits[:2], **asked | {"backend": "torch"}, calibration=digits)
    assert bfloat16.dtype == torch.bfloat16
    assert {timing.backend for timing in bfloat16.plan.choice} == {"torch float32", "torch bfloat16", "torch int8"}
    assert bfloat16(digits[:1]).dtype == torch.float32
    assert fastcnn.optimize(model, digits[:2], **asked | {"backend": "torch", "max_error": 1e-6}).dtype == torch.float32
    with pytest.raises(RequestError, match='dtype "auto" needs max_error='):
        fastcnn.optimize(model, digits[:2], dtype="auto")


def test_a_saved_bfloat16_module_is_the_same(model: nn.Module, digits: torch.Tensor, tmp_path: Path) -> None:
    fast = fastcnn.optimize(model, digits[:2], dtype=torch.bfloat16, backend="torch")
    again = fastcnn.load(fastcnn.save(fast, tmp_path / "model.fast"))
    assert (again.dtype, again.backend) == (torch.bfloat16, "torch")
    assert torch.equal(again(digits[:5]), fast(digits[:5]))
