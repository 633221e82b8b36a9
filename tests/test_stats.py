"""Intervals and tests: paired where they should be, exact where they can be, sound at the edges; the same seed gives the same bits.

How often they are right is in test_coverage.py.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats as reference

from taia_lens import stats
from taia_lens.stats import (
    _first_groups,
    adjust,
    difference_interval,
    difference_p,
    mean_interval,
    rate_interval,
    ratio_interval,
    sign_flip_p,
)


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


@pytest.mark.parametrize("n", [25, 60])  # of 7, every example is drawn once now and then: ties, which scipy breaks by rounding
def test_one_product_for_all_cells_gives_the_numbers_of_scipys_bootstrap(n: int) -> None:
    """The same draws, resample by resample: of values, of accuracies (whose means tie), and of fractions of two means."""
    rng = np.random.default_rng(3)
    values, right = rng.exponential(1.0, (3, n)), rng.integers(0, 2, (2, n)).astype(float)
    part, whole = values[:2] - 1, values[1:] + 1
    level = stats._level(n)

    def scipys(data: tuple, statistic: object, *, paired: bool = False) -> list[np.ndarray]:
        found = reference.bootstrap(
            data, statistic, paired=paired, n_resamples=stats.RESAMPLES, axis=-1, confidence_level=level, rng=np.random.default_rng(0)
        )
        return [found.confidence_interval.low, found.confidence_interval.high]

    for cells in (values, right, right[0] - right[1]):
        np.testing.assert_allclose(mean_interval(cells, seed=0), scipys((cells,), np.mean), rtol=0, atol=1e-12)
    ratio = scipys((part, whole), lambda p, w, axis: p.mean(axis) / w.mean(axis), paired=True)
    np.testing.assert_allclose(ratio_interval(part, whole, seed=0), ratio, rtol=0, atol=1e-12)
    assert np.abs(np.array(mean_interval(values, seed=1)) - scipys((values,), np.mean)).max() > 1e-6  # other draws would be noticed


def test_an_interval_is_a_little_wider_than_a_plain_bootstrap_and_less_so_with_more_examples() -> None:
    widths = []
    for n in (10, 100, 1000):
        values = np.random.default_rng(0).normal(size=n)
        plain = reference.bootstrap((values,), np.mean, n_resamples=stats.RESAMPLES, rng=np.random.default_rng(0)).confidence_interval
        widths.append(np.diff(mean_interval(values, seed=0))[0] / (plain.high - plain.low))
    assert 1.1 < widths[0] < 1.4 and 1 < widths[2] < 1.01 < widths[1] < 1.06, widths


def test_the_groups_of_a_difference_are_resampled_apart_and_may_differ_in_number() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(3, 1, 90)
    low, high = difference_interval(a, rng.normal(1, 2, 40), seed=0)
    assert low < 2 < high
    assert np.diff(difference_interval(a, a, seed=0))[0] > 0.3  # as pairs, the two would cancel
    np.testing.assert_array_equal(np.stack(difference_interval(np.ones(9), np.zeros(5), seed=0)), [1.0, 1.0])
    assert np.isnan(difference_interval(a, a[:1], seed=0)).all()


def test_a_rate_has_the_exact_interval_of_clopper_and_pearson() -> None:
    low, high = rate_interval(np.array([0, 43, 520]), 520)
    np.testing.assert_allclose(low, reference.beta.ppf(0.025, [1e-300, 43, 520], [521, 478, 1]), atol=1e-9)
    np.testing.assert_allclose(high, [1 - 0.025 ** (1 / 520), reference.beta.ppf(0.975, 44, 477), 1.0], atol=1e-9)
    assert np.isnan(rate_interval(0, 0)).all()


def enumerated(values: np.ndarray) -> float:
    """The definition: every pattern of signs."""
    sums = np.array([np.dot(signs, values) for signs in product((-1, 1), repeat=len(values))])
    return float((np.abs(sums) >= abs(values.sum()) - 1e-9).mean())


@pytest.mark.parametrize("n", [2, 5, 10])
def test_a_sign_flip_p_of_few_examples_is_exact(n: int) -> None:
    values = np.random.default_rng(n).normal(0.5, 1, (4, n))
    want = [enumerated(row) for row in values]
    np.testing.assert_allclose(sign_flip_p(values, seed=0), want, rtol=1e-12)
    np.testing.assert_allclose(sign_flip_p(values, seed=1), want, rtol=1e-12)  # no draw is involved
    found = reference.permutation_test((values,), lambda v, axis: v.mean(axis), permutation_type="samples", axis=1, n_resamples=np.inf)
    np.testing.assert_allclose(found.pvalue, want, rtol=1e-12)


def test_a_sign_flip_p_is_what_transformer_lens_and_scipy_find() -> None:
    from transformer_lens.utilities.statistics import sign_flip_permutation_pvalue

    values = np.random.default_rng(0).normal(0.15, 1, (6, 90))
    mine = sign_flip_p(values, seed=0)
    theirs = sign_flip_permutation_pvalue(torch.tensor(values), n_permutations=9999).numpy()
    found = reference.permutation_test((values,), lambda v, axis: v.mean(axis), permutation_type="samples", axis=1, n_resamples=9999, rng=0)
    for other in (theirs, found.pvalue):
        # Two draws of 9,999 signs: a p of 0.3 differs by 0.0065 (one standard error) between them.
        np.testing.assert_allclose(mine, other, atol=0.025)
    few = np.random.default_rng(1).normal(0.5, 1, (6, 12))
    np.testing.assert_allclose(sign_flip_p(few, seed=0), sign_flip_permutation_pvalue(torch.tensor(few)).numpy(), rtol=1e-12)
    assert np.abs(mine - mine[::-1]).max() > 0.1  # the cells are not all alike


def test_accuracies_are_compared_by_mcnemars_exact_test_at_any_number_of_examples() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 0, 0, 0, 1, 1], (5, 400))
    want = [reference.binomtest(int((row > 0).sum()), int((row != 0).sum())).pvalue for row in values]
    np.testing.assert_allclose(sign_flip_p(values, seed=0), want, rtol=1e-9)
    few = rng.choice([-1.0, 0, 1], (20, 9))
    np.testing.assert_allclose(sign_flip_p(few, seed=0), [enumerated(row) for row in few], rtol=1e-12)
    almost = values * (1 + 0.001 * rng.random(values.shape))  # no longer of one size: now signs are drawn
    np.testing.assert_allclose(sign_flip_p(almost, seed=0), want, atol=0.02)


def test_what_no_sign_can_change_is_no_finding() -> None:
    np.testing.assert_array_equal(sign_flip_p(np.zeros((2, 50)), seed=0), [1, 1])
    np.testing.assert_array_equal(sign_flip_p(np.array([[3.0], [-1.0]]), seed=0), [1, 1])  # one example: both signs are as large
    assert sign_flip_p(np.full((1, 600), 0.25), seed=0) < 1e-100  # every example agrees
    rounding = np.full(60, 0.1) + 0.1 * np.tile([1, -1], 30)
    assert sign_flip_p(rounding - 0.1, seed=0) > 0.99  # a mean of 1e-18


def test_a_cells_p_depends_on_no_other_cell_and_on_no_order() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, (7, 60)), rng.normal(0, 2, (7, 45))
    for whole, single in (
        (sign_flip_p(a, seed=3), [sign_flip_p(row, seed=3) for row in a]),
        (difference_p(a, b, seed=3), [difference_p(x, y, seed=3) for x, y in zip(a, b, strict=True)]),
    ):
        np.testing.assert_array_equal(whole, np.array(single))
    assert (sign_flip_p(a, seed=3) != sign_flip_p(a, seed=4)).any()
    np.testing.assert_array_equal(sign_flip_p(a.reshape(7, 1, 60), seed=3)[:, 0], sign_flip_p(a, seed=3))
    np.testing.assert_array_equal(sign_flip_p(-a, seed=3), sign_flip_p(a, seed=3))


def test_a_p_between_domains_is_what_scipy_finds() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, (5, 80)), rng.normal(0, 3, (5, 30))

    def welch(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(reference.ttest_ind(a, b, axis=axis, equal_var=False).statistic)

    want = reference.permutation_test((a, b), welch, axis=1, n_resamples=9999, alternative="greater", rng=0, vectorized=True).pvalue
    np.testing.assert_allclose(difference_p(a, b, seed=0), want, atol=0.02)
    assert np.ptp(want) > 0.5
    np.testing.assert_array_equal(difference_p(np.ones((1, 6)), np.ones((1, 4)), seed=0), [1])
    # Only 2 of the 210 ways to deal 4 ones and 6 zeros put them apart as found; each is drawn about 95 times in 9,999.
    assert difference_p(np.ones(4), np.zeros(6), seed=0) == pytest.approx(1 / 210, abs=0.002)


def unevenness(dealt: np.ndarray, m: int) -> float:
    """The p of the hypothesis that every choice of m comes equally often."""
    n = dealt.shape[1]
    counts = np.bincount(dealt @ (1 << np.arange(n)), minlength=2**n)
    return float(reference.chisquare(counts[[which.bit_count() == m for which in range(2**n)]]).pvalue)


def first_wrong_one_turned(dealings: int, n: int, m: int, rng: np.random.Generator) -> np.ndarray:
    """What the dealing would be if it always turned the first example that may be turned, and not whichever."""
    dealt = rng.random((dealings, n)) < m / n
    for row in dealt:
        while row.sum() != m:
            row[np.flatnonzero(row == (row.sum() > m))[0]] ^= True
    return dealt


@pytest.mark.parametrize(("n", "m"), [(6, 2), (6, 3), (5, 4), (9, 2), (9, 8)])
def test_every_choice_of_the_first_group_is_as_likely_as_any_other(n: int, m: int) -> None:
    dealt = _first_groups(30_000, n, m, np.random.default_rng(0))
    assert (dealt.sum(1) == m).all()
    assert unevenness(dealt, m) > 0.01
    assert unevenness(first_wrong_one_turned(30_000, n, m, np.random.default_rng(0)), m) < 1e-6


@pytest.mark.parametrize("m", [2, 100, 1980])
def test_groups_of_unlike_size_are_dealt_as_well(m: int) -> None:
    dealt = _first_groups(2000, 2000, m, np.random.default_rng(0))
    assert (dealt.sum(1) == m).all()
    smaller = dealt if m < 1000 else ~dealt
    assert reference.chisquare(smaller.sum(0)).pvalue > 0.01  # every example comes to it equally often


def test_nan_cells_stay_nan_and_leave_the_others_alone() -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(size=40)
    a, b = np.stack([np.full(40, np.nan), good]), np.stack([good[:20], good[20:]])[:, :15]
    for both, alone in (
        (sign_flip_p(a, seed=0), sign_flip_p(a[1], seed=0)),
        (difference_p(a, b, seed=0), difference_p(a[1], b[1], seed=0)),
        (mean_interval(a, seed=0)[0], mean_interval(a[1], seed=0)[0]),
        (difference_interval(a, b, seed=0)[1], difference_interval(a[1], b[1], seed=0)[1]),
    ):
        assert np.isnan(both[0]) and both[1] == pytest.approx(alone, abs=1e-14)  # BLAS sums one row and two in another order
    assert np.isnan(difference_p(a, b[:, :1], seed=0)).all()  # one example has no spread


def test_adjusted_p_are_those_of_benjamini_and_hochberg_over_all_cells_that_have_one() -> None:
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, 0.9]])
    want = reference.false_discovery_control([0.01, 0.04, 0.03, 0.005, 0.9])
    found = adjust(p)
    assert np.isnan(found[0, 2]) and found.shape == (2, 3)
    np.testing.assert_allclose(found[~np.isnan(found)], want)
    assert np.isnan(adjust(np.array([np.nan, np.nan]))).all() and adjust(np.array([])).shape == (0,)
    assert adjust(np.array([0.02])) == 0.02
    assert np.isnan(p[0, 2]) and p[0, 0] == 0.01  # what was given is left as it was
