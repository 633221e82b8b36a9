"""Intervals: they cover the truth as often as they say, they are paired, and the same seed gives the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from taia_lens import stats
from taia_lens.stats import mean_interval, ratio_interval


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_the_interval_of_a_mean_covers_it_95_times_in_100(shape: str) -> None:
    rng = np.random.default_rng(0)
    trials, n = 1000, 60
    draws, truth = (rng.normal(2.0, 3.0, (trials, n)), 2.0) if shape == "normal" else (rng.exponential(1.0, (trials, n)), 1.0)
    low, high = mean_interval(draws, seed=0)
    coverage = np.mean((low <= truth) & (truth <= high))
    # Binomial noise of 1000 trials is 0.7%; at n = 60 a bootstrap falls about 1% short of its level.
    assert 0.925 <= coverage <= 0.975


def test_an_interval_that_is_too_narrow_would_be_noticed() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(2.0, 3.0, (1000, 60))
    low, high = mean_interval(draws, seed=0)
    middle, half = (low + high) / 2, (high - low) / 4
    assert np.mean((middle - half <= 2.0) & (2.0 <= middle + half)) < 0.925


def test_the_interval_of_a_ratio_covers_it_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    whole = rng.normal(4.0, 1.0, (500, 60))
    part = 0.3 * whole + rng.normal(0.0, 0.5, whole.shape)
    low, high = ratio_interval(part, whole, seed=0)
    assert 0.92 <= np.mean((low <= 0.3) & (0.3 <= high)) <= 0.98


def test_a_ratio_is_resampled_in_pairs() -> None:
    rng = np.random.default_rng(2)
    whole = rng.normal(4.0, 2.0, 80)
    together = np.diff(ratio_interval(0.5 * whole + rng.normal(0, 0.01, 80), whole, seed=0))[0]
    apart = np.diff(ratio_interval(rng.permutation(0.5 * whole), whole, seed=0))[0]
    assert together < 0.1 * apart  # what numerator and denominator share cancels only if the examples are kept together


def test_a_mean_of_equal_values_has_no_width() -> None:
    values = np.stack([np.full(30, 0.25), np.zeros(30)])
    low, high = mean_interval(values, seed=0)
    np.testing.assert_array_equal(low, [0.25, 0.0])
    np.testing.assert_array_equal(high, [0.25, 0.0])


def test_a_flat_cell_beside_one_that_is_not_leaves_it_alone() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=40)
    low, high = mean_interval(np.stack([np.ones(40), noisy]), seed=0)
    assert (low[0], high[0]) == (1.0, 1.0) and low[1] < noisy.mean() < high[1]


def test_a_part_that_is_always_zero_is_a_ratio_of_zero() -> None:
    low, high = ratio_interval(np.zeros(30), np.random.default_rng(0).normal(3, 1, 30), seed=0)
    assert (float(low), float(high)) == (0.0, 0.0)


def test_a_part_that_is_the_whole_is_a_ratio_of_one() -> None:
    whole = np.random.default_rng(0).normal(3, 1, 30)
    low, high = ratio_interval(whole, whole, seed=0)
    assert (float(low), float(high)) == pytest.approx((1.0, 1.0))


def test_values_that_are_equal_up_to_rounding_have_an_interval() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 30)
    values = (3 + noise) - (1 + noise)  # 2, but for the last bit
    assert 0 < np.ptp(values) < 1e-14
    low, high = mean_interval(values, seed=0)
    assert (float(low), float(high)) == pytest.approx((2.0, 2.0))


def test_a_single_example_that_differs_has_an_interval() -> None:
    for n in (2, 3, 10, 200):
        low, high = mean_interval(np.eye(1, n)[0], seed=0)
        assert 0 <= low <= 1 / n <= high <= 1, n


def test_a_ratio_over_zero_is_not_a_number_and_does_not_warn() -> None:
    low, high = ratio_interval(np.zeros(30), np.zeros(30), seed=0)
    assert np.isnan(low) and np.isnan(high)


def test_a_single_example_has_no_interval() -> None:
    low, high = mean_interval(np.array([[3.0], [4.0]]), seed=0)
    assert np.isnan(low).all() and np.isnan(high).all() and low.shape == (2,)


def test_accuracies_have_intervals_within_zero_and_one() -> None:
    rng = np.random.default_rng(0)
    low, high = mean_interval((rng.random((20, 25)) < 0.9).astype(float), seed=0)
    assert (low >= 0).all() and (high <= 1).all() and (low <= high).all()


def test_the_seed_alone_decides() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 30))
    before = np.random.get_state()[1].copy()
    once, again, other = (mean_interval(values, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(once, again)
    assert (once[0] != other[0]).any() and once[0].shape == (3, 4)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # numpy's global state is not touched


def test_many_examples_are_no_problem_and_the_two_methods_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).exponential(size=(1, stats.BCA_UP_TO))
    bca = np.array(stats.mean_interval(values, seed=0))
    monkeypatch.setattr(stats, "BCA_UP_TO", 1)
    percentile = np.array(stats.mean_interval(values, seed=0))
    width = bca[1] - bca[0]
    assert (np.abs(bca - percentile) < 0.1 * width).all()
    assert not np.array_equal(bca, percentile)  # they are two methods
    low, high = stats.mean_interval(np.random.default_rng(1).normal(size=(2, 20_000)), seed=0)
    assert ((low < 0.05) & (high > -0.05)).all()
