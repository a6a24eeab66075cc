"""Branches of a few documents that go through every layer in one batched call.

Lines of the batch: the documents' baselines, a no-op of each, then the branches in the order of
their birth. A branch is born where it first differs, from the baseline's own stream, so nothing
below an intervention is ever run for it; at its own layer only a change of attention needs a run.
Baseline and branches share every call, so what differs between them is the intervention alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .batches import Batch
from .effect_table import EffectTable, relative_change
from .families import Family, add
from .interventions import Branch, Intervention, Rows
from .layer_stack import LayerStack
from .line_edits import Edit, edited
from .output_effects import note_outputs
from .placed_head import PlacedHead
from .replacements import Replacements

_NO_OPS = tuple(Intervention(part, "scale", 0, Rows(), 1.0) for part in ("attention", "mlp"))


class ForkedGroup:
    """Some branches, with the baseline and a no-op of every document they belong to.

    Parameters
    ----------
    documents
        Numbers, in the task, of the documents.
    lengths
        Tokens of each.
    branches
        Born at ``begin`` or later.
    begin
        The point from which the group runs; its baselines are handed to `start`.

    Attributes
    ----------
    on_added
        Called with layer, document and what attention and MLP add to its baseline, (width, d).
    """

    def __init__(
        self,
        documents: Sequence[int],
        lengths: Sequence[int],
        branches: Sequence[Branch],
        begin: int,
        replacements: Replacements,
        table: EffectTable,
    ) -> None:
        self.documents, self.lengths = list(documents), list(lengths)
        self.branches = sorted(branches, key=lambda branch: branch.birth)
        self.begin, self.width = begin, max(lengths)
        self._replacements, self._table = replacements, table
        self._line = {document: line for line, document in enumerate(documents)}
        self.on_added: Callable[[int, int, Tensor, Tensor], None] | None = None
        self._alive: list[Branch] = []
        self._stream = torch.empty(0)
        self._earlier: dict[int, Tensor] = {}
        self._span = max(
            (b.program.last - b.program.first for b in branches if b.program), default=0
        )

    @property
    def bases(self) -> int:
        """Baselines: one per document."""
        return len(self.documents)

    @property
    def baseline(self) -> Tensor:
        """The documents' streams at the point reached, (documents, width, d)."""
        return self._stream[: self.bases]

    def start(self, streams: Tensor) -> None:
        """Begin with the documents' streams at point ``begin``, (documents, width, d)."""
        self._stream = torch.cat([streams, streams])

    def take_state(self) -> dict[str, Tensor]:
        """What the layers that follow need, to be put into a group of the same branches.

        Returns
        -------
        dict of Tensor
            ``stream`` (lines, width, d), ``alive``, int64 numbers of the branches behind baselines
            and no-ops, and the baselines (documents, width, d) that a program may begin with, by
            layer; nothing where the group has not begun. It leaves this group.
        """
        if not self._stream.numel():
            return {}
        number = {id(branch): n for n, branch in enumerate(self.branches)}
        alive = torch.tensor([number[id(branch)] for branch in self._alive], dtype=torch.int64)
        state = {"stream": self._stream, "alive": alive}
        state |= {str(layer): base for layer, base in self._earlier.items()}
        self._stream, self._alive, self._earlier = torch.empty(0), [], {}
        return state

    def put_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on, on a device, from where another group of the same branches was left."""
        self._stream = state["stream"].to(device)
        self._alive = [self.branches[n] for n in state["alive"].tolist()]
        self._earlier = {int(k): base.to(device) for k, base in state.items() if k.isdigit()}

    def run_layer(self, layer: int, stack: LayerStack, around: Mapping[int, LayerStack]) -> None:
        """Take all lines through a layer, note what changed, and let branches be born.

        Parameters
        ----------
        around
            The layers that a program ending here applies again.
        """
        if layer < self.begin:
            return
        self._erase(layer)
        born = [b for b in self.branches if b.birth == layer and b.erases is None]
        riders = [b for b in born if any(c.part == "attention" for c in b.at(layer))]
        if self._span:
            self._earlier[layer] = self.baseline.clone()
            self._earlier.pop(layer - self._span, None)
        lines = torch.cat([self._stream, *(self._base(self._stream, b)[None] for b in riders)])
        seen: list[Tensor] = []
        batch = self.batch(len(lines))
        family = stack.ready(batch, lines)
        with edited(stack.blocks[layer], family, self._edits(layer, riders)):
            out = stack.run(batch, lines, None, lambda _, *ham: seen.extend(ham))
        h, a, m = seen
        if self.on_added is not None:
            for n, document in enumerate(self.documents):
                self.on_added(layer, document, a[n], m[n])
        running = [*self._alive, *riders]
        out, added = self._change_layers(layer, h, a, m, out, running)
        self._measure(layer, added, running)
        newborn = [
            self._born(layer, branch, h, a, m, out, family, around)
            for branch in born
            if branch not in riders
        ]
        self._alive = [*running, *(b for b in born if b not in riders)]
        self._stream = torch.cat([out, *(line[None] for line in newborn)])

    def batch(self, lines: int) -> Batch:
        """So many lines of the group's width; the ids do not matter, the layers never see them."""
        ids = torch.zeros((1, 1), dtype=torch.int64).expand(lines, self.width)
        return Batch(ids, None, (), ())

    def _base(self, lines: Tensor, branch: Branch) -> Tensor:
        return lines[self._line[branch.document]]

    def _mask(self, mask: Tensor) -> Tensor:
        """A document's positions in the group's width."""
        return torch.nn.functional.pad(mask, (0, self.width - len(mask)))

    def _erase(self, point: int) -> None:
        """Branches whose stream is replaced by its mean at this point are born here."""
        for branch in self.branches:
            if branch.erases != point:
                continue
            base = self._base(self._stream, branch)
            mean = self._replacements.stream(point).to(base)
            acts = self._mask(branch.acts).to(base.device)[:, None]
            self._stream = torch.cat([self._stream, torch.where(acts, mean, base)[None]])
            self._alive.append(branch)

    def _edits(self, layer: int, riders: Sequence[Branch]) -> list[Edit]:
        """What attention and MLP of this layer do otherwise, by line of the batch."""
        every = torch.ones(self.width, dtype=torch.bool)
        edits = [Edit(self.bases + n, op, every) for n in range(self.bases) for op in _NO_OPS]
        for number, branch in enumerate([*self._alive, *riders]):
            line = 2 * self.bases + number
            edits += [
                self._edit(line, branch, change)
                for change in branch.at(layer)
                if change.part != "layer"
            ]
        return edits

    def _edit(self, line: int, branch: Branch, change: Intervention) -> Edit:
        length = self.lengths[self._line[branch.document]]
        acts = branch.acts & change.rows.mask(length, length)
        replacement = self._replacements.of(change, branch.document, self.width)
        if replacement is not None and replacement.ndim == 2:
            # A patch reaches as far as the document it is taken from.
            acts = acts & self._replacements.reach(branch.document, length)
        return Edit(line, change, self._mask(acts), replacement)

    def _change_layers(
        self,
        layer: int,
        h: Tensor,
        a: Tensor,
        m: Tensor,
        out: Tensor,
        running: Sequence[Branch],
    ) -> tuple[Tensor, Tensor]:
        """Apply changes of whole layers to living lines; the stream, and what the layer adds."""
        added = a.float() + m.float()
        for number, branch in enumerate(running):
            for change in branch.at(layer):
                if change.part == "layer":
                    line = 2 * self.bases + number
                    edit = self._edit(line, branch, change)
                    added[line] = edit.of(added[line])
                    replaced = h[line] + added[line].to(h.dtype)
                    out[line] = torch.where(edit.acts.to(h.device)[:, None], replaced, out[line])
        return out, added

    def _measure(self, layer: int, added: Tensor, running: Sequence[Branch]) -> None:
        for n, document in enumerate(self.documents):
            ratio = relative_change(added[n], added[self.bases + n])
            self._table.noise(layer, document, ratio[: self.lengths[n]])
            own = [k for k, branch in enumerate(running) if branch.document == document]
            self._note(layer, added[n], [(running[k], added[2 * self.bases + k]) for k in own])

    def _note(self, layer: int, base: Tensor, changed: Sequence[tuple[Branch, Tensor]]) -> None:
        """Eight lines at a time: their differences then stay near the processor."""
        for first in range(0, len(changed), 8):
            some = changed[first : first + 8]
            length = len(some[0][0].measures)
            lines = torch.stack([line[:length] for _, line in some])
            self._table.effects(layer, base[:length], lines, [branch for branch, _ in some])

    def _born(
        self,
        layer: int,
        branch: Branch,
        h: Tensor,
        a: Tensor,
        m: Tensor,
        out: Tensor,
        family: Family,
        around: Mapping[int, LayerStack],
    ) -> Tensor:
        """The stream of a branch after its first layer, from the baseline's own h, a and m."""
        n = self._line[branch.document]
        if branch.program is not None:
            changed = self._programmed(branch, around)
            return torch.where(self._mask(branch.acts).to(out.device)[:, None], changed, out[n])
        attention, mlp = a[n], m[n]
        result, added = out[n], None
        # What the MLP adds is changed before the layer that it is a part of.
        for change in sorted(branch.at(layer), key=lambda change: change.part == "layer"):
            edit = self._edit(0, branch, change)
            if change.part == "mlp":
                mlp = edit.of(mlp)
                result = add(family.orders[0], h[n], attention, mlp)
                added = attention.float() + mlp.float()
            else:
                whole = attention.float() + mlp.float()
                added = edit.of(whole)
                replaced = h[n] + added.to(h.dtype)
                result = torch.where(edit.acts.to(h.device)[:, None], replaced, result)
        if added is not None:
            self._note(layer, a[n].float() + m[n].float(), [(branch, added)])
        return result

    def _programmed(self, branch: Branch, around: Mapping[int, LayerStack]) -> Tensor:
        """What the branch's span makes of the baseline when applied in the program's way."""
        program = branch.program
        if program is None:
            raise RuntimeError("the branch has no program")
        n = self._line[branch.document]
        # All documents at once: a matrix product of a few rows would round in another way.
        stream = self._earlier[program.first]
        batch = self.batch(len(stream))
        for step in program.steps():
            outs = [around[layer].run(batch, stream) for layer in step]
            mean = torch.stack([out.float() for out in outs]).mean(0).to(stream.dtype)
            stream = outs[0] if len(outs) == 1 else mean
        return stream[n]

    def finish(self, layers: int, head: PlacedHead, budget_bytes: int) -> None:
        """Compare the outputs of every branch with the baseline's, at its measured positions."""
        self._erase(layers)
        for n, document in enumerate(self.documents):
            base, noop = (self._stream[k, : self.lengths[n]] for k in (n, self.bases + n))
            own = [
                (branch, self._stream[2 * self.bases + k])
                for k, branch in enumerate(self._alive)
                if branch.document == document
            ]
            note_outputs(self._table, document, base, noop, own, head, budget_bytes)
        self._stream = torch.empty(0)
