"""How the numbers of one activation are spread, in bounded memory, and the grid that loses the least of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcnn.quantization.scheme import Grid, Scheme

_BINS = 8192  # over (−limit, limit): at least eight for each of 256 levels
_VALUES = 1 << 16  # counted of one batch; the extremes are those of all of it
_STEPS = 80  # ends of the range that are tried, from the extreme inwards
_INNERMOST = 0.25  # of the extreme


class Histogram:
    """Counts over (−limit, limit), whose limit is a power of two that doubles when a number lies beyond.

    Attributes:
        counts: [8192] float64, weighted by how many numbers each counted one stands for.
        low, high: the smallest and the largest number seen, and 0.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self.low, self.high = 0.0, 0.0
        self._exponent = -40  # limit = 2 ** exponent
        self._turn = 0

    def add(self, values: Tensor) -> None:
        """Counts a batch of finite numbers, of a large one evenly spaced ones."""
        low, high = (float(bound) for bound in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = values.reshape(-1)
        step = -(-flat.numel() // _VALUES)
        step += 1 - step % 2  # odd: even ones meet the same columns of a picture each time
        sample = flat[self._turn % step :: step]
        self._turn += 1
        self._widen(max(-low, high))
        limit = 2.0**self._exponent
        places = ((sample.double() / limit + 1) * (_BINS / 2)).long().clamp_(0, _BINS - 1)
        self.counts += torch.bincount(places, minlength=_BINS).double() * (flat.numel() / max(1, sample.numel()))

    def _widen(self, largest: float) -> None:
        while largest >= 2.0**self._exponent:
            # Each half of the bins shrinks to half of itself, next to the middle.
            pairs = self.counts.reshape(-1, 2).sum(dim=1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[_BINS // 4 : 3 * _BINS // 4] = pairs
            self._exponent += 1

    @classmethod
    def merged(cls, parts: Sequence[Histogram]) -> Histogram:
        """That of all numbers together; the parts' limits become the same."""
        whole = cls()
        for part in parts:
            part._widen(2.0 ** (max(other._exponent for other in parts) - 1))
            whole.counts += part.counts
            whole.low, whole.high = min(whole.low, part.low), max(whole.high, part.high)
        whole._exponent = parts[0]._exponent
        return whole

    def best_range(self, scheme: Scheme) -> tuple[float, float]:
        """The (low, high) whose grid has the least squared error over what was counted; 0 lies in it."""
        places = self.counts.nonzero().flatten()
        weights = self.counts[places]
        centres = ((places.double() + 0.5) / (_BINS / 2) - 1) * 2.0**self._exponent
        inwards = torch.linspace(1.0, _INNERMOST, _STEPS, dtype=torch.float64)

        def best(lows: Tensor, highs: Tensor) -> int:
            return int(_squared_errors(centres, weights, lows, highs, scheme).argmin())

        low, high = self.low, self.high
        if scheme.symmetric:
            limits = inwards * max(-low, high)
            limit = float(limits[best(-limits, limits)])
            return -limit, limit
        for _ in range(2 if low < 0 else 1):
            if high > 0:
                highs = inwards * self.high
                high = float(highs[best(torch.full_like(highs, low), highs)])
            if low < 0:
                lows = inwards * self.low
                low = float(lows[best(lows, torch.full_like(lows, high))])
        return low, high


def grid_of(low: float, high: float, scheme: Scheme, scale: float | None = None) -> Grid:
    """The grid over (low, high), which holds 0. A `scale` given, at least that of the range, only leaves the zero point to be found."""
    lowest, highest = scheme.levels
    if scheme.symmetric:
        return Grid(scale or scale_of(low, high, scheme), 0)
    scale = scale or scale_of(low, high, scheme)
    return Grid(scale, min(highest, max(lowest, lowest - round(low / scale))))


def scale_of(low: float, high: float, scheme: Scheme) -> float:
    """A float32's worth of the step that takes the levels over (low, high); 1 where that is no range."""
    lowest, highest = scheme.levels
    scale = max(-low, high) / highest if scheme.symmetric else (high - low) / (highest - lowest)
    return float(torch.tensor(scale, dtype=torch.float32)) if scale > 1e-30 else 1.0


def _squared_errors(centres: Tensor, weights: Tensor, lows: Tensor, highs: Tensor, scheme: Scheme) -> Tensor:
    """[K]: of each of K ranges."""
    lowest, highest = scheme.levels
    scale = (highs / highest if scheme.symmetric else (highs - lows) / (highest - lowest)).clamp_min(1e-30)[:, None]
    zero = torch.zeros_like(scale) if scheme.symmetric else (lowest - lows[:, None] / scale).round()
    rounded = ((centres / scale).round() + zero).clamp(lowest, highest)
    return ((rounded - zero) * scale - centres).square() @ weights
