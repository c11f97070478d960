"""Where calibration pictures come from: a folder, a file of arrays, or an array; each is looked at before it is trusted."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcnn.errors import InputError, RequestError
from fastcnn.parity.rules import LARGEST_ORDINARY_INPUT
from fastcnn.pictures import PictureError, find_pictures, open_picture, read_ahead
from fastcnn.preprocessing import Preprocessing
from fastcnn.quantization.request import SAMPLES

log = logging.getLogger(__name__)

# Below this many, the ranges of rare activations are guesses.
FEW = 100
# Of the pictures drawn, each fifth is kept apart to judge by, up to this many.
_HELD_OUT_EVERY, MOST_HELD_OUT = 5, 64
_BATCH, _BATCH_VALUES = 32, 2_000_000
# Of those observed, the ones that are kept: 26 of 3×224×224.
_FEWEST_KEPT, _MOST_KEPT, _KEPT_VALUES = 4, 64, 4_000_000
# Of neighbouring pixels: 0.02 in noise; 0.7 and more in photographs, 0.5 in the roughest textures.
_LEAST_CORRELATION, _SMALLEST_SIDE = 0.15, 8


@dataclass
class Samples:
    """Pictures to observe, in batches, and pictures to judge by, which are kept as they come by.

    Attributes:
        source: what they come from, for the record.
        shape: of one picture.
        held_out: [M, …] float32, filled while `batches` runs.
        kept: some of the pictures that `batches` gave, evenly spaced, for corrections by them.
        skipped: files that could not be read.
        used: pictures that `batches` gave.
    """

    source: str
    shape: tuple[int, ...]
    chosen: int
    _pictures: Iterator[Tensor | PictureError] = field(repr=False)
    held_out: list[Tensor] = field(default_factory=list, repr=False)
    kept: list[Tensor] = field(default_factory=list, repr=False)
    skipped: int = 0
    used: int = 0

    def batches(self) -> Iterator[Tensor]:
        """[N, …] float32, each picture once.

        Raises:
            RequestError: none or one could be read, all are the same picture, or there is nothing but noise in them.
            InputError: one has the wrong size or holds NaN or infinity.
        """
        size = max(1, min(_BATCH, _BATCH_VALUES // int(np.prod(self.shape))))
        waiting: list[Tensor] = []
        verdict = _Verdict(self.source)
        every = min(_HELD_OUT_EVERY, self.chosen)
        stride = -(-self.chosen // max(_FEWEST_KEPT, min(_MOST_KEPT, _KEPT_VALUES // int(np.prod(self.shape)))))
        for number, picture in enumerate(self._pictures):
            if isinstance(picture, PictureError):
                self.skipped += 1
                continue
            self._check(picture, number)
            verdict.look_at(picture)
            if number % every == every - 1 and len(self.held_out) < MOST_HELD_OUT:
                self.held_out.append(picture)
                continue
            if self.used % stride == 0:
                self.kept.append(picture)
            self.used += 1
            waiting.append(picture)
            if len(waiting) == size:
                yield torch.stack(waiting)
                waiting = []
        if self.used and not self.held_out and waiting:  # those to judge by could not be read
            self.held_out.append(waiting.pop())
            self.used -= 1
        if waiting:
            yield torch.stack(waiting)
        verdict.require(self.used + len(self.held_out), self.skipped)
        if self.skipped:
            log.warning("calibration: %d of the files in %s could not be read as pictures and were skipped", self.skipped, self.source)
        if self.used < FEW:
            log.warning("calibration: %d pictures are few: with fewer than %d, rare activations are not seen", self.used, FEW)

    def all(self) -> Tensor:
        """[N, …] float32, every picture that can be read, for use as input. Raises RequestError for none, InputError as `batches` does."""
        pictures = [picture for picture in self._pictures if isinstance(picture, Tensor)]
        for number, picture in enumerate(pictures):
            self._check(picture, number)
        if not pictures:
            raise RequestError(f"calibration: {self.source} holds no picture that can be read")
        return torch.stack(pictures)

    def _check(self, picture: Tensor, number: int) -> None:
        if tuple(picture.shape) != self.shape:
            raise InputError(f"calibration: picture {number} of {self.source} is {_by(picture.shape)}, the model takes {_by(self.shape)}")
        if not bool(picture.isfinite().all()):
            raise InputError(f"calibration: picture {number} of {self.source} holds NaN or infinity")
        largest = float(picture.abs().max()) if picture.numel() else 0.0
        if largest > LARGEST_ORDINARY_INPUT:
            raise InputError(f"calibration: picture {number} of {self.source} holds numbers up to {largest:.2g}: those are no preprocessed pixels")


class _Verdict:
    """Whether what was read can be pictures at all."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._first: Tensor | None = None
        self._differ, self._structured, self._varied = False, False, False

    def look_at(self, picture: Tensor) -> None:
        """Takes note of one picture."""
        if self._first is None:
            self._first = picture
        elif not self._differ:
            self._differ = not torch.equal(self._first, picture)
        self._varied = self._varied or picture.dim() < 3 or bool((picture.amax((-2, -1)) > picture.amin((-2, -1))).any())
        self._structured = (
            self._structured or picture.dim() < 3 or min(picture.shape[-2:]) < _SMALLEST_SIDE or _correlation(picture) >= _LEAST_CORRELATION
        )

    def require(self, count: int, skipped: int) -> None:
        """Raises RequestError where the pictures say nothing of what the model will meet."""
        where = f"calibration: {self._source}"
        unread = f" ({skipped} file{'s' * (skipped > 1)} could not be read as pictures)" if skipped else ""
        if count == 0:
            raise RequestError(f"{where} holds no picture that can be read{unread}")
        if count == 1:
            raise RequestError(f"{where} holds one picture{unread}: ranges need several, {SAMPLES} by default, and others to judge by")
        if not self._differ:
            raise RequestError(f"{where} holds {count} times the same picture: ranges need different ones")
        if not self._varied:
            raise RequestError(f"{where} holds {count} pictures of one colour each: ranges need pictures of something")
        if not self._structured:
            raise RequestError(f"{where} holds noise: neighbouring pixels are unrelated in each picture; ranges of noise are wrong for pictures")


