"""What a stage needs of a task, whatever is done to it: an extraction's, or an intervention
sweep's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from depthscope.storage.commits import Commit
from torch import Tensor

from .batches import Batch
from .capture import OnLayer, OnPoint
from .equipment import Equipment
from .frame import Frame
from .layer_stack import LayerStack

#: Runs layers over a micro-batch: the stream into the first (None: the embedding's), and out.
RunLayers = Callable[[Batch, Tensor | None, OnPoint | None, OnLayer | None], Tensor]


@dataclass(frozen=True)
class DeviceLayers:
    """Contiguous layers on one device, and what its tasks need besides.

    Attributes
    ----------
    equipment
        Of the device alone, since its blocks and its way to the host serve one window at a time.
    layers
        First and last (end excluded).
    frame
        What goes into the layers.
    run
        Takes a micro-batch through all of them.
    stacks
        Each of them by itself, and those before the first that tasks apply again.
    head
        What is needed after the last layer of the model; None before it, and where nothing is.
    """

    equipment: Equipment
    layers: tuple[int, int]
    frame: Frame
    run: RunLayers
    stacks: Mapping[int, LayerStack]
    head: Any

    @property
    def is_last(self) -> bool:
        """Whether the model's last layer is among them."""
        return self.layers[1] == self.equipment.info.layers


class StagePart(Protocol):
    """A task on its way through the layers of one device; for one thread."""

    def run(self, number: int, carried: Any) -> Any:
        """Take micro-batch ``number`` through the layers.

        Parameters
        ----------
        carried
            From the layers before (see `handoff`); None for the first.

        Returns
        -------
        What the layers that follow need; None where these are the model's last.
        """

    def finish(self) -> Future[Commit | None]:
        """Commit behind the model's back, once every micro-batch has passed.

        None: another attempt was first, or another device has what is committed.
        """

    def abort(self) -> None:
        """Give the task up; a second time does nothing."""


class StagedTask(Protocol):
    """A task that a stage has begun."""

    @property
    def micro_batches(self) -> int:
        """How many pieces of it go down the line of stages."""

    def part(self, device: DeviceLayers) -> StagePart:
        """What a device of the stage has of it."""
