"""What the README shows of a file's description works as it stands there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from export_networks import EXPORTERS, SUFFIX

from fastcnn.export import read_metadata
from fastcnn.models import create_model

README = Path(__file__).parents[1] / "README.md"


def snippets() -> list[str]:
    section = README.read_text(encoding="utf-8").partition("### How to read a file's description")[2]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return block[1].strip().split("\n\n")


@pytest.mark.parametrize(
    ("format_", "snippet"), list(zip(("onnx", "torchscript", "pt2"), snippets(), strict=True)), ids=["onnx", "torchscript", "pt2"]
)
def test_three_lines_read_the_description(tmp_path, monkeypatch, format_, snippet):
    path = tmp_path / f"model{SUFFIX[format_]}"
    EXPORTERS[format_](create_model("simple_cnn"), path, torch.rand(1, 1, 28, 28))
    monkeypatch.chdir(tmp_path)
    assert len(snippet.splitlines()) == 1 + 3  # a heading, and three lines of code
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that TorchScript is deprecated
        exec(snippet, names)
    assert names["about"] == read_metadata(path)
    assert names["about"]["input"]["preprocessing_in_file"] == "none"
