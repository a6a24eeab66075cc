"""The sentences say what the numbers say, whatever the model, and name sample and interval."""

from __future__ import annotations

import numpy as np
import pytest
from depthscope.analysis.findings import findings

from .synthetic_results import contributions, lens

FLAT = np.full(8, 0.4)
COSINE = [0.2, 0.3, -0.1, -0.2, -0.1, 0.1, 0.2, -0.3]


def test_drop_is_found() -> None:
    size, _, _ = findings(contributions([0.8, 0.4, 0.4, 0.4, 0.4, 0.1, 0.15, 0.5], COSINE), None)
    assert "first half adds 0.40" in size
    assert "of the second half 0.28" in size
    assert "layers 5 to 6 fall below half of the early value (layer 5: 0.10 [0.09, 0.11]" in size
    assert "1,200 tokens of 47 documents; 95% intervals in brackets" in size


def test_one_low_layer_and_no_drop() -> None:
    assert "layer 6 falls below" in findings(contributions([*FLAT[:6], 0.1, 0.4], FLAT), None)[0]
    steady = findings(contributions([*FLAT[:6], 0.3, 0.4], FLAT), None)[0]
    assert "no layer falls below half of the early value (least: layer 6 with 0.30" in steady


def test_last_turn_from_weakening_to_strengthening() -> None:
    _, direction, _ = findings(contributions(FLAT, COSINE), None)
    assert (
        "last turns from weakening the stream (layer 4: cosine -0.10 [-0.11, -0.09])" in direction
    )
    assert "to strengthening it (layer 5: 0.10 [0.09, 0.11])" in direction
    assert "4 of 8 layers clearly weaken it, 4 clearly strengthen it" in direction


def test_layers_whose_interval_holds_zero_do_not_count() -> None:
    cosine = [-0.2, -0.2, 0.3, 0.2, -0.005, 0.005, 0.3, 0.2]
    _, direction, _ = findings(contributions(FLAT, cosine), None)
    assert "(layer 1: cosine -0.20" in direction
    assert "(layer 2: 0.30" in direction
    assert "2 of 8 layers clearly weaken it, 4 clearly strengthen it" in direction


@pytest.mark.parametrize("cosine", [np.linspace(0.1, 0.5, 8), -FLAT, np.linspace(0.3, -0.3, 8)])
def test_no_turn_is_said(cosine: np.ndarray) -> None:
    _, direction, _ = findings(contributions(FLAT, cosine), None)
    assert "never turns from weakening the stream to strengthening it" in direction
    assert f"between {cosine.min():.2f}" in direction


def test_prediction_settles() -> None:
    result = lens([9, 6, 4, 2, 1, 0], [0.0, 0.6, 0.3, 0.55, 0.8, 1.0])
    _, _, prediction = findings(None, result)
    assert "from point 3 of 5 on (55%)" in prediction
    assert "still 2.00 [1.80, 2.20] nats" in prediction
    assert "600 tokens of 47 documents" in prediction


def test_prediction_settles_only_at_the_end() -> None:
    _, _, prediction = findings(None, lens([9, 6, 4, 0], [0.0, 0.1, 0.3, 1.0]))
    assert "only after the last layer; at point 2 it is so for 30%" in prediction


def test_missing_results_and_missing_numbers() -> None:
    assert all("not measured" in sentence for sentence in findings(None, None))
    nothing = np.full(4, np.nan)
    found = findings(contributions(nothing, nothing), lens(nothing, nothing))
    assert len(found) == 3
    assert all("cannot be said" in sentence for sentence in found)


def test_one_layer_and_one_document() -> None:
    result = contributions([0.5], [0.1])
    for name in ("norm_ratio", "cosine"):
        for end in ("low", "high"):
            result[f"{name}_{end}"] = result[f"{name}_{end}"] * np.nan
    size, direction, prediction = findings(result, lens([1, 0], [0.2, 1]))
    assert "first half adds 0.50" in size
    assert "second half 0.50" in size
    assert "between 0.10 (layer 0) and 0.10 (layer 0)" in direction
    assert "only after the last layer" in prediction


def test_all_tokens_where_there_are_no_content_tokens() -> None:
    result = contributions(FLAT, COSINE)
    result["count"] = ("token_set", [48, 0])
    assert findings(result, None)[0].startswith("Over all tokens")
