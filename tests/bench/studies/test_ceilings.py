from __future__ import annotations

import pytest
import torch

from fastcnn.bench.studies import ceilings as ceilings_module
from fastcnn.bench.studies.ceilings import measure_machine_ceilings
from fastcnn.precision import Precision


def test_ceilings_are_those_of_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "_copy_bytes", lambda device: 2**20)
    monkeypatch.setattr(ceilings_module, "_LARGEST_GEMM", 256)
    ceilings = measure_machine_ceilings("cpu", Precision.fp32, 1)
    assert ceilings.copy_bytes_per_second > 0
    assert ceilings.gemm_flops_per_second > 0
    assert ceilings.dtype == "float32"
    assert "1 MiB" in ceilings.how
    assert "256×256" in ceilings.how


def test_ways_to_multiply_agree() -> None:
    left, right = (torch.rand(64, 64) - 0.5 for _ in range(2))
    for way in ceilings_module._products(left, right):
        product = way()
        assert isinstance(product, torch.Tensor)
        flat = product.permute(0, 2, 3, 1).reshape(64, 64) if product.dim() == 4 else product
        torch.testing.assert_close(flat, left @ right)
