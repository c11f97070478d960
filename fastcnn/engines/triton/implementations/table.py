"""All implementations by name."""

from __future__ import annotations

from collections.abc import Sequence

from fastcnn.engines.triton.implementations.base import Implementation
from fastcnn.engines.triton.implementations.cudnn_graph import CudnnGraphConvolution
from fastcnn.engines.triton.implementations.library import LibraryConvolution
from fastcnn.engines.triton.implementations.ours import TritonConvolution, TritonStem, TritonTma
from fastcnn.errors import UnknownNameError

_ALL: tuple[Implementation, ...] = (TritonConvolution(), TritonTma(), TritonStem(), CudnnGraphConvolution(), LibraryConvolution())
BY_NAME = {implementation.name: implementation for implementation in _ALL}


def implementations(names: Sequence[str]) -> tuple[Implementation, ...]:
    """By name, in this order, each once.

    Raises:
        UnknownNameError: there is none of that name.
    """
    for name in names:
        if name not in BY_NAME:
            raise UnknownNameError("convolution implementation", name, BY_NAME)
    return tuple(BY_NAME[name] for name in dict.fromkeys(names))
