"""How much of the way from a picture to a model's input a file goes itself."""

from __future__ import annotations

from enum import StrEnum


class Preprocess(StrEnum):
    """What a file does of the preprocessing itself: nothing; normalise uint8 pixels of its size; resize and crop pixels of any size as well."""

    none = "none"
    normalize = "normalize"
    resize = "resize"
