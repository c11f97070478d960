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

from fastcnn.errors import FileFormatError
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
    """

    levels: NDArray[np.uint8]
    scale: float | None = None
    offset: float | None = None

    @classmethod
    def spanning(cls, shape: Sequence[int], low: float, high: float) -> GoldenInput:
        """Pictures of `shape` whose values run from `low` to `high`; from −1 to 1 where that is no range."""
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            low, high = -1.0, 1.0
        return cls(golden_levels(shape), float(np.float32((high - low) / 255)), float(np.float32(low)))

    @classmethod
    def of_pixels(cls, height: int, width: int, channels: int) -> GoldenInput:
        """[2, height, width, channels]."""
        return cls(np.ascontiguousarray(golden_levels((channels, height, width)).transpose(0, 2, 3, 1)))

    def values(self) -> NDArray:
        """What the file takes: [2, ...] float32, or uint8."""
        if self.scale is None or self.offset is None:
            return self.levels
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
    """

    pictures: NDArray
    batches: tuple[tuple[int, ...], ...]
    outputs: tuple[list[NDArray[np.float64]], ...]
    tolerance: float
    dtype: str


def encode(pair: GoldenInput, golden: GoldenPair, rows: str = f"the first {COUNT} rows") -> dict[str, Any]:
    """The pair as JSON-able data; `pair` makes its pictures, `rows` says which rows of the outputs are kept."""
    rule = "the file takes them as they are" if pair.scale is None else "value = level * scale + offset in float32"
    return {
        "input": {
            "encoding": f"uint8 levels, zlib, base64; {rule}",
            "shape": list(pair.levels.shape),
            "scale": pair.scale,
            "offset": pair.offset,
            "data": base64.b64encode(zlib.compress(pair.levels.tobytes(), 9)).decode("ascii"),
        },
        "output_encoding": f"float64, little-endian, base64; {rows}",
        "batches": [
            {"pictures": list(batch), "outputs": [_encode_output(output) for output in outputs]}
            for batch, outputs in zip(golden.batches, golden.outputs, strict=True)
        ],
        "tolerance": golden.tolerance,
        "dtype": golden.dtype,
    }


def _encode_output(output: NDArray[np.float64]) -> dict[str, Any]:
    return {"shape": list(output.shape), "data": base64.b64encode(np.ascontiguousarray(output, dtype="<f8").tobytes()).decode("ascii")}


def decode(data: dict[str, Any]) -> GoldenPair:
    """The reverse of `encode`, of data that `schema.check_description` let through. Raises FileFormatError for anything else.

    No more is unpacked than the pictures take.
    """
    try:
        source = data["input"]
        levels = np.frombuffer(inflate(base64.b64decode(source["data"]), math.prod(source["shape"])), dtype=np.uint8).reshape(source["shape"])
        outputs = [
            [np.frombuffer(base64.b64decode(out["data"]), dtype="<f8").reshape(out["shape"]) for out in batch["outputs"]] for batch in data["batches"]
        ]
        return GoldenPair(
            GoldenInput(levels, source.get("scale"), source.get("offset")).values(),
            tuple(tuple(int(picture) for picture in batch["pictures"]) for batch in data["batches"]),
            tuple(outputs),
            float(data["tolerance"]),
            str(data["dtype"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"the golden pair stored in the file is damaged: {type(error).__name__}: {error}") from error
