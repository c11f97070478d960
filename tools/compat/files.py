"""The files of the matrix: a handful of our models, exported as users export them, with what each has to answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compat.runner import encode

_TRAINED = ("simple_cnn", "inception_mnist", "residual_mnist")
_PLAIN = ("squeezenet1_1", "googlenet_cifar10")

# Column → (models, options of export_onnx).
COLUMNS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "float32": (_TRAINED + _PLAIN, {}),
    "batch of 1": (_TRAINED, {"batch_size": 1}),
    "float16": (_TRAINED, {"precision": "fp16"}),
    "normalize": (_TRAINED, {"preprocess": "normalize"}),
    "resize": (_TRAINED[:2], {"preprocess": "resize"}),
    "resize, one size": (_TRAINED[:2], {"preprocess": "resize", "picture_size": (40, 52), "batch_size": 1}),
    "opset 20": (_TRAINED[1:], {"opset": 20}),
}


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        column, model: where it belongs.
        opset: that it was written for.
        path: where it lies.
        batches: of its golden pair, as it takes them.
        expected: for each of them the first rows of the reference's answer in float64.
        tolerance: on the relative L2 error, as the file states it.
    """

    column: str
    model: str
    opset: int
    path: Path
    batches: tuple[NDArray, ...]
    expected: tuple[NDArray[np.float64], ...]
    tolerance: float

    def job(self) -> dict[str, Any]:
        """What `runner.py` is given."""
        return {"file": str(self.path.resolve()), "batches": [encode(batch) for batch in self.batches]}


def make_files(folder: Path, columns: dict[str, tuple[tuple[str, ...], dict[str, Any]]] | None = None) -> Iterator[Case]:
    """Export every file that is not in `folder` yet."""
    for column, (models, options) in (columns or COLUMNS).items():
        for model in models:
            path = folder / f"{model}-{column.replace(', ', '-').replace(' ', '_')}.onnx"
            if not path.exists():
                _export(model, path, options)
            yield read_case(column, model, path)


def read_case(column: str, model: str, path: Path) -> Case:
    """A file with its golden pair."""
    from fastcnn.export import read_metadata
    from fastcnn.export.golden import decode

    metadata = read_metadata(path)
    pair = decode(metadata["golden"])
    batches = tuple(np.ascontiguousarray(pair.pictures[list(batch)]) for batch in pair.batches)
    return Case(column, model, metadata["opset"], path, batches, tuple(outputs[0] for outputs in pair.outputs), pair.tolerance)


def _export(model: str, path: Path, options: dict[str, Any]) -> None:
    import torch

    from fastcnn.export import export_onnx
    from fastcnn.models import create_model
    from fastcnn.models.registry import model_spec

    network = create_model(model, weights="mnist" if model in _TRAINED else None)
    export_onnx(network, path, torch.rand(1, *model_spec(model).input_size, generator=torch.Generator().manual_seed(0)), **options)
