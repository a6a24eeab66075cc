"""The test of the trend: against scipy, against permutations, and as often wrong as it says."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from depthscope.analysis.trend import Trend, trend
from scipy import stats


def measured(x: np.ndarray, y: np.ndarray, seed: int = 0, resamples: int = 500) -> Trend:
    return trend(x.astype(float), y, resamples=resamples, seed=seed, confidence=0.95)


def sample(slope: float, seed: int = 0, documents: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.integers(1, 6, documents)
    return x, 10 + slope * x + random.normal(size=documents)


def test_a_known_case_by_scipy() -> None:
    x, y = sample(0.2)
    found = measured(x, y)
    wanted = stats.kendalltau(x, y)
    assert found.tau == pytest.approx(wanted.statistic)
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.slope == pytest.approx(stats.linregress(x, y).slope)
    assert found.count == 60


def test_it_is_the_test_of_jonckheere_and_terpstra() -> None:
    """J counts the pairs of documents of two levels in which the higher level scores higher."""
    x, y = sample(0.3)

    def statistic(levels: np.ndarray) -> float:
        return sum(
            float((y[levels == a][:, None] < y[levels == b][None]).sum())
            for a, b in combinations(range(1, 6), 2)
        )

    random = np.random.default_rng(5)
    drawn = np.array([statistic(random.permutation(x)) for _ in range(3000)])
    distance = np.abs(drawn - drawn.mean()) >= abs(statistic(x) - drawn.mean())
    assert measured(x, y).p == pytest.approx(distance.mean(), abs=0.02)


def test_two_levels_are_the_test_of_mann_and_whitney() -> None:
    random = np.random.default_rng(1)
    x = np.repeat([1, 2], 40)
    y = random.normal(size=80) + 0.3 * x
    wanted = stats.mannwhitneyu(y[:40], y[40:], use_continuity=False, method="asymptotic")
    assert measured(x, y).p == pytest.approx(wanted.pvalue, rel=0.02)


def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    p = [measured(*sample(0, seed), resamples=2).p for seed in range(400)]
    assert 0.025 <= np.mean(np.array(p) < 0.05) <= 0.08
    assert all(measured(*sample(1, seed), resamples=2).p < 0.05 for seed in range(20))


def test_the_slopes_interval_covers_the_truth() -> None:
    found = [measured(*sample(0.5, seed), seed=seed, resamples=300) for seed in range(300)]
    hits = [one.slope_low <= 0.5 <= one.slope_high for one in found]
    assert 0.9 <= np.mean(hits) <= 0.98


def test_what_has_no_trend() -> None:
    nothing = measured(np.array([1, 1, 1, 1]), np.arange(4.0))
    assert np.isnan([nothing.tau, nothing.p, nothing.slope, nothing.slope_low]).all()
    assert nothing.count == 4
    few = measured(np.array([1, 2, 3]), np.array([1, 2, np.nan]))
    assert np.isnan(few.p)
    assert few.count == 2
    flat = measured(np.arange(9), np.full(9, 3.0))
    assert np.isnan(flat.p)
    assert flat.slope == flat.slope_low == flat.slope_high == 0
    lost = measured(np.array([1, 2, 3, 4, np.nan]), np.array([1.0, 2, 3, 4, 5]))
    assert lost.count == 4
    assert lost.tau == pytest.approx(1)
