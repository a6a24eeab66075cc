"""Where Dask computes: threads, a local cluster with TLS, an address, or a clear refusal."""

from __future__ import annotations

import os

import dask
import pytest
from depthscope.analysis.client import SCHEDULER, compute_on
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


def test_an_allocation_gets_processes_that_speak_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import get_client

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    with compute_on():
        information = get_client().scheduler_info()
        address = information["address"]
        assert address.startswith("tls://127.0.0.1:")
        assert sum(worker["nthreads"] for worker in information["workers"].values()) == 2
        assert where() != os.getpid()
        # Whoever has not the certificates is turned away.
        with pytest.raises(RequestError, match="wants certificates"), compute_on(address):
            pass


def test_nobody_answers() -> None:
    with (
        pytest.raises(RequestError, match="no Dask scheduler answers there"),
        compute_on("tcp://127.0.0.1:9"),
    ):
        pass
    assert where() == os.getpid()  # what comes after computes where it did before


def test_slurm_workers_need_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RequestError, match="sbatch is not on the path"), compute_on("slurm:2"):
        pass
