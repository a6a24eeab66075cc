"""Extractions that a test may kill: processes forked from a server that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from depthscope.storage.verify import verify

from ..conftest import sentences, write_jsonl

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["depthscope.jobs.extraction", "transformers.models.llama"])

#: Exit code of a request that was refused.
REFUSED = 2


def start(options: dict[str, Any], pause: float = 0.0) -> ForkServerProcess:
    """Start an extraction; ``pause`` seconds are slept before every pass, or layer of a sweep."""
    process = CONTEXT.Process(target=_extract, args=(options, pause))
    process.start()
    return process


def start_tasks(root: Path, folder: Path, tasks: list[int], pause: float) -> ForkServerProcess:
    """Start a bare worker that runs these tasks, whatever the commits say."""
    process = CONTEXT.Process(target=_run_tasks, args=(root, folder, tasks, pause))
    process.start()
    return process


def data_bytes(store: Path) -> dict[str, bytes]:
    """Every data byte of a store: arrays, tables and head."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
        and not {"commits", "partial", "analysis"} & set(path.relative_to(store).parts)
        and path.name not in {"run.json", "driver.lock", "failures.jsonl"}
    }


def request(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Options of an extraction of 80 documents in this process, made in a folder of its own."""
    records: list[dict[str, object]] = [{"text": text} for text in sentences(80, seed=1)]
    return {
        "model": str(model),
        "data": (str(write_jsonl(folder / "corpus.jsonl", records)),),
        "engine": "process",
        "batch_tokens": 128,
        "threads": 1,
        "sublayers": True,
        "lens_rows": "9",
        **changes,
    }


def check_same(store: Path, expected: dict[str, bytes]) -> None:
    """The store is complete and sound, and every data byte is as expected."""
    status = verify(store)
    assert (status.state, status.problems) == ("complete", [])
    ours = data_bytes(store)
    assert ours.keys() == expected.keys()
    assert [name for name in ours if ours[name] != expected[name]] == []


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not come true in {seconds} s")
        time.sleep(0.002)


def _slow_down(pause: float) -> None:
    from depthscope.pipeline.layer_stack import LayerStack
    from depthscope.pipeline.model import Body

    for kind in (Body, LayerStack):
        kind.run = _after_a_pause(kind.run, pause)  # type: ignore[attr-defined]


def _after_a_pause(plain: Any, pause: float) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        time.sleep(pause)
        return plain(*args, **kwargs)

    return run


def _extract(options: dict[str, Any], pause: float) -> None:
    from depthscope.jobs import ExtractSpec, extract
    from depthscope.storage.errors import RequestError

    _slow_down(pause)
    try:
        extract(ExtractSpec(**options))
    except RequestError:
        os._exit(REFUSED)


def _run_tasks(root: Path, folder: Path, tasks: list[int], pause: float) -> None:
    from depthscope.pipeline.equipment import WorkerSettings
    from depthscope.pipeline.worker import Worker

    _slow_down(pause)
    worker = Worker(WorkerSettings(root, folder, threads=1))
    for task in tasks:
        worker.run(worker.selections.task(task))
    worker.close()
