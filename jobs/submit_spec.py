"""What `depthscope submit` is asked for: one value, from the command line or Python."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from depthscope.storage.errors import RequestError
from pydantic import BaseModel, ByteSize, ConfigDict

from .submit_checks import check_submission


class SubmitSpec(BaseModel):
    """Where a command shall run, and with what; no name here is an option of such a command."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ray: str | None = None
    """Address of a Ray cluster's dashboard, such as http://head:8265: run there as a Ray job."""

    slurm: bool = False
    """Run as a batch job under Slurm, on a Ray cluster of its own where the command uses one."""

    kubernetes: bool = False
    """Run as a RayJob under KubeRay, through kubectl."""

    dry_run: bool = False
    """Print exactly what would run, and do nothing."""

    follow: bool = False
    """Wait for the end of a Ray job, show its log, pass signals on, leave with its exit code."""

    job_name: str | None = None
    """Name of the job, of small letters, digits and hyphens (default: the command's)."""

    nodes: int = 1
    """Nodes, each with one worker unless the command says otherwise."""

    cpus_per_node: int | None = None
    """Cores of each node that the job uses (Slurm: default 1; Kubernetes: 8)."""

    gpus_per_node: str | None = None
    """GPUs of each node, such as 8 or h100:8 (default: the workers share what the nodes have when
    the command starts: under Slurm what --sbatch=--gres=gpu:8 brings, on a running Ray cluster what
    it says, under Kubernetes none)."""

    memory_per_node: ByteSize | None = None
    """Memory of each node that the job uses, such as 64GB (Slurm: default all of it)."""

    time_limit: str | None = None
    """Slurm: the time that one start of the job may take, such as 12:00:00 (default: the
    partition's); the job returns to the queue until the store is complete."""

    stop_seconds: int = 120
    """Slurm: how long before the time limit the command is asked to stop at its next commit, at
    least 60; half a minute of it is for Ray and Slurm."""

    partition: str | None = None
    """Slurm: the partition."""

    account: str | None = None
    """Slurm: the account."""

    sbatch: tuple[str, ...] = ()
    """Slurm: a further option of sbatch, such as --sbatch=--qos=long; may be given repeatedly."""

    each: Path | None = None
    """Slurm: a file with one line of further options per task of a job array, such as one model
    and store a line."""

    at_once: int | None = None
    """Slurm: how many tasks of the array may run at a time."""

    after: tuple[str, ...] = ()
    """Slurm: start when this job has succeeded (a Slurm id, or one that depthscope jobs shows); may
    be given several times."""

    dask_nodes: int = 0
    """Slurm: nodes of a second component of the job (a heterogeneous job) that run Dask workers for
    the command, which is given their scheduler."""

    dask_partition: str | None = None
    """Slurm: partition of the Dask nodes (default: the job's own)."""

    object_store: ByteSize = ByteSize(2 << 30)
    """Memory of each node for Ray's object store."""

    image: str | None = None
    """Kubernetes: the container image, which must hold this version of Ray."""

    claim: str | None = None
    """Kubernetes: the persistent volume claim that is mounted at /data and holds corpus and
    store."""

    namespace: str | None = None
    """Kubernetes: the namespace (default: kubectl's)."""

    chdir: Path | None = None
    """Folder in which the command runs (default: this one under Slurm, the cluster's on Ray)."""

    ship: bool = True
    """Ray: send this version of depthscope along, rather than use the cluster's."""

    record: bool = True
    """Keep the job for `depthscope jobs`."""

    await_nodes: int = 1
    """Ray: wait until the cluster has as many nodes."""

    def checked(self) -> Self:
        """This request, if it makes sense.

        Raises
        ------
        RequestError
            Not exactly one destination, an option that would be ignored, or values that mean
            nothing.
        """
        check_submission(self)
        return self

    @property
    def gpus(self) -> int:
        """GPUs of a node as a number."""
        if self.gpus_per_node is None:
            return 0
        try:
            return int(self.gpus_per_node.rpartition(":")[2])
        except ValueError:
            raise RequestError(
                f"--gpus-per-node {self.gpus_per_node}: write a number, or KIND:NUMBER"
            ) from None
