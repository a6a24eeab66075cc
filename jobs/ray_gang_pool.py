"""The staged schedule on Ray: a pool whose workers are gangs of stages."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import psutil
import ray
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.gang import PER_DEVICE
from depthscope.pipeline.gang_worker import stage_ranges
from depthscope.pipeline.handoff import carried_bytes, unit_bytes
from depthscope.storage.commits import Commit
from depthscope.storage.errors import RequestError, WorkFailed
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Task

from .dispatch import Attempt, WorkerLost, in_flight
from .intervene_spec import InterveneSpec
from .ray_cluster import RESTARTS, connect, node_resources, nodes_with, patience
from .ray_gang import Bundle, RayGang, StageActor
from .ray_progress import ActorProgress
from .spec import ExtractSpec

#: Of the memory that is free, what a local cluster's object store takes at most: the rest spills.
_STORE_SHARE = 0.3


class _Member:
    """A gang, and what has become of it.

    Attributes
    ----------
    starting
        The start under way; None when the gang is up, or has been given up.
    starts
        How often it was started.
    error
        Why it was given up.
    """

    def __init__(self, gang: RayGang) -> None:
        self.gang = gang
        self.starting: Future[None] | None = None
        self.starts = 0
        self.error: BaseException | None = None


class RayGangPool:
    """Gangs on a local or an existing cluster.

    Parameters
    ----------
    settings
        For every stage.
    spec
        How many gangs and stages, what each stage gets, and where.
    actor
        The class of the stages' actors.

    Raises
    ------
    RequestError
        The cluster cannot be reached or has no room for the stages, the model has fewer layers than
        stages, or a stage refuses the request.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        spec: ExtractSpec | InterveneSpec,
        actor: type[StageActor] = StageActor,
    ) -> None:
        gangs = spec.workers or 1
        self._members: list[_Member] = []
        self._progress = ActorProgress()
        self._lock = threading.Lock()
        self._starters = ThreadPoolExecutor(gangs, "start")
        self._threads: ThreadPoolExecutor | None = None
        self._own = connect(
            spec.address,
            cpus=gangs * settings.stages * settings.threads,
            object_store=gangs * object_store(settings),
        )
        try:
            gpus = _gpus(spec)
            layers = int(RunRecord.load(settings.root).model["layers"])
            stages = _stages(spec, layers, settings.threads, gpus)
            settings = replace(settings, stages=stages, devices=max(1, int(gpus)))
            self.in_flight = in_flight(settings)
            self._threads = ThreadPoolExecutor(gangs * (self.in_flight + 1), "task")
            bundle = Bundle(settings.threads, gpus, spec.stage_placement, patience(spec.address))
            ranges = stage_ranges(settings, settings.stages)
            for _ in range(gangs):
                self._members.append(_Member(RayGang(settings, ranges, bundle, actor)))
                self._members[-1].gang.place()
            self._await_first()
        except BaseException:
            self.close()
            raise

    def _await_first(self) -> None:
        """Wait until one gang has loaded the model, so that a bad request is one clear line."""
        for member in self._members:
            member.starts = 1
            member.starting = self._starters.submit(member.gang.start)
        while not self.workers():
            for member in self._members:
                if isinstance(member.error, WorkerLost):
                    raise RequestError(f"the stages cannot start: {member.error}")
                if member.error is not None:
                    raise member.error
            starting = [member.starting for member in self._members if member.starting is not None]
            wait(starting, return_when=FIRST_COMPLETED)

    def workers(self) -> Sequence[int]:
        """The gangs that are up; one that lost a stage comes back once all have loaded again."""
        with self._lock:
            for member in self._members:
                if member.starting is None or not member.starting.done():
                    continue
                error = member.starting.exception()
                if isinstance(error, WorkerLost):
                    self._start_again(member, error)
                else:
                    member.starting, member.error = None, error
            return [
                number
                for number, member in enumerate(self._members)
                if member.starting is None and member.error is None
            ]

    def lost(self) -> bool:
        """False, as long as some gang is up or may come back.

        Raises
        ------
        WorkFailed
            All have been given up; says why the last one was.
        """
        with self._lock:
            errors = [member.error for member in self._members if member.error is not None]
            if len(errors) < len(self._members):
                return False
        raise WorkFailed(f"no stages are left: {errors[-1]}") from errors[-1]

    def submit(self, worker: int, task: Task) -> Future[tuple[Commit, ...]]:
        """Send a task through a gang, on a thread that waits for it."""
        if self._threads is None:
            raise RuntimeError("the pool was never started")
        member = self._members[worker]
        return self._threads.submit(self._run, member, member.starts, task)

    def _run(self, member: _Member, starts: int, task: Task) -> tuple[Commit, ...]:
        try:
            return member.gang.run(task)
        except WorkerLost as error:
            with self._lock:
                # Several tasks may report one and the same loss.
                if member.starts == starts and member.starting is None and member.error is None:
                    self._start_again(member, error)
            raise

    def _start_again(self, member: _Member, error: WorkerLost) -> None:
        if member.starts > RESTARTS:
            member.starting, member.error = None, error
            return
        member.starts += 1
        member.starting = self._starters.submit(self._restart, member.gang)

    def _restart(self, gang: RayGang) -> None:
        gang.stop()
        gang.place()
        gang.start()

    def wait(self, attempts: Sequence[Attempt], seconds: float) -> Sequence[Attempt]:
        """Wait for the first to finish."""
        futures = [attempt for attempt in attempts if isinstance(attempt, Future)]
        return list(wait(futures, timeout=seconds, return_when=FIRST_COMPLETED).done)

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Sum of the stages' counters, as far as they have answered; never waits for one."""
        with self._lock:
            up = [(n, m.gang.stages) for n, m in enumerate(self._members) if m.starting is None]
        places = len(self._members)
        ask = {n + places * i: stage.progress for n, own in up for i, stage in enumerate(own)}
        return self._progress.collect(ask)

    def close(self) -> None:
        """End the stages, and the cluster if it is our own."""
        for member in self._members:
            member.gang.close()
            if member.starting is not None:
                wait([member.starting])
        for threads in (self._threads, self._starters):
            if threads is not None:
                threads.shutdown(cancel_futures=True)
        if self._own:
            ray.shutdown()


