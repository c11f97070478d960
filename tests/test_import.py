"""`import fastcnn` costs nothing and gives its names when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fastcnn


def _run(code: str) -> str:
    """Runs `code` in a fresh interpreter."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.parametrize("module", ["fastcnn", "fastcnn.engines", "fastcnn.errors", "fastcnn.export", "fastcnn.models"])
def test_imports_neither_torch_nor_a_runtime(module):
    heavy = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "triton", "numpy", "safetensors")

    assert _run(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_dir_lists_what_is_public():
    assert set(fastcnn.__all__) <= set(dir(fastcnn))
    assert {"optimize", "verify", "save", "load", "create_model", "list_models", "OptimizedModule", "ParityReport", "__version__"} <= set(
        dir(fastcnn)
    )


@pytest.mark.parametrize("name", fastcnn.__all__)
def test_every_public_name_is_there(name):
    assert getattr(fastcnn, name) is getattr(fastcnn, name)


def test_star_import():
    assert _run("from fastcnn import *; print(optimize.__module__, list_models.__module__)") == "fastcnn.optimization fastcnn.models.registry"


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'fastcnn' has no attribute 'optimise'"):
        _ = fastcnn.optimise


def test_backends_are_known_without_loading_them():
    assert _run("from fastcnn.engines import BACKENDS; import sys; print(BACKENDS[0], 'torch' in sys.modules)") == "torch False"


def test_without_triton():
    """As on macOS and Windows: the engine says what is missing, and the others run."""
    code = """
import sys, importlib.util
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton": raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else find_spec(name, package)
import torch, fastcnn
from fastcnn.engines import available_backends
model = torch.nn.Conv2d(3, 4, 3).eval()
print(available_backends()["triton"], fastcnn.optimize(model, torch.rand(1, 3, 8, 8), backend="torch").backend)
"""
    assert _run(code) == "triton is not installed torch"
