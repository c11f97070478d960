"""How many of MNIST's 10,000 test pictures the trained models get right in each precision: what rounding costs, in pictures.

    python -m fastcnn.bench.studies.precision_counts --data DIR --json FILE

DIR is where torchvision finds MNIST. Each precision runs where it is meant to: files in their runtimes, bfloat16 on PyTorch. INT8 is calibrated
with 300 pictures of the training set, and others of it judge the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcnn.data.datasets import open_dataset
from fastcnn.data.pictures import Pictures
from fastcnn.export import export_onnx
from fastcnn.export.runtimes import open_file, runtimes_for
from fastcnn.files import write_text
from fastcnn.models import create_model, model_spec
from fastcnn.optimization import optimize
from fastcnn.quantization.scheme import instruction_set

MODELS = ("simple_cnn", "inception_mnist", "residual_mnist")
_BATCH, _CALIBRATION = 500, 364

# A batch of normalised pictures [N, 1, 28, 28] → logits [N, 10].
Answer = Callable[[Tensor], Tensor]


def count(name: str, data: Path) -> dict[str, Any]:
    """Right answers of the model `name`, by precision and what runs it, and the sizes of the files in bytes."""
    model, preprocessing = create_model(name, "mnist"), model_spec(name).preprocessing
    test = open_dataset("mnist", data, "test", preprocessing)
    train = open_dataset("mnist", data, "train", preprocessing)
    pixels = next(iter(train.batches(torch.arange(_CALIBRATION), _CALIBRATION)))[0]
    pictures = preprocessing.normalize(pixels)
    rows: dict[str, Answer] = {"fp32 eager PyTorch": model, "bf16 torch": optimize(model, pictures[:1], dtype=torch.bfloat16, backend="torch")}
    sizes = {}
    with tempfile.TemporaryDirectory(prefix="fastcnn-") as folder:
        for precision in ("fp32", "fp16", "int8"):
            path = Path(folder, f"{precision}.onnx")
            calibration = pictures if precision == "int8" else None
            sizes[precision] = export_onnx(model, path, pictures[:2], precision=precision, calibration=calibration).bytes
            rows |= {f"{precision} {runtime}": _in_runtime(path, runtime) for runtime in runtimes_for("onnx")}
        return {"right": {row: _right(answer, test, preprocessing.normalize) for row, answer in rows.items()}, "bytes": sizes, "pictures": len(test)}


def _in_runtime(path: Path, runtime: str) -> Answer:
    opened = open_file(path, "onnx", runtime=runtime, threads=torch.get_num_threads())
    return lambda batch: torch.from_numpy(np.asarray(opened.run(batch.numpy())[0]))


def _right(answer: Answer | nn.Module, test: Pictures, normalize: Callable[[Tensor], Tensor]) -> int:
    right = 0
    with torch.no_grad():
        for pixels, labels in test.batches(torch.arange(len(test)), _BATCH):
            right += int((answer(normalize(pixels)).argmax(dim=1) == labels).sum())
    return right


def main() -> None:
    """Counts every model, prints a table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {name: count(name, given.data) for name in MODELS}
    for name, figures in found.items():
        print(name, "  ".join(f"{row}: {right:,}" for row, right in figures["right"].items()))
    if given.json is not None:
        head = {"command": "python -m fastcnn.bench.studies.precision_counts --data DIR --json FILE", "instruction_set": instruction_set()}
        write_text(given.json, json.dumps({**head, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
