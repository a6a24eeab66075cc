"""The jobs of a running Ray cluster, through its dashboard's Jobs API."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from depthscope.storage.errors import RequestError, Stopped, WorkFailed
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from .ray_cluster import reason
from .stopping import stop_on_signals

#: Seconds between two looks at a job.
TICK = 1.0
#: Seconds without an answer after which the cluster counts as gone.
GONE = 30.0
#: Seconds that the end of a job's log may take to arrive after the job has ended.
LOG_SECONDS = 30.0
#: Seconds in which the nodes that were asked for must have joined.
JOINING = 600.0
#: States that a job does not leave.
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
#: Why a job that never ran cannot run on any other try, either, in Ray's words.
HOPELESS = ("RUNTIME_ENV_SETUP_FAILURE", "JOB_ENTRYPOINT_COMMAND_START_ERROR")
#: Variables of the environment by which Ray replaces the address that it is given.
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class UnknownJob(RequestError):
    """The cluster has no such job; it forgets all when it is started anew."""


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
            with _no_other_address():
                self._client = JobSubmissionClient(url)
            answer = self._client._do_request("GET", "/api/version", timeout=GONE)
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
        """State of a job in Ray's words; empty where the cluster does not know it.

        Raises
        ------
        RequestError
            The cluster does not answer.
        """
        try:
            return str(self._job(job)["status"])
        except UnknownJob:
            return ""

    def logs(self, job: str) -> str:
        """What the job has printed so far.

        Raises
        ------
        RequestError
            The cluster does not answer, or does not know the job.
        """
        return str(self._job(job, "/logs")["logs"])

    def stop(self, job: str) -> None:
        """Ask a job to stop at its next commit.

        Raises
        ------
        RequestError
            The cluster does not answer, or does not know the job.
        """
        self._job(job, "/stop", "POST")

    def _job(self, job: str, what: str = "", method: str = "GET") -> Any:
        """The dashboard's answer about a job."""
        found = self._ask(method, f"/api/jobs/{job}{what}")
        if found is None:
            raise UnknownJob(f"the cluster at {self.url} does not know the job {job}")
        return found

    def _ask(self, method: str, path: str) -> Any:
        """The dashboard's answer; None where it knows no such thing."""
        try:
            answer = self._client._do_request(method, path, timeout=GONE)
            if answer.status_code not in (200, 404):
                raise RuntimeError(f"{answer.text.strip()} (status {answer.status_code})")
            return answer.json() if answer.status_code == 200 else None
        except Exception as error:
            raise RequestError(f"--ray {self.url}: {_why(error)}") from None

    def nodes(self) -> int:
        """Nodes that are alive.

        Raises
        ------
        RequestError
            The cluster does not answer.
        """
        answer = self._ask("GET", "/api/v0/nodes?detail=false")
        if answer is None:
            raise RequestError(f"--ray {self.url}: the dashboard lists no nodes")
        return sum(node["state"] == "ALIVE" for node in answer["data"]["result"]["result"])

    def await_nodes(self, number: int) -> None:
        """Wait until so many nodes have joined.

        Raises
        ------
        Stopped
            They did not within ten minutes, or the cluster went away.
        """
        alive, began = 0, time.monotonic()
        heard = began
        while True:
            now = time.monotonic()
            try:
                alive, heard = self.nodes(), now
            except RequestError as error:
                if now - heard > GONE:
                    raise Stopped(f"the cluster no longer answers: {error}") from None
            if alive >= number:
                return
            if now - began > JOINING:
                raise Stopped(
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
        RequestError
            The cluster does not know the job.
        WorkFailed
            The job did not run, and never would.
        Stopped
            The cluster went away, or did not run the job to its end; the same command resumes.
        """
        log: threading.Thread | None = None
        asked, heard = False, time.monotonic()
        with stop_on_signals() as stop:
            while True:
                try:
                    found = self._job(job)
                    ended = found["status"] in ENDED
                    if stop() and not asked and not ended:
                        self.stop(job)
                        asked = True
                    heard = time.monotonic()
                    if log is None:
                        log = threading.Thread(target=self._print, args=(job,), daemon=True)
                        log.start()
                    if ended:
                        # The log comes by another way, some seconds behind, and ends by itself.
                        log.join(LOG_SECONDS)
                        return _exit_code(job, found)
                except UnknownJob:
                    raise
                except RequestError as error:
                    if time.monotonic() - heard > GONE or stop():
                        raise Stopped(f"the cluster no longer answers: {error}") from None
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


def _exit_code(job: str, found: Any) -> int:
    """The exit code of an ended job; 75 where it was stopped."""
    if found["status"] == "STOPPED":
        return 75
    if (code := found.get("driver_exit_code")) is None:
        if found["status"] == "SUCCEEDED":
            return 0
        said = reason(Exception(found.get("message") or found["status"]))
        hopeless = found.get("error_type") in HOPELESS
        raise (WorkFailed if hopeless else Stopped)(f"the job {job} did not run: {said}")
    # A driver that was killed shows the signal's number with a minus.
    return int(code) if int(code) >= 0 else 128 - int(code)


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Ray's variables of the environment, which would win over the address that was given."""
    kept = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _why(error: Exception) -> str:
    # What requests raises on the way, and what is no JSON, are such errors, too.
    if isinstance(error, OSError):
        return "no Ray dashboard answers there"
    if isinstance(error, AuthenticationError):
        return "the cluster refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    return reason(error)
