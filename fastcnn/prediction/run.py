"""The pipeline: threads decode ahead while batches run, and answers come in the order of the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastcnn.cores import usable_cores
from fastcnn.errors import InputError
from fastcnn.pictures import PictureError, open_picture, read_ahead
from fastcnn.prediction.predictor import Predictor

# Probabilities are rounded to this many digits after the point.
_DIGITS = 6


@dataclass(frozen=True)
class Guess:
    """One class: its number, its name where known, and its probability."""

    index: int
    label: str | None
    probability: float


@dataclass(frozen=True)
class Answer:
    """The most probable classes of one picture, the first one first."""

    file: str
    top: tuple[Guess, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        top = [{"class": guess.index, "label": guess.label, "probability": guess.probability} for guess in self.top]
        return {"file": self.file, "top": top}


@dataclass(frozen=True)
class Failure:
    """A picture without an answer, and why."""

    file: str
    reason: str


def read_input(predictor: Predictor, source: str | BinaryIO) -> NDArray:
    """A picture, by its path or from an open file, as the predictor takes it. Raises PictureError where there is no such picture in it."""
    try:
        return predictor.prepare(open_picture(source))
    except InputError as error:
        raise PictureError(str(error)) from error
    except MemoryError as error:
        raise PictureError("too large for the memory of this machine") from error


def predict(
    predictor: Predictor, files: Sequence[str], *, batch_size: int = 16, top_k: int = 5, workers: int | None = None
) -> Iterator[Answer | Failure]:
    """One answer or failure per file, in order.

    The first `batch_size` files are the first batch, and so on, whether or not all of them can be read: the same files then always share
    a batch, which is what makes the answers of a run that was taken up again the same to the last bit.

    Args:
        workers: threads that decode; as many as there are cores by default. They run at most two batches ahead.
    """
    workers = workers or usable_cores()
    pictures = read_ahead(lambda file: read_input(predictor, file), files, workers=workers, ahead=2 * batch_size + workers)
    try:
        for start in range(0, len(files), batch_size):
            names = files[start : start + batch_size]
            yield from answer_batch(predictor, names, [next(pictures) for _ in names], top_k)
    finally:
        pictures.close()  # type: ignore[attr-defined]


def answer_batch(predictor: Predictor, names: Sequence[str], pictures: Sequence[NDArray | PictureError], top_k: int) -> Iterator[Answer | Failure]:
    """One answer or failure per picture, in order, of those that run together; `pictures` are as `read_input` gives them, or why it did not."""
    readable = [picture for picture in pictures if not isinstance(picture, PictureError)]
    rows: Iterator[NDArray[np.float64]] = iter(predictor.probabilities(predictor.run(readable, check_range=False)) if readable else ())
    for name, picture in zip(names, pictures, strict=True):
        if isinstance(picture, PictureError):
            yield Failure(name, str(picture))
            continue
        row = next(rows)
        if np.isfinite(row).all():
            yield Answer(name, _top(predictor, row, top_k))
        else:
            yield Failure(name, "the model's output for it is not finite")


def _top(predictor: Predictor, row: NDArray[np.float64], top_k: int) -> tuple[Guess, ...]:
    best = np.argsort(-row, kind="stable")[:top_k]
    names = predictor.categories
    return tuple(Guess(int(index), names[index] if names else None, round(float(row[index]), _DIGITS)) for index in best)
