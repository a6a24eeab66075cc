"""What the sweep takes through the layers: extraction's tasks, and intervention sweeps'."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Protocol

from depthscope.storage.commits import Commit
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.head import Head
from depthscope.storage.layout import StorePaths
from depthscope.storage.tasks import Task
from torch import Tensor

from .batches import Batch
from .effects_task import EffectsWork
from .equipment import Equipment
from .frame import Frame
from .gradients_task import GradientsWork
from .head_export import export_head
from .layer_stack import LayerStack
from .placed_head import PlacedHead
from .replacements import Replacements
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


class Extractions:
    """Makes the tasks of an extraction."""

    def open(
        self, equipment: Equipment, frame: Frame, task: Task, done: Future[tuple[Commit, ...]]
    ) -> LayeredTask:
        """A task at its start, or where it was left."""
        return TaskSweep(equipment, frame, task, done)

    def head(self, equipment: Equipment) -> Any:
        """What `finish` needs: the lens, if one is wanted."""
        return equipment.lens_measure()


class Effects:
    """Makes the tasks of an intervention sweep.

    Parameters
    ----------
    name
        Of the sweep.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def open(
        self, equipment: Equipment, frame: Frame, task: Task, done: Future[tuple[Commit, ...]]
    ) -> LayeredTask:
        """A task at its start."""
        root = equipment.settings.root
        record = EffectsRecord.load(root, self._name)
        means = StorePaths(root).effects(self._name).with_suffix(".means.safetensors")
        patch = record.request["patch_from"]
        part = record.task(task.index)
        replacements = Replacements(
            means if means.exists() else None,
            None if patch is None else type(root)(str(patch)),
            record.request["patch_document"],
            record.documents[part.rows[0] : part.rows[1]],
        )
        if record.is_gradients:
            return GradientsWork(equipment, record, task, done)
        return EffectsWork(equipment, record, task, done, replacements)

    def head(self, equipment: Equipment) -> PlacedHead:
        """The model's head."""
        settings = equipment.settings
        if StorePaths(settings.root).head.exists():
            head = Head.load(settings.root)
        else:
            head = export_head(settings.folder, equipment.info, settings.trust_remote_code)
        return PlacedHead(head, equipment.device)
