"""The implementations by name."""

from __future__ import annotations

import pytest

from fastcnn.engines.triton.implementations.table import BY_NAME, implementations
from fastcnn.engines.triton.options import IMPLEMENTATIONS
from fastcnn.errors import UnknownNameError


def test_the_options_name_all_of_them():
    assert set(BY_NAME) == set(IMPLEMENTATIONS)
    assert all(implementation.name == name for name, implementation in BY_NAME.items())


def test_those_that_are_asked_for_in_their_order_each_once():
    assert [implementation.name for implementation in implementations(("library", "triton", "library"))] == ["library", "triton"]


def test_an_unknown_name():
    with pytest.raises(UnknownNameError, match="unknown convolution implementation 'libary'"):
        implementations(("libary",))
