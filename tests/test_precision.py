from __future__ import annotations

import torch

from fastcnn.precision import Precision


def test_precision_switches_are_set_and_restored() -> None:
    def switches() -> tuple[str, bool, str]:
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, conv.fp32_precision

    before = switches()
    with Precision.tf32.switches():
        assert switches() == ("high", True, "tf32")
        with Precision.fp32.switches():
            assert switches() == ("highest", False, "ieee")
        assert switches() == ("high", True, "tf32")
    assert switches() == before
