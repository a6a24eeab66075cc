"""A Ray cluster: joining one or starting one of the command's own, and what it offers.

A cluster of the command's own listens on loopback only, uses a bounded object store, and ends with
the command.
"""

from __future__ import annotations

import logging
import os
import time
from math import ceil

import ray
from depthscope.storage.errors import RequestError

from .environment import SETTINGS

#: Bytes of the object store of a local cluster: results are small, so the least that Ray allows.
OBJECT_STORE = 100 << 20
#: How often an actor, or a gang of them, that died is started again.
RESTARTS = 8
#: Seconds that a cluster gets to find room for a worker: it may be one that grows.
PATIENCE = 60.0
#: The same for a cluster of this command's own, which has all that it will ever have.
PATIENCE_LOCAL = 10.0


def connect(address: str | None, cpus: int, object_store: int = OBJECT_STORE) -> bool:
    """Join an existing cluster, or start a local one that leaves the machine usable.

    Parameters
    ----------
    address
        The existing cluster; None starts one.
    cpus
        CPUs that a local cluster offers.
    object_store
        Bytes that a local cluster keeps results in.

    Returns
    -------
    Whether the connection is of this call's making, and its to close.

    Raises
    ------
    RequestError
        Nothing answers at the address, or a cluster of other versions.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        ray.init(
            address="local",
            num_cpus=max(1, cpus),
            object_store_memory=max(object_store, OBJECT_STORE),
            include_dashboard=False,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        return True
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise RequestError(f"--address {address}: {_refused(error)}") from error
    return True


def _refused(error: Exception) -> str:
    """Why a cluster cannot be joined."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "version mismatch" in str(error).lower():
        return f"the cluster has other versions ({' '.join(lines)}): use the same here"
    return f"no Ray cluster answers there ({lines[0] if lines else type(error).__name__})"


def patience(address: str | None) -> float:
    """Seconds that the cluster gets to find room for a worker."""
    return PATIENCE if address else PATIENCE_LOCAL


def node_resources() -> list[dict[str, float]]:
    """What each node of the connected cluster has in all, of those that are alive."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def nodes_with(cpus: float, gpus: float) -> int:
    """Nodes that have so many CPUs and GPUs, free or not."""
    return sum(
        node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in node_resources()
    )


def share_of_gpus(workers: int) -> float:
    """GPUs of each of so many workers, spread over the nodes that have any; 0 where none has."""
    counts = [node["GPU"] for node in node_resources() if node.get("GPU")]
    if not counts:
        return 0.0
    share = min(counts) / ceil(workers / len(counts))
    # Whole ones, but where several workers have to share one.
    return float(int(share)) if share >= 1 else share


def await_node(cpus: float, gpus: float, seconds: float) -> None:
    """Wait until some node is large enough for a worker.

    Raises
    ------
    RequestError
        None is; says what there is.
    """
    deadline = time.monotonic() + seconds
    while not nodes_with(cpus, gpus):
        if time.monotonic() > deadline:
            raise RequestError(
                f"a worker needs {size(cpus, gpus)}, and no node of the cluster has as many "
                f"({_offer()}): give fewer --threads or --gpus-per-worker"
            )
        time.sleep(min(1.0, seconds))


def size(cpus: float, gpus: float) -> str:
    """CPUs and GPUs in words."""
    text = f"{cpus:g} CPU" + "s" * (cpus != 1)
    return text + (f" and {gpus:g} GPU" + "s" * (gpus != 1) if gpus else "")


def _offer() -> str:
    nodes = node_resources()
    cpus = max((node.get("CPU", 0) for node in nodes), default=0)
    gpus = max((node.get("GPU", 0) for node in nodes), default=0)
    return f"the largest has {size(cpus, gpus)}" + ("" if gpus else " and no GPU")


def actor_environment(threads: int) -> dict[str, dict[str, str]]:
    """The runtime environment of a worker's process."""
    return {"env_vars": SETTINGS | {"OMP_NUM_THREADS": str(threads)}}


def reason(error: Exception) -> str:
    """The last line of one of Ray's long errors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
