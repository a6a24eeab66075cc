"""A gang of stages on a Ray cluster: one actor for each stage, placed together.

What one stage hands to the next goes from node to node through Ray's object store: this command
holds references only. A gang lives and dies as a whole: when a stage is lost, so is all that the
others hold of the open tasks, and the gang is started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.gang import PER_DEVICE, Gang
from depthscope.pipeline.handoff import PackedHanded, pack, unpack
from depthscope.pipeline.stage import Stage
from depthscope.storage.commits import Commit
from depthscope.storage.errors import RequestError
from depthscope.storage.tasks import Task
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .dispatch import WorkerLost
from .ray_cluster import actor_environment, nodes_with, reason, size
from .ray_progress import Answer, WorkerMetrics

#: Groups of an actor's threads: one waits for micro-batches, one for everything else.
MICRO_BATCHES, CONTROL = "micro_batches", "control"
_STRATEGIES = {"spread": "STRICT_SPREAD", "pack": "PACK"}


class StageActor:
    """A stage behind Ray."""

    def load(self, settings: WorkerSettings, layers: tuple[int, int]) -> int:
        """Read the stage's layers; the number of its devices."""
        node = ray.get_runtime_context().get_node_id()
        # First, since the stage counts what is read from its beginning on.
        self._metrics = WorkerMetrics()
        self._stage = Stage(replace(settings, node=node), layers)
        return len(self._stage.devices)

    def begin(self, task: Task, key: str) -> int:
        """Open a task; the number of its micro-batches."""
        return self._stage.begin(task, key)

    def forward(
        self, sequence: int, key: str, number: int, packed: PackedHanded | None
    ) -> PackedHanded | None:
        """Take a micro-batch through the stage's layers."""
        carried = None if packed is None else unpack(packed)
        result = self._stage.forward(sequence, key, number, carried)
        return None if result is None else pack(result)

    def finish(self, key: str) -> tuple[Commit, ...]:
        """Commit the stage's points of a task."""
        return self._stage.finish(key)

    def abort(self, key: str, sequences: tuple[int, int]) -> None:
        """Give a task up."""
        self._stage.abort(key, sequences)

    def progress(self) -> Answer:
        """Process id, rows through the model, seconds by kind of work."""
        return self._metrics.export(*self._stage.progress())


class RayStage:
    """The handle of a stage that is an actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def begin(self, task: Task, key: str) -> Future[int]:
        """Open a task; the number of its micro-batches."""
        return self._control("begin", task, key)

    def forward(self, sequence: int, key: str, number: int, carried: Any) -> Any:
        """Send a micro-batch with a reference to what the stage before made of it."""
        call = self.actor.forward.options(concurrency_group=MICRO_BATCHES)
        return call.remote(sequence, key, number, carried)

    def result(self, sent: Any) -> Future[None]:
        """When a micro-batch has left the last stage."""
        future: Future[None] = sent.future()
        return future

    def finish(self, key: str) -> Future[tuple[Commit, ...]]:
        """Commit the stage's points of a task."""
        return self._control("finish", key)

    def abort(self, key: str, sequences: tuple[int, int]) -> Future[None]:
        """Give a task up."""
        return self._control("abort", key, sequences)

    def progress(self) -> Any:
        """Ask how far the stage is; a reference."""
        return self.actor.progress.options(concurrency_group=CONTROL).remote()

    def _control(self, method: str, *arguments: Any) -> Future[Any]:
        call = getattr(self.actor, method).options(concurrency_group=CONTROL)
        future: Future[Any] = call.remote(*arguments).future()
        return future


@dataclass(frozen=True)
class Bundle:
    """What each stage of a gang gets, and where.

    Attributes
    ----------
    cpus, gpus
        Of its node.
    placement
        ``spread`` for nodes of their own, ``pack`` for as few as hold them.
    seconds
        How long the cluster may take to find room.
    """

    cpus: int
    gpus: float
    placement: str
    seconds: float


