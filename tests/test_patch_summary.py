"""What a patching summary tests: each effect against no effect, corrected within a domain and metric, and between the domains."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import taia_lens as tl
from taia_lens import results, stats, summaries
from taia_lens.suite import make_suite

N, LAYERS = 60, 12
MOVED = 3
"""The one layer whose patch does something, and more out of distribution than in it."""


def found(*, pos: bool = False) -> xr.Dataset:
    """Random changes around 0 at every layer but one; the accuracy never changes at layer 0."""
    rng = np.random.default_rng(0)
    rows = [{"id": str(i), "prompt": "p", "answer": " a", "domain": "ood" if i % 3 == 0 else "id"} for i in range(N)]
    host = np.zeros((2, N))
    change = rng.normal(0, 0.2, (2, 1, LAYERS, N))
    ood = np.array([row["domain"] == "ood" for row in rows])
    change[:, :, MOVED] += np.where(ood, 1.0, 0.3)
    change[1, :, 0] = 0
    coords: dict[str, tuple] = {"component": ("mlp",), "layer": tuple(range(LAYERS))}
    if pos:
        change = np.stack([change, change], axis=3)
        change[..., 1, np.flatnonzero(~ood)[1:]] = np.nan  # one prompt of those in distribution has the second position
        coords |= {"pos": (0, 1)}
    return results.patch_dataset(
        host,
        host + 1,
        host.reshape(2, *[1] * (change.ndim - 2), N) + change,
        np.array([1e-6, 1e-6]),
        metrics=("logprob", "accuracy"),
        coords=coords,
        suite=make_suite("s", rows),
        attrs={"seed": 0},
    )


def test_an_effects_p_is_the_sign_flip_tests_and_its_q_is_corrected_within_a_domain_and_metric() -> None:
    result = found()
    summary = summaries.patch_summary(result)
    for domain in ("id", "ood"):
        for metric in ("logprob", "accuracy"):
            cell = summary.sel(domain=domain, metric=metric, component="mlp")
            change = (result.patched - result.host).sel(metric=metric, component="mlp").isel(example=result.domain.values == domain)
            want = stats.sign_flip_p(change.values, seed=0)
            want[(change == 0).all("example").values] = np.nan
            np.testing.assert_array_equal(cell.effect_p, want)
            np.testing.assert_array_equal(cell.effect_q, stats.adjust(want))
            assert np.isnan(cell.effect_q.sel(layer=0)) == (metric == "accuracy")
            assert int(cell.effect_q.argmin()) == MOVED and float(cell.effect_q.min()) < 0.01
            assert int((cell.effect_q <= 0.05).sum()) <= 2
    assert (summary.effect_q >= summary.effect_p).where(summary.effect_p.notnull(), True).all()
    assert (summary.effect_q > summary.effect_p).any()  # a correction that corrects nothing would be noticed


def test_one_example_is_not_tested() -> None:
    result = found()
    one = summaries.patch_summary(result.isel(example=[0]))
    assert np.isnan(one.effect_p).all() and np.isnan(one.effect_q).all() and not np.isnan(one.effect).any()
    assert not any(str(name).startswith("shift") for name in one.data_vars)
    two = summaries.patch_summary(result.isel(example=[0, 1]))  # one of each domain
    assert np.isnan(two.effect_p).all() and np.isnan(two.shift_p).all() and not np.isnan(two["shift"]).any()


def test_a_position_that_one_prompt_has_is_not_tested_and_does_not_count() -> None:
    result = found(pos=True)
    summary = summaries.patch_summary(result)
    here = summary.sel(domain="id", metric="logprob", component="mlp")
    assert here.n.values.tolist() == [40, 1] and np.isnan(here.effect_q.sel(pos=1)).all() and not np.isnan(here.effect_q.sel(pos=0)).any()
    np.testing.assert_array_equal(here.effect_q.sel(pos=0), stats.adjust(here.effect_p.sel(pos=0).values))
    both = summary.sel(domain="ood", metric="logprob", component="mlp")
    np.testing.assert_array_equal(both.effect_q.transpose("layer", "pos"), stats.adjust(both.effect_p.transpose("layer", "pos").values))
    assert "shift" not in summary


def test_the_shift_is_the_effect_out_of_distribution_less_that_in_it() -> None:
    summary = summaries.patch_summary(found())
    np.testing.assert_allclose(summary["shift"], summary.effect.sel(domain="ood") - summary.effect.sel(domain="id"))
    assert (summary.shift_low <= summary["shift"]).all() and (summary["shift"] <= summary.shift_high).all()
    cell = summary.sel(metric="logprob", component="mlp")
    assert int(cell.shift_q.argmin()) == MOVED and float(cell.shift_q.min()) < 0.01 and int((cell.shift_q <= 0.05).sum()) <= 2
    np.testing.assert_array_equal(cell.shift_q, stats.adjust(cell.shift_p.values))
    assert np.isnan(summary.shift_p.sel(metric="accuracy", layer=0)).all()


@pytest.mark.parametrize("name", ["results", "summary"])
def test_it_is_found_under_its_old_names(name: str) -> None:
    old = results.summary if name == "results" else tl.summary
    xr.testing.assert_identical(old(found()), tl.patch_summary(found()))
