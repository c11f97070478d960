"""ncnn on the CPU."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import BackendError

_WAITING = "OMP_WAIT_POLICY"


def import_ncnn() -> Any:
    """The `ncnn` package, its threads asleep where they wait for work unless the environment says otherwise.

    Its wheel brings an OpenMP runtime of its own, whose threads spin by default for as long as it takes and keep the cores from PyTorch and every
    other runtime. The switch is read once, when that library is loaded; the environment is as it was afterwards. A program that imported `ncnn`
    before keeps what it has.

    Raises:
        BackendError: it is not installed.
    """
    ours = "ncnn" not in sys.modules and _WAITING not in os.environ
    if ours:
        os.environ[_WAITING] = "passive"
    try:
        import ncnn
    except ImportError as error:
        raise BackendError(f"ncnn cannot be imported: {error} (pip install 'fastcnn[ncnn]')") from error
    finally:
        if ours:
            os.environ.pop(_WAITING, None)
    return ncnn


class Network:
    """A loaded network that computes in float32 and nothing less, for one picture at a time; several threads may call it.

    Args:
        param: the text of a .param file.
        weights: the bytes of a .bin file, in pieces.
        threads: for each call.

    Raises:
        BackendError: ncnn is not installed or refuses the network.
    """

    def __init__(self, param: str, weights: Iterable[bytes | memoryview], threads: int) -> None:
        self._ncnn = import_ncnn()
        self._network = self._ncnn.Net()
        _configure(self._network.opt, threads)
        if self._network.load_param_mem(param):
            raise BackendError("ncnn cannot read the network: it has a layer that this build of ncnn does not know")
        # By a file, which ncnn reads layer by layer: loaded from memory, weights stay references into memory that has to outlive the network.
        with tempfile.TemporaryDirectory(prefix="fastcnn-") as folder:
            path = Path(folder) / "weights.bin"
            with path.open("wb") as file:
                file.writelines(weights)
            if self._network.load_model(str(path)):
                raise BackendError("ncnn cannot load the weights: their number does not fit the layers, or memory ran out")

    @property
    def layers(self) -> list[tuple[str, str]]:
        """(name, kind) of each layer, in the order in which they run."""
        return [(layer.name, layer.type) for layer in self._network.layers()]

    def run(self, picture: NDArray[np.float32], outputs: Iterable[str]) -> list[NDArray[np.float32]]:
        """One picture, contiguous and without the batch axis → the blobs called `outputs`, each in memory of its own.

        Raises:
            BackendError: a layer failed.
        """
        with self._network.create_extractor() as extractor:
            # A copy: ncnn 1.0.20261020 reads the reference count of what the first layer may overwrite, and memory of others has none.
            extractor.input("input", self._ncnn.Mat(picture).clone())
            results = []
            for name in outputs:
                status, blob = extractor.extract(name)
                if status:
                    raise BackendError(f"ncnn cannot run the network: a layer in front of {name} failed with {status}, mostly for lack of memory")
                results.append(np.array(blob))
            return results


def _configure(option: Any, threads: int) -> None:
    option.num_threads = threads
    # Its default stores and multiplies in float16 wherever the CPU can: another function than the one asked for.
    for name in dir(option):
        if name.startswith(("use_fp16_", "use_bf16_", "use_int8_")):
            setattr(option, name, False)
    option.use_vulkan_compute = False
    option.use_winograd_convolution = True
