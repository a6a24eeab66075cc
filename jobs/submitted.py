"""`depthscope jobs`: what was submitted, how it stands, and how far its store is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from depthscope.storage.errors import RequestError
from depthscope.storage.status import status

from . import slurm
from .job_records import JobRecord


@dataclass(frozen=True)
class JobState:
    """A job and how it stands.

    Attributes
    ----------
    state
        In the cluster's words; ``unknown`` where the cluster has forgotten it or is out of reach.
    tasks_committed, tasks_total
        Of its stores, those together that exist.
    """

    record: JobRecord
    state: str
    tasks_committed: int
    tasks_total: int

    @property
    def line(self) -> str:
        """One line for a table."""
        when = datetime.fromtimestamp(self.record.submitted).strftime("%Y-%m-%d %H:%M")
        progress = f"{self.tasks_committed}/{self.tasks_total} tasks" if self.tasks_total else "-"
        words = [self.record.id, f"{self.record.kind}:{self.record.job}", when, self.state]
        return "  ".join([*words, progress, *self.record.stores])


def job_states(records: Iterable[JobRecord]) -> list[JobState]:
    """How jobs stand; a cluster that does not answer costs one question."""
    records = list(records)
    known = slurm.states([r.job for r in records if r.kind == "slurm"])
    silent: set[str] = set()
    found = []
    for record in records:
        if record.kind == "slurm":
            state = known.get(record.job) or _ended(record)
        else:
            state = _asked(record, silent)
        found.append(JobState(record, state or "unknown", *_progress(record)))
    return found


def logs(record: JobRecord) -> str:
    """What a job has printed.

    Raises
    ------
    RequestError
        The cluster is out of reach, or has not begun.
    """
    if record.kind == "ray":
        from .ray_jobs import RayJobs

        return RayJobs(record.place).logs(record.job)
    if record.kind == "kubernetes":
        raise RequestError(f"{record.id}: see kubectl logs job/{record.job}")
    paths = sorted(record.folder.glob("log*"))
    if not paths:
        raise RequestError(f"{record.id} has printed nothing yet")
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def follow(record: JobRecord) -> int:
    """Show a Ray job's log until its end; its exit code.

    Raises
    ------
    RequestError
        The job is not Ray's own, or its cluster is out of reach.
    """
    if record.kind != "ray":
        raise RequestError(
            f"--follow works for Ray jobs; for {record.id}: tail -F {record.folder}/log"
        )
    from .ray_jobs import RayJobs

    return RayJobs(record.place).follow(record.job)


def stop(record: JobRecord) -> None:
    """End a job; what it has committed stays.

    Raises
    ------
    RequestError
        The cluster refuses.
    """
    if record.kind == "slurm":
        slurm.cancel(record.job)
    elif record.kind == "ray":
        from .ray_jobs import RayJobs

        RayJobs(record.place).stop(record.job)
    else:
        from .rayjob import delete

        delete(record)


def _asked(record: JobRecord, silent: set[str]) -> str:
    """State in the words of the job's cluster, unless that has not answered before."""
    cluster = record.place if record.kind == "ray" else record.kind
    if cluster in silent:
        return ""
    try:
        if record.kind == "ray":
            from .ray_jobs import RayJobs

            return RayJobs(record.place).state(record.job).lower()
        from .rayjob import state_of

        return state_of(record)
    except RequestError:
        silent.add(cluster)
        return ""


def _ended(record: JobRecord) -> str:
    """What the tasks themselves have left behind, for jobs that Slurm has forgotten."""
    codes = [path.read_text().strip() for path in record.folder.glob("ended*")]
    if failed := sorted(set(codes) - {"0"}):
        return f"ended with code {', '.join(failed)}"
    if 0 < len(codes) < record.tasks:
        return f"{len(codes)} of {record.tasks} completed"
    return "completed" if codes else ""


def _progress(record: JobRecord) -> tuple[int, int]:
    """Tasks committed and tasks there are, of the sweep where the job runs one."""
    done = total = 0
    sweeps = record.sweeps or ("",) * len(record.stores)
    for store, sweep in zip(record.stores, sweeps, strict=True):
        try:
            found = status(Path(store))
        except RequestError:
            continue
        counts = found.effects.get(sweep) if sweep else found
        if counts is not None:
            done, total = done + counts.tasks_committed, total + counts.tasks_total
    return done, total
