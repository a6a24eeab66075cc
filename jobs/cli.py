"""The command line. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from depthscope.storage.errors import RequestError

from .analyze_command import analyze
from .corpus_command import corpus
from .environment import set_environment
from .errors_to_exit import FAILED, SUCCESS, WRONG_REQUEST, exit_codes, say
from .intervene_spec import InterveneSpec
from .map_command import map_stores
from .options import options_of, resolve
from .plan_spec import PlanSpec
from .progress import Progress, Silent, progress_for_terminal, ticks
from .spec import ExtractSpec
from .store_command import store as store_group
from .submit_command import jobs, submit

set_environment()

_STORE = click.Path(path_type=Path)
_json_flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_quiet_flag = click.option("--quiet", is_flag=True, help="Print no progress.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="depthscope")
def cli() -> None:
    """What does each layer of a language model do, and does the model use its depth?"""


cli.add_command(analyze)
cli.add_command(corpus)
cli.add_command(map_stores)
cli.add_command(submit)
cli.add_command(jobs)
cli.add_command(store_group)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    with exit_codes():
        try:
            code = cli.main(arguments, prog_name="depthscope", standalone_mode=False)
        except click.exceptions.Abort:
            raise KeyboardInterrupt from None
        except click.exceptions.NoArgsIsHelpError as error:
            print(error.format_message())
            sys.exit(WRONG_REQUEST)
        except click.ClickException as error:
            raise RequestError(error.format_message()) from None
        sys.exit(code if isinstance(code, int) else SUCCESS)


@cli.command()
@options_of(ExtractSpec)
@_json_flag
@_quiet_flag
def extract(config: Path | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Run a model over a corpus into a store; the same command resumes it."""
    from .extraction import extract as run

    spec = ExtractSpec(**resolve(ExtractSpec, config, given))
    result = run(spec, progress=_progress(quiet))
    content = {**asdict(result), "root": str(result.root)}
    state = f"{result.missing} of them left out" if result.missing else "complete"
    text = f"{result.root}: {result.rows} rows in {result.tasks} tasks, {state}"
    if result.invalid_documents:
        text += f"; {result.invalid_documents} documents failed and are kept as invalid rows"
    if result.nonfinite:
        text += f"; {result.nonfinite} values are not finite"
    _answer(as_json, content, text)
    return SUCCESS


@cli.command()
@click.argument("store", type=_STORE)
@options_of(InterveneSpec)
@_json_flag
@_quiet_flag
def intervene(store: Path, config: Path | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Change one layer after the other and measure what that changes; the same command resumes."""
    from .effects_run import intervene as run

    spec = InterveneSpec(**resolve(InterveneSpec, config, given))
    result = run(store, spec, progress=_progress(quiet))
    content = {**asdict(result), "path": str(result.path)}
    text = f"{result.path}: {result.documents} documents, {result.splits} splits"
    if result.splits_outside:
        text += f" ({result.splits_outside} lie outside their document and are left out)"
    _answer(as_json, content, text)
    return SUCCESS


@cli.command()
@options_of(PlanSpec)
@_json_flag
@_quiet_flag
def plan(config: Path | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Say what a run would cost under each schedule, from the model's config alone."""
    from .plan_command import run_plan

    spec = PlanSpec(**resolve(PlanSpec, config, given))
    run_plan(spec, as_json=as_json, report=_progress(quiet).message)
    return SUCCESS


@cli.command()
@click.argument("store", type=_STORE)
@_json_flag
def status(store: Path, as_json: bool) -> int:
    """Say how much of a store is committed."""
    from depthscope.storage.status import status as read_status

    from .lock import is_running

    found = read_status(store, running=is_running(store))
    _answer(as_json, asdict(found), f"{store}: {found.sentence}")
    return SUCCESS


@cli.command()
@click.argument("folder", type=_STORE)
@_json_flag
def runs(folder: Path, as_json: bool) -> int:
    """List every store below a folder: state, rows, bytes, model, points."""
    from depthscope.storage.find_stores import find_stores

    from .lock import is_running

    found = list(find_stores(folder, is_running))
    lines = [store.line for store in found] or [f"no store below {folder}"]
    _answer(as_json, {"stores": [asdict(store) for store in found]}, "\n".join(lines))
    return SUCCESS


@cli.command()
@click.argument("store", type=_STORE)
@click.option("--repair", is_flag=True, help="Remove what fails, so that extract fills it again.")
@_json_flag
@_quiet_flag
def verify(store: Path, repair: bool, as_json: bool, quiet: bool) -> int:
    """Check every digest, row and commit of a store."""
    from depthscope.storage.verify import verify as check

    from .lock import driver_lock

    progress = _progress(quiet)
    tick = ticks(progress)
    if repair:
        with driver_lock(store):
            found = check(store, repair=True, on_progress=tick)
    else:
        found = check(store, on_progress=tick)
    progress.close()
    lines = [f"{store}: {found.sentence}", *found.problems]
    _answer(as_json, asdict(found), "\n".join(lines))
    return FAILED if found.problems and not (repair and found.state != "damaged") else SUCCESS


@cli.command()
@click.argument("store", type=_STORE)
@click.argument("sql")
@click.option("--points", help="Add residual vectors of these points: all, or 0,8,16.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write to .parquet, .csv, .npz or .zarr instead of printing.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="Use tasks that have committed some points only; NaN at the others.",
)
@_json_flag
@_quiet_flag
def query(
    store: Path,
    sql: str,
    points: str | None,
    out: Path | None,
    partial: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Ask a store with SQL over its tables tokens and documents."""
    from depthscope.analysis import run_query

    progress = _progress(quiet)
    result = run_query(
        store, sql, points=points, out=out, partial=partial, progress=ticks(progress)
    )
    progress.close()
    if out is not None:
        _answer(as_json, {"out": str(out), "rows": result.rows}, f"{out}: {result.rows} rows")
    elif as_json and result.table is not None:
        print(result.table.to_json(orient="records", force_ascii=False))
    elif result.table is not None:
        print(result.table.to_string(index=False))
    return SUCCESS


@cli.command()
@click.argument("stores", type=_STORE, nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The page to write.")
@_quiet_flag
def report(stores: tuple[Path, ...], out: Path, quiet: bool) -> int:
    """Write one page with the figures and tables of one or several stores."""
    from depthscope.analysis import write_report

    write_report(list(stores), out)
    print(out)
    return SUCCESS


@cli.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for corpus, store and report.",
)
@click.option(
    "--engine",
    type=click.Choice(["ray", "process"]),
    default="ray",
    show_default=True,
    help="Where the tasks run.",
)
@_quiet_flag
def demo(out: Path, engine: str, quiet: bool) -> int:
    """Run the whole trip on the built-in model, to a report, in minutes."""
    from .demo import demo as run

    run(out, engine="process" if engine == "process" else "ray", progress=_progress(quiet))
    return SUCCESS


def _progress(quiet: bool) -> Progress:
    return Silent() if quiet else progress_for_terminal()


def _answer(as_json: bool, content: dict[str, Any], text: str) -> None:
    print(json.dumps(content, default=str) if as_json else text)


__all__ = ["cli", "main", "say"]
