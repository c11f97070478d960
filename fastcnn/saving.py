"""Save an optimized module to one file, and load it where neither the reference nor a new capture is at hand.

The file is a safetensors file: plain tensors and JSON, nothing that runs. Tensors are stored once each under the SHA-256 of their content: weights
that folding left alone serve the graph, the original state dict and the runtime's model alike, and a damaged file is noticed when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcnn._version import __version__
from fastcnn.engines import get_engine
from fastcnn.errors import BackendError, FileFormatError, RequestError
from fastcnn.files import check_target, replacing
from fastcnn.graph.plan import Plan
from fastcnn.graph.serialization import FLOATING_DTYPES, graph_from_json, graph_to_json
from fastcnn.limits import parse_json
from fastcnn.optimized_module import ModuleSource, OptimizedModule
from fastcnn.target import Target
from fastcnn.text import first_line
from fastcnn.weight_files import safetensors_header

_FORMAT = 1
# One entry: safetensors writes several in random order.
_KEY = "fastcnn"


def save(module: OptimizedModule, path: str | Path, *, force: bool = False, slim: bool = False) -> Path:
    """Write `module` to `path`; an existing file needs `force`. The file appears whole or not at all.

    With `slim` it leaves out the weights of the reference, about half of the file where BatchNorm was folded: the loaded module computes
    the same, and its `state_dict` is a RequestError. A module that was loaded from a slim file has none to write either way.

    Raises:
        RequestError: not an optimized module, a graph with an operation that has no plain form, or the path cannot be written.
    """
    if not isinstance(module, OptimizedModule):
        raise RequestError(f"fastcnn.save takes what fastcnn.optimize returned, not a {type(module).__name__}")
    path = check_target(Path(path), force)
    store = _Store()
    source = module.source
    try:
        graph = graph_to_json(source.graph)
    except TypeError as error:
        raise RequestError(f"this {source.graph.info.get('name', 'model')} cannot be saved: {error}") from error
    header: dict[str, Any] = {
        "format": _FORMAT,
        "version": __version__,
        "backend": module.backend,
        # The target in its parts among the graph's entries, where the first release had them: each reads the other's files.
        "graph": graph
        | {
            "usual_batch": source.target.usual_batch,
            "allow_tf32": source.target.allow_tf32,
            **({"int8": True} if source.target.dtype == torch.int8 else {}),
            # A graph that takes integers does not say by its input what it computes in.
            **({} if source.graph.input_dtype.is_floating_point else {"dtype": str(source.target.dtype)}),
        },
        "constants": store.put_all(source.graph.constants()),
        "state_dict": None if slim or source.state_dict is None else store.put_all(source.state_dict),
        "plan": Plan(module.backend, (), source.passes, source.choice).to_dict(),
        "artifact": _store_artifact(store, module.lowered.artifact),
    }
    if header["artifact"] is not None:
        header["artifact"]["of"] = _binding(header)
    text = json.dumps(header, sort_keys=True)
    _write(path, store.tensors, {_KEY: f"{_text_digest(text)} {text}"})
    return path


def load(path: str | Path, *, backend: str | None = None, device: str | torch.device = "cpu") -> OptimizedModule:
    """Bring back a saved module.

    Args:
        backend: another engine than the one that it was saved with.
        device: where it shall run.

    Raises:
        RequestError: no such file, or no such device.
        FileFormatError: not a file of `fastcnn.save`, or a damaged one.
        BackendError: the engine cannot run here.
    """
    path = Path(path)
    header, tensors = _read(path)
    name = backend or header["backend"]
    engine = get_engine(name)
    device = check_device(device)
    try:
        source, artifact = _restore(header, tensors, device)
    except FileFormatError as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    except Exception as error:  # whoever writes a header on purpose finds a way to make PyTorch or protobuf stumble
        raise FileFormatError(f"{path} does not hold what fastcnn.save writes: {first_line(error)}") from error
    reason = engine.unsupported(source.target)
    if reason:
        raise BackendError(f"backend {name!r}: {reason}")
    return OptimizedModule(source, engine, engine.lower(source.graph, source.target, artifact if name == header["backend"] else None))


def check_device(name: str | torch.device) -> torch.device:
    """The device of that name, with its index. Raises RequestError where this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"there is no device {name!r}; devices are named cpu, cuda, cuda:1 and so on") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(f"nothing can run on {device}: PyTorch finds no CUDA device here")
    # "cuda" stands for the current one: its index is in what a tensor there says.
    return torch.empty(0, device=device).device if device.type == "cuda" else device


