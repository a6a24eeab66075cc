"""How much each benchmark runs: the whole thing in under 20 minutes of two cores, or a glance."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scale:
    """Sizes of all benchmarks.

    Attributes
    ----------
    rounds
        Samples of every number.
    contest_rows, task_rows
        Rows of one sample of extraction (a, b), and of its tasks: the one in the middle counts, the
        last may be small.
    writer_rows
        Rows of each of the four points that one sample writes (c).
    reader_rows
        Rows of the array of 31 points that is read (d).
    scattered
        Scattered rows (d).
    worker_rows
        Rows of one run on the cluster (e).
    memory_rows
        Rows of the smaller corpus (f).
    """

    rounds: int = 5
    contest_rows: int = 13312
    task_rows: int = 6144
    writer_rows: int = 65536
    reader_rows: int = 16384
    scattered: int = 1000
    worker_rows: int = 8960
    memory_rows: int = 2048


FULL = Scale()
QUICK = Scale(
    rounds=2,
    contest_rows=1280,
    task_rows=512,
    writer_rows=8192,
    reader_rows=2048,
    scattered=100,
    worker_rows=1792,
    memory_rows=512,
)


@dataclass(frozen=True)
class Setting:
    """What every benchmark is given.

    Attributes
    ----------
    scale
        Sizes.
    model
        Folder of the converted model.
    scratch
        An empty folder on the disk that is measured.
    threads
        Threads of every process that runs a model alone.
    peers_python
        The interpreter that has the peers installed.
    """

    scale: Scale
    model: Path
    scratch: Path
    peers_python: Path
    threads: int = len(os.sched_getaffinity(0))
