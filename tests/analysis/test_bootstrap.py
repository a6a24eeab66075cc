"""Bootstrap intervals: what scipy gives, what theory gives, and the same however blocks are cut."""

from __future__ import annotations

import numpy as np
import pytest
from depthscope.analysis.bootstrap import ratio_interval
from depthscope.analysis.poisson_bootstrap import PoissonBootstrap
from depthscope.analysis.poisson_bootstrap import interval as poisson_interval
from scipy import stats


def documents(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of documents of very different lengths, two statistics each."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 60, size=(count, 2)).astype(float)
    means = random.gamma(2.0, size=(count, 2))
    return counts * means, counts


def interval(
    sums: np.ndarray, counts: np.ndarray, cuts: list[int] | None = None, **options: float
) -> tuple[np.ndarray, np.ndarray]:
    pieces = zip(np.split(sums, cuts or []), np.split(counts, cuts or []), strict=True)
    return ratio_interval(pieces, len(sums), sums.shape[1], **options)  # type: ignore[arg-type]


def test_agrees_with_scipy() -> None:
    sums, counts = documents(80)
    low, high = interval(sums, counts, resamples=20_000, seed=3)
    for one in range(2):
        expected = stats.bootstrap(
            (sums[:, one], counts[:, one]),
            lambda s, c, axis: s.sum(axis) / c.sum(axis),
            paired=True,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(8),
        ).confidence_interval
        width = expected.high - expected.low
        assert low[one] == pytest.approx(expected.low, abs=0.03 * width)
        assert high[one] == pytest.approx(expected.high, abs=0.03 * width)


def test_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits, trials, truth = 0, 400, 2.0
    for trial in range(trials):
        counts = random.integers(5, 40, size=(60, 1)).astype(float)
        sums = counts * random.gamma(2.0, size=(60, 1))
        low, high = interval(sums, counts, resamples=400, seed=trial)
        hits += bool(low[0] <= truth <= high[0])
    # Percentile intervals of 60 skewed documents cover a little less than they claim.
    assert 0.89 <= hits / trials <= 0.98


def test_resamples_draw_every_document_alike() -> None:
    count, resamples = 12, 4000
    eye = np.eye(count)
    for cuts in ([], [1, 5, 6], [6]):
        # A document's weight in a resample is Poisson with mean 1: 0 to 3 in 95% of them.
        low, high = interval(eye * count, np.ones((count, count)), cuts, resamples=resamples)
        np.testing.assert_array_equal(low, 0)
        assert (np.abs(high - 3) <= 1).all()


def test_blocks_change_the_draws_but_not_the_law() -> None:
    sums, counts = documents(90)
    whole = interval(sums, counts, resamples=20_000)
    cut = interval(sums, counts, [7, 8, 60], resamples=20_000)
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.01)


def test_seeds_repeat() -> None:
    sums, counts = documents(30)
    first, again = interval(sums, counts, seed=4), interval(sums, counts, seed=4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, interval(sums, counts, seed=5))


def test_no_spread_no_width() -> None:
    counts = np.arange(1.0, 21.0)[:, None]
    low, high = interval(counts * 3, counts)
    np.testing.assert_allclose([low[0], high[0]], 3)


@pytest.mark.parametrize("count", [0, 1])
def test_no_interval_from_one_document(count: int) -> None:
    sums, counts = documents(count)
    assert np.isnan(interval(sums, counts)).all()


def test_a_statistic_without_values_is_nan() -> None:
    sums, counts = documents(10)
    sums[:, 1] = counts[:, 1] = 0
    low, high = interval(sums, counts)
    assert np.isfinite([low[0], high[0]]).all()
    assert np.isnan([low[1], high[1]]).all()


def test_poisson_weights_agree_with_scipy() -> None:
    sums, counts = documents(80)
    boot = PoissonBootstrap(2, resamples=20_000, seed=3)
    # In pieces and out of order, as several machines add them.
    for part in (slice(50, 80), slice(0, 50)):
        boot.add(np.arange(80)[part], sums[part], counts[part])
    low, high = poisson_interval(boot.ratios(), 0.95)
    for one in range(2):
        expected = stats.bootstrap(
            (sums[:, one], counts[:, one]),
            lambda s, c, axis: s.sum(axis) / c.sum(axis),
            paired=True,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(8),
        ).confidence_interval
        width = expected.high - expected.low
        assert low[one] == pytest.approx(expected.low, abs=0.05 * width)
        assert high[one] == pytest.approx(expected.high, abs=0.05 * width)
