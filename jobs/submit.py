"""`depthscope submit`: a command checked here, run on a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import click
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import StorePaths

from .inner_command import InnerCommand, inner_command
from .job_records import JobRecord, find_record, jobs_folder, new_folder, new_id, now
from .submit_spec import SubmitSpec

#: Commands that hold a store for themselves while they write it.
ALONE = ("extract", "intervene")


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
    from .submit_ray import submit_to_ray

    return submit_to_ray(command, spec)


def _submit_to_slurm(cli: click.Group, arguments: tuple[str, ...], spec: SubmitSpec) -> Submitted:
    from . import slurm
    from .slurm_script import slurm_script

    commands = [inner_command(cli, arguments, spec, line) for line in _lines(spec)]
    _check_array(commands, spec)
    _check_stores(commands, spec)
    if spec.dask_nodes and commands[0].on_ray:
        raise RequestError(
            f"--dask-nodes: {commands[0].name} does not compute with Dask; submit the analysis as "
            "a job of its own, with --after"
        )
    after = [_slurm_id(name) for name in spec.after]
    job = new_id(spec.job_name or commands[0].name)
    script = slurm_script(spec, commands, job, jobs_folder() / job, after)
    if spec.dry_run:
        return Submitted(script)
    slurm.check(script)
    with new_folder(job) as folder:
        (folder / "script.sh").write_text(script, encoding="utf-8")
        number = slurm.submit(script)
    record = record_of(job, "slurm", number, "", commands)
    record.save()
    return Submitted(record=record)


def record_of(
    job: str, kind: str, number: str, place: str, commands: Sequence[InnerCommand]
) -> JobRecord:
    """The record of a job that was submitted just now.

    Parameters
    ----------
    job, number
        Our id and the cluster's.
    kind, place
        Where it runs, as a record says it.
    commands
        One for each task.
    """
    with_store = [command for command in commands if command.store is not None]
    return JobRecord(
        job,
        kind,
        number,
        commands[0].arguments,
        tuple(str(command.store) for command in with_store),
        place,
        now(),
        tuple(command.sweep for command in with_store),
        len(commands),
    )


def _lines(spec: SubmitSpec) -> list[list[str]]:
    """Further words of each task of a job array; no words once without one."""
    if spec.each is None:
        return [[]]
    try:
        text = spec.each.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--each {spec.each}: {error}") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise RequestError(f"--each {spec.each}: has no line of options")
    found = []
    for line in lines:
        try:
            found.append(shlex.split(line))
        except ValueError as error:
            raise RequestError(f"--each {spec.each}: {str(error).lower()} in: {line}") from None
    return found


def _check_array(commands: list[InnerCommand], spec: SubmitSpec) -> None:
    """All tasks of an array run in one script, side by side."""
    if len({command.on_ray for command in commands}) > 1:
        raise RequestError(
            f"--each {spec.each}: some lines run on Ray and some do not (--engine): submit them "
            "as two arrays"
        )
    stores = [c.store for c in commands if c.store is not None and c.name in ALONE]
    for store in stores:
        if stores.count(store) > 1:
            raise RequestError(f"--each {spec.each}: two lines write the store {store}")


def _check_stores(commands: list[InnerCommand], spec: SubmitSpec) -> None:
    """A store that is read must be there, unless another job makes it first."""
    if spec.after or commands[0].name == "extract":
        return
    for command in commands:
        if command.store is not None and not StorePaths(command.store).run.exists():
            raise RequestError(
                f"{command.store} is no store: make it first, or wait for it with --after"
            )


def _slurm_id(name: str) -> str:
    if name.isdigit():
        return name
    record = find_record(name)
    if record.kind != "slurm":
        raise RequestError(
            f"--after {name}: is a {record.kind} job, and Slurm waits for its own alone"
        )
    return record.job
