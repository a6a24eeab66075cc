"""Arguments of a model's layers, kept for micro-batches that come again, layer after layer.

A sweep asks for the arguments of the same micro-batches at every layer; making them anew costs a
millisecond each time, which a small layer feels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .batches import Batch

Arguments = Mapping[str, Any]
"""Keyword arguments of a layer, the stream apart."""


class KeptArguments:
    """Keeps the arguments of micro-batches that it was told of, as far as there is room."""

    def __init__(self) -> None:
        self._room: dict[int, list[int]] = {}
        # Keys are identities: an entry holds its micro-batch, so that no other takes its place.
        self._kept: dict[int, tuple[Batch, Sequence[Arguments]]] = {}

    def expect(self, batches: Sequence[Batch], room: int) -> None:
        """These come again; all of their arguments may take ``room`` bytes."""
        shared = [room]
        self._room |= dict.fromkeys(map(id, batches), shared)

    def forget(self, batches: Sequence[Batch]) -> None:
        """These do not come any more."""
        for batch in batches:
            self._room.pop(id(batch), None)
            self._kept.pop(id(batch), None)

    def of(self, batch: Batch, make: Callable[[], Sequence[Arguments]]) -> Sequence[Arguments]:
        """The arguments of a micro-batch, made where they are not kept."""
        if id(batch) in self._kept:
            return self._kept[id(batch)][1]
        arguments, room = make(), self._room.pop(id(batch), None)
        if room is not None:
            arguments = _shared(arguments)
            size = _bytes(arguments)
            if size <= room[0]:
                room[0] -= size
                self._kept[id(batch)] = batch, arguments
        return arguments


def _shared(arguments: Sequence[Arguments]) -> Sequence[Arguments]:
    """One mapping for all layers that are given the very same objects."""
    seen: dict[tuple[tuple[str, int], ...], Arguments] = {}
    keys = [tuple((name, id(value)) for name, value in one.items()) for one in arguments]
    return [seen.setdefault(key, one) for key, one in zip(keys, arguments, strict=True)]


def _bytes(arguments: Sequence[Arguments]) -> int:
    storages = {}
    for one in {id(one): one for one in arguments}.values():
        for leaf in tree_leaves(dict(one)):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
