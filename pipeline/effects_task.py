"""One task of an intervention sweep: some documents, some source layers, all of their branches.

Works layer by layer, so the model may be whole in memory or come one layer at a time, and its
weights are then read once for the whole matrix.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future

from depthscope.storage.commits import Commit
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.errors import RequestError
from depthscope.storage.tasks import Task
from torch import Tensor

from .batches import Batch
from .branch_plan import branches_of, erasures_of, local_cases
from .effect_table import EffectTable, ErasureTable
from .effects_documents import EffectsDocument, commit_effects, documents_of
from .effects_unit import EffectsUnit
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
        self.units = self._units()

    def _units(self) -> list[EffectsUnit]:
        """A document's groups together, in order."""
        together: list[list[ForkedGroup]] = []
        for group in self._grouped():
            if together and together[-1][-1].documents[-1] == group.documents[0]:
                together[-1].append(group)
            else:
                together.append([group])
        return [EffectsUnit(groups, self._local(groups), self.table) for groups in together]

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

    def _local(self, groups: Sequence[ForkedGroup]) -> dict[int, LocalEffects]:
        found = {}
        for number in {document: None for group in groups for document in group.documents}:
            document = self._documents[number]
            cases = local_cases(self.record, self.task, number, len(document.ids), document.splits)
            if cases:
                lines = self._call_tokens // len(document.ids)
                found[number] = LocalEffects(cases, lines, self.table)
        return found

    def embed(self, frame: Frame) -> None:
        """Point 0 of every document."""
        for unit in self.units:
            self.embed_unit(unit, frame)

    def embed_unit(self, unit: EffectsUnit, frame: Frame) -> None:
        """Point 0 of a unit's documents."""
        unit.embed(frame, self._documents)

    def streams(self) -> Iterable[tuple[Batch, Tensor]]:
        """None: its branches need whole layers."""
        raise RequestError(
            "interventions need whole layers in memory: allow more --memory, or a smaller model"
        )

    def run_layer(self, layer: int, stack: LayerStack) -> None:
        """Take every unit through a layer."""
        for unit in self.units:
            self.run_unit(unit, layer, stack)
        self.point = layer + 1

    def run_unit(self, unit: EffectsUnit, layer: int, stack: LayerStack) -> None:
        """Take one unit through a layer."""
        unit.run_layer(layer, stack, self.equipment.clock)
        rows = unit.documents[1] - unit.documents[0]
        self.equipment.rows_done += rows / self.record.layers / self.record.source_blocks

    def finish(self, head: PlacedHead) -> None:
        """Compare the outputs, write and commit."""
        for unit in self.units:
            self.finish_unit(unit, head)
        self.done.set_result(self.commit())

    def finish_unit(self, unit: EffectsUnit, head: PlacedHead) -> None:
        """Compare the outputs of one unit."""
        with self.equipment.clock.measure("lens"):
            unit.finish(self.record.layers, head, int(self.equipment.identity["lens_memory"]))

    def commit(self) -> tuple[Commit, ...]:
        """Write what was noted of all units, and commit it."""
        return commit_effects(
            self.equipment, self.record, self.task, self.table.arrays, self._started
        )

    def fail(self, error: BaseException) -> None:
        """Hand the error over."""
        if not self.done.done():
            self.done.set_exception(error)
