"""What goes through the layers, in a sweep or in stages: an extraction's tasks, and an intervention
sweep's.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from depthscope.storage.commits import Commit
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.head import Head
from depthscope.storage.layout import StorePaths
from depthscope.storage.tasks import Task
from torch import Tensor

from .batches import Batch
from .effects_stage import StagedEffects
from .effects_task import EffectsWork
from .equipment import Equipment, WorkerSettings
from .frame import Frame
from .gradients_task import GradientsWork
from .head_export import export_head
from .interventions import reach
from .layer_stack import LayerStack
from .placed_head import PlacedHead
from .replacements import Replacements
from .stage_task import StagedExtraction
from .staged_task import StagedTask
from .task_sweep import TaskSweep


class LayeredTask(Protocol):
    """A task that goes layer by layer.

    Attributes
    ----------
    point
        The point reached: the next layer to run.
    done
        Resolved by the task itself.
    """

    point: int
    done: Future[tuple[Commit, ...]]

    def embed(self, frame: Frame) -> None:
        """Make point 0; the embedding is loaded."""

    def streams(self) -> Iterable[tuple[Batch, Tensor]]:
        """Its micro-batches and their streams at the point reached."""

    def run_layer(self, layer: int, stack: LayerStack) -> None:
        """Take everything through a layer."""

    def finish(self, head: Any) -> None:
        """After the last layer: measure what needs the head, and commit."""

    def fail(self, error: BaseException) -> None:
        """Hand an error over."""


class Kind(Protocol):
    """Makes the tasks of an extraction, or of an intervention sweep.

    Attributes
    ----------
    reach
        Layers before a run of layers that its tasks apply again.
    """

    @property
    def reach(self) -> int:
        """See above."""

    def open(
        self, equipment: Equipment, frame: Frame, task: Task, done: Future[tuple[Commit, ...]]
    ) -> LayeredTask:
        """A task at its start, or where it was left, to be taken through all layers."""

    def staged(self, equipment: Equipment, task: Task) -> StagedTask:
        """A task that goes through stages."""

    def head(self, equipment: Equipment) -> Any:
        """What tasks need after the last layer; None for nothing."""


def kind_of(settings: WorkerSettings) -> Kind:
    """The kind of task that a worker is given."""
    if settings.effects is None:
        return Extractions()
    return Effects(settings.root, settings.effects)


class Extractions:
    """Makes the tasks of an extraction."""

    reach = 0

    def open(
        self, equipment: Equipment, frame: Frame, task: Task, done: Future[tuple[Commit, ...]]
    ) -> LayeredTask:
        """A task at its start, or where it was left."""
        return TaskSweep(equipment, frame, task, done)

    def staged(self, equipment: Equipment, task: Task) -> StagedTask:
        """A task whose micro-batches go through stages."""
        return StagedExtraction(equipment, task)

    def head(self, equipment: Equipment) -> Any:
        """What `finish` needs: the lens, if one is wanted."""
        return equipment.lens_measure()


class Effects:
    """Makes the tasks of an intervention sweep.

    Parameters
    ----------
    root, name
        The store and the sweep.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._record = root, EffectsRecord.load(root, name)

    @property
    def reach(self) -> int:
        """The layers of a layer program before its last, at which it is applied."""
        request = self._record.request
        return reach(str(request["what"]), int(request["span"]))

    def open(
        self, equipment: Equipment, frame: Frame, task: Task, done: Future[tuple[Commit, ...]]
    ) -> LayeredTask:
        """A task at its start."""
        if self._record.is_gradients:
            return GradientsWork(equipment, self._record, task, done)
        return self._work(equipment, task, done)

    def staged(self, equipment: Equipment, task: Task) -> StagedTask:
        """A task whose units go through stages."""
        return StagedEffects(equipment, lambda own: self._work(own, task, Future()))

    def _work(
        self, equipment: Equipment, task: Task, done: Future[tuple[Commit, ...]]
    ) -> EffectsWork:
        root, record = self._root, self._record
        means = StorePaths(root).effects(record.name).with_suffix(".means.safetensors")
        patch = record.request["patch_from"]
        part = record.task(task.index)
        replacements = Replacements(
            means if means.exists() else None,
            None if patch is None else Path(str(patch)),
            record.request["patch_document"],
            record.documents[part.rows[0] : part.rows[1]],
        )
        return EffectsWork(equipment, record, task, done, replacements)

    def head(self, equipment: Equipment) -> PlacedHead:
        """The model's head."""
        settings = equipment.settings
        if StorePaths(settings.root).head.exists():
            head = Head.load(settings.root)
        else:
            head = export_head(settings.folder, equipment.info, settings.trust_remote_code)
        return PlacedHead(head, equipment.device)
