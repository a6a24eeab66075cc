"""The command that a job runs: checked here and now, and told about the cluster it will find."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from depthscope.storage.errors import RequestError
from pydantic import BaseModel

from .options import resolve
from .submit_spec import SubmitSpec

#: Commands that make or run jobs themselves.
NOT_IN_A_JOB = ("submit", "jobs", "demo")
#: The address by which Ray means the cluster that a job runs on.
CLUSTER = "auto"


@dataclass(frozen=True)
class InnerCommand:
    """A command of depthscope that was parsed, but not run.

    Attributes
    ----------
    arguments
        Its words, the name first.
    on_ray
        Whether it runs its work on a Ray cluster.
    store
        The store whose commits show its progress, an absolute path; None where it has none, or
        where its folder is the cluster's own.
    sweep
        The intervention sweep that it runs on the store; empty where it runs none.
    """

    arguments: tuple[str, ...]
    on_ray: bool
    store: Path | None
    sweep: str = ""

    @property
    def name(self) -> str:
        """Name of the command."""
        return self.arguments[0]


def inner_command(
    cli: click.Group, arguments: tuple[str, ...], spec: SubmitSpec, more: Sequence[str] = ()
) -> InnerCommand:
    """Parse a command as it would be parsed where it runs.

    Parameters
    ----------
    cli
        The group of commands.
    arguments
        Name and words of the command.
    more
        Further words, those of one line of a job array.

    Raises
    ------
    RequestError
        There is no such command, or it would refuse these words.
    """
    if not arguments:
        raise RequestError("submit needs a command, such as: submit --slurm extract --model …")
    name, *words = (*arguments, *more)
    command = cli.commands.get(name)
    if command is None or name in NOT_IN_A_JOB:
        raise RequestError(f"submit cannot run {name}: see depthscope --help for the commands")
    try:
        context = command.make_context(name, list(words))
    except click.ClickException as error:
        raise RequestError(f"{name}: {error.format_message()}") from None
    values = _values(command, context.params)
    on_ray = "address" in context.params and values.get("engine") != "process"
    if on_ray:
        words += _for_the_cluster(values, spec)
    # What other commands call out is a result of theirs.
    store = values.get("out") if name == "extract" else values.get("store")
    if name == "report":
        store = None
    sweep = values["name"] if name == "intervene" else ""
    return InnerCommand((name, *words), on_ray, _known_place(store, spec), sweep)


def _known_place(store: str | Path | None, spec: SubmitSpec) -> Path | None:
    """Where a store lies; None where that depends on the cluster's own folder."""
    if not store:
        return None
    place = (spec.chdir or Path()) / store
    if not spec.slurm and not place.is_absolute():
        return None
    return Path(os.path.abspath(place))


def _values(command: click.Command, given: dict[str, Any]) -> dict[str, Any]:
    """Options with those of a configuration file; checked as a whole where they have a model."""
    model: type[BaseModel] | None = getattr(command.callback, "model", None)
    if model is None:
        return given
    config = given.get("config")
    fields = {k: v for k, v in given.items() if k in model.model_fields}
    return given | model(**resolve(model, config, fields)).model_dump()


def _for_the_cluster(values: dict[str, Any], spec: SubmitSpec) -> list[str]:
    """Options that the command gets unless it has them: one worker a node, all of the node.

    What a node has in GPUs is known where the command runs, so they are named only where they were
    asked for.
    """
    if values.get("address") == CLUSTER:
        # Submitted a second time, from inside a batch job.
        return []
    if values.get("address") is not None:
        raise RequestError("--address: a submitted command finds its cluster by itself")
    words = ["--address", CLUSTER]
    staged = values.get("schedule") == "staged"
    workers = values.get("workers")
    if workers is None and not staged and (spec.ray is None or spec.nodes > 1):
        words += ["--workers", str(spec.nodes)]
    # A staged model has a stage on each node, unless the command says otherwise.
    stages = (values.get("stages") or spec.nodes) if staged else None
    processes = (workers or 1) * stages if stages else workers or spec.nodes
    if values.get("threads") is None and spec.cpus_per_node is not None:
        words += ["--threads", str(max(1, spec.cpus_per_node * spec.nodes // processes))]
    if values.get("gpus_per_worker") is None and spec.gpus_per_node is not None:
        share = spec.gpus * spec.nodes / processes
        # Ray gives whole ones, but where several processes have to share one.
        words += ["--gpus-per-worker", f"{int(share) if share >= 1 else share:g}"]
    return words
