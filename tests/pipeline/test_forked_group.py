"""Forked branches against the same branches run from the first layer on, in calls of one shape.

Both see the same layers, line by line; the unforked way alone carries every branch through the
layers below its intervention. They must agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from depthscope.pipeline.batches import Batch
from depthscope.pipeline.demo_model import demo_folder
from depthscope.pipeline.description import describe_model
from depthscope.pipeline.forked_group import ForkedGroup
from depthscope.pipeline.interventions import Branch, Intervention
from depthscope.pipeline.layer_loader import LayerLoader
from depthscope.pipeline.layer_stack import LayerStack
from depthscope.pipeline.replacements import Replacements
from torch import Tensor

from ..conftest import needs_demo_model

CPU = torch.device("cpu")
LENGTH, LAYERS = 14, 30


class Seen:
    """Stands in for the table: keeps what every layer adds to every branch, unreduced."""

    def __init__(self) -> None:
        self.added: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def effects(
        self, layer: int, base: Tensor, changed: Tensor, branches: Sequence[Branch]
    ) -> None:
        for branch, line in zip(branches, changed, strict=True):
            self.added[layer, branch.where] = line.clone()

    def noise(self, layer: int, document: int, ratio: Tensor) -> None:
        assert float(ratio.max()) == 0


def skips() -> list[Branch]:
    """Every layer skipped once in front of position 9, in each of two documents."""
    places = torch.arange(LENGTH)
    acts, measures = (places >= 1) & (places < 9), places >= 9
    return [
        Branch(n, (n, layer), acts, measures, (Intervention("layer", "skip", layer),))
        for n in range(2)
        for layer in range(LAYERS)
    ]


def calls(lines: list[Tensor], shape: int, stack: LayerStack) -> tuple[list[Tensor], list[Tensor]]:
    """All lines through a layer, so many at a time: the streams after it, and what it adds."""
    streams: list[Tensor] = []
    added: list[Tensor] = []
    for first in range(0, len(lines), shape):
        some = lines[first : first + shape]
        filled = torch.stack([*some, *([lines[0]] * (shape - len(some)))])
        seen: list[Tensor] = []
        ids = torch.zeros((1, 1), dtype=torch.int64).expand(shape, LENGTH)
        out = stack.run(
            Batch(ids, None, (), ()), filled, None, lambda _, *ham, seen=seen: seen.extend(ham)
        )
        streams += list(out[: len(some)])
        added += list((seen[1].float() + seen[2].float())[: len(some)])
    return streams, added


@pytest.mark.trained
def test_forked_is_unforked_bit_for_bit() -> None:
    needs_demo_model()
    loader = LayerLoader(demo_folder(), describe_model(demo_folder(), "float32"))
    frame = loader.frame(CPU)
    frame.load()
    ids = torch.randint(40000, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    start = frame.embed(Batch(ids, None, (), ()))
    frame.release()
    branches, seen = skips(), Seen()
    group = ForkedGroup([0, 1], [LENGTH] * 2, branches, 0, Replacements(), seen)  # type: ignore[arg-type]
    group.start(start)
    unforked = [start[branch.document] for branch in branches]
    compared = 0
    for layer in range(LAYERS):
        stack = LayerStack(loader, frame, {layer: loader.load_layer(layer, CPU)}, CPU)
        if not layer:
            stack.check_identity(Batch(ids, None, (), ()), start)
        shape = 4 + sum(branch.birth < layer for branch in branches)
        group.run_layer(layer, stack, {})
        before = unforked
        unforked, added = calls(unforked, shape, stack)
        for k, branch in enumerate(branches):
            if branch.birth == layer:
                unforked[k] = torch.where(branch.acts[:, None], before[k], unforked[k])
            if branch.birth < layer:
                assert torch.equal(seen.added[layer, branch.where], added[k])
                compared += 1
    assert compared == 2 * LAYERS * (LAYERS - 1) // 2
