"""The golden pair: two pictures and what the reference returns for them in float64, small enough to travel inside the file."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcnn.errors import FileFormatError, RequestError
from fastcnn.limits import inflate

COUNT = 2
# Cells per side of the mosaic: enough detail for every layer to respond, few enough to compress well.
_CELLS = 32


def golden_levels(shape: Sequence[int]) -> NDArray[np.uint8]:
    """[2, *shape] levels 0 to 255: a mosaic of hashed cells, different in each picture and channel. `shape` is that of one picture."""
    sides = list(shape[-2:]) if len(shape) >= 3 else []
    planes = int(np.prod(shape[: len(shape) - len(sides)], dtype=np.int64)) * COUNT
    cell = [max(1, side // _CELLS) for side in sides]
    coarse = [-(-side // width) for side, width in zip(sides, cell, strict=True)]
    levels = _hashed(planes * int(np.prod(coarse, dtype=np.int64))).reshape(planes, *coarse)
    for axis, width in enumerate(cell, start=1):
        levels = levels.repeat(width, axis=axis)
    return levels[(slice(None), *(slice(side) for side in sides))].reshape(COUNT, *shape)


def _hashed(count: int) -> NDArray[np.uint8]:
    """`count` well-mixed bytes (the finalizer of SplitMix64, Steele et al. 2014): the same on every platform, with no generator state."""
    value = (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (value >> np.uint64(56)).astype(np.uint8)


@dataclass(frozen=True)
class GoldenInput:
    """The two pictures as they are stored.

    Attributes:
        levels: [2, ...] uint8; of an int8 file more than two.
        scale, offset: value = level · scale + offset in float32; None for a file that takes the levels themselves.
        dtype: of a file that takes them as other integers than uint8.
    """

    levels: NDArray[np.uint8]
    scale: float | None = None
    offset: float | None = None
    dtype: str | None = None

    @classmethod
    def spanning(cls, shape: Sequence[int], low: float, high: float) -> GoldenInput:
        """Pictures of `shape` whose values run from `low` to `high`; from −1 to 1 where that is no range."""
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            low, high = -1.0, 1.0
        return cls(golden_levels(shape), float(np.float32((high - low) / 255)), float(np.float32(low)))

    @classmethod
    def of_integers(cls, shape: Sequence[int], low: int, high: int, dtype: str) -> GoldenInput:
        """Pictures of `shape` of integers from `low` to `high`, which must lie in 0 to 255.

        Raises:
            RequestError: they do not: what stands for numbers beyond, a file has no room for.
        """
        if low < 0 or high > 255:
            raise RequestError(f"an example input holds integers from {low} to {high}: a file is checked with integers from 0 to 255")
        if low == high:
            low, high = (0, 255) if dtype == "uint8" else (low, high)
        levels = (low + golden_levels(shape).astype(np.int64) % (high - low + 1)).astype(np.uint8)
        return cls(levels, dtype=None if dtype == "uint8" else dtype)

    @classmethod
    def of_pixels(cls, height: int, width: int, channels: int) -> GoldenInput:
        """[2, height, width, channels]."""
        return cls(np.ascontiguousarray(golden_levels((channels, height, width)).transpose(0, 2, 3, 1)))

    def values(self) -> NDArray:
        """What the file takes: [2, ...] float32, or integers."""
        if self.scale is None or self.offset is None:
            return self.levels if self.dtype is None else self.levels.astype(self.dtype)
        return self.levels.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)


def batches_for(batch_size: int | None) -> list[list[int]]:
    """The batches that a file is checked with, as numbers of golden pictures: one and both, or as many as a fixed batch takes."""
    return [[0], [0, 1]] if batch_size is None else [[row % COUNT for row in range(batch_size)]]


def first_rows(outputs: Sequence[NDArray[np.float64]], batch: Sequence[int]) -> list[NDArray[np.float64]]:
    """What is kept of the outputs of a batch: the rows in which each golden picture stands for the first time."""
    return [output[:COUNT] if output.ndim and output.shape[0] == len(batch) else output for output in outputs]


@dataclass(frozen=True)
class GoldenPair:
    """The pair as it stands in a file.

    Attributes:
        pictures: [2, ...] float32 (of an int8 file more than two), or uint8 for a file that takes pixels.
        batches: numbers of the pictures in each batch.
        outputs: for each batch the first rows of the reference's outputs.
        tolerance: bound on the relative L2 error.
        dtype: what the file computes in.
        others: of a file with several inputs, what the others take beside each of the pictures.
    """

    pictures: NDArray
    batches: tuple[tuple[int, ...], ...]
    outputs: tuple[list[NDArray[np.float64]], ...]
    tolerance: float
    dtype: str
    others: tuple[NDArray, ...] = ()

    def inputs(self, batch: Sequence[int]) -> NDArray | tuple[NDArray, ...]:
        """What a file is given for the pictures of those numbers: an array, or one for each of several inputs."""
        return together([np.ascontiguousarray(values[list(batch)]) for values in (self.pictures, *self.others)])


def together(arrays: Sequence[NDArray]) -> NDArray | tuple[NDArray, ...]:
    """A batch as a file takes it: the one array, or a tuple of them."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def encode(pair: GoldenInput, golden: GoldenPair, rows: str = f"the first {COUNT} rows", others: Sequence[GoldenInput] = ()) -> dict[str, Any]:
    """The pair as JSON-able data; `pair` makes its pictures, `others` those of further inputs; `rows` says which rows of the outputs are kept."""
    return {
        "input": _encode_input(pair),
        **({"others": [_encode_input(other) for other in others]} if others else {}),
        "output_encoding": f"float64, little-endian, base64; {rows}",
        "batches": [
            {"pictures": list(batch), "outputs": [_encode_output(output) for output in outputs]}
            for batch, outputs in zip(golden.batches, golden.outputs, strict=True)
        ],
        "tolerance": golden.tolerance,
        "dtype": golden.dtype,
    }


