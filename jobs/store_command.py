"""The commands `store merge`, `store trim` and `store export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from depthscope.storage.errors import RequestError

from .progress import Progress, Silent, progress_for_terminal, ticks

_PATH = click.Path(path_type=Path)
_json_flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_quiet_flag = click.option("--quiet", is_flag=True, help="Print no progress.")


@click.group()
def store() -> None:
    """Join stores, cut them down, or write their rows for training."""


@store.command()
@click.argument("out", type=_PATH)
@click.argument("stores", type=_PATH, nargs=-1, required=True)
@click.option(
    "--allow-mixed-hardware",
    is_flag=True,
    help="Join stores that were made on different devices or library versions.",
)
@_json_flag
@_quiet_flag
def merge(
    out: Path,
    stores: tuple[Path, ...],
    allow_mixed_hardware: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Join STORES of one model and specification into the new store OUT.

    Stores of one run that finished different tasks become one run, which extract may continue;
    stores over different corpora are put one behind the other, in the order given. The same command
    resumes a merge that was interrupted. Effects and analyses are not carried over.
    """
    from .store_merge import merge_stores

    progress = _progress(quiet)
    found = merge_stores(
        out, stores, allow_mixed_hardware=allow_mixed_hardware, on_progress=ticks(progress)
    )
    progress.close()
    _answer(as_json, {"out": str(out), **asdict(found)}, f"{out}: {found.sentence}")
    return 0


def points_of(text: str) -> tuple[int, ...]:
    """Ascending points from text such as ``0,8,16``.

    Raises
    ------
    RequestError
        It is something else.
    """
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise RequestError(f"--points {text!r}: give numbers such as 0,8,16") from None


def _progress(quiet: bool) -> Progress:
    return Silent() if quiet else progress_for_terminal()


def _answer(as_json: bool, content: dict[str, Any], text: str) -> None:
    print(json.dumps(content, default=str) if as_json else text)
