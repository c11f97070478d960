"""The constraints of `make lowest` name the lowest version of everything that the project asks for with a bound."""

from __future__ import annotations

import sys

import lowest
import pytest


def test_a_lower_bound_becomes_the_only_version():
    requirements = ["torch>=2.11", "triton>=3.6; platform_system == 'Linux'", "fastcnn[openvino,ncnn]", "numpy", "ruff==0.17.5"]
    assert lowest.lowest(requirements) == ["torch==2.11", "triton==3.6; platform_system == 'Linux'", "ruff==0.17.5"]
    with pytest.raises(ValueError, match="is not NAME>=VERSION"):
        lowest.lowest(["torch~=2.11"])


def test_every_dependency_has_a_lower_bound(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lowest.py", "openvino", "ncnn", "test"])
    lowest.main()
    names = {line.partition("==")[0] for line in capsys.readouterr().out.splitlines()}
    assert {"torch", "torchvision", "numpy", "onnx", "pillow", "jinja2", "triton", "openvino", "ncnn", "pytest", "timm"} <= names
