from __future__ import annotations

import pytest

from fastcnn.bench.views import units


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (units.digits, 9.996, "10.0"),
        (units.digits, 0.0, "0"),
        (units.digits, 1234567.0, "1,234,567"),
        (units.milliseconds, 0.0316314, "31.6"),
        (units.seconds, 0.0316314, "31.6\u202fms"),
        (units.seconds, 0.9999, "1.00\u202fs"),
        (units.seconds, 61.2, "61.2\u202fs"),
        (units.seconds, 3.2e-6, "3.20\u202fµs"),
        (units.memory, 2**30, "1.00\u202fGiB"),
        (units.volume, 1.5e6, "1.50\u202fMB"),
        (units.rate, 4.76e11, "476\u202fGFLOP/s"),
        (units.bandwidth, 2.2e10, "22.0\u202fGB/s"),
        (units.ratio, 1.0446, "1.04×"),
        (units.bound, 0.9966, "0.997"),
        (units.bound, 0.99996, "0.99996"),
        (units.bound, 1.12, "1.12"),
        (units.error, 8.56e-7, "8.6e-7"),
        (units.share, 0.873, "87\u202f%"),
    ],
)
def test_figures_for_people(unit: units.Unit, value: float, text: str) -> None:
    assert unit(value) == text


def test_dates_in_words() -> None:
    assert units.day("2026-03-04T05:06:07+00:00") == "4 March 2026"
    assert units.day("yesterday") == units.day(None) == ""
