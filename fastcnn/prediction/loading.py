"""From whatever can predict to a `Predictor`: names of reference models, modules, files of `fastcnn.save`, ONNX, TorchScript and `.pt2`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcnn.cores import usable_cores
from fastcnn.errors import BackendError, FileFormatError, RequestError
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.prediction.predictor import Predictor, agreed, check_shape, class_names
from fastcnn.preprocessing import Preprocessing
from fastcnn.weight_files import is_safetensors

if TYPE_CHECKING:
    from torch import nn

_SUFFIXES = (".onnx", ".pt", ".pt2", ".safetensors")


def load_predictor(
    source: str | Path | nn.Module,
    *,
    weights: str | None = None,
    seed: int = 0,
    backend: str | None = None,
    preprocessing: Preprocessing | None = None,
    categories: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Predictor:
    """Make ready whatever can predict.

    Args:
        source: a file of `fastcnn.export` or `fastcnn.save`, a checkpoint of `fastcnn train`, the name of a reference model, or a module.
        weights, seed: of a reference model, as in `create_model`.
        backend: of a reference model or module: "reference" (the module as it is), or a backend of `fastcnn.optimize` ("torch" by default);
            of a file of `fastcnn.save`: another one than it was saved with; of an ONNX file: "onnxruntime" (the default) or "openvino".
        preprocessing: in place of the source's own; for files and modules that have none.
        categories: names of the classes, in place of the source's own.
        options: further keywords of `create_model`, where the source is the name of a reference model.

    Raises:
        RequestError: no such file or model, an option that does not apply, or a source that does not say how pictures become its input.
        FileFormatError: a file that fastcnn did not write, or a damaged one.
    """
    named = isinstance(source, (str, Path)) and not _is_path(Path(source))
    if options and not named:
        what = source if isinstance(source, (str, Path)) else type(source).__name__
        raise RequestError(f"{', '.join(options)} cannot be chosen here: {what} is a finished model, not the name of one")
    if not isinstance(source, (str, Path)):
        from fastcnn.prediction.modules import of_module

        return of_module(source, backend, preprocessing, categories)
    path = Path(source)
    if not named:
        if weights is not None:
            raise RequestError(f"{path} holds its weights already: give the name of a model to load others into")
        if not path.is_file():
            raise RequestError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
        if path.suffix == ".safetensors" or is_safetensors(path):
            from fastcnn.prediction.modules import of_saved

            return of_saved(path, backend, preprocessing, categories)
        return _of_exported(path, backend, preprocessing, categories)

    from fastcnn.models import create_model, model_spec

    model_spec(str(source))  # a name that is none is told before PyTorch is imported
    from fastcnn.prediction.modules import of_module

    return of_module(create_model(str(source), weights, seed=seed, **(options or {})), backend, preprocessing, categories)


def _is_path(path: Path) -> bool:
    """Whether what was given means a file, there or not, and no name of a model."""
    return path.is_file() or path.suffix in _SUFFIXES or len(path.parts) > 1


def _of_exported(path: Path, backend: str | None, preprocessing: Preprocessing | None, categories: Sequence[str] | None) -> Predictor:
    from fastcnn.export.description import read_metadata
    from fastcnn.export.runtimes import open_file

    metadata = read_metadata(path)
    try:
        entry, format_ = metadata["input"], metadata["format"]
        name, shape, dtype = metadata["model"]["name"], entry["shape"], entry.get("dtype", "float32")
        in_file, output = entry.get("preprocessing_in_file", "none"), metadata["outputs"][0]["name"]
    except (KeyError, TypeError, IndexError) as error:
        raise FileFormatError(f"{path} has damaged metadata: {type(error).__name__}: {error}") from error
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
    )
    if dtype != predictor.input_dtype or opened.dtype not in (None, dtype):
        raise FileFormatError(
            f"{path} takes {opened.dtype or dtype}, but its description says {predictor.input_dtype}: the two do not belong together"
        )
    sizes = opened.shape if opened.shape is not None else [size if isinstance(size, int) else None for size in shape]
    check_shape(str(path), sizes[1:], predictor.input_shape)
    return predictor


def _threads() -> int:
    """Those of PyTorch where the process has imported it, since its count may have been set; else one a core."""
    torch: Any = sys.modules.get("torch")
    return usable_cores() if torch is None else torch.get_num_threads()