def object_store(settings: WorkerSettings) -> int:
    """Bytes that one gang's micro-batches take on a single node, all stages being there."""
    if settings.effects is None:
        each = carried_bytes(RunRecord.load(settings.root))
    else:
        each = unit_bytes(settings.root, settings.effects)
    # A stage's result is written while what it was given is still held.
    needed = 2 * PER_DEVICE * settings.stages * each
    return min(needed, int(_STORE_SHARE * psutil.virtual_memory().available))


def cluster_stages(spec: InterveneSpec, layers: int, threads: int) -> tuple[int, int]:
    """Stages that the cluster at the spec's address decides on, and devices of each.

    Raises
    ------
    RequestError
        It cannot be reached.
    """
    own = connect(spec.address, cpus=threads)
    try:
        gpus = _gpus(spec)
        return _stages(spec, layers, threads, gpus), max(1, int(gpus))
    finally:
        if own:
            ray.shutdown()


def _gpus(spec: ExtractSpec | InterveneSpec) -> float:
    """GPUs of each stage: what is asked for, or a gang's share of a node's."""
    if spec.gpus_per_worker is not None:
        return spec.gpus_per_worker
    counts = [node["GPU"] for node in node_resources() if node.get("GPU")]
    if not counts:
        return 0.0
    if spec.stage_placement == "pack":
        share = sum(counts) / (spec.workers or 1) / (spec.stages or len(counts))
    else:
        share = min(counts) / (spec.workers or 1)
    # Whole ones, but where several stages have to share one.
    return float(int(share)) if share >= 1 else share


def _stages(spec: ExtractSpec | InterveneSpec, layers: int, threads: int, gpus: float) -> int:
    """Stages that are asked for, or one for each node that can hold one."""
    if spec.stages is not None:
        return spec.stages
    return max(1, min(nodes_with(threads, gpus), layers))
