"""Commands as Ray jobs on a running cluster."""

from __future__ import annotations

import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .dispatch import STOP_SECONDS
from .inner_command import InnerCommand
from .job_records import new_folder, new_id
from .ray_jobs import RayJobs
from .submit import Submitted, record_of
from .submit_spec import SubmitSpec
from .wheel import pack_wheel

#: Seconds that Ray gives a job to stop in; this variable of the job's environment names them.
STOP_WAIT, STOP_WAIT_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S", 120


def submit_to_ray(command: InnerCommand, spec: SubmitSpec) -> Submitted:
    """Run a command as a Ray job.

    Raises
    ------
    RequestError
        The cluster cannot be reached or refuses the job.
    Stopped
        The nodes that were asked for did not come.
    """
    assert spec.ray is not None
    job = new_id(spec.job_name or command.name)
    entrypoint = _entrypoint(command, spec)
    if spec.dry_run:
        whose = "this version of" if spec.ship else "the cluster's"
        return Submitted(f"# a Ray job on {spec.ray}, with {whose} depthscope\n{entrypoint}\n")
    cluster = RayJobs(spec.ray)
    if spec.await_nodes > 1:
        cluster.await_nodes(spec.await_nodes)
    with new_folder(job) if spec.record else nullcontext():
        _start(cluster, job, entrypoint, ship=spec.ship)
    record = record_of(job, "ray", job, spec.ray, [command])
    if spec.record:
        record.save()
    code = cluster.follow(job) if spec.follow else 0
    return Submitted(record=record, exit_code=code)


def _start(cluster: RayJobs, job: str, entrypoint: str, *, ship: bool) -> None:
    """Start the job; what is shipped lies on the cluster afterwards."""
    passed_on = {k: v for k, v in os.environ.items() if k in (STOP_WAIT, STOP_SECONDS)}
    runtime_env: dict[str, Any] = {"env_vars": {STOP_WAIT: str(STOP_WAIT_SECONDS)} | passed_on}
    with TemporaryDirectory(prefix="depthscope-wheel-") as folder:
        if ship:
            runtime_env["py_modules"] = [str(pack_wheel(Path(folder)))]
        cluster.start(job, entrypoint, runtime_env)


def _entrypoint(command: InnerCommand, spec: SubmitSpec) -> str:
    run = f"exec python -m depthscope.jobs {shlex.join(command.arguments)}"
    return f"cd {shlex.quote(str(spec.chdir))} && {run}" if spec.chdir else run
