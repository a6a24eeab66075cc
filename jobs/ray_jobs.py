"""Commands as Ray jobs on a running cluster, through the dashboard's Jobs API."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from depthscope.storage.errors import RequestError, Stopped, WorkFailed
from ray.job_submission import JobSubmissionClient

from .inner_command import InnerCommand
from .job_records import JobRecord, make_folder, new_id
from .stopping import stop_on_signals
from .submit import Submitted, record_of
from .submit_spec import SubmitSpec
from .wheel import pack_wheel

#: Seconds between two looks at a job.
TICK = 1.0
#: Seconds without an answer after which the cluster counts as gone.
GONE = 30.0
#: Seconds that the end of a job's log may take to arrive after the job has ended.
LOG_SECONDS = 30.0
#: Seconds in which the nodes that were asked for must have joined.
JOINING = 600.0
#: Seconds that a job has to stop in, unless the cluster's environment says otherwise.
STOP_SECONDS = 120
#: States that a job does not leave.
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class RayJobs:
    """The jobs of one cluster.

    Parameters
    ----------
    url
        Address of the dashboard. Where the cluster asks for a token, Ray's own variables
        RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH name it.

    Raises
    ------
    RequestError
        Nothing answers, the token is refused, or the versions differ.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"--ray {url}: write the dashboard's address, http://HOST:8265")
        try:
            self._client = JobSubmissionClient(url)
            answer = self._client._do_request("GET", "/api/version")
        except Exception as error:
            raise RequestError(f"--ray {url}: {_why(error)}") from None
        theirs = answer.json().get("ray_version")
        if theirs != ray.__version__:
            raise RequestError(
                f"--ray {url}: the cluster runs Ray {theirs}, this is {ray.__version__}: "
                f"install the same here, pip install ray=={theirs}"
            )

    def start(self, job: str, entrypoint: str, runtime_env: dict[str, Any]) -> None:
        """Start a job under this name.

        Raises
        ------
        RequestError
            The cluster refuses it.
        """
        try:
            self._client.submit_job(
                entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env
            )
        except Exception as error:
            raise RequestError(f"--ray {self.url}: {_why(error)}") from None

    def state(self, job: str) -> str:
        """State of a job in Ray's words; empty where the cluster does not know it."""
        try:
            return str(self._client.get_job_status(job).value)
        except RuntimeError:
            return ""

    def exit_code(self, job: str) -> int:
        """The exit code of an ended job; 75 where it was stopped, 1 where it never started."""
        found = self._client.get_job_info(job)
        state = str(found.status.value)
        if state == "STOPPED":
            return 75
        if found.driver_exit_code is None:
            if state == "SUCCEEDED":
                return 0
            raise WorkFailed(f"the job {job} did not start: {_last_line(found.message or state)}")
        # A driver that was killed shows the signal's number with a minus.
        code = int(found.driver_exit_code)
        return code if code >= 0 else 128 - code

    def logs(self, job: str) -> str:
        """What the job has printed so far."""
        return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> None:
        """Ask a job to stop at its next commit."""
        self._client.stop_job(job)

    def nodes(self) -> int:
        """Nodes that are alive."""
        answer = self._client._do_request("GET", "/api/v0/nodes?detail=false")
        answer.raise_for_status()
        found = answer.json()["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in found)

    def await_nodes(self, number: int) -> None:
        """Wait until so many nodes have joined.

        Raises
        ------
        WorkFailed
            They did not within ten minutes.
        """
        deadline = time.monotonic() + JOINING
        while (alive := self.nodes()) < number:
            if time.monotonic() > deadline:
                raise WorkFailed(
                    f"{alive} of {number} nodes joined the Ray cluster within {JOINING:.0f} s"
                )
            time.sleep(TICK)

    def follow(self, job: str) -> int:
        """Show a job's log until it ends; a signal is passed on as a stop.

        Returns
        -------
        int
            The job's exit code.

        Raises
        ------
        Stopped
            The cluster went away; the same command resumes.
        """
        log = threading.Thread(target=self._print, args=(job,), daemon=True)
        log.start()
        asked, heard = False, time.monotonic()
        with stop_on_signals() as stop:
            while True:
                try:
                    if stop() and not asked:
                        self.stop(job)
                        asked = True
                    state = self.state(job)
                    heard = time.monotonic()
                except Exception as error:
                    if time.monotonic() - heard > GONE or stop():
                        raise Stopped(f"{self.url} no longer answers ({_why(error)})") from None
                    state = ""
                if state in ENDED:
                    # The log comes by another way, some seconds behind, and ends by itself.
                    log.join(LOG_SECONDS)
                    return self.exit_code(job)
                time.sleep(TICK)

    def _print(self, job: str) -> None:
        async def tail() -> None:
            async for text in self._client.tail_job_logs(job):
                sys.stderr.write(text)
                sys.stderr.flush()

        try:
            asyncio.run(tail())
        except Exception as error:
            print(f"depthscope: the log cannot be followed: {_why(error)}", file=sys.stderr)


def submit_to_ray(command: InnerCommand, spec: SubmitSpec) -> Submitted:
    """Run a command as a Ray job.

    Raises
    ------
    RequestError
        The cluster cannot be reached or refuses the job.
    """
    assert spec.ray is not None
    job = new_id(spec.job_name or command.name)
    entrypoint = _entrypoint(command, spec)
    if spec.dry_run:
        shipped = (
            "with this version of depthscope" if spec.ship else "with the cluster's depthscope"
        )
        return Submitted(f"# a Ray job on {spec.ray}, {shipped}\n{entrypoint}\n")
    cluster = RayJobs(spec.ray)
    if spec.await_nodes > 1:
        cluster.await_nodes(spec.await_nodes)
    record = replace(record_of(job, "ray", spec.ray, [command]), job=job)
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    environment |= {k: v for k, v in os.environ.items() if k in _STOPPING}
    runtime_env: dict[str, Any] = {"env_vars": environment}
    if spec.record:
        make_folder(job)
    if spec.ship:
        runtime_env["py_modules"] = [str(pack_wheel(_wheel_folder(record, spec)))]
    cluster.start(job, entrypoint, runtime_env)
    if spec.record:
        record.save()
    code = cluster.follow(job) if spec.follow else 0
    return Submitted(record=record, exit_code=code)


_STOPPING = ("RAY_JOB_STOP_WAIT_TIME_S", "DEPTHSCOPE_STOP_SECONDS")


def _wheel_folder(record: JobRecord, spec: SubmitSpec) -> Path:
    if spec.record:
        return record.folder
    import tempfile

    return Path(tempfile.mkdtemp(prefix="depthscope-wheel-"))


def _entrypoint(command: InnerCommand, spec: SubmitSpec) -> str:
    run = f"exec python -m depthscope.jobs {shlex.join(command.arguments)}"
    return f"cd {shlex.quote(str(spec.chdir))} && {run}" if spec.chdir else run


def _why(error: Exception) -> str:
    text = str(error)
    if "401" in text or "403" in text or "uthentication" in text:
        return "the cluster refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    if isinstance(error, ConnectionError) or "connect" in text.lower():
        return "no Ray dashboard answers there"
    return _last_line(text) or type(error).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
