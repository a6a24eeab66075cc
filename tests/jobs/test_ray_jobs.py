"""Jobs of a Ray cluster, before a dashboard that answers what a test tells it to."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from depthscope.jobs import ray_jobs
from depthscope.jobs.cli import cli
from depthscope.jobs.ray_cluster import share_of_gpus
from depthscope.jobs.ray_jobs import RayJobs
from depthscope.jobs.submit import submit
from depthscope.jobs.submit_spec import SubmitSpec
from depthscope.storage.errors import RequestError, Stopped, WorkFailed

VERSION = {"version": "4", "ray_version": ray.__version__, "ray_commit": "x"}
#: Without a dashboard: an address of this machine alone at which nobody listens.
NOBODY = "http://127.40.1.3:14013"


class Dashboard:
    """Answers by the first part of a path that fits; notes what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {"/api/version": (200, VERSION)}
        self.asked: list[tuple[str, str, bytes]] = []
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                dashboard.asked.append((self.command, self.path, self.rfile.read(size)))
                fitting = [k for k in dashboard.answers if self.path.startswith(k)]
                status, body = dashboard.answers[max(fitting)] if fitting else (404, "no such page")
                text = body if isinstance(body, str) else json.dumps(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_PUT = do_GET

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("DEPTHSCOPE_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setattr(ray_jobs, "TICK", 0.02)
    found = Dashboard()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def test_the_address_that_is_given_wins(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ray_jobs.ADDRESSES:
        monkeypatch.setenv(name, NOBODY)
    RayJobs(dashboard.url)
    assert [path for _, path, _ in dashboard.asked].count("/api/version") > 0
    assert {os.environ[name] for name in ray_jobs.ADDRESSES} == {NOBODY}
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(RequestError):
        RayJobs(NOBODY)
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "Unauthorized: Missing authentication token"),
        (403, "Forbidden: Invalid authentication token"),
    ],
)
def test_a_token_that_is_refused(dashboard: Dashboard, status: int, text: str) -> None:
    # The words of Ray's own middleware.
    dashboard.answers["/api"] = dashboard.answers["/api/version"] = (status, text)
    with pytest.raises(RequestError, match="the cluster refuses the token") as caught:
        RayJobs(dashboard.url)
    assert "\n" not in str(caught.value)


def test_nobody_there_is_no_token_refused(dashboard: Dashboard) -> None:
    with pytest.raises(RequestError, match="no Ray dashboard answers there"):
        RayJobs(NOBODY)
    jobs = RayJobs(dashboard.url)
    jobs.url = jobs._client._address = NOBODY
    with pytest.raises(RequestError, match="no Ray dashboard answers there"):
        jobs.logs("extract-1")
    jobs._client._address = dashboard.url
    dashboard.answers["/api/jobs"] = (500, "worker 401 is gone\nauthentication went well")
    with pytest.raises(RequestError, match=r"authentication went well \(status 500\)$"):
        jobs.state("extract-1")


def test_a_job_that_the_cluster_has_forgotten(dashboard: Dashboard) -> None:
    jobs = RayJobs(dashboard.url)
    dashboard.answers["/api/jobs/"] = (404, "Job extract-1 does not exist")
    assert jobs.state("extract-1") == ""
    for ask in (jobs.follow, jobs.logs, jobs.stop):
        with pytest.raises(RequestError, match="does not know the job extract-1"):
            ask("extract-1")


def test_a_cluster_that_stops_answering(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "GONE", 0.2)
    jobs = RayJobs(dashboard.url)
    dashboard.answers["/api/jobs/"] = (500, "out of order")
    with pytest.raises(Stopped, match=r"no longer answers.*out of order"):
        jobs.follow("extract-1")
    assert len(dashboard.asked) > 4


@pytest.mark.parametrize(
    ("error_type", "error"),
    [
        ("RUNTIME_ENV_SETUP_FAILURE", WorkFailed),
        ("JOB_ENTRYPOINT_COMMAND_START_ERROR", WorkFailed),
        ("JOB_SUPERVISOR_ACTOR_START_TIMEOUT", Stopped),
        ("JOB_SUPERVISOR_ACTOR_DIED", Stopped),
        (None, Stopped),
    ],
)
def test_a_job_that_did_not_run(
    dashboard: Dashboard, error_type: str | None, error: type[Exception]
) -> None:
    details = {"status": "FAILED", "message": "it is\nlike this", "error_type": error_type}
    dashboard.answers["/api/jobs/x"] = (200, details | {"driver_exit_code": None})
    with pytest.raises(error, match="the job x did not run: like this"):
        RayJobs(dashboard.url).follow("x")


@pytest.mark.parametrize(("driver", "code"), [(0, 0), (2, 2), (-9, 137), (75, 75)])
def test_the_exit_code_of_a_job(dashboard: Dashboard, driver: int, code: int) -> None:
    dashboard.answers["/api/jobs/x"] = (200, {"status": "FAILED", "driver_exit_code": driver})
    assert RayJobs(dashboard.url).follow("x") == code


def test_nodes_that_do_not_come(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "JOINING", 0.1)
    nodes = [{"state": "ALIVE"}, {"state": "DEAD"}]
    dashboard.answers["/api/v0/nodes"] = (200, {"data": {"result": {"result": nodes}}})
    RayJobs(dashboard.url).await_nodes(1)
    with pytest.raises(Stopped, match="1 of 2 nodes joined"):
        RayJobs(dashboard.url).await_nodes(2)


def test_a_dashboard_that_is_not_ready_yet(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = RayJobs(dashboard.url)
    ready = (200, {"data": {"result": {"result": [{"state": "ALIVE"}]}}})
    dashboard.answers["/api/v0/nodes"] = (500, "not ready")
    later = threading.Timer(0.3, dashboard.answers.update, [{"/api/v0/nodes": ready}])
    later.start()
    jobs.await_nodes(1)
    later.join()
    monkeypatch.setattr(ray_jobs, "GONE", 0.2)
    dashboard.answers["/api/v0/nodes"] = (500, "not ready")
    with pytest.raises(Stopped, match=r"no longer answers.*not ready"):
        jobs.await_nodes(1)


@pytest.mark.parametrize("record", [True, False])
def test_what_a_submission_leaves(
    dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec = SubmitSpec(ray=dashboard.url, record=record)
    dashboard.answers["/api/packages"] = (200, {})
    dashboard.answers["/api/jobs/"] = (500, "no room")
    with pytest.raises(RequestError, match="no room"):
        submit(cli, ("status", "store"), spec)
    assert list(tmp_path.iterdir()) == []
    dashboard.answers["/api/jobs/"] = (200, {"job_id": "a", "submission_id": "a"})
    done = submit(cli, ("status", "store"), spec)
    assert done.record is not None
    (module,) = json.loads(dashboard.asked[-1][2])["runtime_env"]["py_modules"]
    assert module.startswith("gcs://depthscope-")
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == (["record.json"] if record else [])


@pytest.mark.parametrize(
    ("gpus", "workers", "share"),
    [([8, 8], 2, 8.0), ([8, 8], 1, 8.0), ([8, 8, 0], 4, 4.0), ([8], 3, 2.0), ([1], 4, 0.25),
     ([8, 4], 2, 4.0), ([0, 0], 2, 0.0)],
)  # fmt: skip
def test_workers_share_what_the_nodes_have(
    gpus: list[int], workers: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"CPU": 4.0} | ({"GPU": float(count)} if count else {}) for count in gpus]
    monkeypatch.setattr("depthscope.jobs.ray_cluster.node_resources", lambda: nodes)
    assert share_of_gpus(workers) == share
