"""Where Dask computes: threads of this process by default, a Dask cluster when asked.

Only this module and ``task_progress`` know Dask's schedulers. Every reduction of this package is a
graph whose tasks read from the store by themselves, so a cluster needs nothing but the same file
system. Clusters that are started here speak TLS with certificates of their own: a scheduler runs
what it is sent. Blocks inside a block share its client, so that many analyses in a row start one
cluster.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import dask
from depthscope.storage.errors import RequestError

#: Called with the steps done and the steps there are.
Progress = Callable[[int, int], None]

#: Names the scheduler that a batch job started for its command.
SCHEDULER = "DEPTHSCOPE_DASK"
#: Seconds until a scheduler must have answered, and until the first Slurm worker must have started.
PATIENCE, QUEUEING = 30, 24 * 3600
#: What a Slurm worker is given where Dask's own configuration (jobqueue.slurm) says nothing.
_WORKER = {"cores": 4, "processes": 1, "memory": "8GB"}

#: The address that the surrounding block computes on; None outside of one.
_around: ContextVar[str | None] = ContextVar("_around", default=None)
_log = logging.getLogger(__name__)


@contextmanager
def compute_on(address: str | None = None, *, workers: int | None = None) -> Iterator[None]:
    """Compute inside the block on the scheduler that is named.

    Parameters
    ----------
    address
        ``threads`` for the threads of this process; ``local`` for a cluster of processes on this
        machine; ``slurm:N`` for N workers that are Slurm jobs of their own, described in Dask's
        configuration under ``jobqueue.slurm``; otherwise the address of a running scheduler. None
        is that of the surrounding block, or the client that a notebook has made; else the
        scheduler of this batch job where it has one, ``local`` in any other Slurm allocation, or
        ``threads``.
    workers
        Threads, or processes of a local cluster; None leaves it to Dask.

    Raises
    ------
    RequestError
        Nothing answers at the address, or Slurm's workers cannot be had.
    """
    if _there_already(address):
        yield
        return
    address = address or _default()
    token = _around.set(address)
    try:
        with _opened(address, workers):
            yield
    finally:
        _around.reset(token)


def _there_already(address: str | None) -> bool:
    around = _around.get()
    if around is not None:
        return address in (None, around)
    return address is None and client_now() is not None


@contextmanager
def _opened(address: str, workers: int | None) -> Iterator[None]:
    if address == "threads":
        with dask.config.set(scheduler="threads", num_workers=workers):
            yield
    elif address == "local":
        with _own_scheduler(), _local(workers):
            yield
    elif found := re.fullmatch(r"slurm:(\d+)", address):
        with _own_scheduler(), _slurm(int(found[1])):
            yield
    else:
        with _own_scheduler(), _running(address):
            yield


def _own_scheduler() -> dask.config.set:
    """Restore Dask's choice at the end: a client that never connects leaves itself there."""
    return dask.config.set(scheduler=dask.config.get("scheduler", None))


def _default() -> str:
    if address := os.environ.get(SCHEDULER):
        return address
    return "local" if "SLURM_JOB_ID" in os.environ else "threads"


@contextmanager
def _local(workers: int | None) -> Iterator[None]:
    from distributed import Client, LocalCluster
    from distributed.deploy.utils import nprocesses_nthreads

    threads = None
    # Where Slurm does not bind processes to cores, Dask would see all of the node's.
    if workers is None and (cores := os.environ.get("SLURM_CPUS_ON_NODE")):
        workers, threads = nprocesses_nthreads(int(cores))
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
            protocol="tls",
            security=_certificates(),
        ) as cluster,
        Client(cluster),
    ):
        _log.info("Dask's dashboard, on this machine alone: %s", cluster.dashboard_link)
        yield


@contextmanager
def _slurm(workers: int) -> Iterator[None]:
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError:
        raise RequestError(
            "--slurm-workers needs dask-jobqueue: pip install depthscope[slurm]"
        ) from None
    if shutil.which("sbatch") is None:
        raise RequestError(
            "--slurm-workers: sbatch is not on the path: run this on a node of the cluster"
        )
    from distributed import Client

    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(SLURMCluster(**_slurm_settings()))
            client = stack.enter_context(Client(cluster))
            cluster.scale(jobs=workers)
            client.wait_for_workers(1, timeout=QUEUEING)
        except (RuntimeError, ValueError, TimeoutError) as error:
            raise RequestError(f"--slurm-workers: {' '.join(str(error).split())}") from error
        yield


def _slurm_settings() -> dict[str, Any]:
    def configured(name: str) -> Any:
        return dask.config.get(f"jobqueue.slurm.{name}", None)

    return {
        **{name: value for name, value in _WORKER.items() if configured(name) is None},
        "protocol": "tls",
        "security": _certificates(),
        "shared_temp_directory": os.environ.get("DEPTHSCOPE_FOLDER") or str(Path.cwd()),
        **_logs(configured),
        "scheduler_options": {
            **(configured("scheduler-options") or {}),
            "dashboard": False,
            "dashboard_address": None,
        },
    }


def _logs(configured: Callable[[str], Any]) -> dict[str, Any]:
    """Where workers print to: as configured, else the batch job's folder, else nowhere.

    Slurm would write a file for each worker into the folder that the analysis was started in.
    """
    if configured("log-directory") is not None:
        return {}
    if folder := os.environ.get("DEPTHSCOPE_FOLDER"):
        return {"log_directory": folder}
    directives = configured("job-extra-directives") or []
    return {"job_extra_directives": ["--output=/dev/null", *directives]}


@contextmanager
def _running(address: str) -> Iterator[None]:
    from distributed import Client

    try:
        # A client that cannot connect stays behind as the default one until it is collected; the
        # first attempt is therefore made by one that is never the default.
        Client(address, timeout=PATIENCE, set_as_default=False).close()
        client = Client(address, timeout=PATIENCE)
    except TypeError:
        raise RequestError(
            f"--scheduler {address}: it wants certificates: name them in Dask's configuration, "
            "distributed.comm.tls"
        ) from None
    except (OSError, TimeoutError, ValueError) as error:
        raise RequestError(
            f"--scheduler {address}: no Dask scheduler answers there ({type(error).__name__})"
        ) from None
    with client:
        _log.info("%s", _described(client, address))
        yield


def _described(client: Any, address: str) -> str:
    """Such as ``Dask at tcp://…: 4 workers; its dashboard: http://…``."""
    workers = len(client.scheduler_info()["workers"])
    said = f"Dask at {address}: {workers} worker{'' if workers == 1 else 's'}"
    if not workers:
        said += ", so nothing is computed before one comes"
    dashboard = "dashboard" in client.scheduler_info()["services"]
    return f"{said}; its dashboard: {client.dashboard_link}" if dashboard else said


def _certificates() -> Any:
    from distributed.security import Security

    return Security.temporary()


def workers_now() -> int:
    """Workers that the surrounding block computes on; 1 for the threads of this process."""
    client = client_now()
    return 1 if client is None else max(1, len(client.scheduler_info()["workers"]))


def client_now() -> Any:
    """The client that is connected, by a block of ours or by a notebook; None without one."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None
