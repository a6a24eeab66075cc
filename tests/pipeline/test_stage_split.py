"""Splits of layers into stages, against trying all of them."""

from __future__ import annotations

import itertools
import random

import pytest
from depthscope.pipeline.stage_split import split_layers
from depthscope.storage.errors import RequestError


def cost(bytes_: list[float], flops: list[float], extra: float, first: int, last: int) -> float:
    share = sum(bytes_[first:last]) + (extra if first == 0 else 0)
    return max(share / (sum(bytes_) + extra), sum(flops[first:last]) / sum(flops))


def every_split(layers: int, stages: int) -> list[list[tuple[int, int]]]:
    cuts = itertools.combinations(range(1, layers), stages - 1)
    return [list(itertools.pairwise((0, *inner, layers))) for inner in cuts]


@pytest.mark.parametrize("seed", range(25))
def test_the_largest_stage_is_as_small_as_can_be(seed: int) -> None:
    draw = random.Random(seed)
    layers, stages = draw.randint(1, 9), 0
    stages = draw.randint(1, layers)
    bytes_ = [float(draw.randint(1, 9)) for _ in range(layers)]
    flops = [float(draw.randint(1, 9)) for _ in range(layers)]
    extra = float(draw.choice([0, 5, 20]))
    found = split_layers(bytes_, flops, stages, first_bytes=extra)
    largest = {
        tuple(split): max(cost(bytes_, flops, extra, *stage) for stage in split)
        for split in every_split(layers, stages)
    }
    best = min(largest.values())
    assert largest[tuple(found)] == pytest.approx(best)
    squares = {
        split: sum(cost(bytes_, flops, extra, *stage) ** 2 for stage in split)
        for split, most in largest.items()
        if most <= best + 1e-12
    }
    assert squares[tuple(found)] == pytest.approx(min(squares.values()))


def test_the_embedding_counts_for_the_first_stage() -> None:
    assert split_layers([1] * 4, [1] * 4, 2) == [(0, 2), (2, 4)]
    assert split_layers([1] * 4, [0] * 4, 2, first_bytes=2) == [(0, 1), (1, 4)]


def test_flops_matter_where_they_differ_more() -> None:
    """Equal bytes, but the first layer computes as much as ten others."""
    assert split_layers([1] * 6, [10, 1, 1, 1, 1, 1], 2) == [(0, 2), (2, 6)]


def test_every_layer_once_and_no_stage_empty() -> None:
    found = split_layers([1.0] * 126, [1.0] * 126, 16, first_bytes=0.66)
    assert [layer for first, last in found for layer in range(first, last)] == list(range(126))
    assert {last - first for first, last in found} == {7, 8}


@pytest.mark.parametrize("stages", [0, 4])
def test_more_stages_than_layers(stages: int) -> None:
    with pytest.raises(RequestError, match=f"{stages} stages cannot share 3 layers"):
        split_layers([1] * 3, [1] * 3, stages)
