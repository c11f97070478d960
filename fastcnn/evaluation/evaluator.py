"""Run a model or file over labelled pictures, and find where two of them disagree."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcnn.data.pictures import Pictures, PicturesOnDemand
from fastcnn.engines import BACKENDS
from fastcnn.errors import RequestError
from fastcnn.evaluation.figures import Disagreement
from fastcnn.evaluation.metrics import Metrics, Tally
from fastcnn.models.request import ModelRequest
from fastcnn.models.sources import Kind, read_model_text
from fastcnn.prediction.loading import load_predictor
from fastcnn.prediction.predictor import Predictor

_log = logging.getLogger(__name__)

# What may follow the name of a model or file: `simple_cnn@onnxruntime`.
_AFTER_AT = ("reference", *BACKENDS)

# Of a batch: pictures at most, and input values at most (26 pictures of 3 x 224 x 224).
_BATCH, _BATCH_VALUES = 250, 4_000_000


@dataclass(frozen=True)
class Evaluation:
    """What a candidate answered.

    Attributes:
        source: the model or file, as it was named.
        runtime: what ran it.
        answers: (N,) int64, the best class of each picture of `indices`, numbered as the dataset does.
        indices: (N,) int64, which pictures.
        counted_by: "name" where the candidate's class names are the dataset's, in any order; "position" where it has others
            or none, and its first output counts as the dataset's first class.
    """

    source: str
    runtime: str
    metrics: Metrics
    answers: Tensor
    indices: Tensor
    counted_by: Literal["name", "position"]


def load_candidate(
    source: str,
    *,
    weights: str | None = None,
    seed: int = 0,
    backend: str | None = None,
    request: ModelRequest | None = None,
    device: str | None = None,
) -> Predictor:
    """Makes ready what is to be evaluated.

    Args:
        source: what `load_predictor` takes, and after an @ the backend that runs it, which goes before `backend`.
        weights, seed: of models, as in `load_predictor`; files hold their own.
        request: the model that `source` names, with all its options, in place of `weights` and `seed`.
        backend: as in `load_predictor`; a reference model runs as it is by default, a file in its own runtime.
        device: as in `load_predictor`.

    Raises what `load_predictor` raises.
    """
    name, own = split_backend(source)
    if is_model(name):
        return load_predictor(request or ModelRequest(name, weights, seed), backend=own or backend or "reference", device=device)
    return load_predictor(name, backend=own or backend or ("reference" if _holds_weights(name) else None), device=device)


def split_backend(source: str) -> tuple[str, str | None]:
    """`simple_cnn@onnxruntime` -> ("simple_cnn", "onnxruntime"); the backend is None where none is named."""
    name, _, last = source.rpartition("@")
    return (name, last) if name and last in _AFTER_AT else (source, None)


def is_model(name: str) -> bool:
    """Whether a source without its backend is a model that is built here, and not a file. Raises UnknownNameError for what is neither."""
    return read_model_text(name).kind in (Kind.own, Kind.torchvision, Kind.timm, Kind.code)


def evaluate(
    predictor: Predictor,
    pictures: Pictures,
    *,
    source: str = "",
    limit: int | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Count the answers of a candidate.

    Args:
        pictures: at the size of the predictor's preprocessing.
        source: what the candidate is called.
        limit: take that many pictures only, evenly spaced.
        batch_size: pictures at a time; by default up to 250, fewer where they are large.
        workers: processes that decode picture files.
        progress: hears (pictures done, pictures in all) after each batch.

    Raises:
        RequestError: the candidate has another number of classes than the dataset, or a picture cannot be read.
    """
    indices = spaced(len(pictures), limit)
    values = math.prod(predictor.preprocessing.output_shape)
    size = batch_size or predictor.batch_size or max(1, min(_BATCH, _BATCH_VALUES // values))
    order = class_order(predictor.categories, pictures.classes)
    counted_by = _counted_by(source or predictor.name, predictor.categories, pictures)
    tally, answers = Tally(pictures.classes), []
    done = 0
    for batch, labels in _batches(predictor, pictures, indices, size, workers):
        outputs = predictor.run(batch, check_range=False)  # they come from its own preprocessing
        if outputs.shape[1] != len(pictures.classes):
            who, classes = source or predictor.name, len(pictures.classes)
            raise RequestError(f"{who} has {outputs.shape[1]} classes, and {pictures.name} has {classes}: they do not belong together")
        scores = torch.from_numpy(outputs if order is None else np.ascontiguousarray(outputs[:, order]))
        answers.append(tally.add(scores, labels, probabilities=predictor.gives_probabilities))
        done += len(labels)
        if progress is not None:
            progress(done, len(indices))
    return Evaluation(source or predictor.name, predictor.runtime, tally.metrics(), torch.cat(answers), indices, counted_by)


def spaced(count: int, limit: int | None) -> Tensor:
    """The indices of `limit` of `count` pictures, evenly spaced, (N,) int64: image folders are sorted by class."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


def class_order(categories: Sequence[str] | None, classes: Sequence[str]) -> list[int] | None:
    """Where the dataset's classes stand among the candidate's outputs; None where both have the same order, or names do not tell."""
    if categories is None or tuple(categories) == tuple(classes) or sorted(categories) != sorted(classes) or len(set(classes)) < len(classes):
        return None
    position = {name: index for index, name in enumerate(categories)}
    return [position[name] for name in classes]


def _counted_by(source: str, categories: Sequence[str] | None, pictures: Pictures) -> Literal["name", "position"]:
    """How outputs find their class; says so where there are names, and they do not tell."""
    if categories is None:
        return "position"
    if sorted(categories) == sorted(pictures.classes) and (len(set(categories)) == len(categories) or tuple(categories) == pictures.classes):
        return "name"
    _log.info(
        "%s names its classes otherwise than %s (%s; %s): they are counted by position, the first output as the first class",
        *(source, pictures.name, _first_of(categories), _first_of(pictures.classes)),
    )
    return "position"


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def disagreements(first: Evaluation, second: Evaluation, pictures: Pictures, *, drawn: int = 0) -> list[Disagreement]:
    """The pictures on which two evaluations of the same pictures differ; the first `drawn` of them with their pixels."""
    differ = (first.answers != second.answers).nonzero().flatten()
    pixels = [_drawable(picture) for batch, _ in pictures.batches(first.indices[differ[:drawn]], max(1, drawn)) for picture in batch]
    found = []
    for position, picture in itertools.zip_longest(differ.tolist(), pixels):
        index = int(first.indices[position])
        label, one, other = (pictures.classes[int(answer)] for answer in (pictures.labels[index], first.answers[position], second.answers[position]))
        found.append(Disagreement(pictures.where(index), label, one, other, picture))
    return found


def _drawable(picture: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) -> (H, W, C), or (H, W) of a grey one."""
    array = picture.permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


def _batches(
    predictor: Predictor, pictures: Pictures, indices: Tensor, size: int, workers: int
) -> Iterator[tuple[NDArray | Sequence[NDArray], Tensor]]:
    """What the candidate takes, and the labels."""
    if predictor.in_file == "resize" and isinstance(pictures, PicturesOnDemand):  # the file resizes: it gets pictures of their own size
        for part in indices.split(size):
            yield [predictor.prepare(pictures.open(index)) for index in part.tolist()], pictures.labels[part]
        return
    for pixels, labels in pictures.batches(indices, size, workers):
        if predictor.in_file == "none":
            yield predictor.preprocessing.normalize(pixels).numpy(), labels
        else:
            yield np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()), labels


def _holds_weights(name: str) -> bool:
    from fastcnn.models.weights import describe_weights

    return bool(describe_weights(name).get("model"))
