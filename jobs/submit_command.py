"""The commands `submit` and `jobs`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click
from depthscope.storage.errors import RequestError

from .options import options_of
from .submit_spec import SubmitSpec

_ANY = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}


@click.command(context_settings=_ANY)
@options_of(SubmitSpec, config=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def submit(command: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Run COMMAND, any other command with its options, on a cluster.

    Options of submit may stand before or after COMMAND; all words after -- belong to COMMAND.
    """
    from .submit import submit as run

    spec = SubmitSpec(**{k: v for k, v in given.items() if v is not None and v != ()})
    group = click.get_current_context().find_root().command
    assert isinstance(group, click.Group)
    done = run(group, command, spec)
    if done.record is None:
        print(json.dumps({"text": done.text}) if as_json else done.text.rstrip("\n"))
        return 0
    record = done.record
    if spec.record and not spec.follow:
        text = f"{record.id} is {record.kind} job {record.job}; see depthscope jobs {record.id}"
        print(json.dumps(asdict(record)) if as_json else text)
    return done.exit_code


@click.command()
@click.argument("job", required=False)
@click.option("--logs", is_flag=True, help="Print what the job has printed.")
@click.option("--follow", is_flag=True, help="Follow a Ray job; leave with its exit code.")
@click.option("--stop", is_flag=True, help="End the job; what it has committed stays.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def jobs(job: str | None, logs: bool, follow: bool, stop: bool, as_json: bool) -> int:
    """List submitted jobs with their state and progress, or look at one JOB."""
    from . import submitted
    from .job_records import find_record, records

    if job is None:
        if logs or follow or stop:
            raise RequestError("--logs, --follow and --stop need a job: depthscope jobs JOB --logs")
        _print(submitted.job_states(records()), as_json)
        return 0
    record = find_record(job)
    if stop:
        submitted.stop(record)
    elif logs:
        sys.stdout.write(submitted.logs(record))
    elif follow:
        return submitted.follow(record)
    else:
        _print(submitted.job_states([record]), as_json)
    return 0


def _print(states: list[Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"jobs": [asdict(state) for state in states]}))
    else:
        print("\n".join(state.line for state in states) or "no job was submitted yet")