def _correlation(picture: Tensor) -> float:
    """Of each pixel with the one to its right, over all channels; 0 for a picture of one colour."""
    centred = picture.double() - picture.double().mean(dim=(-2, -1), keepdim=True)
    power = float(centred.square().mean())
    return float((centred[..., 1:] * centred[..., :-1]).mean()) / power if power > 0 else 0.0


def draw(
    calibration: str | os.PathLike[str] | NDArray[Any] | Tensor, shape: Sequence[int], preprocessing: Preprocessing | None, limit: int = SAMPLES
) -> Samples:
    """Evenly spaced pictures of a source: `limit` to observe, and a fifth as many to judge by.

    Args:
        calibration: a folder of pictures, which go through `preprocessing`; a .npy file, or a .npz file with one array; an array or tensor.
            Arrays hold preprocessed pictures [N, …] of floating-point numbers.
        shape: of one picture, as the model takes it.

    Raises:
        RequestError: there is no such source, it is empty, or pictures were given and nobody knows how they become input.
        InputError: an array of another shape or dtype.
    """
    most = limit + min(MOST_HELD_OUT, limit // (_HELD_OUT_EVERY - 1))
    if isinstance(calibration, (str, os.PathLike)):
        path = Path(calibration)
        if not path.exists():
            raise RequestError(f"calibration: {path} does not exist: give a folder of pictures, or a .npy or .npz file")
        if path.suffix.lower() in (".npy", ".npz"):
            return _of_array(_read_array(path), path.name, tuple(shape), most)
        return _of_pictures(path, tuple(shape), preprocessing, most)
    return _of_array(calibration, "the array given", tuple(shape), most)


def _spaced(count: int, most: int) -> list[int]:
    return list(range(count)) if count <= most else [number * count // most for number in range(most)]


def _of_pictures(path: Path, shape: tuple[int, ...], preprocessing: Preprocessing | None, most: int) -> Samples:
    if preprocessing is None:
        raise RequestError(
            f"calibration: the model does not say how the pictures in {path} become its input: give preprocessing=, "
            "or a .npy file of preprocessed pictures"
        )
    if preprocessing.output_shape != shape:
        preprocessing = preprocessing.at_size(*shape[1:]) if len(shape) == 3 else preprocessing
    files = find_pictures([str(path)])
    chosen = [files[number] for number in _spaced(len(files), most)]

    def read(file: str) -> Tensor:
        try:
            return preprocessing(open_picture(file))
        except InputError as error:
            raise PictureError(str(error)) from error

    pictures = read_ahead(read, chosen, workers=1, ahead=8)
    return Samples(str(path.name or path), shape, len(chosen), pictures)


def _read_array(path: Path) -> NDArray[Any]:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise RequestError(f"calibration: {path} holds {len(archive.files)} arrays ({', '.join(archive.files[:5])}): give a file with one")
            return archive[archive.files[0]]
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, RequestError):
            raise
        # NumPy takes whatever it does not know for a pickle, and says how to load that.
        reason = "it holds something else than arrays of numbers" if "pickle" in str(error).lower() else " ".join(str(error).split())
        raise RequestError(f"calibration: {path} is no whole file of NumPy arrays: {reason}") from error


def _of_array(array: NDArray[Any] | Tensor, source: str, shape: tuple[int, ...], most: int) -> Samples:
    if not isinstance(array, (np.ndarray, Tensor)):
        raise InputError(f"calibration: a folder, a file, an array or a tensor was expected, not a {type(array).__name__}")
    is_float = array.is_floating_point() if isinstance(array, Tensor) else np.issubdtype(array.dtype, np.floating)
    if not is_float:
        raise InputError(f"calibration: {source} holds {array.dtype}: preprocessed pictures are floating-point numbers")
    if not array.ndim:
        raise InputError(f"calibration: {source} holds a single number, the model takes N×{_by(shape)}")
    if tuple(array.shape[1:]) != shape:
        raise InputError(f"calibration: {source} is {_by(array.shape)}, the model takes N×{_by(shape)}")
    chosen = _spaced(len(array), most)

    def pictures() -> Iterator[Tensor | PictureError]:
        for number in chosen:
            picture = array[number]
            tensor = picture.detach().cpu() if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))
            yield tensor.to(torch.float32)

    return Samples(source, shape, len(chosen), pictures())


def _by(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
