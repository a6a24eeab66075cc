"""One Slurm for the session, and an extraction that it shall run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from depthscope.jobs import ExtractSpec, extract
from depthscope.storage.verify import verify

from ..conftest import sentences, write_jsonl
from ..jobs.processes import data_bytes
from .slurm import Slurm, missing, slurm_cluster

#: The resources of a job here; the two nodes have four cores and little memory between them.
SMALL = ("--slurm", "--cpus-per-node", "2", "--object-store", "100MB")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A real Slurm of two nodes; skips where none can run, and says why."""
    if reason := missing():
        pytest.skip(f"no real Slurm can run here: {reason}")
    with slurm_cluster() as cluster:
        yield cluster


@dataclass(frozen=True)
class Study:
    """An extraction with a tiny model, and what it makes when nothing disturbs it."""

    slurm: Slurm
    options: dict[str, Any]
    undisturbed: dict[str, bytes]

    def command(self, store: Path) -> list[str]:
        """The words of the extraction."""
        words = ["extract", "--out", str(store)]
        for name, value in self.options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return words

    def submit(self, store: Path, *more: str, pause: float = 1) -> str:
        """Submit it to both nodes; Slurm's id of the job."""
        words = [*self.command(store), "--nodes", "2", *SMALL, *more]
        return self.slurm.submit(*words, pause=pause)

    def is_whole(self, store: Path) -> None:
        """The store is complete, sound, and the same as if nothing had happened."""
        found = verify(store)
        assert (found.state, found.problems) == ("complete", [])
        ours = data_bytes(store)
        assert ours.keys() == self.undisturbed.keys()
        assert [name for name in ours if ours[name] != self.undisturbed[name]] == []


@pytest.fixture(scope="session")
def study(slurm: Slurm, tiny_model: Path) -> Study:
    model = shutil.copytree(tiny_model, slurm.shared / "model")
    records: list[dict[str, object]] = [{"text": t} for t in sentences(80, seed=1)]
    corpus = write_jsonl(slurm.shared / "corpus.jsonl", records)
    options = {
        "model": str(model),
        "data": str(corpus),
        "task_rows": 128,
        "batch_tokens": 128,
        "threads": 1,
        "lens_rows": "9",
    }
    store = slurm.folder / "undisturbed"
    given = options | {"data": (str(corpus),), "out": store, "engine": "process"}
    extract(ExtractSpec(**given))
    return Study(slurm, options, data_bytes(store))
