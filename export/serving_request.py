"""What a model repository shall be, checked before any work starts. Importing this module imports neither torch nor onnx."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastcnn.errors import RequestError, UnknownNameError
from fastcnn.export.formats import FORMATS, Format
from fastcnn.export.serving_targets import BACKENDS, SERVERS, BackendName, DeviceName, Server, ServerName, ServingBackend

MAX_BATCH_SIZE = 8
# Letters that are the same in a folder, a URL and a protobuf string.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class BundleRequest:
    """One model repository: everything that was asked for, but for the file.

    Attributes:
        server: a member of `ServerName`, or its name.
        backend: a member of `BackendName`, or its name; None for the first that the server has.
        name: of the model, as clients call it; None for the one in the file's description, with `_` for what a URL has no room for.
        version: of the model, from 1.
        max_batch_size: pictures that the server puts together at most; None for 8. For files of any batch size only.
        queue_delay: microseconds that a request may wait for others to share its batch; None for none.
        device: a member of `DeviceName`, or its name; None for the first that the backend has.
        instances: calls that are computed at once; None for 1.
        storage_uri: where a cluster finds the folder, as in s3://bucket/repo; for KServe, and for no other.

    Raises RequestError where no server could be asked for that.
    """

    server: str = ServerName.triton
    backend: str | None = None
    name: str | None = None
    version: int = 1
    max_batch_size: int | None = None
    queue_delay: int | None = None
    device: str | None = None
    instances: int | None = None
    storage_uri: str | None = None

    def __post_init__(self) -> None:
        for kind, given, known in (("server", self.server, ServerName), ("backend", self.backend, BackendName), ("device", self.device, DeviceName)):
            if given is not None and given not in list(known):
                raise UnknownNameError(kind, str(given), known)
        row = self.row
        if self.backend is not None and self.backend not in row.backends:
            raise RequestError(f"{row.title} has no backend {self.backend}: give {_choice(row.backends)}, or leave --backend (backend=) out")
        for option in ("max_batch_size", "queue_delay", "device", "instances", "storage_uri"):
            if getattr(self, option) is not None and option not in row.options:
                raise RequestError(f"{row.title} has no use for {_spelled(option)}: leave it out")
        for option, least in (("version", 1), ("max_batch_size", 1), ("queue_delay", 0), ("instances", 1)):
            given = getattr(self, option)
            if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < least):
                raise RequestError(f"{_spelled(option)} is a whole number from {least}; it is {given!r}")
        if self.device is not None and self.device not in self.runs_in.devices:
            raise RequestError(f"{self.runs_in.title} runs on {_choice(self.runs_in.devices)}, not on {self.device}: leave --device (device=) out")
        if "storage_uri" in row.options and not self.storage_uri:
            raise RequestError(f"{row.title} needs --storage-uri (storage_uri=): where the cluster finds the folder, as in s3://bucket/repo")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise RequestError(
                f"the name of a served model is of letters, digits, '.', '-' and '_', and begins with a letter or digit: {self.name!r}"
            )

    @property
    def row(self) -> Server:
        """The server."""
        return SERVERS[ServerName(self.server)]

    @property
    def backend_name(self) -> BackendName:
        """What runs the network there."""
        return self.row.backends[0] if self.backend is None else BackendName(self.backend)

    @property
    def runs_in(self) -> ServingBackend:
        """Its row."""
        return BACKENDS[self.backend_name]

    @property
    def device_name(self) -> DeviceName:
        """Where it runs."""
        return self.runs_in.devices[0] if self.device is None else DeviceName(self.device)

    @property
    def format(self) -> Format:
        """Of the file that it takes."""
        return self.runs_in.format

    def check_file(self, what: str, metadata: Mapping[str, Any]) -> None:
        """Raises RequestError for a file that the backend cannot take, by its description; `what` is how messages call it."""
        backend, made_as = self.runs_in, FORMATS[metadata["format"]]
        if made_as is not backend.format:
            others = [name for name in self.row.backends if BACKENDS[name].format is made_as]
            instead = f", or another backend: {_choice(others)}" if others else ""
            raise RequestError(f"{what} is {made_as.title} and {backend.title} loads {backend.format.title}: give such a file{instead}")
        if backend.runtime is not None and backend.runtime not in metadata["runtimes"]:
            reason = metadata.get("left_out", {}).get(backend.runtime, "it was not checked there when it was exported")
            raise RequestError(f"{what} is not for {backend.title}: {reason}")
        for entry in inputs_of(metadata):
            if entry["dtype"] not in backend.dtypes:
                raise RequestError(f"{what} takes {entry['dtype']} as {entry['name']}, which {backend.title} does not")
            if not backend.any_size and any(isinstance(size, str) for size in entry["shape"][1:]):
                raise RequestError(
                    f"{what} takes pictures of any size, and a plan of {backend.title} is built for one: export it without --preprocess resize"
                )
        if backend.is_built_there and metadata["precision"] == "int8" and metadata["quantization"]["for"] != "tensorrt":
            raise RequestError(f"{what} is quantized for {metadata['quantization']['for']}: export it with --quantize-for tensorrt")


def inputs_of(metadata: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Name, shape and dtype of each input of a file, in the order of its arguments."""
    return metadata.get("inputs") or [metadata["input"]]


def served_name(request: BundleRequest, metadata: Mapping[str, Any]) -> str:
    """What clients call the model."""
    if request.name is not None:
        return request.name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", metadata["model"]["name"]).strip("._-") or "model"


def _choice(names: Sequence[str]) -> str:
    return " or ".join(names)


def _spelled(option: str) -> str:
    return f"--{'model-version' if option == 'version' else option.replace('_', '-')} ({option}=)"
