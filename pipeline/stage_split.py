"""Cutting a model's layers into contiguous stages, as evenly as they can be.

A stage costs the larger of its share of the bytes and its share of the FLOPs, since either memory
or time may bound it. The largest stage is made as small as possible, exactly: a limit is feasible
when layers packed greedily under it need no more stages than there are, and only sums of
neighbouring layers come into question as limits. Among the splits that reach that limit, the one
with the smallest sum of squares is taken, so that the other stages are even as well.

Cost: O(L² log L + stages · L²) for L layers, a fraction of a second for hundreds of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise

from depthscope.storage.errors import RequestError


def split_layers(
    layer_bytes: Sequence[float],
    layer_flops: Sequence[float],
    stages: int,
    *,
    first_bytes: float = 0,
) -> list[tuple[int, int]]:
    """Contiguous ranges of layers, one per stage, each with at least one layer.

    Parameters
    ----------
    layer_bytes
        bytes of each layer's weights.
    layer_flops
        FLOPs per token of each layer.
    stages
        how many ranges.
    first_bytes
        bytes that the first stage carries besides (the embedding).

    Returns
    -------
    First layer and one past the last layer of every stage, in order.

    Raises
    ------
    RequestError
        there are fewer layers than stages.
    """
    layers = len(layer_bytes)
    if not 1 <= stages <= layers:
        raise RequestError(
            f"{stages} stages cannot share {layers} layers: give at most {layers} stages, "
            "fewer nodes or fewer devices"
        )
    cost = partial(_cost, _shares(layer_bytes, first_bytes), _shares(layer_flops, 0))
    limit = _smallest_limit(cost, layers, stages)
    return _evenest(cost, layers, stages, limit)


def _shares(values: Sequence[float], besides: float) -> list[float]:
    """Running sums, as shares of the whole."""
    whole = sum(values) + besides
    return [total / whole if whole else 0.0 for total in accumulate(values, initial=besides)]


def _cost(bytes_before: list[float], flops_before: list[float], first: int, last: int) -> float:
    start = bytes_before[first] if first else 0.0
    return max(bytes_before[last] - start, flops_before[last] - flops_before[first])


def _smallest_limit(cost: partial[float], layers: int, stages: int) -> float:
    limits = sorted({cost(i, j) for i in range(layers) for j in range(i + 1, layers + 1)})
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        if _needed(cost, layers, limits[middle]) <= stages:
            high = middle
        else:
            low = middle + 1
    return limits[low]


def _needed(cost: partial[float], layers: int, limit: float) -> int:
    """Stages that layers packed greedily under a limit need; more than there are if one is over."""
    count, first = 0, 0
    while first < layers:
        last = first
        while last < layers and cost(first, last + 1) <= limit:
            last += 1
        if last == first:
            return layers + 1
        count, first = count + 1, last
    return count


def _evenest(cost: partial[float], layers: int, stages: int, limit: float) -> list[tuple[int, int]]:
    """The split under the limit whose costs have the smallest sum of squares."""
    # best[j]: least sum and the cuts before it, for layers 0..j-1 in the stages so far.
    best: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ()), *[None] * layers]
    for stage in range(1, stages + 1):
        following: list[tuple[float, tuple[int, ...]] | None] = [None] * (layers + 1)
        for last in range(stage, layers - (stages - stage) + 1):
            for first in range(last - 1, stage - 2, -1):
                taken = cost(first, last)
                if taken > limit:
                    break
                if (before := best[first]) is not None:
                    found = (before[0] + taken**2, (*before[1], first))
                    if following[last] is None or found < following[last]:  # type: ignore[operator]
                        following[last] = found
        best = following
    whole = best[layers]
    if whole is None:
        raise AssertionError("a feasible limit has a split")
    cuts = (*whole[1], layers)
    return list(pairwise(cuts))
