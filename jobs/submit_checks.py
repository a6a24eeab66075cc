"""What a submission must not ask for, whatever the command: checked before anything else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from depthscope.storage.errors import RequestError

if TYPE_CHECKING:
    from .submit_spec import SubmitSpec

#: Options that would be ignored without another: without all of those that are named.
NEEDS = {
    "follow": ("ray",),
    "ship": ("ray",),
    "record": ("ray",),
    "await_nodes": ("ray",),
    "time_limit": ("slurm",),
    "stop_seconds": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "sbatch": ("slurm",),
    "each": ("slurm",),
    "after": ("slurm",),
    "dask_nodes": ("slurm",),
    "at_once": ("each",),
    "dask_partition": ("dask_nodes",),
    "image": ("kubernetes",),
    "claim": ("kubernetes",),
    "namespace": ("kubernetes",),
    "memory_per_node": ("slurm", "kubernetes"),
    "object_store": ("slurm", "kubernetes"),
}
#: Names folders, jobs and Kubernetes' services; six digits and a hyphen are added to it.
_NAME, _NAME_AT_MOST = re.compile(r"[a-z](-?[a-z0-9])*"), 40
#: A command needs half of it to stop, Ray and Slurm the other half to wind up.
STOP_SECONDS_AT_LEAST = 60
#: Slurm's ways to write a time: minutes first, unless there are hours; hours follow days.
_TIME = re.compile(
    r"(?:(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?"
    r"|(?:(?P<h>\d+):(?=\d+:))?(?P<m>\d+)(?::(?P<s>\d+))?)"
)


def check_submission(spec: SubmitSpec) -> None:
    """Refuse what makes no sense.

    Raises
    ------
    RequestError
        Not exactly one destination, an option that would be ignored, or values that mean nothing.
    """
    if sum((spec.ray is not None, spec.slurm, spec.kubernetes)) != 1:
        raise RequestError("submit needs one of --ray URL, --slurm and --kubernetes")
    given = _given(spec)
    for name in given:
        needed = NEEDS.get(name, ())
        if needed and given.isdisjoint(needed):
            others = " or ".join(_option(spec, other) for other in needed)
            raise RequestError(f"{_option(spec, name)} needs {others}")
    if spec.kubernetes and spec.image is None:
        raise RequestError("--kubernetes needs --image, made with deploy/Containerfile")
    if spec.each and spec.dask_nodes:
        raise RequestError(
            "--each and --dask-nodes: Slurm has no arrays of jobs with a second component; submit "
            "one analysis after the other"
        )
    _check_values(spec)


def _check_values(spec: SubmitSpec) -> None:
    if spec.nodes < 1:
        raise RequestError(f"--nodes {spec.nodes}: needs at least one")
    name = spec.job_name
    if name is not None and not (_NAME.fullmatch(name) and len(name) <= _NAME_AT_MOST):
        raise RequestError(
            f"--job-name {name!r}: use small letters, digits and hyphens between them, a letter "
            f"first, {_NAME_AT_MOST} at most"
        )
    if spec.stop_seconds < STOP_SECONDS_AT_LEAST:
        raise RequestError(
            f"--stop-seconds {spec.stop_seconds}: a command needs at least "
            f"{STOP_SECONDS_AT_LEAST} to stop"
        )
    limit = seconds_of(spec.time_limit or "")
    if limit and spec.stop_seconds >= limit:
        raise RequestError(
            f"--stop-seconds {spec.stop_seconds} leaves no time to work in --time-limit "
            f"{spec.time_limit}, which is {limit} s"
        )


def _given(spec: SubmitSpec) -> set[str]:
    """Options that were asked for; a switch counts where it is not as it would be anyway."""
    fields = type(spec).model_fields
    return {
        name
        for name in fields
        if name in spec.model_fields_set
        and (value := getattr(spec, name)) not in (None, ())
        and not (isinstance(value, bool) and value is fields[name].default)
    }


def _option(spec: SubmitSpec, name: str) -> str:
    flag = name.replace("_", "-")
    return f"--no-{flag}" if getattr(spec, name) is False and name in NEEDS else f"--{flag}"


def seconds_of(text: str) -> int | None:
    """Seconds of a time as Slurm writes it; None for what only Slurm can judge.

    ``90`` are minutes; ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM`` and ``D-HH:MM:SS`` are the
    other forms. Slurm takes 0 as no limit.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    part = {name: int(value or 0) for name, value in found.groupdict().items()}
    hours = 24 * part["d"] + part["dh"] + part["h"]
    minutes = part["dm"] + part["m"]
    return 60 * (60 * hours + minutes) + part["ds"] + part["s"]
