"""Documents of an intervention sweep that share calls, on their way through the layers.

A unit is what a sweep takes through the layers one by one, and what one stage of a staged model
hands to the next: nothing in it needs anything of another unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .batches import Batch
from .clock import Clock
from .effect_table import EffectTable
from .effects_documents import EffectsDocument
from .forked_group import ForkedGroup
from .frame import Frame
from .layer_stack import LayerStack
from .local_effects import LocalEffects
from .placed_head import PlacedHead


class EffectsUnit:
    """Some groups of branches, and the local effects of their documents.

    Parameters
    ----------
    groups
        The first of each document begins at point 0.
    local
        By document; empty where none are measured.
    table
        Of the task.

    Attributes
    ----------
    documents
        First and last (end excluded) of its documents' numbers in the task.
    """

    def __init__(
        self, groups: Sequence[ForkedGroup], local: Mapping[int, LocalEffects], table: EffectTable
    ) -> None:
        self._groups, self._locals, self._table = list(groups), dict(local), table
        numbers = [document for group in groups for document in group.documents]
        self.documents = (min(numbers), max(numbers) + 1)
        self._first = {d: g for g in reversed(self._groups) for d in g.documents if not g.begin}
        for group in self._groups:
            if self._locals and not group.begin:
                group.on_added = self._keep
        self._stacks: dict[int, LayerStack] = {}
        programs = [b.program for g in self._groups for b in g.branches if b.program]
        self._span = max((p.last - p.first for p in programs), default=1)

    def _keep(self, layer: int, document: int, a: Tensor, m: Tensor) -> None:
        if document in self._locals:
            self._locals[document].keep(layer, a, m)

    def embed(self, frame: Frame, documents: Sequence[EffectsDocument]) -> None:
        """Point 0 of every document; ``documents`` are all of the task."""
        for group in self._groups:
            if group.begin:
                continue
            ids = torch.zeros((group.bases, group.width), dtype=torch.int64)
            for line, number in enumerate(group.documents):
                document = documents[number].ids
                ids[line, : len(document)] = document
            group.start(frame.embed(Batch(ids, None, (), ())))

    def pass_layer(self, layer: int, stack: LayerStack) -> None:
        """Know a layer that a program ending at a later one applies again, but do not run it."""
        self._stacks[layer] = stack
        self._stacks.pop(layer - self._span, None)

    @torch.inference_mode()
    def run_layer(self, layer: int, stack: LayerStack, clock: Clock) -> None:
        """Take every local case, and every group, through a layer."""
        self.pass_layer(layer, stack)
        self._start(layer)
        for number, local in self._locals.items():
            base = self._baseline(number, self._first[number].width)
            local.run_layer(layer, stack, base, self._first[number].batch)
        with clock.measure("compute"):
            for group in self._groups:
                group.run_layer(layer, stack, self._stacks)

    def _start(self, point: int) -> None:
        """Groups whose branches are all born later begin with the baselines of earlier ones."""
        for group in self._groups:
            if group.begin and group.begin == point:
                group.start(torch.stack([self._baseline(d, group.width) for d in group.documents]))

    def _baseline(self, document: int, width: int) -> Tensor:
        group = self._first[document]
        base = group.baseline[group.documents.index(document)]
        missing = max(0, width - len(base))
        return torch.nn.functional.pad(base, (0, 0, 0, missing))[:width]

    def finish(self, layers: int, head: PlacedHead, budget_bytes: int) -> None:
        """Compare the outputs of all branches with their baselines', after the last layer."""
        self._start(layers)
        for group in self._groups:
            group.finish(layers, head, budget_bytes)

    def take_state(self) -> dict[str, Tensor]:
        """All that the layers that follow need, and all that was noted so far; it leaves."""
        parts: dict[str, Mapping[str, Tensor]] = {"table": self._table.take(self.documents)}
        parts |= {f"group{n}": group.take_state() for n, group in enumerate(self._groups)}
        parts |= {f"local{n}": local.take_state() for n, local in self._locals.items()}
        self._stacks = {}
        return {f"{part}/{name}": t for part, state in parts.items() for name, t in state.items()}

    def put_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on, on a device, from where the same unit was left."""
        parts: dict[str, dict[str, Tensor]] = {}
        for path, tensor in state.items():
            part, _, name = path.partition("/")
            parts.setdefault(part, {})[name] = tensor
        self._table.put(self.documents, parts["table"])
        for n, group in enumerate(self._groups):
            if own := parts.get(f"group{n}"):
                group.put_state(own, device)
        for n, local in self._locals.items():
            local.put_state(parts.get(f"local{n}", {}), device)
