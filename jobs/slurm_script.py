"""The batch script of a job: the request as #SBATCH lines, then the wrappers of deploy/slurm.

The script is whole in itself, so that Slurm's own copy of it is all that a node needs.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib.resources import files
from pathlib import Path

from depthscope.storage.errors import RequestError

from .inner_command import InnerCommand
from .submit_spec import SubmitSpec

#: Environment variables that the wrappers read; those that are set travel into the script.
PASSED_ON = (
    "DEPTHSCOPE_TMP",
    "DEPTHSCOPE_INTERFACE",
    "DEPTHSCOPE_CONTAINER",
    "DEPTHSCOPE_CONTAINER_OPTIONS",
)
#: Seconds of the time before the limit that Ray and Slurm need to wind up.
WIND_UP = 30


def slurm_script(
    spec: SubmitSpec, commands: list[InnerCommand], job: str, folder: Path, after: list[str]
) -> str:
    """The batch script of one command, or of a job array.

    Parameters
    ----------
    commands
        One for each task of the array; a single one makes a plain job unless ``spec.each``.
    job, folder
        Name and folder of the job.
    after
        Slurm ids of jobs that must have succeeded before.
    """
    parts = [
        "#!/bin/bash",
        *(_sbatch(option) for option in _requests(spec, len(commands), job, folder, after)),
        "# shellcheck disable=SC2329  # functions are called by name",
        *_settings(spec, folder),
        "",
        *_choice(commands, array=spec.each is not None),
        "",
        wrapper("lifetime.sh"),
        wrapper("node.sh"),
        wrapper("ray_cluster.sh" if commands[0].on_ray else "command.sh"),
        *([wrapper("dask_nodes.sh")] if spec.dask_nodes else []),
        'life "$@"',
    ]
    return "\n".join(parts) + "\n"


def wrapper(name: str) -> str:
    """Text of a wrapper in deploy/slurm."""
    return files("depthscope.deploy").joinpath("slurm", name).read_text(encoding="utf-8")


def _requests(spec: SubmitSpec, tasks: int, job: str, folder: Path, after: list[str]) -> list[str]:
    # Slurm replaces what follows a percent sign in the name of a log.
    log = str(folder).replace("%", "%%") + ("/log-%a" if spec.each else "/log")
    lines = [f"--job-name={spec.job_name or job}", f"--output={log}", "--open-mode=append"]
    lines += ["--requeue", f"--signal=B:USR1@{spec.stop_seconds}"]
    lines += [f"--nodes={spec.nodes}", "--ntasks-per-node=1"]
    lines += [f"--cpus-per-task={spec.cpus_per_node or 1}"]
    lines += _optional(spec)
    if spec.memory_per_node is not None:
        lines.append(f"--mem={int(spec.memory_per_node) >> 20}M")
    else:
        lines.append("--mem=0")
    if spec.each:
        at_once = f"%{spec.at_once}" if spec.at_once else ""
        lines.append(f"--array=0-{tasks - 1}{at_once}")
    if after:
        lines += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    lines += spec.sbatch
    if spec.dask_nodes:
        lines.append("hetjob")
        lines += [f"--nodes={spec.dask_nodes}", "--ntasks-per-node=1", "--mem=0"]
        lines += [f"--cpus-per-task={spec.cpus_per_node or 1}"]
        if partition := spec.dask_partition or spec.partition:
            lines.append(f"--partition={partition}")
    return lines


def _optional(spec: SubmitSpec) -> list[str]:
    given = {
        "time": spec.time_limit,
        "partition": spec.partition,
        "account": spec.account,
        "gpus-per-node": spec.gpus_per_node,
        "chdir": str((spec.chdir or Path.cwd()).absolute()),
    }
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def _sbatch(option: str) -> str:
    """The line by which sbatch finds this very option.

    It reads quotes as a shell does, but a backslash makes the next character plain even there.
    """
    if len(option.splitlines()) != 1:
        raise RequestError(f"{option!r}: an option of sbatch is one line")
    escaped = option.replace("\\", "\\\\")
    return f"#SBATCH {shlex.quote(escaped)}"


def _settings(spec: SubmitSpec, folder: Path) -> list[str]:
    seconds = spec.stop_seconds - WIND_UP
    settings = {
        "DEPTHSCOPE_FOLDER": str(folder),
        "DEPTHSCOPE_OBJECT_STORE": str(int(spec.object_store)),
        "DEPTHSCOPE_STOP_SECONDS": str(seconds),
        "RAY_JOB_STOP_WAIT_TIME_S": str(seconds + 10),
        **{name: os.environ[name] for name in PASSED_ON if os.environ.get(name)},
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    # In a container the image's own interpreter comes first on the path.
    programs = shlex.quote(str(Path(sys.executable).parent))
    return [*lines, f"export PATH={programs}:$PATH"]


def _choice(commands: list[InnerCommand], *, array: bool) -> list[str]:
    if not array:
        return _arguments(commands[0])
    lines = ['case "$SLURM_ARRAY_TASK_ID" in']
    for number, command in enumerate(commands):
        lines.append(f"{number})")
        lines += [f"  {line}" for line in _arguments(command)]
        lines.append("  ;;")
    return [*lines, "esac"]


def _arguments(command: InnerCommand) -> list[str]:
    store = str(command.store) if command.store else ""
    return [
        f"export DEPTHSCOPE_STORE={shlex.quote(store)}",
        f"set -- {shlex.join(command.arguments)}",
    ]
