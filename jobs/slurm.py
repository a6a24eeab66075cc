"""Talking to Slurm through its own commands; what it refuses becomes one line."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence

from depthscope.storage.errors import RequestError

#: Seconds after which the controller counts as unreachable.
PATIENCE = 60
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


def check(script: str) -> None:
    """Have Slurm judge the script without queueing it.

    Raises
    ------
    RequestError
        Slurm is not there, does not answer, or refuses the request.
    """
    _run(["sbatch", "--test-only"], script)


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
    return _run(["sbatch", "--parsable"], script).strip().partition(";")[0]


def states(jobs: Sequence[str]) -> dict[str, str]:
    """State of each job that Slurm still knows, in its own words; of a job array, one per task.

    A cluster without accounting forgets a job some minutes after its end.
    """
    if not jobs or shutil.which("squeue") is None:
        return {}
    found = {job: _last_state(job) for job in jobs}
    return {job: state for job, state in found.items() if state}


def _last_state(job: str) -> str:
    try:
        text = _run(["scontrol", "show", "job", "-o", job])
    except RequestError:
        return _accounted(job)
    names = [name.lower() for name in re.findall(r"\bJobState=(\w+)", text)]
    counted = [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
    return names[0] if len(names) == 1 else ", ".join(counted)


def _accounted(job: str) -> str:
    if shutil.which("sacct") is None:
        return ""
    try:
        text = _run(["sacct", "-X", "-n", "-P", "-o", "State", "-j", job])
    except RequestError:
        return ""
    words = text.split()
    return words[0].lower() if words else ""


def cancel(job: str) -> None:
    """End a job.

    Raises
    ------
    RequestError
        Slurm refuses.
    """
    _run(["scancel", job])


def dask_scheduler(scheduler: str | None, slurm_workers: int | None) -> str | None:
    """The scheduler that two options of analyses name.

    Raises
    ------
    RequestError
        Both are given, or no worker at all.
    """
    if slurm_workers is None:
        return scheduler
    if scheduler is not None:
        raise RequestError("--slurm-workers starts a scheduler of its own: leave --scheduler out")
    if slurm_workers < 1:
        raise RequestError(f"--slurm-workers {slurm_workers}: needs at least one")
    return f"slurm:{slurm_workers}"


def _run(command: list[str], script: str | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise RequestError(
            f"--slurm: {command[0]} is not on the path: run this on a login node of the cluster"
        )
    try:
        done = subprocess.run(
            command, input=script, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise RequestError(
            f"Slurm's controller did not answer within {PATIENCE} s: try again later"
        ) from None
    if done.returncode:
        raise RequestError(_advice(done.stderr))
    return done.stdout


def _advice(text: str) -> str:
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in text.splitlines()]
    said = "; ".join(line for line in lines if line.strip()) or "Slurm refused without a word"
    for pattern, advice in _ADVICE:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{advice} (Slurm: {said})"
    return f"Slurm refuses the job: {said}"
