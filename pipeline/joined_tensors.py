"""Tensors that transformers stacks, read straight into their place in the result.

A checkpoint of a mixture of experts holds some tensors for every expert; transformers stacks those
of all experts, and joins gate and up. Done after reading, that needs the layer's memory almost
twice, and three copies. Here the same result is allocated once, and every tensor is read into it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
)

from .lazy_tensors import LazyTensor

_READERS = 4


class ReadJoined(ConversionOps):  # type: ignore[misc]
    """Stacks along a new first axis, and joins several stacks along the next; reads as it does."""

    def convert(
        self,
        input_dict: dict[str, list[LazyTensor]],
        source_patterns: list[str],
        target_patterns: list[str],
        **_: Any,
    ) -> dict[str, Tensor]:
        """One tensor (count, joined, ...) of what the patterns' lists hold, in their order."""
        stacks = [input_dict[pattern] for pattern in source_patterns if pattern in input_dict]
        width = sum(stack[0].shape[0] for stack in stacks)
        shape = (len(stacks[0]), width, *stacks[0][0].shape[1:])
        joined = stacks[0][0].empty(shape)
        places = []
        start = 0
        for stack in stacks:
            end = start + stack[0].shape[0]
            places += [(tensor, joined[n, start:end]) for n, tensor in enumerate(stack)]
            start = end
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(lambda place: place[0].read_into(place[1]), places))
        return {target_patterns[0]: joined}


def _joins(entry: Any) -> bool:
    """Whether a conversion does just what `ReadJoined` does."""
    if not isinstance(entry, WeightConverter) or len(entry.target_patterns) != 1:
        return False
    kinds = [(type(operation), getattr(operation, "dim", None)) for operation in entry.operations]
    if kinds == [(MergeModulelist, 0)]:
        return len(entry.source_patterns) == 1
    return kinds == [(MergeModulelist, 0), (Concatenate, 1)]


def joined_patterns(mapping: Iterable[Any]) -> set[str]:
    """The inputs of conversions that can be read straight into their place."""
    return {pattern for entry in mapping if _joins(entry) for pattern in entry.source_patterns}


def read_joined(mapping: Iterable[Any]) -> None:
    """Let these conversions read their inputs into place."""
    for entry in mapping:
        if _joins(entry):
            entry.operations = [ReadJoined()]
