"""The row that is ncnn, on what its own converter `pnnx` makes of the traced model.

MNN, the other runtime of mobile devices that is fast on a CPU, has no row: its converter reports to its makers, and nothing here does.
"""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcnn.bench.peers.base import Peer, Prepared, not_importable
from fastcnn.bench.peers.subject import Subject
from fastcnn.errors import BackendError
from fastcnn.precision import Precision
from fastcnn.runtimes.ncnn import import_ncnn

# pnnx names what it finds like this.
_INPUT, _OUTPUT = "in0", "out0"


class Ncnn(Peer):
    """ncnn in float32 with its defaults otherwise: Winograd's algorithm, layers in its packed layout. A batch runs picture by picture."""

    name = "ncnn"
    precisions = (Precision.fp32,)

    def missing(self) -> str | None:
        """Whether the runtime and its converter are there."""
        return not_importable("ncnn") or not_importable("pnnx")

    def prepare(self, subject: Subject, example: Tensor, threads: int) -> Prepared:
        """The traced model, converted and loaded. Raises BackendError where pnnx or ncnn does not take it."""
        ncnn, folder = import_ncnn(), subject.folder("ncnn")
        _convert(subject, example[:1], folder)
        network = ncnn.Net()
        option = network.opt
        option.num_threads = threads
        for name in ("use_fp16_storage", "use_fp16_packed", "use_fp16_arithmetic", "use_bf16_storage", "use_bf16_packed"):
            setattr(option, name, False)
        if network.load_param(str(folder / "model.param")) or network.load_model(str(folder / "model.bin")):
            raise BackendError("ncnn does not load what pnnx wrote")

        def one(picture: Any) -> Any:
            with network.create_extractor() as extractor:
                extractor.input(_INPUT, ncnn.Mat(picture).clone())  # memory of others has no reference count, which ncnn may read
                status, blob = extractor.extract(_OUTPUT)
                if status:
                    raise BackendError(f"ncnn fails with {status}")
                return np.array(blob)

        def run(x: Tensor) -> Tensor:
            return torch.from_numpy(np.stack([one(picture) for picture in x.numpy()]))

        return Prepared(run, {"device": "CPU", "version": str(ncnn.__version__), "threads": str(option.num_threads)})


def _convert(subject: Subject, example: Tensor, folder: Path) -> None:
    """Writes model.param and model.bin. Raises BackendError with the last line of the converter where it fails."""
    import pnnx

    traced = folder / "model.pt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(subject.model, example, check_trace=False).save(str(traced))
    shape = ",".join(map(str, example.shape))
    # fp16=0: by default it stores the weights in float16.
    outputs = [f"ncnnparam={folder / 'model.param'}", f"ncnnbin={folder / 'model.bin'}"]
    command = [pnnx.EXEC_PATH, str(traced), f"inputshape=[{shape}]f32", "fp16=0", *outputs]
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if process.returncode or not (folder / "model.bin").is_file():
        lines = (process.stderr or process.stdout).strip().splitlines()
        raise BackendError(f"pnnx cannot convert the model: {lines[-1] if lines else f'it ends with {process.returncode}'}")
