"""Arguments that are kept are those that were made, and no more than there is room for."""

from __future__ import annotations

import torch
from depthscope.pipeline.batches import Batch
from depthscope.pipeline.kept_arguments import Arguments, KeptArguments

LAYERS = 3


class Maker:
    """Makes arguments of 800 bytes, two layers of one kind and one of another; counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> list[Arguments]:
        self.made += 1
        rotation, mask = (torch.rand(50), torch.rand(50)), torch.rand(100).expand(2, 100)
        plain = [{"rotation": rotation, "mask": None} for _ in range(LAYERS - 1)]
        return [*plain, {"rotation": rotation, "mask": mask}]


def batch() -> Batch:
    return Batch(torch.zeros(1, 4, dtype=torch.int64), None, (), ())


def test_made_once_for_what_comes_again() -> None:
    kept, make, batches = KeptArguments(), Maker(), [batch(), batch()]
    kept.expect(batches, 1600)
    first = [kept.of(one, make) for one in batches]
    again = [kept.of(one, make) for one in batches]
    assert make.made == 2
    for one, other in zip(first, again, strict=True):
        assert len(one) == LAYERS
        assert one[0] is one[1]
        assert one[2]["mask"] is other[2]["mask"]
        assert one[0]["mask"] is None
    assert first[0][0]["rotation"] is not first[1][0]["rotation"]
    kept.forget(batches)
    kept.of(batches[0], make)
    assert make.made == 3


def test_no_more_than_there_is_room_for() -> None:
    kept, make, batches = KeptArguments(), Maker(), [batch() for _ in range(4)]
    kept.expect(batches, 1599)
    for _ in range(3):
        for one in batches:
            kept.of(one, make)
    assert make.made == 4 + 2 * 3


def test_nothing_is_kept_of_what_nobody_expects() -> None:
    kept, make, one = KeptArguments(), Maker(), batch()
    kept.of(one, make)
    kept.of(one, make)
    assert make.made == 2
