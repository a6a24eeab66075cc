"""Command-line options from a pydantic model: one place for names, types, defaults and help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
import yaml
from depthscope.storage.errors import RequestError
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Command = TypeVar("Command", bound=Callable[..., Any])


def options_of(model: type[BaseModel], *, config: bool = True) -> Callable[[Command], Command]:
    """Add one option per field of the model, and ``--config`` for a YAML file of them.

    The function gets the model as its attribute ``model``, for whoever checks a command unrun.
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(model.model_fields.items()):
            command = _option(name, field)(command)
        if not config:
            return command
        vars(command)["model"] = model
        return click.option(
            "--config", type=click.Path(path_type=Path), help="YAML file with any of these options."
        )(command)

    return decorate


def resolve(model: type[BaseModel], config: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """The fields that were given: the command line wins over the file.

    Raises
    ------
    RequestError
        The file is no YAML mapping of known options, or a needed option is missing.
    """
    values = _read_config(model, config) if config else {}
    values |= {k: v for k, v in given.items() if v is not None and v != ()}
    missing = [k for k, f in model.model_fields.items() if f.is_required() and k not in values]
    if missing:
        names = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise RequestError(f"{names} is missing: see --help")
    return values


def _read_config(model: type[BaseModel], config: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"--config {config}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RequestError(f"--config {config}: needs a mapping of options to values")
    values = {str(key).lstrip("-").replace("-", "_"): value for key, value in content.items()}
    if unknown := sorted(set(values) - set(model.model_fields)):
        raise RequestError(f"--config {config}: no option is called {unknown[0]}")
    return values


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    flag = "--" + name.replace("_", "-")
    kind, many = _kind(field.annotation)
    text = (field.description or "").replace("\n", " ")
    default = field.get_default()
    if default is not None and not field.is_required() and not isinstance(default, bool):
        text += f" [default: {default}]"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    if get_origin(kind) is Literal:
        choice = click.Choice([str(value) for value in get_args(kind)])
        return click.option(flag, name, type=choice, default=None, help=text)
    return click.option(flag, name, type=str, default=None, multiple=many, help=text)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The plain type of a field, and whether it may be given several times."""
    if get_origin(annotation) in (UnionType, Union):
        inner = [part for part in get_args(annotation) if part is not NoneType]
        return _kind(inner[0])
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0], True
    return annotation, False
