from __future__ import annotations

import numpy as np
import pytest

from fastcnn.bench.records.statistics import FEWEST_ROUNDS, speed_ratio, summarize


def _rounds(median: float, drift: np.ndarray, seed: int, runs: int = 5) -> np.ndarray:
    """Log-normal samples about `median`: 2 % from run to run, 3 % from visit to visit, and the machine's `drift` of each round on top."""
    rng = np.random.default_rng(seed)
    visits = rng.lognormal(0, 0.03, (len(drift), 1))
    return median * drift[:, None] * visits * rng.lognormal(0, 0.02, (len(drift), runs))


def test_summary_of_known_samples() -> None:
    summary = summarize([5.0, 1.0, 2.0, 3.0, 4.0, 100.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    assert (summary.count, summary.fastest, summary.p50, summary.p10, summary.p90) == (11, 1.0, 6.0, 2.0, 10.0)
    assert summary.p99 == pytest.approx(91.0)
    assert summary.mad == pytest.approx(3 * 1.4826)  # deviations 0 1 1 2 2 3 3 4 4 5 94


def test_mad_reads_as_a_standard_deviation() -> None:
    assert summarize(np.random.default_rng(0).normal(10.0, 0.5, 20_000).tolist()).mad == pytest.approx(0.5, rel=0.03)


def test_summary_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_ratio_says_how_many_times_as_fast() -> None:
    ratio = speed_ratio([[1.0, 1.0]] * 5, [[3.0, 3.0]] * 5, "slow")
    assert (ratio.baseline, ratio.value, ratio.low, ratio.high) == ("slow", 3.0, 3.0, 3.0)


def test_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        drift = rng.lognormal(0, 0.05, 10)
        ratio = speed_ratio(_rounds(1.0, drift, 2 * trial), _rounds(1.3, drift, 2 * trial + 1), "b", resamples=500)
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 1.3 <= ratio.high
    assert held >= 180  # 95 % promised; a fixed seed, so that this never flickers


def test_drift_that_all_rows_share_does_not_widen_the_interval() -> None:
    calm, stormy = np.ones(10), np.linspace(1.0, 3.0, 10)
    widths = []
    for drift in (calm, stormy):
        rng = np.random.default_rng(0)
        ours, theirs = (median * drift[:, None] * rng.lognormal(0, 0.01, (10, 5)) for median in (1.0, 1.3))
        ratio = speed_ratio(ours, theirs, "b")
        assert ratio.low is not None
        assert ratio.high is not None
        widths.append(ratio.high - ratio.low)
    assert widths[1] < 3 * widths[0] < 0.2


def test_samples_of_one_visit_are_not_taken_for_independent() -> None:
    """Visits differ by 10 %, runs of a visit not at all: forty equal runs a visit tell no more than one."""
    visits = np.random.default_rng(0).lognormal(0, 0.1, (10, 1))
    few, many = (speed_ratio(np.repeat(visits, runs, axis=1), np.ones((10, runs)), "b") for runs in (1, 40))
    assert (few.low, few.high) == pytest.approx((many.low, many.high))


def test_same_seed_gives_the_same_interval() -> None:
    a, b = _rounds(1.0, np.ones(6), 0), _rounds(2.0, np.ones(6), 1)
    assert speed_ratio(a, b, "b", seed=3) == speed_ratio(a, b, "b", seed=3)


def test_few_rounds_give_a_ratio_without_interval() -> None:
    rounds = [[1.0, 1.0]] * (FEWEST_ROUNDS - 1)
    ratio = speed_ratio(rounds, rounds, "b")
    assert (ratio.value, ratio.low, ratio.high) == (1.0, None, None)


def test_rounds_that_only_one_row_has_are_left_out() -> None:
    ratio = speed_ratio([[1.0]] * 5, [[2.0]] * 5 + [[50.0]] * 5, "b")
    assert (ratio.value, ratio.high) == (2.0, 2.0)
