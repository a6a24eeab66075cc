"""Talking to Slurm through its own commands; what it refuses becomes one line."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from depthscope.storage.errors import RequestError

from .cluster_program import ClusterProgram, NoAnswer

#: What Slurm says, and what to do about it; the first that fits.
_ADVICE = (
    (r"invalid partition", "--partition: Slurm has no such partition; sinfo lists them"),
    (
        r"invalid account",
        "--account: Slurm does not know this account, or not with this partition; "
        "sacctmgr show associations lists yours",
    ),
    (
        r"node (configuration|count)|cpu count|memory specification|gres|more processors",
        "no node of the partition can satisfy the request: sinfo -o '%P %D %c %m %G' lists nodes, "
        "cores, memory and GPUs",
    ),
    (r"time limit", "--time-limit: the partition does not allow it; sinfo -o '%P %l' lists limits"),
    (r"dependency", "--after: Slurm does not know that job any more"),
    (
        r"unable to contact|connection refused|connect failure|communication|configuration source",
        "Slurm's controller does not answer: try again later",
    ),
)


def _advice(text: str) -> str:
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in text.splitlines()]
    said = "; ".join(line for line in lines if line.strip()) or "Slurm refused without a word"
    for pattern, advice in _ADVICE:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{advice} (Slurm: {said})"
    return f"Slurm refuses the job: {said}"


_SLURM = ClusterProgram(
    "Slurm's controller",
    "--slurm: {program} is not on the path: run this on a login node of the cluster",
    _advice,
)


def check(script: str) -> None:
    """Have Slurm judge the script without queueing it.

    Raises
    ------
    RequestError
        Slurm is not there, does not answer, or refuses the request.
    """
    _SLURM.ask(["sbatch", "--test-only"], script)


def submit(script: str) -> str:
    """Queue the script.

    Returns
    -------
    str
        Slurm's id of the job.

    Raises
    ------
    RequestError
        As `check`.
    """
    return _SLURM.ask(["sbatch", "--parsable"], script).strip().partition(";")[0]


def states(jobs: Sequence[str]) -> dict[str, str]:
    """State of each job that Slurm still knows, in its own words; of a job array, counts of them.

    Asks the controller once and the accounting once, for all jobs together. A cluster without
    accounting forgets a job some minutes after its end.
    """
    found: dict[str, Counter[str]] = {}
    for ask in (_controller, _accounting):
        if missing := [job for job in jobs if job not in found]:
            try:
                found |= _gathered(ask(missing), missing)
            except NoAnswer:
                break
    return {job: _counted(tasks) for job, tasks in found.items()}


def _controller(jobs: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Job and state of every task that the controller knows, of these jobs and others.

    An array's tasks carry the array's id; the first component of a heterogeneous job, which holds
    the script, carries the job's.
    """
    return _lines(["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%F %T"])


def _accounting(jobs: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Job and state of every task of these jobs that the accounting knows."""
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--delimiter= "]
    for name, state in _lines([*command, "--format=JobID,State", "--jobs", ",".join(jobs)]):
        # Such as 17, 17_4 of an array, 17+0 of a heterogeneous job.
        job, _, component = name.partition("+")
        if component in ("", "0"):
            yield job.partition("_")[0], state


def _lines(command: list[str]) -> list[tuple[str, str]]:
    """The first two words of each line; none where the program is not there, or refuses."""
    try:
        text = _SLURM.ask(command)
    except NoAnswer:
        raise
    except RequestError:
        return []
    words = (line.split() for line in text.splitlines())
    return [(line[0], line[1]) for line in words if len(line) > 1]


def _gathered(lines: Iterable[tuple[str, str]], jobs: Sequence[str]) -> dict[str, Counter[str]]:
    wanted = set(jobs)
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for job, state in lines:
        if job in wanted:
            found[job][state.lower()] += 1
    return dict(found)


def _counted(tasks: Mapping[str, int]) -> str:
    if list(tasks.values()) == [1]:
        return next(iter(tasks))
    return ", ".join(f"{number} {state}" for state, number in sorted(tasks.items()))


def cancel(job: str) -> None:
    """End a job.

    Raises
    ------
    RequestError
        Slurm refuses.
    """
    _SLURM.ask(["scancel", job])
