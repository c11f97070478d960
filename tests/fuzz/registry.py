"""The table that the operations stand in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fuzz.network import Step

# The shapes of what a step may read, one picture's each, and dice → code and so on of a Step; None where the operation does not fit.
Draw = Callable[[Random, tuple[int, ...]], "Draft | None"]


@dataclass(frozen=True)
class Draft:
    """A step before it knows its number and what it reads."""

    code: str
    module: str = ""
    options: tuple[tuple[str, str], ...] = ()
    others: int = 0  # further values that it reads, of the same shape as the first
    loose: bool = False  # they need only broadcast, or agree but for their channels

    def step(self, number: int, reads: tuple[int, ...], seed: int) -> Step:
        return Step(number, self.code, reads, module=self.module, options=self.options, seed=seed)


@dataclass(frozen=True)
class Operation:
    """How to draw a step, for values of these ranks (batch included)."""

    name: str
    draw: Draw
    ranks: tuple[int, ...]
    weight: float


OPERATIONS: dict[str, Operation] = {}


def operation(*ranks: int, weight: float = 1.0) -> Callable[[Draw], Draw]:
    """Enters a function into the table."""

    def enter(draw: Draw) -> Draw:
        OPERATIONS[draw.__name__] = Operation(draw.__name__, draw, ranks or (4,), weight)
        return draw

    return enter


def options(**values: object) -> tuple[tuple[str, str], ...]:
    """Named arguments as text, without those that are None."""
    return tuple((name, repr(value) if not isinstance(value, str) else value) for name, value in values.items() if value is not None)


def maybe(dice: Random, value: object, chance: float = 0.5) -> object:
    """`value`, or None."""
    return value if dice.random() < chance else None


def sides(dice: Random, low: int, high: int) -> int | tuple[int, int]:
    """One number for both sides, or two."""
    return dice.randint(low, high) if dice.random() < 0.6 else (dice.randint(low, high), dice.randint(low, high))


def channels(dice: Random, most: int) -> int:
    """At most `most`; or, two times in five, what runtimes lay out in blocks of 4, 8 or 16, and sometimes one more or less."""
    return dice.randint(1, most) if dice.random() < 0.6 else dice.choice([8, 12, 16, 16, 24, 32]) + dice.choice([0, 0, 0, 0, -1, 1])
