"""Ranges of points, both ends included: which of a task's points are committed."""

from __future__ import annotations

from collections.abc import Iterable

#: Ascending ranges with a gap between any two.
Spans = tuple[tuple[int, int], ...]


def joined(ranges: Iterable[tuple[int, int]]) -> Spans:
    """Join ranges that overlap or meet."""
    spans: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if spans and first <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], max(spans[-1][1], last))
        else:
            spans.append((first, last))
    return tuple(spans)


def covers(spans: Spans, first: int, last: int) -> bool:
    """Whether every point from ``first`` to ``last`` is among them."""
    return any(begin <= first and last <= end for begin, end in spans)
