"""One small file of each format, and how it is read: what comes out is what a user acts on, and must be the same wherever a file is accepted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_networks import EXPORTERS, SUFFIX, example, small
from mutation.mutations import mutate

import fastcnn
from fastcnn.errors import FastcnnError
from fastcnn.export import runtimes, verification
from fastcnn.export.container import read_container
from fastcnn.models.weights import describe_weights, open_weights, state_dict_sha256
from fastcnn.training.checkpoint import content_sha256, load_checkpoint, save_checkpoint, save_weights

_SUFFIX = {**SUFFIX, "fast": ".fast", "safetensors": ".safetensors", "checkpoint": ".pt"}


@dataclass(frozen=True)
class Verdict:
    """What became of a mutated file: "refused", "accepted" where it says the same as the original, "forged" where it was made to be accepted,
    "stripped" where nothing but the weights is left of a file, which then claims nothing;
    "wrong" where it was accepted and says something else, "defect" where reading it raised what no user should see."""

    kind: str
    what: str
    text: str = ""


@dataclass(frozen=True)
class Subject:
    """A file and the reader of its format."""

    format: str
    data: bytes
    said: Any

    def judge(self, seed: int, folder: Path) -> Verdict:
        """Mutates the file and reads it in `folder`."""
        mutation = mutate(self.format, self.data, seed)
        path = folder / f"mutated{_SUFFIX[self.format]}"
        path.write_bytes(mutation.data)
        try:
            said = READERS[self.format](path)
        except FastcnnError as error:
            text = str(error)
            return Verdict("refused" if text and "\n" not in text else "defect", mutation.what, text)
        except Exception as error:  # whatever it is, it must not get here
            return Verdict("defect", mutation.what, f"{type(error).__name__}: {error}")
        if said == self.said:
            return Verdict("accepted", mutation.what)
        if self.format == "safetensors" and said == (self.said[0], {}, None):
            return Verdict("stripped", mutation.what)
        return Verdict("forged" if mutation.forged else "wrong", mutation.what)


def _read_exported(path: Path) -> Any:
    report = verification.verify_file(path)
    report.require(path.name)
    container, metadata = read_container(path)
    return container.content, metadata


def _read_fast(path: Path) -> Any:
    module = fastcnn.load(path)
    answer = np.asarray(module(example()).numpy())
    return answer.tobytes(), repr(module.source.graph.info), module.backend, state_dict_sha256(module.state_dict())


def _read_weights(path: Path) -> Any:
    source = open_weights(None, path)
    return state_dict_sha256(source.tensors), describe_weights(path), source.preprocessing


def _read_checkpoint(path: Path) -> Any:
    return content_sha256(load_checkpoint(path))


READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(SUFFIX, _read_exported),
    "fast": _read_fast,
    "safetensors": _read_weights,
    "checkpoint": _read_checkpoint,
}


def _write(format_: str, path: Path) -> None:
    if format_ in EXPORTERS:
        EXPORTERS[format_](small(), path, example(), labels=["a", "b", "c", "d"])
    elif format_ == "fast":
        fastcnn.save(fastcnn.optimize(small(), example(), backend="onnxruntime"), path)
    elif format_ == "safetensors":
        save_weights(small(), {"model": "small", "classes": ["a", "b"], "options": {}, "history": [{"loss": 0.5}]}, path)
    else:
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        model(example()).sum().backward()
        optimizer.step()
        save_checkpoint({"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": [{"loss": 0.5}]}, path)


def subject(format_: str, folder: Path) -> Subject:
    """The file of a format, written into `folder`."""
    path = folder / f"sound{_SUFFIX[format_]}"
    _write(format_, path)
    return Subject(format_, path.read_bytes(), READERS[format_](path))


def run_here() -> Callable[[], None]:
    """Runs `.pt2` and TorchScript in this process while mutants are judged, for a fresh one takes seconds. Returns what puts it back."""
    own = verification.runtimes_for

    def runners(format_: str) -> Any:
        if format_ == "onnx":
            return {"onnxruntime": own("onnx")["onnxruntime"]}
        return {"torch": functools.partial(_run, format_)}

    verification.runtimes_for = runners
    return lambda: setattr(verification, "runtimes_for", own)


def _run(format_: str, path: Path, batches: Any) -> Any:
    opened = runtimes.open_file(path, format_)
    return [[np.asarray(output, np.float64) for output in opened.run(batch)] for batch in batches]
