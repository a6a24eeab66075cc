"""Local effects: what a layer would add if an earlier one's contribution were taken away in front
of it alone, without anything in between. Source: Csordás et al. 2025, figure 5 (methods.md 1.4): a
single call of the layer for every pair, instead of a pass of the model for every source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .batches import Batch
from .effect_table import EffectTable
from .interventions import Branch
from .layer_stack import LayerStack


@dataclass(frozen=True)
class LocalCase:
    """One scope, part and split of one document, for a range of sources.

    Attributes
    ----------
    document
        Place of the document in its task.
    part
        Whose contribution is taken away: ``layer``, ``attention`` or ``mlp``.
    branches
        One per source layer, ascending: where its effects go, where it acts and is measured.
    """

    document: int
    part: str
    branches: tuple[Branch, ...]


class LocalEffects:
    """The local effects of one document.

    Parameters
    ----------
    cases
        Of this document.
    lines
        Lines of a call, the baseline among them.
    """

    def __init__(self, cases: Sequence[LocalCase], lines: int, table: EffectTable) -> None:
        self.cases, self._lines, self._table = list(cases), max(2, lines), table
        self._added: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, layer: int, a: Tensor, m: Tensor) -> None:
        """Keep what a layer's attention and MLP add to the document's baseline, (width, d)."""
        self._added[layer] = (a, m)

    def take_state(self) -> dict[str, Tensor]:
        """What is kept, (width, d) each, by ``attention.LAYER`` and ``mlp.LAYER``; it leaves."""
        state: dict[str, Tensor] = {}
        for layer, (a, m) in self._added.items():
            state |= {f"attention.{layer}": a, f"mlp.{layer}": m}
        self._added = {}
        return state

    def put_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on, on a device, from where the same document was left."""
        layers = [int(name.removeprefix("mlp.")) for name in state if name.startswith("mlp.")]
        for layer in layers:
            a, m = (state[f"{part}.{layer}"].to(device) for part in ("attention", "mlp"))
            self.keep(layer, a, m)

    def run_layer(
        self,
        layer: int,
        stack: LayerStack,
        base: Tensor,
        batch: Callable[[int], Batch],
    ) -> None:
        """Measure the layer for every source before it.

        Parameters
        ----------
        base
            (width, d), the document's stream at point ``layer``.
        batch
            A micro-batch of so many lines.
        """
        pairs = [
            (case, branch)
            for case in self.cases
            for branch in case.branches
            if branch.where[-1] < layer
        ]
        for first in range(0, len(pairs), self._lines - 1):
            some = pairs[first : first + self._lines - 1]
            lines = torch.stack([base, *(self._without(base, *pair) for pair in some)])
            seen: list[Tensor] = []
            stack.run(batch(len(lines)), lines, None, partial(_see, seen))
            added = seen[1].float() + seen[2].float()
            length = len(some[0][1].measures)
            self._table.effects(
                layer, added[0, :length], added[1:, :length], [branch for _, branch in some]
            )

    def _without(self, base: Tensor, case: LocalCase, branch: Branch) -> Tensor:
        a, m = self._added[branch.where[-1]]
        taken = {"attention": a.float(), "mlp": m.float()}.get(case.part)
        if taken is None:
            taken = a.float() + m.float()
        acts = torch.nn.functional.pad(branch.acts, (0, len(base) - len(branch.acts)))
        return torch.where(
            acts.to(base.device)[:, None], (base.float() - taken).to(base.dtype), base
        )


def _see(seen: list[Tensor], layer: int, *stream_attention_mlp: Tensor) -> None:
    seen.extend(stream_attention_mlp)