class RayGang:
    """One worker made of several actors.

    Parameters
    ----------
    settings
        For every stage.
    ranges
        First and last layer (end excluded) of each.
    bundle
        What each of them gets.
    actor
        The class of the stages' actors.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        ranges: Sequence[tuple[int, int]],
        bundle: Bundle,
        actor: type[StageActor] = StageActor,
    ) -> None:
        self._actor = actor
        self._settings, self._ranges, self._bundle = settings, list(ranges), bundle
        self._group: Any = None
        self.stages: list[RayStage] = []
        self._gang: Gang | None = None
        self._closed = False

    def place(self) -> None:
        """Reserve room for all stages.

        Raises
        ------
        RequestError
            There is not enough in time; says how many nodes are needed and how many there are.
        """
        bundle, count = self._bundle, len(self._ranges)
        resources = {"CPU": float(bundle.cpus)} | ({"GPU": bundle.gpus} if bundle.gpus else {})
        self._group = placement_group([resources] * count, _STRATEGIES[bundle.placement])
        if self._group.wait(bundle.seconds):
            return
        self.stop()
        each, fit = size(bundle.cpus, bundle.gpus), nodes_with(bundle.cpus, bundle.gpus)
        if bundle.placement == "spread":
            raise RequestError(
                f"{count} stages need {count} nodes with {each} free on each, the cluster has {fit}"
                " of that size: add nodes, or give fewer --stages, or --stage-placement pack"
            )
        raise RequestError(
            f"{count} stages need {each} each, and the cluster has no room for all of them "
            f"({fit} nodes hold one): add nodes, or give fewer --stages"
        )

    def start(self) -> None:
        """Start the stages and wait until each has read its layers.

        Raises
        ------
        RequestError
            A stage refuses.
        WorkerLost
            A stage died.
        """
        if self._closed:
            raise WorkerLost("the stages are closed")
        devices = max(1, int(self._bundle.gpus))
        threads = PER_DEVICE * devices * len(self._ranges)
        groups = {MICRO_BATCHES: threads, CONTROL: len(self._ranges) + 3}
        actor = ray.remote(concurrency_groups=groups)(self._actor)
        for number in range(len(self._ranges)):
            placed = actor.options(
                num_cpus=self._bundle.cpus,
                num_gpus=self._bundle.gpus,
                max_restarts=0,
                runtime_env=actor_environment(self._settings.threads),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=number
                ),
            )
            self.stages.append(RayStage(placed.remote()))
        try:
            counts = ray.get(
                [
                    stage.actor.load.remote(self._settings, layers)
                    for stage, layers in zip(self.stages, self._ranges, strict=True)
                ]
            )
        except Exception as error:
            raise plain(error) from None
        if self._closed:
            self.stop()
            raise WorkerLost("the stages are closed")
        # Each one in flight holds a thread of every stage that it has been sent to.
        self._gang = Gang(self.stages, min(threads, PER_DEVICE * sum(counts)))

    def run(self, task: Task) -> tuple[Commit, ...]:
        """Take a task through all stages; the commits of all.

        Raises
        ------
        WorkerLost
            A stage died.
        Exception
            What a stage raised, as itself.
        """
        if self._gang is None:
            raise WorkerLost("the stages are being started again")
        try:
            return self._gang.run(task)
        except Exception as error:
            raise plain(error) from None

    def close(self) -> None:
        """End for good."""
        self._closed = True
        self.stop()

    def stop(self) -> None:
        """Kill what is left of the stages and give their room back."""
        self._gang = None
        for stage in self.stages:
            ray.kill(stage.actor)
        self.stages = []
        if self._group is not None:
            with suppress(RayError):
                remove_placement_group(self._group)
            self._group = None


def plain(error: Exception) -> Exception:
    """What a stage raised, as itself; `WorkerLost` where Ray lost the stage or what it held."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return WorkerLost(f"a stage died: {reason(error)}")
    return error
