"""Where Dask computes: threads, a local cluster with TLS, an address, or a clear refusal."""

from __future__ import annotations

import gc
import os
import re
import urllib.request
from collections.abc import Callable

import dask
import pytest
from depthscope.analysis.block_passes import over_blocks
from depthscope.analysis.client import SCHEDULER, _slurm_settings, client_now, compute_on
from depthscope.analysis.task_progress import task_progress
from depthscope.storage.errors import RequestError


def where() -> int:
    """The process that computes."""
    return int(dask.delayed(os.getpid)().compute())


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_ON_NODE", SCHEDULER):
        monkeypatch.delenv(name, raising=False)


def test_threads_by_default() -> None:
    with compute_on():
        assert where() == os.getpid()


def test_an_allocation_gets_processes_that_speak_tls(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from distributed import get_client

    caplog.set_level("INFO", "depthscope.analysis.client")

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    with compute_on():
        information = get_client().scheduler_info()
        address = information["address"]
        assert address.startswith("tls://127.0.0.1:")
        assert sum(worker["nthreads"] for worker in information["workers"].values()) == 2
        assert where() != os.getpid()
        # The dashboard listens on this machine alone, and its address is told.
        (told,) = [record.getMessage() for record in caplog.records
                   if record.name == "depthscope.analysis.client"]  # fmt: skip
        link = re.search(r"http://127\.0\.0\.1:\d+", told)
        assert link, told
        with urllib.request.urlopen(f"{link[0]}/health", timeout=10) as answer:
            assert answer.read() == b"ok"
        # Blocks inside share the client.
        for inner in (None, "local"):
            with compute_on(inner):
                assert get_client().scheduler_info()["address"] == address
        with compute_on("threads"):
            assert where() == os.getpid()
        # Whoever has not the certificates is turned away.
        with pytest.raises(RequestError, match="wants certificates"), compute_on(address):
            pass


def test_a_client_of_the_notebook_is_used() -> None:
    from distributed import Client, LocalCluster, get_client

    with (
        dask.config.set(scheduler=None),
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
        compute_on(),
    ):
        assert get_client() is client
        assert dask.base.get_scheduler() == client.get
    # It leaves itself in Dask's configuration, which is not taken for a client.
    with compute_on():
        assert dask.config.get("scheduler") == "threads"
        assert where() == os.getpid()


class Numbers(list[int]):
    """Gathers the numbers of blocks."""

    def merge(self, other: list[int]) -> None:
        self.extend(other)


def numbers(blocks: range, seen: Callable[[int], None] | None) -> Numbers:
    for done, _ in enumerate(blocks, 1):
        if seen is not None:
            seen(done)
    return Numbers(blocks)


def broken() -> None:
    raise ValueError("broken")


def test_progress_of_a_cluster(caplog: pytest.LogCaptureFixture) -> None:
    from distributed import LocalCluster

    caplog.set_level("INFO", "depthscope.analysis.client")
    steps: list[tuple[int, int]] = []
    blocks: list[int] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False,
                     dashboard_address=":0") as cluster,
        compute_on(cluster.scheduler_address),
    ):  # fmt: skip
        with task_progress(lambda done, total: steps.append((done, total))):
            assert dask.compute(*(dask.delayed(abs)(-n) for n in range(20))) == tuple(range(20))
            with pytest.raises(ValueError, match="broken"):
                dask.delayed(broken)().compute()
        done = [one[0] for one in steps if one[1] == 20]
        assert done[-1] == 20
        assert done == sorted(done)
        assert over_blocks(numbers, 7, blocks.append) == list(range(7))
    assert blocks[-1] == 7
    assert blocks == sorted(blocks)
    (told,) = [record.getMessage() for record in caplog.records
               if record.name == "depthscope.analysis.client"]  # fmt: skip
    assert re.search(r"2 workers; its dashboard: http://\S+/status", told)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depthscope.analysis.client.PATIENCE", 2)
    with (
        pytest.raises(RequestError, match="no Dask scheduler answers there"),
        compute_on("tcp://127.0.0.1:9"),
    ):
        pass
    assert where() == os.getpid()  # what comes after computes where it did before


def test_who_is_not_reached_leaves_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depthscope.analysis.client.PATIENCE", 2)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(RequestError), compute_on("tcp://127.0.0.1:9"):
            pass
        assert client_now() is None
        assert dask.config.get("scheduler", None) is None
    finally:
        gc.enable()


def test_slurm_workers_need_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RequestError, match="sbatch is not on the path"), compute_on("slurm:2"):
        pass


def test_slurm_workers_leave_no_files_in_this_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")  # Brings the configuration of its own.
    monkeypatch.delenv("DEPTHSCOPE_FOLDER", raising=False)
    with dask.config.set({"jobqueue.slurm.job-extra-directives": ["--qos=long"]}):
        directives = _slurm_settings()["job_extra_directives"]
    assert directives == ["--output=/dev/null", "--qos=long"]
    monkeypatch.setenv("DEPTHSCOPE_FOLDER", "/shared/jobs/one")
    found = _slurm_settings()
    assert found["log_directory"] == "/shared/jobs/one"
    assert "job_extra_directives" not in found
    with dask.config.set({"jobqueue.slurm.log-directory": "/logs"}):
        assert not {"log_directory", "job_extra_directives"} & _slurm_settings().keys()
