"""A sweep that is killed at any instant: the same command ends it, with the same bytes."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

from depthscope.jobs import ExtractSpec, InterveneSpec, extract, intervene
from depthscope.storage.status import status
from depthscope.storage.verify import verify

from ..conftest import sentences, write_jsonl
from .processes import CONTEXT

KILLS = 4
OPTIONS: dict[str, Any] = {"name": "skip", "engine": "process", "threads": 1, "seed": 4}


def test_killed_again_and_again(tiny_model: Path, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"text": t} for t in sentences(16, seed=5, longest=30)]
    data = (str(write_jsonl(tmp_path / "corpus.jsonl", records)),)
    run = {"engine": "process", "threads": 1, "points": "none", "lens_rows": "none"}
    root, other = tmp_path / "store", tmp_path / "other"
    extract(ExtractSpec(model=str(tiny_model), data=data, out=root, **run))
    shutil.copytree(root, other)
    tasks = intervene(other, InterveneSpec(**OPTIONS)).tasks
    assert tasks == 8
    draw, seen = random.Random(7), {0}
    for kill in range(KILLS):
        process = CONTEXT.Process(target=_sweep, args=(root, 0.01))
        process.start()
        # The first kill falls into the laying out, the others behind a commit of their own.
        while process.is_alive() and not _reached(root, max(seen) + 1 if kill else 0):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        seen.add(_committed(root))
    assert len(seen) > 2
    done = intervene(root, InterveneSpec(**OPTIONS))
    assert max(seen) + done.committed == tasks
    assert verify(root).problems == []
    assert _arrays(root) == _arrays(other)


def test_tasks_that_wait_do_not_hold_a_stop_up(tiny_model: Path, tmp_path: Path) -> None:
    """One task runs and another waits for the worker when the signal comes."""
    records: list[dict[str, object]] = [{"text": t} for t in sentences(16, seed=5, longest=30)]
    data = (str(write_jsonl(tmp_path / "corpus.jsonl", records)),)
    run = {"engine": "process", "threads": 1, "points": "none", "lens_rows": "none"}
    extract(ExtractSpec(model=str(tiny_model), data=data, out=tmp_path / "store", **run))
    process = CONTEXT.Process(target=_sweep, args=(tmp_path / "store", 0.3))
    process.start()
    while process.is_alive() and not _reached(tmp_path / "store", 1):
        time.sleep(0.01)
    process.terminate()
    process.join(60)
    stuck = process.is_alive()
    process.kill()
    assert not stuck
    assert status(tmp_path / "store").effects["skip"].tasks_committed < 8


def _committed(root: Path) -> int:
    sweeps = status(root).effects
    return sweeps["skip"].tasks_committed if sweeps else 0


def _reached(root: Path, tasks: int) -> bool:
    return (root / "effects").exists() if not tasks else _committed(root) >= tasks


def _sweep(root: Path, pause: float) -> None:
    from depthscope.pipeline.forked_group import ForkedGroup

    run_layer = ForkedGroup.run_layer

    def slowed(self: ForkedGroup, *rest: Any) -> None:
        time.sleep(pause)
        run_layer(self, *rest)

    ForkedGroup.run_layer = slowed  # type: ignore[method-assign]
    intervene(root, InterveneSpec(**OPTIONS))


def _arrays(root: Path) -> dict[str, bytes]:
    """Every byte of the sweep's arrays; what depends on paths and times stands in JSON."""
    folder = root / "effects" / "skip.zarr"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".json"
    }
