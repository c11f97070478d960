"""Small networks with what makes an export hard, and ways to damage a file."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.export import export_onnx, export_pt2, export_torchscript

EXPORTERS: dict[str, Callable[..., Any]] = {"onnx": export_onnx, "torchscript": export_torchscript, "pt2": export_pt2}
SUFFIX = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}


class Small(nn.Module):
    """[N, 3, 12, 12] → [N, 4]; BatchNorm to fold, a batch size read at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8 * 25, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem(x), 2)
        return self.head(x.view(x.size(0), -1))


class Several(nn.Module):
    """[N, 3, 12, 12] → a dict of two tensors; the second one depends on the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.conv(x)
        return {"logits": features.mean((2, 3)), "centred": features - features.mean(0, keepdim=True)}


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Small()
    model.stem[1].running_mean.normal_()
    model.stem[1].running_var.uniform_(0.5, 2)
    return model.eval()


def example(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def rewrite_archive(source: Path, target: Path, edit: Callable[[str, bytes], bytes]) -> None:
    """Copies a zip archive record by record, with correct checksums."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, edit(info.filename, old.read(info)))


def flip_one_bit(source: Path, target: Path, at: int) -> None:
    shutil.copy(source, target)
    with target.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
