"""Every path and file name of a store, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Version of the store's format; readers refuse a larger one.
FORMAT = 1

#: The three groups of arrays, each with a ``row`` coordinate of its own.
ACTIVATIONS, STATISTICS, LENS = "activations.zarr", "statistics.zarr", "statistics.zarr/lens"


@dataclass(frozen=True)
class StorePaths:
    """Where everything of one store lies.

    Attributes
    ----------
    root
        The store's folder.
    """

    root: Path

    @property
    def run(self) -> Path:
        """The run's record; its presence says that the store has been laid out."""
        return self.root / "run.json"

    @property
    def head(self) -> Path:
        """Final norm, unembedding and bias."""
        return self.root / "head.safetensors"

    @property
    def head_config(self) -> Path:
        """Norm kind, epsilon and soft cap."""
        return self.root / "head.json"

    @property
    def documents(self) -> Path:
        """One row per document."""
        return self.root / "documents.parquet"

    @property
    def tokens(self) -> Path:
        """One row per token."""
        return self.root / "tokens.parquet"

    @property
    def activations(self) -> Path:
        """Residual stream and what sublayers add to it."""
        return self.root / ACTIVATIONS

    @property
    def statistics(self) -> Path:
        """Per-token numbers from the worker."""
        return self.root / STATISTICS

    @property
    def lens(self) -> Path:
        """Logit-lens values of the rows chosen for them."""
        return self.root / LENS

    @property
    def commits(self) -> Path:
        """One folder per task that has committed anything."""
        return self.root / "commits"

    @property
    def partial(self) -> Path:
        """Files that attempts are still writing; nothing in it is ever read."""
        return self.root / "partial"

    @property
    def carried(self) -> Path:
        """What an unfinished sweep carries from point to point, by task; empty in a whole store."""
        return self.root / "carried"

    @property
    def failures(self) -> Path:
        """One JSON line per failed attempt at a task, kept for the reader."""
        return self.root / "failures.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the one driver that may hand out tasks."""
        return self.root / "driver.lock"

    def analysis(self, name: str) -> Path:
        """The result called ``name``."""
        return self.root / "analysis" / f"{name}.zarr"

    def effects(self, name: str) -> Path:
        """The intervention sweep called ``name``."""
        return self.root / "effects" / f"{name}.zarr"

    def task(self, task: int) -> Path:
        """The folder of a task's commits."""
        return self.commits / f"{task:06d}"

    def commit(self, task: int, first_point: int, last_point: int) -> Path:
        """The commit of a task for a range of points, both ends included."""
        return self.task(task) / f"{first_point}-{last_point}.json"

    def attempt(self, task: int, attempt: str) -> Path:
        """The folder in which one attempt at a task writes."""
        return self.partial / f"{task:06d}-{attempt}"