def _encode_input(pair: GoldenInput) -> dict[str, Any]:
    rule = "the file takes them as they are" if pair.scale is None else "value = level * scale + offset in float32"
    return {
        "encoding": f"uint8 levels, zlib, base64; {rule}",
        "shape": list(pair.levels.shape),
        "scale": pair.scale,
        "offset": pair.offset,
        **({} if pair.dtype is None else {"dtype": pair.dtype}),
        "data": base64.b64encode(zlib.compress(pair.levels.tobytes(), 9)).decode("ascii"),
    }


def _decode_input(source: dict[str, Any]) -> NDArray:
    levels = np.frombuffer(inflate(base64.b64decode(source["data"]), math.prod(source["shape"])), dtype=np.uint8).reshape(source["shape"])
    return GoldenInput(levels, source.get("scale"), source.get("offset"), source.get("dtype")).values()


def _encode_output(output: NDArray[np.float64]) -> dict[str, Any]:
    return {"shape": list(output.shape), "data": base64.b64encode(np.ascontiguousarray(output, dtype="<f8").tobytes()).decode("ascii")}


def decode(data: dict[str, Any]) -> GoldenPair:
    """The reverse of `encode`, of data that `schema.check_description` let through. Raises FileFormatError for anything else.

    No more is unpacked than the pictures take.
    """
    try:
        outputs = [
            [np.frombuffer(base64.b64decode(out["data"]), dtype="<f8").reshape(out["shape"]) for out in batch["outputs"]] for batch in data["batches"]
        ]
        return GoldenPair(
            _decode_input(data["input"]),
            tuple(tuple(int(picture) for picture in batch["pictures"]) for batch in data["batches"]),
            tuple(outputs),
            float(data["tolerance"]),
            str(data["dtype"]),
            tuple(_decode_input(other) for other in data.get("others", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"the golden pair stored in the file is damaged: {type(error).__name__}: {error}") from error
