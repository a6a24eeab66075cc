"""Submitted jobs on disk: one folder each, with the request, the script and the log."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from depthscope.storage.atomic import write_json
from depthscope.storage.errors import RequestError
from platformdirs import user_state_path


@dataclass(frozen=True)
class JobRecord:
    """One submitted job.

    Attributes
    ----------
    id
        Ours, such as ``extract-3fa2b1``; name of its folder, too.
    kind
        ``ray``, ``slurm`` or ``kubernetes``.
    job
        The cluster's own id of it.
    command
        The words that run.
    stores
        The stores whose commits show its progress; one per task of a job array.
    place
        Address of the Ray cluster, or namespace under Kubernetes.
    submitted
        Seconds since 1970.
    sweeps
        For each of the stores the intervention sweep that runs on it; empty where none does.
    tasks
        Tasks of a job array; 1 for other jobs.
    """

    id: str
    kind: str
    job: str
    command: tuple[str, ...]
    stores: tuple[str, ...]
    place: str
    submitted: float
    sweeps: tuple[str, ...] = ()
    tasks: int = 1

    @property
    def folder(self) -> Path:
        """Script, log and token of the job."""
        return jobs_folder() / self.id

    def save(self) -> None:
        """Write the record into the job's folder."""
        write_json(self.folder / "record.json", asdict(self))


def jobs_folder() -> Path:
    """Where jobs are kept; every node of a cluster must see it.

    The environment variable DEPTHSCOPE_JOBS names it, else it lies in the user's home.
    """
    if named := os.environ.get("DEPTHSCOPE_JOBS"):
        return Path(named).absolute()
    return Path(user_state_path("depthscope")) / "jobs"


def new_id(name: str) -> str:
    """A name for a job that no other has."""
    return f"{name}-{secrets.token_hex(3)}"


def make_folder(job: str) -> Path:
    """The folder of a new job, for its owner alone.

    Raises
    ------
    RequestError
        It cannot be made.
    """
    folder = jobs_folder() / job
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise RequestError(
            f"{folder} cannot be made ({error.strerror}): set DEPTHSCOPE_JOBS to a folder that "
            "all nodes see"
        ) from error
    return folder


@contextmanager
def new_folder(job: str) -> Iterator[Path]:
    """The folder of a job that the block submits; gone again where that fails.

    Raises
    ------
    RequestError
        It cannot be made.
    """
    folder = make_folder(job)
    try:
        yield folder
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            # Only if it was made for this job, and is empty now.
            folder.parent.rmdir()
        raise


def records() -> Iterator[JobRecord]:
    """All jobs, the latest first."""
    found = []
    for path in jobs_folder().glob("*/record.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        names = ("command", "stores", "sweeps")
        tuples = {name: tuple(content.get(name, ())) for name in names}
        # Before records had this field, an array was known by its stores alone.
        content.setdefault("tasks", max(1, len(tuples["stores"])))
        found.append(JobRecord(**(content | tuples)))
    yield from sorted(found, key=lambda record: -record.submitted)


def find_record(name: str) -> JobRecord:
    """The job of this id, ours or the cluster's.

    Raises
    ------
    RequestError
        There is none.
    """
    for record in records():
        if name in (record.id, record.job):
            return record
    raise RequestError(f"no job is called {name}: see depthscope jobs")


def now() -> float:
    """Seconds since 1970."""
    return time.time()
