"""A job: the model, how to ask it and where the parts go, in plain data that another process can be handed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from numpy.typing import NDArray

from fastcnn.cores import usable_cores
from fastcnn.models.request import ModelRequest
from fastcnn.pictures import PictureError, read_ahead
from fastcnn.prediction.loading import load_predictor
from fastcnn.prediction.predictor import Predictor
from fastcnn.prediction.run import Answer, Failure, answer_batch, read_input
from fastcnn.preprocessing import Preprocessing
from fastcnn.scale.parts import Parts
from fastcnn.scale.reading import Entry, entries
from fastcnn.scale.shards import Shard

T = TypeVar("T")

_BATCHES_AHEAD = 2  # that are decoded and wait for the engine, beside those that are being decoded


@dataclass(frozen=True)
class Asking:
    """What is asked, and of what.

    Attributes:
        model, backend, preprocessing, categories, device: as in `load_predictor`.
        top_k: classes that are answered of each picture.
        batch_size: pictures that run at once.
        workers: threads that decode; None for one a core.
    """

    model: ModelRequest | str
    backend: str | None = None
    preprocessing: Preprocessing | None = None
    categories: tuple[str, ...] | None = None
    device: str | None = None
    top_k: int = 5
    batch_size: int = 16
    workers: int | None = None

    def load(self) -> Predictor:
        """What predicts, ready to run. Errors as in `load_predictor`."""
        return load_predictor(self.model, backend=self.backend, preprocessing=self.preprocessing, categories=self.categories, device=self.device)


@dataclass(frozen=True)
class Counts:
    """Pictures of a shard that have a row, and how many of those rows say why there is no answer."""

    pictures: int = 0
    errors: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.pictures + other.pictures, self.errors + other.errors)


@dataclass(frozen=True)
class Job:
    """`asking`, with the answers in `parts`."""

    asking: Asking
    parts: Parts

    def run(self, predictor: Predictor, shard: Shard, on_batch: Callable[[Counts], None] = lambda counts: None) -> Counts:
        """Makes the part of a shard. A picture that cannot be read is a row that says so.

        Args:
            predictor: from `asking.load()`.
            on_batch: is told of every batch that was answered.

        Raises:
            SourceError: the shard cannot be read to its end; it has no part then.
            RequestError: the part cannot be written.
        """
        total = Counts()

        def counted() -> Iterator[Answer | Failure]:
            nonlocal total
            for answers in _answers(self.asking, predictor, shard):
                counts = Counts(len(answers), sum(isinstance(answer, Failure) for answer in answers))
                total += counts
                yield from answers
                on_batch(counts)

        rows = counted()
        try:
            self.parts.write(shard, rows)
        finally:
            rows.close()  # type: ignore[attr-defined]
        return total


def _answers(asking: Asking, predictor: Predictor, shard: Shard) -> Iterator[list[Answer | Failure]]:
    """Batch by batch. Which pictures share a batch is their place in the shard alone, so that a rerun gives the same bits."""
    for batch in made_ahead(_batches(asking, predictor, shard), _BATCHES_AHEAD):
        names, pictures = zip(*batch, strict=True)
        yield list(answer_batch(predictor, names, pictures, asking.top_k))


def _batches(asking: Asking, predictor: Predictor, shard: Shard) -> Iterator[Sequence[tuple[str, NDArray | PictureError]]]:
    def read(entry: Entry) -> tuple[str, NDArray | PictureError]:
        try:
            return entry.file, read_input(predictor, entry.source())
        except PictureError as error:
            return entry.file, error

    workers = asking.workers or usable_cores()
    decoded = read_ahead(read, entries(shard), workers=workers, ahead=asking.batch_size + workers)
    try:
        while batch := [one for one in islice(decoded, asking.batch_size) if not isinstance(one, PictureError)]:
            yield batch
    finally:
        decoded.close()  # type: ignore[attr-defined]


def made_ahead(items: Iterable[T], ahead: int) -> Iterator[T]:
    """The same items, of which a thread makes up to `ahead` before they are asked for; what it raises is raised here. Closing ends the thread."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                ready.put((item, error), timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put(item):
                    return
            put(None, _EndError())
        except BaseException as error:  # handed over, whatever it is: otherwise the reader would wait for ever
            put(None, error)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=make, name="fastcnn-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, _EndError):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()


class _EndError(Exception):
    """There are no more."""
