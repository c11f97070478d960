"""Which integers stand for which numbers: what the runtimes for a kind of machine want."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastcnn.quantization.request import QuantizeFor


@dataclass(frozen=True)
class Scheme:
    """How numbers become integers. A zero is always exact: convolutions pad with it.

    Attributes:
        symmetric: activations are int8 around zero, else uint8 with a zero point.
        weight_bits: 8, or 7: on a CPU that adds two products of 8 bits in 16 (AVX2 and AVX-512 without VNNI), full-range weights saturate.
    """

    symmetric: bool = False
    weight_bits: int = 8

    @classmethod
    def of(cls, quantize_for: QuantizeFor, *, portable: bool | None) -> Scheme:
        """What `quantize_for` wants; `portable` keeps weights to 7 bits, None does so where this CPU saturates on more."""
        portable = not has_vnni() if portable is None else portable
        return cls(symmetric=quantize_for is not QuantizeFor.cpu, weight_bits=7 if portable else 8)

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return torch.int8 if self.symmetric else torch.uint8

    @property
    def levels(self) -> tuple[int, int]:
        """(lowest, highest) integer of an activation."""
        return (-128, 127) if self.symmetric else (0, 255)

    @property
    def weight_limit(self) -> int:
        """The largest integer of a weight; the lowest is its negative."""
        return 2 ** (self.weight_bits - 1) - 1


@dataclass(frozen=True)
class Grid:
    """The numbers (q − zero_point) · scale that the integers q of an activation stand for."""

    scale: float
    zero_point: int


def has_vnni() -> bool:
    """Whether this CPU adds products of 8 bits in 32; one that does not saturates on weights of 8 bits."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("architecture") not in ("x86_64", "AMD64", "x86"):
        return True  # ARM's dot products are exact
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni"))


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers; one that does not rounds float32 ones, which takes longer."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def instruction_set() -> str:
    """What of this CPU decides how products of 8 bits are added, as in "x86_64 avx2"."""
    capabilities = torch.cpu.get_capabilities()
    known = ("avx2", "avx512_f", "avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm", "sve")
    return " ".join([str(capabilities.get("architecture", "unknown")), *(name for name in known if capabilities.get(name, False))])