def _restore(header: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> tuple[ModuleSource, bytes | None]:
    get = _Getter(tensors)
    # Copies: where a tensor starts in the file depends on the length of the header, and libraries sum in another order where it is not aligned.
    graph = graph_from_json(header["graph"], {name: get(key).to(device, copy=True) for name, key in header["constants"].items()})
    saved = Plan.from_dict(header["plan"])
    # Copies again: entries of equal content, and the graph's constants, must not become one tensor in a model that takes the state dict over.
    named = header["state_dict"]
    state_dict = None if named is None else {name: get(key).clone() for name, key in named.items()}
    # Files of the first release do not say whether TF32 is allowed.
    computes_in = graph.input_dtype if graph.input_dtype.is_floating_point else FLOATING_DTYPES[header["graph"]["dtype"]]
    dtype = torch.int8 if header["graph"].get("int8") else computes_in
    target = Target(device, dtype, header["graph"]["usual_batch"], header["graph"].get("allow_tf32", False))
    stored = header["artifact"]
    if stored is not None and stored.get("of", _binding(header)) != _binding(header):
        raise FileFormatError("its artifact was made from another graph than the one beside it")
    return ModuleSource(graph, target, saved.passes, state_dict, saved.choice), _load_artifact(get, stored)


def _binding(header: Mapping[str, Any]) -> str:
    """SHA-256 of the graph and of its weights, which the artifact names."""
    return _text_digest(json.dumps([header["graph"], header["constants"]], sort_keys=True))


class _Store:
    """Tensors by the SHA-256 of what they hold."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, tensor: Tensor) -> str:
        tensor = tensor.detach().cpu().contiguous()
        key = _digest(tensor)
        # safetensors refuses tensors that share memory.
        self.tensors.setdefault(key, tensor.clone())
        return key

    def put_all(self, named: dict[str, Tensor]) -> dict[str, str]:
        return {name: self.put(tensor) for name, tensor in named.items()}


class _Getter:
    """Tensors by their key, each checked once."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors, self._checked = tensors, set[str]()

    def __call__(self, key: str) -> Tensor:
        if key not in self._tensors:
            raise FileFormatError(f"the file lacks the tensor {key[:12]}…, which its own index names")
        if key not in self._checked:
            if _digest(self._tensors[key]) != key:
                raise FileFormatError(f"the tensor {key[:12]}… is not what was saved: the file is damaged")
            self._checked.add(key)
        return self._tensors[key]


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _store_artifact(store: _Store, artifact: bytes | None) -> dict[str, Any] | None:
    """An ONNX model without the weights that the store holds already."""
    if artifact is None:
        return None
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(artifact)
    keys = {}
    for initializer in model.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if array.nbytes > 1024:
            keys[initializer.name] = store.put(torch.from_numpy(array.copy()))
            initializer.ClearField("raw_data")
    return {"initializers": keys, "model": store.put(_bytes_tensor(model.SerializeToString()))}


def _load_artifact(get: _Getter, stored: dict[str, Any] | None) -> bytes | None:
    if stored is None:
        return None
    import onnx

    model = onnx.load_from_string(get(stored["model"]).numpy().tobytes())
    for initializer in model.graph.initializer:
        if initializer.name in stored["initializers"]:
            initializer.raw_data = get(stored["initializers"][initializer.name]).numpy().tobytes()
    return model.SerializeToString()


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as draft:
            save_file(tensors, draft, metadata)
    except SafetensorError as error:
        raise RequestError(f"{path} cannot be written: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise RequestError(f"no file {path}")
    try:
        safetensors_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not a whole safetensors file: {error}") from error
    if _KEY not in metadata:
        raise FileFormatError(
            f"{path} was not written by fastcnn.save: it holds weights only; name the model that they belong to, "
            f"as in `fastcnn predict MODEL --weights {path}` or create_model(…, weights={path.name!r})"
        )
    digest, _, text = metadata[_KEY].partition(" ")
    if _text_digest(text) != digest:
        raise FileFormatError(f"{path}: the description of the model is not what was saved: the file is damaged")
    try:
        header = parse_json(text)
    except ValueError as error:
        raise FileFormatError(f"{path} is damaged: its description is no JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("backend"), str):
        raise FileFormatError(f"{path} is damaged: its description names no backend")
    if header.get("format") != _FORMAT:
        raise FileFormatError(f"{path} has format {header.get('format')}, this fastcnn {__version__} reads format {_FORMAT}")
    return header, tensors
