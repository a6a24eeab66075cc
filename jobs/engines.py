"""The workers that a request asks for: which engine places them, which schedule they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from depthscope.pipeline.equipment import WorkerSettings
from depthscope.storage.errors import RequestError

from .dispatch import Pool
from .intervene_spec import InterveneSpec
from .spec import ExtractSpec

#: Makes a pool of workers; engines and tests each have their own.
PoolFactory = Callable[[WorkerSettings, ExtractSpec], Pool]


def check_engine(spec: ExtractSpec | InterveneSpec) -> None:
    """Refuse what the engine cannot do.

    Raises
    ------
    RequestError
        The in-process engine is asked for several workers or a cluster, another schedule than
        staged for stages, or this machine for GPUs that it does not have.
    """
    if spec.engine == "process" and (spec.address or (spec.workers or 1) > 1):
        raise RequestError("--engine process has one worker: use --engine ray for more")
    if spec.stages is not None and spec.schedule in ("resident", "sweep"):
        raise RequestError(f"--stages is for --schedule staged, not for {spec.schedule}")
    if spec.gpus_per_worker and not spec.address:
        wanted = spec.gpus_per_worker * (spec.workers or 1) * (spec.stages or 1)
        if wanted > (count := _device_count()):
            raise RequestError(
                f"--gpus-per-worker {spec.gpus_per_worker:g} takes {wanted:g} GPUs in all, and "
                f"this machine has {count}: give fewer, or the --address of a cluster"
            )


def make_pool(settings: WorkerSettings, spec: ExtractSpec | InterveneSpec) -> Pool:
    """The workers of the engine and schedule that the request names."""
    if spec.engine == "process":
        from .process_pool import ProcessPool

        return ProcessPool(on_devices(settings, _device_count() // settings.stages))
    if settings.schedule == "staged":
        from .ray_gang_pool import RayGangPool

        return RayGangPool(settings, spec)
    from .ray_pool import RayPool

    return RayPool(settings, spec.workers or 1, spec.address, spec.gpus_per_worker)


def on_devices(settings: WorkerSettings, count: int) -> WorkerSettings:
    """Settings of a worker with so many GPUs.

    Interventions use the first of them alone, unless they go through stages.
    """
    if settings.effects is not None and settings.schedule != "staged":
        return settings
    return replace(settings, devices=max(1, count))


def _device_count() -> int:
    import torch

    return torch.cuda.device_count()
