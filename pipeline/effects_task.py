"""One task of an intervention sweep: some documents, some source layers, all of their branches.

Works layer by layer, so the model may be whole in memory or come one layer at a time, and its
weights are then read once for the whole matrix.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

import torch
from depthscope.storage.commits import Commit
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.errors import RequestError
from depthscope.storage.tasks import Task
from torch import Tensor

from .batches import Batch
from .branch_plan import branches_of, erasures_of, local_cases
from .effect_table import EffectTable, ErasureTable
from .effects_documents import EffectsDocument, commit_effects, documents_of
from .equipment import Equipment
from .forked_group import ForkedGroup
from .frame import Frame
from .interventions import Branch
from .layer_stack import LayerStack
from .local_effects import LocalEffects
from .placed_head import PlacedHead
from .replacements import Replacements


class EffectsWork:
    """A task of an intervention sweep on its way through the layers.

    Attributes
    ----------
    point
        The point reached: the next layer to run.
    done
        Resolved with the task's commit, or with what went wrong.
    """

    def __init__(
        self,
        equipment: Equipment,
        record: EffectsRecord,
        task: Task,
        done: Future[tuple[Commit, ...]],
        replacements: Replacements,
    ) -> None:
        self.equipment, self.record, self.done, self.point = equipment, record, done, 0
        self.task = record.task(task.index)
        self.table = (ErasureTable if record.erases else EffectTable)(record, self.task)
        self._started = time.time()
        self._documents = documents_of(equipment, record, self.task)
        self._call_tokens = int(record.identity_fields["batch_tokens"])
        self._replacements = replacements
        self._groups = self._grouped()
        self._locals = self._local()
        self._first = {d: g for g in reversed(self._groups) for d in g.documents if not g.begin}
        self._stacks: dict[int, LayerStack] = {}
        programs = [b.program for g in self._groups for b in g.branches if b.program]
        self._span = max((p.last - p.first for p in programs), default=1)

    def _grouped(self) -> list[ForkedGroup]:
        """Branches in calls of about so many tokens; a document's first group begins at 0."""
        groups: list[ForkedGroup] = []
        shared: list[tuple[int, list[Branch]]] = []

        def flush() -> None:
            if shared:
                groups.append(
                    self._group([d for d, _ in shared], [b for _, s in shared for b in s])
                )
                shared.clear()

        for number, document in enumerate(self._documents):
            branches = sorted(self._branches(number, document), key=lambda branch: branch.birth)
            width = max([len(document.ids), *(len(self._documents[d].ids) for d, _ in shared)])
            lines = len(branches) + sum(len(some) for _, some in shared) + 2 * (len(shared) + 1)
            if lines * width <= self._call_tokens:
                shared.append((number, branches))
                continue
            flush()
            most = max(1, self._call_tokens // len(document.ids) - 2)
            for first in range(0, len(branches), most):
                groups.append(self._group([number], branches[first : first + most], first > 0))
        flush()
        return groups

    def _branches(self, number: int, document: EffectsDocument) -> Iterator[Branch]:
        length = len(document.ids)
        if self.record.erases:
            return erasures_of(self.record, self.task, number, length, document.answer)
        return branches_of(self.record, self.task, number, length, document.splits)

    def _group(
        self, documents: list[int], branches: list[Branch], later: bool = False
    ) -> ForkedGroup:
        begin = 0
        if later:
            begin = min(b.program.first if b.program else b.birth for b in branches)
        lengths = [len(self._documents[d].ids) for d in documents]
        return ForkedGroup(documents, lengths, branches, begin, self._replacements, self.table)

    def _local(self) -> dict[int, LocalEffects]:
        found = {}
        for number, document in enumerate(self._documents):
            cases = local_cases(self.record, self.task, number, len(document.ids), document.splits)
            if cases:
                lines = self._call_tokens // len(document.ids)
                found[number] = LocalEffects(cases, lines, self.table)
        for group in self._groups:
            if found and not group.begin:
                group.on_added = self._keep
        return found

    def _keep(self, layer: int, document: int, a: Tensor, m: Tensor) -> None:
        if document in self._locals:
            self._locals[document].keep(layer, a, m)

    def embed(self, frame: Frame) -> None:
        """Point 0 of every document."""
        for group in self._groups:
            if group.begin:
                continue
            ids = torch.zeros((group.bases, group.width), dtype=torch.int64)
            for line, number in enumerate(group.documents):
                document = self._documents[number].ids
                ids[line, : len(document)] = document
            group.start(frame.embed(Batch(ids, None, (), ())))

    def streams(self) -> Iterable[tuple[Batch, Tensor]]:
        """None: its branches need whole layers."""
        raise RequestError(
            "interventions need whole layers in memory: allow more --memory, or a smaller model"
        )

    @torch.inference_mode()
    def run_layer(self, layer: int, stack: LayerStack) -> None:
        """Take every group, and every local case, through a layer."""
        family = stack.family
        self._stacks[layer] = stack
        self._stacks.pop(layer - self._span, None)
        self._start(layer)
        for number, local in self._locals.items():
            base = self._baseline(number, self._first[number].width)
            local.run_layer(layer, stack, base, self._first[number].batch)
        with self.equipment.clock.measure("compute"):
            for group in self._groups:
                group.run_layer(layer, stack, family, self._stacks)
        self.point = layer + 1
        rows = self.task.rows[1] - self.task.rows[0]
        self.equipment.rows_done += rows / self.record.layers / self.record.source_blocks

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

    def finish(self, head: PlacedHead) -> None:
        """Compare the outputs, write and commit."""
        self._start(self.record.layers)
        with self.equipment.clock.measure("lens"):
            for group in self._groups:
                group.finish(self.record.layers, head, self._lens_budget)
        self.done.set_result(
            commit_effects(self.equipment, self.record, self.task, self.table.arrays, self._started)
        )

    @property
    def _lens_budget(self) -> int:
        return int(self.equipment.identity["lens_memory"])

    def fail(self, error: BaseException) -> None:
        """Hand the error over."""
        if not self.done.done():
            self.done.set_exception(error)
