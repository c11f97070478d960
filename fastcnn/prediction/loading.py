"""From whatever can predict to a `Predictor`: names of reference models, modules, files of `fastcnn.save`, ONNX, TorchScript and `.pt2`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcnn.cores import usable_cores
from fastcnn.errors import BackendError, FileFormatError, RequestError
from fastcnn.export.description import read_any
from fastcnn.export.runtimes import open_file
from fastcnn.models.preprocessing_of import preprocessing_of, usual_preprocessing
from fastcnn.models.request import ModelRequest
from fastcnn.models.sources import Kind
from fastcnn.prediction.predictor import Predictor, agreed, check_shape, class_names
from fastcnn.preprocessing import Preprocessing
from fastcnn.weight_files import is_safetensors

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

_SUFFIXES = (".onnx", ".pt", ".pt2", ".safetensors")


def load_predictor(
    source: str | Path | nn.Module | ModelRequest,
    *,
    weights: str | None = None,
    seed: int = 0,
    backend: str | None = None,
    preprocessing: Preprocessing | None = None,
    categories: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Predictor:
    """Make ready whatever can predict.

    Args:
        source: a file of `fastcnn.export` or `fastcnn.save`, a checkpoint of `fastcnn train`, the name of a reference model, a module, or a
            request for a model of whatever kind; an ONNX file or a torch.export program of others too. Where those last ones do not
            say how a picture becomes their input, `usual_preprocessing` is assumed, and a warning says so.
        weights, seed: of a reference model, as in `create_model`.
        backend: of a reference model or module: "reference" (the module as it is), or a backend of `fastcnn.optimize` ("torch" by default);
            of a file of `fastcnn.save`: another one than it was saved with; of an ONNX file: "onnxruntime" (the default) or "openvino".
        preprocessing: in place of the source's own; for files and modules that have none.
        categories: names of the classes, in place of the source's own.
        options: further keywords of `create_model`, where the source is the name of a reference model.
        device: where a model, or a file of `fastcnn.save`, shall run, as in "cuda" or "cuda:1": by default on the CPU, and a module where it is.
            Exported files run on the CPU.

    Raises:
        RequestError: no such file, model or device, an option that does not apply, or a source that does not say how pictures become its input.
        FileFormatError: a file that fastcnn did not write, or a damaged one.
    """
    if isinstance(source, str) and source.partition(":")[1] and not Path(source).exists():
        source = ModelRequest(source, weights, seed)
    if isinstance(source, ModelRequest):
        return _of_request(source, backend, preprocessing, categories, device)
    named = isinstance(source, (str, Path)) and not _is_path(Path(source))
    if options and not named:
        what = source if isinstance(source, (str, Path)) else type(source).__name__
        raise RequestError(f"{', '.join(options)} cannot be chosen here: {what} is a finished model, not the name of one")
    if not isinstance(source, (str, Path)):
        from fastcnn.prediction.modules import of_module

        return of_module(source, backend, preprocessing, categories, device)
    path = Path(source)
    if not named:
        if weights is not None:
            raise RequestError(f"{path} holds its weights already: give the name of a model to load others into")
        if not path.is_file():
            raise RequestError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
        if path.suffix == ".safetensors" or is_safetensors(path):
            from fastcnn.prediction.modules import of_saved

            return of_saved(path, backend, preprocessing, categories, device)
        _require_cpu(path, device)
        return _of_exported(path, backend, preprocessing, categories)

    from fastcnn.models import create_model, model_spec

    model_spec(str(source))  # a name that is none is told before PyTorch is imported
    from fastcnn.prediction.modules import of_module

    return of_module(create_model(str(source), weights, seed=seed, **(options or {})), backend, preprocessing, categories, device)


def _is_path(path: Path) -> bool:
    """Whether what was given means a file, there or not, and no name of a model."""
    return path.is_file() or path.suffix in _SUFFIXES or len(path.parts) > 1


def _require_cpu(path: Path, device: str | None) -> None:
    if device is not None and not device.startswith("cpu"):
        raise RequestError(f"{path} runs on the CPU, not on {device}: give the model that it was made from, or a file of `fastcnn optimize`")


def _of_request(
    request: ModelRequest, backend: str | None, preprocessing: Preprocessing | None, categories: Sequence[str] | None, device: str | None = None
) -> Predictor:
    kind = request.read().kind
    if kind is Kind.onnx:
        _require_cpu(Path(request.model), device)
        return _of_exported(Path(request.model), backend, preprocessing, categories, request.input_shape)
    from fastcnn.models.opening import open_model
    from fastcnn.prediction.modules import of_module

    model = open_model(request)
    info: Any = model.fastcnn_info
    known = preprocessing or info.preprocessing or _assumed(info.name, info.input_size)
    return of_module(model, backend, known, categories, device)


def _assumed(name: str, size: Sequence[int | None]) -> Preprocessing | None:
    usual = usual_preprocessing(size)
    if usual is not None:
        log.warning("%s does not say how a picture becomes its input: assumed is %s; --preprocessing FILE says it", name, usual.summary())
    return usual


def _of_foreign_onnx(
    path: Path, backend: str | None, preprocessing: Preprocessing | None, categories: Sequence[str] | None, size: Sequence[int] | None
) -> Predictor:
    """An ONNX file that others made: the first output is taken for the classes, and for probabilities where they sum to 1."""
    opened = open_file(path, "onnx", runtime=backend, threads=_threads())
    shape = opened.shape or ()
    if opened.inputs > 1:
        raise RequestError(f"{path} takes {opened.inputs} inputs, and a picture is one")
    if opened.dtype != "float32" or len(shape) != 4:
        what = f"{opened.dtype} {['N' if one is None else one for one in shape]}"
        raise FileFormatError(f"{path} takes {what}: pictures can be given to a file that takes float32 [N, C, H, W]")
    wanted = agreed(str(path), None, preprocessing or _assumed(path.name, size or shape[1:]))
    check_shape(str(path), shape[1:], wanted.output_shape)
    probe = np.random.default_rng(0).random((shape[0] or 1, *wanted.output_shape), dtype=np.float32)
    (outputs, *_) = opened.run(probe)
    rows = outputs.reshape(len(outputs), -1)
    probabilities = bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3))
    names = class_names(categories, None)
    return Predictor(path.name, opened.runtime, wanted, "none", names, probabilities, shape[0], lambda batch: opened.run(batch)[0], f"of {path.name}")


def _of_exported(
    path: Path, backend: str | None, preprocessing: Preprocessing | None, categories: Sequence[str] | None, size: Sequence[int] | None = None
) -> Predictor:
    made_as, metadata = read_any(path)
    if metadata is None and made_as == "onnx":
        return _of_foreign_onnx(path, backend, preprocessing, categories, size)
    if metadata is None and made_as == "pt2":
        return _of_request(ModelRequest(str(path), input_shape=None if size is None else tuple(size)), backend, preprocessing, categories)
    if metadata is None:
        raise FileFormatError(
            f"{path} was not exported by fastcnn, and a {made_as} file of others does not say what it takes: export it as ONNX or .pt2"
        )
    entry, format_ = metadata["input"], metadata["format"]
    if len(metadata.get("inputs", ())) > 1:
        raise RequestError(f"{path} takes {len(metadata['inputs'])} inputs, and a picture is one")
    name, shape, dtype = metadata["model"]["name"], entry["shape"], entry.get("dtype", "float32")
    in_file, output = entry.get("preprocessing_in_file", "none"), metadata["outputs"][0]["name"]
    wanted = agreed(str(path), preprocessing_of(metadata), preprocessing)
    left_out = metadata.get("left_out", {})
    if backend in left_out:
        raise BackendError(f"{path} is not for {backend}: {left_out[backend]}")
    opened = open_file(path, format_, runtime=backend or next(iter(metadata.get("runtimes", ())), None), threads=_threads())
    predictor = Predictor(
        name,
        opened.runtime,
        wanted,
        in_file,
        class_names(categories, metadata.get("labels")),
        output == "probabilities",
        shape[0] if isinstance(shape[0], int) else None,
        lambda batch: opened.run(batch)[0],
        metadata["model"].get("weights"),
        (shape[1], shape[2]) if in_file == "resize" and isinstance(shape[1], int) and isinstance(shape[2], int) else None,
    )
    if dtype != predictor.input_dtype or opened.dtype not in (None, dtype):
        raise FileFormatError(
            f"{path} takes {opened.dtype or dtype}, but its description says {predictor.input_dtype}: the two do not belong together"
        )
    sizes = opened.shape if opened.shape is not None else [size if isinstance(size, int) else None for size in shape]
    if sizes[0] != predictor.batch_size:
        said, found = (f"batches of {size}" if size else "any batch" for size in (predictor.batch_size, sizes[0]))
        raise FileFormatError(f"{path} takes {found}, but its description says {said}: the two do not belong together")
    check_shape(str(path), sizes[1:], predictor.input_shape)
    return predictor


def _threads() -> int:
    """Those of PyTorch where the process has imported it, since its count may have been set; else one a core."""
    torch: Any = sys.modules.get("torch")
    return usable_cores() if torch is None else torch.get_num_threads()
