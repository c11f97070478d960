"""One interface over everything that predicts; `loading` makes one from a name, a module or a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import InputError, RequestError
from fastcnn.pictures import to_mode
from fastcnn.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictor:
    """A classifier that is ready to run.

    Attributes:
        name: the model's.
        runtime: what runs it.
        preprocessing: from a picture to its input.
        in_file: what the file does of that itself: "none" (it takes normalised [N, C, H, W] float32), "normalize" (uint8 [N, H, W, C] pixels of
            its size) or "resize" (uint8 [N, H, W, C] pixels of any size, or of `picture_size`).
        categories: names of the classes, where they are known.
        gives_probabilities: the output went through a softmax already.
        batch_size: the one that a file was made for; None where any will do.
        weights: where they come from, where that is known.
        picture_size: (height, width) of the only pictures that a file takes which resizes them; None for any.
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
    picture_size: tuple[int, int] | None = None
    _table: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Every level of every channel, normalised once: a look-up gives the bits of the computation.
        object.__setattr__(self, "_table", self.preprocessing.level_table())

    @property
    def has_random_weights(self) -> bool:
        """Whether it was never trained, so that its answers mean nothing."""
        return (self.weights or "").startswith("random")

    @property
    def input_dtype(self) -> str:
        """Of the pictures that `run` takes, as NumPy names it."""
        return "float32" if self.in_file == "none" else "uint8"

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Of one picture, without the batch; None for a free side."""
        channels, height, width = self.preprocessing.output_shape
        if self.in_file == "none":
            return (channels, height, width)
        return (*(self.picture_size or (None, None)), channels) if self.in_file == "resize" else (height, width, channels)

    def prepare(self, image: Image) -> NDArray:
        """A picture → what the model takes: [C, H, W] float32, or [H, W, C] uint8. Thread-safe.

        Raises InputError as `Preprocessing` does, and where a file resizes pictures of another size only.
        """
        wanted = self.preprocessing
        if self.in_file == "resize":
            pixels = np.asarray(to_mode(image, "L" if wanted.channels == "L" else "RGB"))
            if self.picture_size is not None and self.picture_size != pixels.shape[:2]:
                want, got = ("×".join(map(str, size)) for size in (self.picture_size, pixels.shape[:2]))
                raise InputError(f"the file takes pictures of {want} (height × width), and this one is {got}: export it without --picture-size")
            pixels = pixels.reshape(*pixels.shape[:2], wanted.channel_count)
            return np.ascontiguousarray(pixels[..., ::-1] if wanted.channels == "BGR" else pixels)
        pixels = wanted.levels(image)
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
                self.preprocessing.check_range(picture.min(axis=(1, 2)).tolist(), picture.max(axis=(1, 2)).tolist())
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


def agreed(name: str, own: Preprocessing | None, given: Preprocessing | None) -> Preprocessing:
    """The preprocessing given, else the source's own. Raises RequestError where there is neither."""
    if given is None and own is None:
        attributes = ", ".join(field.name for field in fields(Preprocessing))
        raise RequestError(
            f"{name} does not say how a picture becomes its input: give --preprocessing FILE (preprocessing=), a JSON object with {attributes}; "
            "`fastcnn predict --help` shows one"
        )
    if given is not None and own is not None and given != own:
        log.warning("%s was made for another preprocessing than the one given: its own is %s", name, own.summary())
    chosen = given or own
    assert chosen is not None
    return chosen


def check_shape(name: str, expected: Sequence[int | None], given: Sequence[int | None]) -> None:
    """Raises InputError where the preprocessing makes something else than the model takes."""
    if len(expected) != len(given) or any(None not in (want, got) and want != got for want, got in zip(expected, given, strict=True)):
        shapes = ["×".join("any" if size is None else str(size) for size in sizes) for sizes in (expected, given)]
        raise InputError(f"{name} takes pictures of {shapes[0]}, but its preprocessing gives {shapes[1]}: the two do not belong together")


def class_names(given: Sequence[str] | None, own: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names given, else the source's own; None without any."""
    chosen = given if given is not None else own
    return tuple(chosen) if chosen else None
