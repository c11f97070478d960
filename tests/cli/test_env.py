from __future__ import annotations

import json
import platform

import torch

import fastcnn
from fastcnn.engines import available_backends


def test_json(cli):
    result = cli("env", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["versions"]["fastcnn"] == fastcnn.__version__
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["torch"].split()[0] in torch.__version__
    assert facts["cpu"]["cores"] >= 1
    assert facts["backends"] == {name: {"available": why is None, "reason": why} for name, why in available_backends().items()}
    assert len(facts["cuda"]["devices"]) == torch.cuda.device_count()


def test_every_absence_has_its_reason(cli):
    result = cli("env")
    assert result.exit_code == 0
    for name, reason in available_backends().items():
        assert f"backend {name}" in result.stdout
        assert reason is None or reason in result.stdout
    assert torch.cuda.is_available() or "none: " in result.stdout
