"""Figures as people read them: three digits that say something, and a unit that fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime

# Not strftime's, which speaks the language of the machine.
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
_THIN = "\N{NARROW NO-BREAK SPACE}"


def digits(value: float, significant: int = 3) -> str:
    """Rounded to that many significant digits, without an exponent; whole digits are never cut off."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = significant - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        decimals -= 1  # 9.996 is 10.0
    return f"{value:,.{max(decimals, 0)}f}"


def seconds(value: float) -> str:
    """A time in the unit that fits."""
    return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")))


def milliseconds(value: float) -> str:
    """Seconds in milliseconds, without the unit: for a column or an axis that names it."""
    return digits(value * 1e3)


def memory(value: float) -> str:
    """Bytes in binary units, as memory is counted."""
    return _scaled(value, ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")))


def volume(value: float) -> str:
    """Bytes in decimal units, as traffic is counted."""
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def bandwidth(value: float) -> str:
    """Bytes a second, in decimal units."""
    return f"{volume(value)}/s"


def operations(value: float) -> str:
    """Floating-point operations in the unit that fits."""
    return _scaled(value, ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1, "FLOP")))


def rate(value: float) -> str:
    """Floating-point operations a second in the unit that fits."""
    return f"{operations(value)}/s"


def ratio(value: float) -> str:
    """How many times as fast."""
    return f"{value:.2f}×"


def bound(value: float) -> str:
    """A bound of a ratio's interval, with as many digits as show on which side of 1 it lies."""
    decimals = 2
    while value != 1 and decimals < 5 and float(f"{value:.{decimals}f}") == 1:
        decimals += 1
    return f"{value:.{decimals}f}"


def share(value: float) -> str:
    """A fraction in percent, without decimals."""
    return f"{value * 100:.0f}{_THIN}%"


def error(value: float) -> str:
    """A relative error: two digits and the power of ten."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def plain(value: float) -> str:
    """Three significant digits, for a column or an axis that names the unit."""
    return digits(value)


def count(value: float) -> str:
    """A whole number, thousands apart."""
    return f"{value:,.0f}"


def day(moment: str | None) -> str:
    """The date of an ISO 8601 moment; empty where there is none."""
    try:
        found = datetime.fromisoformat(moment or "")
    except ValueError:
        return ""
    return f"{found.day} {_MONTHS[found.month - 1]} {found.year}"


Unit = Callable[[float], str]


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    factor, unit = next(((factor, unit) for factor, unit in steps if abs(value) >= factor * 0.9995), steps[-1])
    return f"{digits(value / factor)}{_THIN}{unit}"
