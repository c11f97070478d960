"""One interface over everything that predicts: reference models by name, modules, files of `fastcnn.save`, ONNX, TorchScript and `.pt2` files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastcnn.errors import FileFormatError, InputError, RequestError
from fastcnn.models.preprocessing_of import preprocessing_of
from fastcnn.optimized_module import OptimizedModule
from fastcnn.pictures import to_mode
from fastcnn.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

_SUFFIXES = (".onnx", ".pt", ".pt2", ".safetensors")


@dataclass(frozen=True)
class Predictor:
    """A classifier that is ready to run.

    Attributes:
        name: the model's.
        runtime: what runs it.
        preprocessing: from a picture to its input.
        in_file: what the file does of that itself: "none" (it takes normalised [N, C, H, W] float32), "normalize" (uint8 [N, H, W, C] pixels of
            its size) or "resize" (uint8 [N, H, W, C] pixels of any size).
        categories: names of the classes, where they are known.
        gives_probabilities: the output went through a softmax already.
        batch_size: the one that a file was made for; None where any will do.
        weights: where they come from, where that is known.
    """

    name: str
    runtime: str
    preprocessing: Preprocessing
    in_file: str
    categories: tuple[str, ...] | None
    gives_probabilities: bool
    batch_size: int | None
    forward: Callable[[NDArray], NDArray] = field(repr=False)
    weights: str | None = None
    _table: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Every level of every channel, normalised once: a look-up gives the bits of the computation, and starts no threads of PyTorch's own.
        levels = torch.arange(256, dtype=torch.uint8).expand(self.preprocessing.channel_count, 1, 256)
        object.__setattr__(self, "_table", self.preprocessing.normalize(levels)[:, 0].numpy())

    @property
    def has_random_weights(self) -> bool:
        return (self.weights or "").startswith("random")

    @property
    def input_dtype(self) -> str:
        return "float32" if self.in_file == "none" else "uint8"

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Of one picture, without the batch; None for a free side."""
        channels, height, width = self.preprocessing.output_shape
        if self.in_file == "none":
            return (channels, height, width)
        return (None, None, channels) if self.in_file == "resize" else (height, width, channels)

    def prepare(self, image: Image) -> NDArray:
        """A picture → what the model takes: [C, H, W] float32, or [H, W, C] uint8. Thread-safe. Raises InputError as `Preprocessing` does."""
        wanted = self.preprocessing
        if self.in_file == "resize":
            pixels = np.asarray(to_mode(image, "L" if wanted.channels == "L" else "RGB"))
            pixels = pixels.reshape(*pixels.shape[:2], wanted.channel_count)
            return np.ascontiguousarray(pixels[..., ::-1] if wanted.channels == "BGR" else pixels)
        pixels = wanted.pixels(image).numpy()
        if self.in_file == "normalize":
            return np.ascontiguousarray(pixels.transpose(1, 2, 0))
        return np.stack([np.take(levels, plane) for levels, plane in zip(self._table, pixels, strict=True)])

    def run(self, pictures: Sequence[NDArray] | NDArray, *, check_range: bool = True) -> NDArray[np.float32]:
        """Pictures as `prepare` gives them → [N, classes], logits or probabilities (`gives_probabilities`).

        Pictures of different sizes run apart; for a file with a fixed batch, the last one is repeated to fill it.

        Args:
            check_range: also look at the values, which pictures from `prepare` do not need.

        Raises:
            InputError: pictures of another dtype, size or range than the preprocessing gives.
            RequestError: the model is no classifier, or has another number of classes than there are names.
        """
        for picture in pictures:
            self._check_shape(picture)
            if check_range and self.in_file == "none":
                self.preprocessing.check(torch.from_numpy(picture)[None])
        outputs = [self._run_alike(group) for group in _alike(pictures)]
        return np.concatenate(outputs) if outputs else np.empty((0, len(self.categories or ())), np.float32)

    def probabilities(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """[N, classes] of `run` → probabilities, in float64."""
        values = outputs.astype(np.float64)
        if self.gives_probabilities:
            return values
        with np.errstate(invalid="ignore"):
            exponentials = np.exp(values - values.max(axis=1, keepdims=True))
            return exponentials / exponentials.sum(axis=1, keepdims=True)

    def _check_shape(self, picture: NDArray) -> None:
        shape = self.input_shape
        fits = picture.ndim == 3 and all(want is None or want == size for want, size in zip(shape, picture.shape, strict=True))
        if str(picture.dtype) != self.input_dtype or not fits:
            want = "×".join("any" if size is None else str(size) for size in shape)
            got = "×".join(map(str, picture.shape))
            raise InputError(f"{self.name} takes pictures of {want} {self.input_dtype}, got {got} {picture.dtype}: use prepare()")

    def _run_alike(self, pictures: Sequence[NDArray]) -> NDArray[np.float32]:
        size = self.batch_size or len(pictures)
        outputs = []
        for start in range(0, len(pictures), size):
            chunk = pictures[start : start + size]
            batch = np.stack([*chunk, *[chunk[-1]] * (size - len(chunk))])
            output = self.forward(batch)
            output = output.reshape(output.shape[:2]) if output.ndim > 2 and set(output.shape[2:]) == {1} else output
            if output.ndim != 2 or len(output) != size:
                raise RequestError(f"{self.name} is no classifier of pictures: its first output is {list(output.shape)} for a batch of {size}")
            if self.categories is not None and len(self.categories) != output.shape[1]:
                raise RequestError(f"{len(self.categories)} class names do not fit {self.name}, which has {output.shape[1]} classes")
            outputs.append(output[: len(chunk)])
        return np.concatenate(outputs)


def _alike(pictures: Sequence[NDArray] | NDArray) -> list[list[NDArray]]:
    """Runs of neighbours that have the same shape."""
    groups: list[list[NDArray]] = []
    for picture in pictures:
        if groups and groups[-1][0].shape == picture.shape:
            groups[-1].append(picture)
        else:
            groups.append([picture])
    return groups


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
    path = None if isinstance(source, nn.Module) else Path(source)
    named = path is not None and not (path.is_file() or path.suffix in _SUFFIXES or len(path.parts) > 1)
    if options and not named:
        raise RequestError(f"{', '.join(options)} cannot be chosen here: {path or type(source).__name__} is a finished model, not the name of one")
    if isinstance(source, nn.Module):
        return _of_module(source, backend, preprocessing, categories)
    path = Path(source)
    if not named:
        if weights is not None:
            raise RequestError(f"{path} holds its weights already: give the name of a model to load others into")
        if not path.is_file():
            raise RequestError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
        if path.suffix == ".safetensors":
            return _of_module(_load_safetensors(path, backend), backend, preprocessing, categories)
        return _of_exported(path, backend, preprocessing, categories)

    from fastcnn.models import create_model

    return _of_module(create_model(str(source), weights, seed=seed, **(options or {})), backend, preprocessing, categories)


def _load_safetensors(path: Path, backend: str | None) -> nn.Module:
    """A module that `fastcnn.save` wrote, or the model of a checkpoint that `fastcnn train` wrote."""
    from fastcnn.models import create_model
    from fastcnn.models.weights import describe_weights
    from fastcnn.saving import load

    model = describe_weights(path).get("model")
    if isinstance(model, str):
        return create_model(model, path)
    return load(path, backend=backend)


def _of_module(module: nn.Module, backend: str | None, preprocessing: Preprocessing | None, categories: Sequence[str] | None) -> Predictor:
    info: Any = module.info if isinstance(module, OptimizedModule) else getattr(module, "fastcnn_info", None)
    info = info if isinstance(info, dict) else vars(info) if info is not None else {}
    name = str(info.get("name") or type(module).__name__.lower())
    wanted = _agreed(name, preprocessing_of(module), preprocessing)
    if not isinstance(module, OptimizedModule) and module.training:
        raise RequestError(f"{name} is in training mode: call model.eval() first")
    if not isinstance(module, OptimizedModule) and backend != "reference":
        from fastcnn.optimization import optimize

        low, high = (torch.tensor(bounds).view(-1, 1, 1) for bounds in zip(*wanted.bounds(), strict=True))
        example = torch.rand((1, *wanted.output_shape), generator=torch.Generator().manual_seed(0)) * (high - low) + low
        module = optimize(module, example.to(_device(module)), backend=backend or "torch")
    if isinstance(module, OptimizedModule):
        expected = module.source.graph.input_shape[1:]
        _check_shape(name, expected, wanted.output_shape)
    runtime = module.backend if isinstance(module, OptimizedModule) else "reference"
    network, device = module, _device(module)

    def forward(batch: NDArray) -> NDArray:
        with torch.inference_mode():
            outputs = torch.utils._pytree.tree_leaves(network(torch.from_numpy(batch).to(device)))
        return outputs[0].float().cpu().numpy()

    return Predictor(name, runtime, wanted, "none", _categories(categories, info.get("categories")), False, None, forward, info.get("weights"))


def _device(module: nn.Module) -> torch.device:
    tensors = module.source.graph.constants().values() if isinstance(module, OptimizedModule) else module.parameters()
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _of_exported(path: Path, backend: str | None, preprocessing: Preprocessing | None, categories: Sequence[str] | None) -> Predictor:
    from fastcnn.export.runtimes import open_file
    from fastcnn.export.verification import read_metadata

    metadata = read_metadata(path)
    try:
        entry, format_ = metadata["input"], metadata["format"]
        name, shape, dtype = metadata["model"]["name"], entry["shape"], entry.get("dtype", "float32")
        in_file, output = entry.get("preprocessing_in_file", "none"), metadata["outputs"][0]["name"]
    except (KeyError, TypeError, IndexError) as error:
        raise FileFormatError(f"{path} has damaged metadata: {type(error).__name__}: {error}") from error
    wanted = _agreed(str(path), preprocessing_of(metadata), preprocessing)
    opened = open_file(path, format_, runtime=backend, threads=torch.get_num_threads())
    predictor = Predictor(
        name,
        opened.runtime,
        wanted,
        in_file,
        _categories(categories, metadata.get("labels")),
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
    _check_shape(str(path), sizes[1:], predictor.input_shape)
    return predictor


def _agreed(name: str, own: Preprocessing | None, given: Preprocessing | None) -> Preprocessing:
    if given is None and own is None:
        raise RequestError(f"{name} does not say how a picture becomes its input: give its preprocessing")
    if given is not None and own is not None and given != own:
        log.warning("%s was made for another preprocessing than the one given: its own is %s", name, own.summary())
    chosen = given or own
    assert chosen is not None
    return chosen


def _check_shape(name: str, expected: Sequence[int | None], given: Sequence[int | None]) -> None:
    """Raises InputError where the preprocessing makes something else than the model takes."""
    if len(expected) != len(given) or any(None not in (want, got) and want != got for want, got in zip(expected, given, strict=True)):
        shapes = ["×".join("any" if size is None else str(size) for size in sizes) for sizes in (expected, given)]
        raise InputError(f"{name} takes pictures of {shapes[0]}, but its preprocessing gives {shapes[1]}: the two do not belong together")


def _categories(given: Sequence[str] | None, own: Sequence[str] | None) -> tuple[str, ...] | None:
    chosen = given if given is not None else own
    return tuple(chosen) if chosen else None
