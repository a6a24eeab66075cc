"""The commands `store merge`, `store trim` and `store export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from depthscope.storage.errors import RequestError
from depthscope.storage.trim_plan import DROPPABLE
from pydantic import ByteSize, TypeAdapter, ValidationError

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


@store.command()
@click.argument("source", metavar="STORE", type=_PATH)
@click.option("--points", help="Points of the residual stream to keep, such as 0,8,16.")
@click.option(
    "--drop",
    multiple=True,
    type=click.Choice(list(DROPPABLE)),
    help="What to leave out; may be given several times.",
)
@click.option("--out", type=_PATH, help="The new store (default: cut STORE down in its place).")
@_json_flag
@_quiet_flag
def trim(
    source: Path,
    points: str | None,
    drop: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Cut STORE down to chosen points and arrays, in its place or into a new store.

    In place nobody else may have it open: what is left of it is deleted. Nothing is deleted before
    the smaller store is whole, and the same command finishes a trim that was interrupted.
    """
    from .store_trim import trim_store

    progress = _progress(quiet)
    kept = points_of(points) if points is not None else None
    if kept is None and not drop:
        raise RequestError("nothing to trim: name --points to keep, or what to --drop")
    done = trim_store(source, kept, drop, out, on_progress=ticks(progress))
    progress.close()
    _answer(as_json, {**asdict(done), "out": str(done.out)}, done.sentence)
    return 0


@store.command()
@click.argument("stores", metavar="STORE...", type=_PATH, nargs=-1, required=True)
@click.option(
    "--out",
    type=_PATH,
    required=True,
    help="A file ending in .parquet or .zarr, or a folder for safetensors.",
)
@click.option(
    "--points",
    default="all",
    show_default=True,
    help="Points whose vectors are written: all, or 0,8,16; layers, of another --array.",
)
@click.option(
    "--array",
    type=click.Choice(["residual", "attention_output", "mlp_output"]),
    default="residual",
    show_default=True,
    help="What is written: the stream, or what attention or the MLP added to it.",
)
@click.option("--where", help="A SQL predicate that chooses rows, such as: NOT special.")
@click.option("--shuffle", is_flag=True, help="Shuffle all rows; every order is equally likely.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the order.")
@click.option(
    "--memory", default="2GB", show_default=True, help="Memory that a shuffle may use for rows."
)
@_json_flag
@_quiet_flag
def export(
    stores: tuple[Path, ...],
    out: Path,
    points: str,
    array: str,
    where: str | None,
    shuffle: bool,
    seed: int,
    memory: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Write the stored vectors of STORE (or several of one model) row by row, for training.

    Each row comes with its number, document, position and token id. Rows of failed documents are
    left out.
    """
    from depthscope.analysis.export import export as write

    if seed < 0:
        raise RequestError(f"--seed {seed}: give 0 or more")
    progress = _progress(quiet)
    done = write(
        stores,
        out,
        points=points,
        array=array,
        where=where,
        seed=seed if shuffle else None,
        memory=_bytes(memory),
        progress=ticks(progress),
    )
    progress.close()
    text = f"{out}: {done.rows} rows"
    if done.invalid:
        text += f"; {done.invalid} rows of documents that failed are left out"
    _answer(as_json, {**asdict(done), "out": str(out)}, text)
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


def _bytes(text: str) -> int:
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise RequestError(f"--memory {text!r}: give a size such as 2GB") from None


def _progress(quiet: bool) -> Progress:
    return Silent() if quiet else progress_for_terminal()


def _answer(as_json: bool, content: dict[str, Any], text: str) -> None:
    print(json.dumps(content, default=str) if as_json else text)
