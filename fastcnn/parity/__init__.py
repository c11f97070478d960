"""Does a candidate compute the same function as its reference? `rules` says what passes, `reference` runs what a candidate is held against."""

from fastcnn.parity.reference import expect, flatten, make_pictures, verify
from fastcnn.parity.rules import TOLERANCE, BatchParity, Expected, Outputs, ParityReport, Slice, bound, compare

__all__ = [
    "TOLERANCE",
    "BatchParity",
    "Expected",
    "Outputs",
    "ParityReport",
    "Slice",
    "bound",
    "compare",
    "expect",
    "flatten",
    "make_pictures",
    "verify",
]
