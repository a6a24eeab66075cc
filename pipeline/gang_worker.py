"""A gang in one process: the staged schedule without a cluster, or one model over many GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from depthscope.storage.commits import Commit
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Selections, Task

from .costs import ModelCosts, model_costs
from .description import ModelInfo, load_config
from .device_split import node_devices
from .equipment import WorkerSettings
from .gang import PER_DEVICE, Gang
from .stage import Stage
from .stage_split import split_layers


class LocalStage:
    """A stage of this process, behind threads that wait for it."""

    def __init__(self, stage: Stage, calls: int) -> None:
        self.stage = stage
        self._calls = ThreadPoolExecutor(calls, "micro-batch")
        self._control = ThreadPoolExecutor(calls, "stage-control")

    def begin(self, task: Task, key: str) -> Future[int]:
        """Open a task; the number of its micro-batches."""
        return self._control.submit(self.stage.begin, task, key)

    def forward(self, sequence: int, key: str, number: int, carried: Any) -> Any:
        """Send a micro-batch."""
        return self._calls.submit(self._forward, sequence, key, number, carried)

    def _forward(self, sequence: int, key: str, number: int, carried: Future[Any] | None) -> Any:
        given = None if carried is None else carried.result()
        return self.stage.forward(sequence, key, number, given)

    def result(self, sent: Any) -> Future[None]:
        """When a micro-batch has left the last stage."""
        future: Future[None] = sent
        return future

    def finish(self, key: str) -> Future[tuple[Commit, ...]]:
        """Commit the stage's points of a task."""
        return self._control.submit(self.stage.finish, key)

    def abort(self, key: str, sequences: tuple[int, int]) -> Future[None]:
        """Give a task up."""
        return self._control.submit(self.stage.abort, key, sequences)

    def close(self) -> None:
        """End the stage, then the threads, which it has let go."""
        self.stage.close()
        self._calls.shutdown()
        self._control.shutdown()


class GangWorker:
    """A gang whose stages are all in this process.

    Parameters
    ----------
    settings
        Where the store and the model are, the limits, and how many stages.
    ranges
        First and last layer (end excluded) of each stage; None: as even as can be.
    devices
        Of this node, shared out over the stages in order; None: its GPUs, or its processor.

    Raises
    ------
    RequestError
        The checkpoint is not whole, does not fit its config, or cannot be cut into so many stages.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        ranges: Sequence[tuple[int, int]] | None = None,
        devices: Sequence[torch.device] | None = None,
    ) -> None:
        ranges = ranges or stage_ranges(settings, settings.stages)
        shared = share_out(devices or node_devices(), len(ranges))
        stages: list[Stage] = []
        try:
            for layers, own in zip(ranges, shared, strict=True):
                stages.append(Stage(settings, layers, own))
        except BaseException:
            for stage in stages:
                stage.close()
            raise
        in_flight = PER_DEVICE * sum(len(stage.devices) for stage in stages)
        self.handles = [LocalStage(stage, in_flight) for stage in stages]
        self.gang = Gang(self.handles, in_flight)
        self.run = self.gang.run

    @property
    def selections(self) -> Selections:
        """The store's tasks."""
        return self.handles[0].stage.selections

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows through the model so far (a row through half of it is half), seconds by kind."""
        parts = [handle.stage.progress() for handle in self.handles]
        seconds: Counter[str] = Counter()
        for _, part in parts:
            seconds.update(part)
        return sum(rows for rows, _ in parts), seconds

    def close(self) -> None:
        """End all stages."""
        for handle in self.handles:
            handle.close()


def stage_ranges(settings: WorkerSettings, stages: int) -> list[tuple[int, int]]:
    """First and last layer (end excluded) of each stage, balanced by bytes and FLOPs.

    Raises
    ------
    RequestError
        The model has fewer layers than stages.
    """
    record = RunRecord.load(settings.root)
    info = ModelInfo(**record.model)
    config = load_config(settings.folder, settings.trust_remote_code)
    costs = model_costs(
        config,
        info.dtype,
        attention=info.attention,
        trust_remote_code=settings.trust_remote_code,
    )
    return cut(costs, record, stages, branches=settings.effects is not None)


def cut(
    costs: ModelCosts, record: RunRecord, stages: int, *, branches: bool
) -> list[tuple[int, int]]:
    """As `stage_ranges`, from a model's costs.

    Parameters
    ----------
    branches
        Whether the stages run an intervention sweep, most of whose branches are born at the layers
        in turn: a layer has to run those of all layers up to it.
    """
    flops = costs.layer_flops(record.rows / max(1, record.documents))
    if branches:
        flops = [number * flop for number, flop in enumerate(flops, start=1)]
    return split_layers(costs.layer_bytes, flops, stages, first_bytes=costs.frame_bytes)


def share_out(devices: Sequence[torch.device], stages: int) -> list[list[torch.device]]:
    """Devices of each stage, in order; stages beyond them share one with their neighbours."""
    count = len(devices)
    cuts = [number * count // stages for number in range(stages + 1)]
    return [list(devices[first : max(last, first + 1)]) for first, last in pairwise(cuts)]
