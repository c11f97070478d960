"""What serves a model repository: one row for each server and each of its backends, with all that differs between them.

Importing this module imports neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fastcnn.export.formats import ONNX, TORCHSCRIPT, Format


class ServerName(StrEnum):
    """Servers that a repository can be laid out for."""

    triton = "triton"
    ovms = "ovms"
    kserve = "kserve"


class BackendName(StrEnum):
    """What runs the network inside a server."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"
    tensorrt = "tensorrt"
    pytorch = "pytorch"


class DeviceName(StrEnum):
    """Where a server runs the network."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass(frozen=True)
class ServingBackend:
    """A row of `BACKENDS`.

    Attributes:
        title: as messages call it.
        format: of the file that it loads.
        runtime: the one of the file's description that must have found the file right; None where none here stands for it.
        devices: where it can run, its default first.
        dtypes: of inputs, that it takes.
        names: how it calls the inputs and the outputs, with {} for the number; None where it calls them as the file does.
        is_built_there: a plan is compiled from the file on the machine that serves it.
        any_size: it takes pictures of any size.
    """

    title: str
    format: Format
    runtime: str | None
    devices: tuple[DeviceName, ...]
    dtypes: tuple[str, ...]
    names: tuple[str, str] | None = None
    is_built_there: bool = False
    any_size: bool = True


@dataclass(frozen=True)
class Server:
    """A row of `SERVERS`.

    Attributes:
        title: as messages call it.
        backends: what it can run a network with, its default first.
        options: fields of `BundleRequest` that mean something to it, beside those that every server knows.
    """

    title: str
    backends: tuple[BackendName, ...]
    options: frozenset[str]


# numpy's name of a type → the ending of Triton's and of the v2 protocol's.
DTYPES: Mapping[str, str] = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
}

_BOTH = (DeviceName.cpu, DeviceName.cuda)

BACKENDS: Mapping[BackendName, ServingBackend] = {
    BackendName.onnxruntime: ServingBackend("ONNX Runtime", ONNX, "onnxruntime", _BOTH, tuple(DTYPES)),
    BackendName.openvino: ServingBackend("OpenVINO", ONNX, "openvino", (DeviceName.cpu,), tuple(DTYPES)),
    BackendName.tensorrt: ServingBackend(
        "TensorRT",
        ONNX,
        None,
        (DeviceName.cuda,),
        ("float16", "float32", "bool", "uint8", "int8", "int32", "int64"),
        is_built_there=True,
        any_size=False,
    ),
    BackendName.pytorch: ServingBackend("PyTorch", TORCHSCRIPT, "torch", _BOTH, tuple(DTYPES), names=("INPUT__{}", "OUTPUT__{}")),
}

_TRITON = frozenset({"max_batch_size", "queue_delay", "device", "instances"})

SERVERS: Mapping[ServerName, Server] = {
    ServerName.triton: Server("Triton Inference Server", tuple(BackendName), _TRITON),
    ServerName.ovms: Server("OpenVINO Model Server", (BackendName.openvino,), frozenset({"instances"})),
    ServerName.kserve: Server("KServe", tuple(BackendName), _TRITON | {"storage_uri"}),
}
