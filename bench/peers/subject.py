"""The model under test, and what several rows make from it."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

from fastcnn.models import create_model
from fastcnn.precision import Precision

WEIGHTS = "random (seed 0), scaled so that no layer inflates its signal"


class Subject:
    """Use it as a context manager: leaving it removes its files.

    Args:
        model: moved to `device` and to the dtype of `precision`, in place.

    Attributes:
        model: the reference, in eval mode; rows that change it work on a copy.
        precision: what every row computes in.
        device: where it and its inputs are.
    """

    def __init__(self, model: nn.Module, precision: Precision = Precision.fp32, device: str = "cpu") -> None:
        self.model = model.to(device=device, dtype=precision.dtype)
        self.precision, self.device = precision, torch.device(device)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._seconds: dict[Path, float] = {}

    def __enter__(self) -> Subject:
        self._folder = tempfile.TemporaryDirectory(prefix="fastcnn-bench-")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def folder(self, name: str) -> Path:
        """A new folder for a runtime's own files, which are removed with the subject."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root()))

    def plain_onnx(self, example: Tensor, batch_size: int | Literal["dynamic"] = "dynamic") -> tuple[Path, float]:
        """What `torch.onnx.export` makes of the reference, without any help from fastcnn, and the seconds that an earlier row spent on it.

        The input is that of the reference, in its dtype. On a CPU a dynamic batch does: on Inception-v3 at batches 1 and 8 neither
        onnxruntime nor OpenVINO was measurably faster on a fixed one.
        """

        def write(path: Path) -> None:
            # The exporter takes a batch of 1 for a constant.
            batch = torch.zeros(2 if batch_size == "dynamic" else batch_size, *example.shape[1:], dtype=example.dtype)
            shapes = ({0: torch.export.Dim.DYNAMIC},) if batch_size == "dynamic" else None
            model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(model, (batch,), path, dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False)

        return self._made_once(f"plain-{batch_size}.onnx", write)

    def fastcnn_onnx(self, example: Tensor, batch_size: int | Literal["dynamic"] = "dynamic") -> tuple[Path, float]:
        """What `fastcnn.export.export_onnx` makes of the reference, its own check included, and the seconds that an earlier row spent on it.

        The file takes and returns float32, whatever it computes in. Raises RequestError for bfloat16, which it cannot write.
        """

        def write(path: Path) -> None:
            from fastcnn.export import export_onnx

            precision = {Precision.tf32: "fp32"}.get(self.precision, self.precision.value)
            model = copy.deepcopy(self.model).to("cpu", torch.float32)
            sizes = (1, 2) if batch_size == "dynamic" else (batch_size,)
            export_onnx(model, path, example[:2].float().cpu(), precision=precision, batch_size=batch_size, batch_sizes=sizes)

        return self._made_once(f"fastcnn-{batch_size}.onnx", write)

    def _made_once(self, name: str, write: Callable[[Path], None]) -> tuple[Path, float]:
        path = self._root() / name
        if path in self._seconds:
            return path, self._seconds[path]
        start = time.perf_counter()
        write(path)
        self._seconds[path] = time.perf_counter() - start
        return path, 0.0

    def _root(self) -> Path:
        if self._folder is None:
            raise RuntimeError("Subject is a context manager: enter it first")
        return Path(self._folder.name)


def model_under_test(name: str) -> nn.Module:
    """A model of the registry with the seeded random weights that WEIGHTS describes. Raises UnknownNameError."""
    return create_model(name)
