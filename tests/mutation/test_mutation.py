"""Some mutants of each format; `make mutate` tries a thousand of each."""

from __future__ import annotations

import pytest
from mutation.mutations import FORMATS
from mutation.readers import run_here, subject

_SEEDS = range(40)


@pytest.fixture(autouse=True)
def runs_here():
    put_back = run_here()
    yield
    put_back()


@pytest.mark.parametrize("format_", FORMATS)
def test_a_mutant_is_refused_in_one_line_or_says_the_same(format_, tmp_path):
    one = subject(format_, tmp_path)
    verdicts = {seed: one.judge(seed, tmp_path) for seed in _SEEDS}
    bad = {seed: verdict for seed, verdict in verdicts.items() if verdict.kind in ("wrong", "defect")}
    assert not bad
    assert sum(verdict.kind == "refused" for verdict in verdicts.values()) > len(_SEEDS) / 2
