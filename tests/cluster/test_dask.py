"""Analyses on Dask under a real Slurm: workers as jobs of their own, and nodes of the same job."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from depthscope.analysis import analyze

from .conftest import SMALL, Study

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

#: Where the two sides of the virtual cluster listen.
INTERFACES = {
    "DASK_JOBQUEUE__SLURM__INTERFACE": "eth0",
    "DASK_JOBQUEUE__SLURM__SCHEDULER_OPTIONS": '{"interface": "br0"}',
    "DASK_JOBQUEUE__SLURM__CORES": "1",
    "DASK_JOBQUEUE__SLURM__MEMORY": "1GB",
}


@pytest.fixture
def store(study: Study) -> Path:
    """A store without results, on the nodes' file system."""
    target = study.slurm.shared / "dask"
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(study.slurm.folder / "undisturbed", target))


def same_as_here(store: Path, study: Study) -> None:
    """The results are those of this process's threads."""
    here = shutil.copytree(study.slurm.folder / "undisturbed", store.parent / f"{store.name}-here")
    try:
        (path,) = analyze(here, ["contributions"], scheduler="threads").values()
        ours = xr.open_zarr(path, consolidated=False)
        theirs = xr.open_zarr(store / "analysis" / "contributions.zarr", consolidated=False)
        for name in ours.data_vars:
            np.testing.assert_array_equal(ours[name].values, theirs[name].values)
    finally:
        shutil.rmtree(here)


def test_workers_as_slurm_jobs(study: Study, store: Path) -> None:
    words = ("depthscope", "analyze", store, "contributions", "--slurm-workers", "2")
    study.slurm.run(*words, timeout=300, **INTERFACES)
    same_as_here(store, study)
    # Its workers' jobs went with it.
    assert study.slurm.run("squeue", "-h", "-t", "PENDING,RUNNING").stdout == ""
    finished = study.slurm.run("scontrol", "show", "job", "-o").stdout
    assert finished.count("JobName=dask-worker") == 2


def test_nodes_of_the_same_job(study: Study, store: Path) -> None:
    slurm = study.slurm
    number = slurm.submit("analyze", str(store), "contributions", "--dask-nodes", "1", *SMALL)
    states = slurm.run("scontrol", "show", "job", "-o", number).stdout
    assert states.count("HetJobId=") == 2
    assert slurm.ended(number, 300) == "COMPLETED", slurm.log(number)
    assert "Dask scheduler at tls://10.213.87." in slurm.log(number)
    same_as_here(store, study)
    slurm.nothing_left(number)
