"""A checked file as a model repository that a server loads: made offline, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import FileFormatError, RequestError
from fastcnn.export.attestation import write_attestation
from fastcnn.export.description import read_metadata
from fastcnn.export.golden import GoldenPair, decode
from fastcnn.export.report import ExportReport
from fastcnn.export.serving_config import BUILD, LABELS, PLAN, SOURCE, WARMUP, Served, build_script, kserve_manifest, model_config, ovms_config
from fastcnn.export.serving_request import BundleRequest, inputs_of, served_name
from fastcnn.export.serving_targets import ServerName
from fastcnn.files import check_folder_target, making_folder, sha256_of_file

if TYPE_CHECKING:
    from fastcnn.parity import ParityReport

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class BundleReport:
    """A model repository that was written.

    Attributes:
        path: its folder.
        name: what clients call the model.
        batched: the server may put requests together.
        notes: what whoever deploys it should know.
        files: relative path → SHA-256, as in the repository's SHA256SUMS.
        sha256: of the network's file.
        parity: of that file in its runtimes.
    """

    path: Path
    server: str
    backend: str
    name: str
    batched: bool
    notes: tuple[str, ...]
    files: Mapping[str, str]
    sha256: str
    parity: ParityReport


def bundle(path: str | os.PathLike[str], out: str | os.PathLike[str], request: BundleRequest | None = None) -> BundleReport:
    """Make a model repository of a file that fastcnn exported, once the file has passed its check again.

    The folder holds the file in a version folder, the server's configuration, the golden input as warm-up data, the labels, an in-toto statement
    (`fastcnn verify --attestation` reads it) and the SHA-256 of everything.

    Args:
        path: an ONNX file, or a TorchScript file for the backend pytorch.
        out: the folder to make; an empty one may be there.
        request: the server and how it shall serve; Triton with ONNX Runtime by default.

    Raises:
        RequestError: no such file, one that the backend cannot take, or a folder that is not empty.
        FileFormatError: a file that fastcnn did not export, or a damaged one.
        ParityError: the file no longer computes what it says.
    """
    request, path, out = request or BundleRequest(), Path(path), Path(out)
    check_folder_target(out)
    metadata = read_metadata(path)
    request.check_file(str(path), metadata)

    from fastcnn.export.verification import verify_file

    parity = verify_file(path)
    parity.require(str(path))

    def place(target: Path) -> ExportReport:
        shutil.copyfile(path, target)
        digest = sha256_of_file(target)
        if digest != sha256_of_file(path):
            raise FileFormatError(f"{path} changed while it was copied: try again")
        return ExportReport(target, metadata["format"], target.stat().st_size, digest, 0.0, parity, (), metadata)

    return write_repository(out, request, place)


def write_repository(out: Path, request: BundleRequest, place: Callable[[Path], ExportReport]) -> BundleReport:
    """Make the folder around the file that `place` writes to the path that it is given; what is wrong leaves nothing behind."""
    with making_folder(out) as draft:
        report = place(draft / f"model{request.format.suffix}")
        metadata = report.metadata
        request.check_file(metadata["model"]["name"], metadata)
        pair = decode(metadata["golden"])
        mixes = _mixes_pictures(pair)
        batched = not mixes and all(entry["shape"][:1] == ["batch"] for entry in (*inputs_of(metadata), *metadata["outputs"]))
        inputs = [np.ascontiguousarray(values[: _rows(metadata)]) for values in (pair.pictures, *pair.others)]
        file = PLAN if request.runs_in.is_built_there else report.path.name
        served = Served(served_name(request, metadata), metadata, request, file, batched, [values.shape for values in _repeated(inputs, metadata)])
        if request.max_batch_size is not None or request.queue_delay is not None:
            _require_batched(served, mixes)
        write_attestation(report)
        _fill(draft, report.path, served, _repeated(inputs, metadata))
        files = {str(one.relative_to(draft).as_posix()): sha256_of_file(one) for one in sorted(draft.rglob("*")) if one.is_file()}
        (draft / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in files.items()), encoding="utf-8", newline="\n")
    notes = tuple(_notes(served, mixes))
    return BundleReport(out, request.server, request.backend_name, served.name, batched, notes, files, report.sha256, report.parity)


def _rows(metadata: Mapping[str, Any]) -> int:
    """Golden pictures that one call takes: one, or as many as a fixed batch."""
    size = inputs_of(metadata)[0]["shape"][0]
    return size if isinstance(size, int) else 1


def _repeated(inputs: list[NDArray], metadata: Mapping[str, Any]) -> list[NDArray]:
    """[batch, ...] of each input, the golden pictures in turns where a fixed batch takes more of them than there are."""
    return [values[np.arange(_rows(metadata)) % len(values)] for values in inputs]


def _mixes_pictures(pair: GoldenPair) -> bool:
    """Whether a picture's answer depends on what stands beside it in the batch, by the reference's outputs: then requests must not share one."""
    alone: dict[tuple[int, int], NDArray[np.float64]] = {}
    for batch, outputs in zip(pair.batches, pair.outputs, strict=True):
        for number, output in enumerate(outputs):
            for row, picture in enumerate(batch):
                if not output.ndim or row >= len(output) or picture in batch[:row]:
                    continue
                seen = alone.setdefault((number, picture), output[row])
                if np.linalg.norm(seen - output[row]) > pair.tolerance * np.linalg.norm(seen):
                    return True
    return False


def _require_batched(served: Served, mixes: bool) -> None:
    if served.batched:
        return
    why = "its answers depend on the other pictures of a batch" if mixes else "it takes and gives batches of one size"
    raise RequestError(
        f"{served.metadata['model']['name']} cannot share a batch between requests, for {why}: leave --max-batch-size and --queue-delay out"
    )


def _fill(draft: Path, file: Path, served: Served, inputs: list[NDArray]) -> None:
    request = served.request
    model = draft / served.name
    version = model / str(request.version)
    version.mkdir(parents=True)
    source = model / SOURCE if request.runs_in.is_built_there else version
    source.mkdir(exist_ok=True)
    file.rename(source / file.name)
    if served.metadata.get("labels"):
        _write(model / LABELS, "".join(f"{' '.join(label.split())}\n" for label in served.metadata["labels"]))
    if request.runs_in.is_built_there:
        _write(model / BUILD, build_script(served, request.version))
        (model / BUILD).chmod(0o755)
    if request.server == ServerName.ovms:
        _write(draft / "config.json", ovms_config(served))
        return
    _write(model / "config.pbtxt", model_config(served))
    (model / WARMUP).mkdir()
    for number, values in enumerate(inputs):
        (model / WARMUP / f"input-{number}").write_bytes(values.tobytes())
    if request.server == ServerName.kserve:
        _write(draft / "inferenceservice.yaml", kserve_manifest(served))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _notes(served: Served, mixes: bool) -> list[str]:
    backend = served.request.runs_in
    notes = []
    if mixes:
        notes.append("an answer of this model depends on the other pictures of its batch: requests are not put together")
    if backend.is_built_there:
        notes.append(f"run {served.name}/{BUILD} on the machine that serves: it builds the plan, which is not checked here")
    elif served.request.device_name == "cuda":
        notes.append("the file was checked on the CPU, not on the GPU that will serve it")
    if backend.runtime == "openvino" and served.request.server != ServerName.ovms:
        notes.append("on CPUs with bfloat16 OpenVINO computes in it by itself, and Triton has no option against that: onnxruntime keeps float32")
    return notes
