"""Whatever dies, at whatever instant: the same command makes the same store, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from depthscope.jobs import ExtractSpec, extract
from depthscope.storage.verify import verify

from .processes import REFUSED, check_same, data_bytes, request, start, start_tasks, wait_for

SEED = 20250513
KILLS_IN_PROCESS = 24
KILLS_ON_RAY = 6
PAUSE = 0.01


@pytest.fixture(scope="module")
def options(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kill")
    return request(tiny_model, folder, out=folder / "undisturbed", task_rows=256)


@pytest.fixture(scope="module")
def undisturbed(options: dict[str, Any]) -> dict[str, bytes]:
    extract(ExtractSpec(**options))
    return data_bytes(options["out"])


def finished(store: Path, undisturbed: dict[str, bytes]) -> None:
    """The store is the same as if nothing had happened, and nothing stands beside it."""
    check_same(store, undisturbed)
    assert not [path for path in store.parent.iterdir() if "preparing" in path.name]


@pytest.mark.timeout(900)
def test_killed_in_process(
    options: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    began = time.monotonic()
    whole = start(options | {"out": tmp_path / "timed"}, PAUSE)
    whole.join()
    length = time.monotonic() - began
    kills = finishes = 0
    while kills < KILLS_IN_PROCESS:
        store = tmp_path / f"store-{finishes}"
        while True:
            process = start(options | {"out": store}, PAUSE)
            process.join(draw.uniform(0, 1.1 * length))
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            kills += 1
            if kills == KILLS_IN_PROCESS:
                extract(ExtractSpec(**(options | {"out": store})))
                break
        # What a killed preparation leaves is its own folder beside the store, never a part of it.
        for folder in tmp_path.glob(f".{store.name}.preparing-*"):
            assert not (store.parent / folder.name / "commits").exists()
            _remove(folder)
        finished(store, undisturbed)
        finishes += 1


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def workers() -> list[psutil.Process]:
    """Actors that run our worker on the clusters of this session; others may test beside it."""
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid in own
        and any("ray::WorkerActor" in part for part in process.info["cmdline"] or [])
    ]


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_killed_on_ray(
    options: dict[str, Any], undisturbed: dict[str, bytes], ray_cluster: str, tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    store = tmp_path / "store"
    ray_options = options | {
        "out": store,
        "engine": "ray",
        "address": ray_cluster,
        "workers": 2,
    }
    for kill in range(KILLS_ON_RAY):
        process = start(ray_options)
        wait_for(lambda p=process: p.exitcode is not None or len(workers()) == 2, 120)
        victim = draw.choice(["worker", "driver"])
        time.sleep(draw.uniform(0, 8))
        if process.exitcode is None and victim == "driver":
            process.kill()
            process.join()
        elif process.exitcode is None:
            for worker in workers()[:1]:
                worker.kill()
            process.join(180)
            assert process.exitcode == 0, (
                f"kill {kill}: the run did not survive its worker, {process.exitcode}"
            )
        if process.exitcode == 0:
            finished(store, undisturbed)
            store = tmp_path / f"store-{kill}"
            ray_options["out"] = store
        wait_for(lambda: not workers(), 60)
    extract(ExtractSpec(**ray_options))
    finished(store, undisturbed)


def test_a_worker_that_wakes_up_late_harms_nothing(
    options: dict[str, Any],
    undisturbed: dict[str, bytes],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    begin = start(options | {"out": store}, 0.2)
    wait_for(lambda: any((store / "partial").glob("*")))
    begin.kill()
    begin.join()
    open_task = next(k for k in range(100) if not (store / "commits" / f"{k:06d}").exists())
    sleeper = start_tasks(store, tiny_model, [open_task], pause=0.1)
    assert sleeper.pid is not None
    wait_for(lambda: any((store / "partial").glob(f"{open_task:06d}-*/*")))
    os.kill(sleeper.pid, signal.SIGSTOP)
    # The sleeper holds unfinished files; the task is done by somebody else meanwhile.
    other = start_tasks(store, tiny_model, [open_task], pause=0.0)
    other.join(60)
    assert other.exitcode == 0
    commits = {p: p.read_bytes() for p in (store / "commits").rglob("*.json")}
    assert (store / "commits" / f"{open_task:06d}").exists()
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(60)
    assert sleeper.exitcode == 0
    assert {p: p.read_bytes() for p in (store / "commits").rglob("*.json")} == commits
    extract(ExtractSpec(**(options | {"out": store})))
    finished(store, undisturbed)


def test_two_runs_at_once(
    options: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    both = [start(options | {"out": store}, PAUSE) for _ in range(2)]
    for process in both:
        process.join(120)
    codes = sorted(process.exitcode for process in both if process.exitcode is not None)
    assert codes in ([0, 0], [0, REFUSED])
    finished(store, undisturbed)


def test_a_signal_stops_between_tasks_and_can_be_resumed(
    options: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    process = start(options | {"out": store}, 0.05)
    wait_for(lambda: any((store / "commits").glob("*/*.json")))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 1
    assert verify(store).problems == []
    assert verify(store).state == "incomplete"
    extract(ExtractSpec(**(options | {"out": store})))
    finished(store, undisturbed)
