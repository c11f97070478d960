"""The golden pair: the same everywhere, small, and back from JSON bit by bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from fastcnn.errors import FileFormatError
from fastcnn.export.golden import GoldenInput, GoldenPair, batches_for, decode, encode, golden_levels


def test_levels_are_the_same_on_every_machine() -> None:
    assert hashlib.sha256(golden_levels((3, 299, 299)).tobytes()).hexdigest()[:16] == "13f840705c5afdbf"


@pytest.mark.parametrize("shape", [(3, 299, 299), (1, 28, 28), (3, 7, 150), (16,), (4, 5)])
def test_levels_have_the_shape_and_differ_between_pictures_and_channels(shape: tuple[int, ...]) -> None:
    levels = golden_levels(shape)
    assert levels.shape == (2, *shape)
    assert levels.min() < 20
    assert levels.max() > 235
    assert not np.array_equal(levels[0], levels[1])
    if len(shape) == 3 and shape[0] > 1:
        assert not np.array_equal(levels[0, 0], levels[0, 1])


def golden(pictures: GoldenInput) -> GoldenPair:
    outputs = ([np.array([[1 / 3, np.nan, -np.inf]])], [np.array([[1 / 3, 0.1, 2.0], [1e-300, 2.0, 3.0]])])
    return GoldenPair(pictures.values(), ((0,), (0, 1)), outputs, 1e-5, "float32")


@pytest.mark.parametrize("pictures", [GoldenInput.spanning((3, 299, 299), -2.1, 2.6), GoldenInput.of_pixels(299, 310, 3)], ids=["values", "pixels"])
def test_a_pair_comes_back_bit_by_bit_and_is_small(pictures: GoldenInput) -> None:
    text = json.dumps(encode(pictures, golden(pictures)))
    assert len(text) < 40_000
    back = decode(json.loads(text))
    np.testing.assert_array_equal(back.pictures, pictures.values())
    assert back.pictures.dtype == (np.uint8 if pictures.scale is None else np.float32)
    assert (back.batches, back.tolerance, back.dtype) == (((0,), (0, 1)), 1e-5, "float32")
    for own, other in zip(back.outputs, golden(pictures).outputs, strict=True):
        np.testing.assert_array_equal(own[0], other[0])


def test_values_span_the_range() -> None:
    for low, high, expected in [(-2.5, 2.5, (-2.5, 2.5)), (0.0, 0.0, (-1, 1)), (np.nan, 1.0, (-1, 1)), (2.0, 1.0, (-1, 1))]:
        made = GoldenInput.spanning((3, 8, 8), low, high)
        values = replace(made, levels=np.array([0, 255], dtype=np.uint8)).values()
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        assert values.dtype == np.float32


def test_batches() -> None:
    assert batches_for(None) == [[0], [0, 1]]
    assert batches_for(1) == [[0]]
    assert batches_for(5) == [[0, 1, 0, 1, 0]]


def test_a_damaged_pair_is_a_format_error() -> None:
    pictures = GoldenInput(golden_levels((4,)), 1.0, 0.0)
    data = encode(pictures, golden(pictures))
    for damage in (
        {"input": {**data["input"], "shape": [5, 5]}},
        {"input": {**data["input"], "data": "AAAA"}},
        {"batches": None},
        {"tolerance": None},
    ):
        with pytest.raises(FileFormatError, match="golden pair stored in the file is damaged"):
            decode({**data, **damage})
