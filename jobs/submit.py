"""`depthscope submit`: a command checked here, run on a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths

from .inner_command import InnerCommand, inner_command
from .job_records import JobRecord, find_record, jobs_folder, make_folder, new_id, now
from .submit_spec import SubmitSpec


@dataclass(frozen=True)
class Submitted:
    """What became of a request.

    Attributes
    ----------
    text
        What would run, for a dry run.
    record
        The job; None for a dry run.
    exit_code
        The job's own where it was followed, else 0.
    """

    text: str = ""
    record: JobRecord | None = None
    exit_code: int = 0


def submit(cli: click.Group, arguments: tuple[str, ...], spec: SubmitSpec) -> Submitted:
    """Run a command of depthscope on a cluster.

    Raises
    ------
    RequestError
        The command, the destination or the resources are wrong; nothing was started.
    """
    spec = spec.checked()
    if spec.slurm:
        return _submit_to_slurm(cli, arguments, spec)
    command = inner_command(cli, arguments, spec)
    if spec.kubernetes:
        from .rayjob import submit_to_kubernetes

        return submit_to_kubernetes(command, spec)
    from .ray_jobs import submit_to_ray

    return submit_to_ray(command, spec)


def _submit_to_slurm(cli: click.Group, arguments: tuple[str, ...], spec: SubmitSpec) -> Submitted:
    from . import slurm
    from .slurm_script import slurm_script

    commands = [inner_command(cli, arguments, spec, line) for line in _lines(spec)]
    _check_stores(commands, spec)
    if spec.dask_nodes and commands[0].on_ray:
        raise RequestError(
            f"--dask-nodes: {commands[0].name} does not compute with Dask; submit the analysis as "
            "a job of its own, with --after"
        )
    after = [_slurm_id(name) for name in spec.after]
    job = new_id(spec.job_name or commands[0].name)
    if spec.dry_run:
        return Submitted(slurm_script(spec, commands, job, jobs_folder() / job, after))
    script = slurm_script(spec, commands, job, jobs_folder() / job, after)
    slurm.check(script)
    folder = make_folder(job)
    (folder / "script.sh").write_text(script, encoding="utf-8")
    record = record_of(job, "slurm", "", commands)
    record = replace(record, job=slurm.submit(script))
    record.save()
    return Submitted(record=record)


def record_of(job: str, kind: str, place: str, commands: list[InnerCommand]) -> JobRecord:
    """The record of a job whose id on the cluster is not known yet."""
    stores = tuple(str(c.store.absolute()) for c in commands if c.store is not None)
    return JobRecord(job, kind, "", commands[0].arguments, stores, place, now())


def _lines(spec: SubmitSpec) -> list[str]:
    """Further words of each task of a job array; one empty line without one."""
    if spec.each is None:
        return [""]
    try:
        text = spec.each.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--each {spec.each}: {error}") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise RequestError(f"--each {spec.each}: has no line of options")
    return lines


def _check_stores(commands: list[InnerCommand], spec: SubmitSpec) -> None:
    """Two tasks of an array must not write one store; a store that is read must be there."""
    stores = [command.store for command in commands if command.store is not None]
    for store in stores:
        if commands[0].on_ray and stores.count(store) > 1:
            raise RequestError(f"--each {spec.each}: two lines write the store {store}")
    makes = commands[0].name == "extract"
    for store in stores:
        if not makes and not spec.after and not StorePaths(Path(store)).run.exists():
            raise RequestError(f"{store} is no store: make it first, or wait for it with --after")


def _slurm_id(name: str) -> str:
    return name if name.isdigit() else find_record(name).job
