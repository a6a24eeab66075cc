"""Runs of the real command on Ray's workers, and what its commits and processes tell."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from depthscope.storage.commits import Commit, CommitLog
from findings import BenchmarkFailed
from scale import Setting

#: Seconds between two looks at the memory of the processes.
LOOK = 0.05


@dataclass(frozen=True)
class ClusterRun:
    """One finished extraction.

    Attributes
    ----------
    commits
        In the order of their end.
    launched, seconds
        When the command was started, and how long it took.
    peaks
        Largest RssAnon + RssShmem in bytes, by process id; only where memory was watched.
    """

    commits: Sequence[Commit]
    launched: float
    seconds: float
    peaks: dict[int, int]

    @property
    def startup_seconds(self) -> float:
        """From the command to the first task."""
        return min(float(commit.timings["started"]) for commit in self.commits) - self.launched

    def steady_rate(self) -> float:
        """Tokens per second while every worker works.

        The window begins when the last worker has made its first commit and ends with the last
        commit of the worker that ends first; a task counts by the share of it that lies inside,
        between its worker's commit before and its own.
        """
        by_worker: dict[int, list[Commit]] = defaultdict(list)
        for commit in self.commits:
            by_worker[commit.pid].append(commit)
        ends = {
            pid: [float(commit.timings["finished"]) for commit in commits]
            for pid, commits in by_worker.items()
        }
        begin, end = max(e[0] for e in ends.values()), min(e[-1] for e in ends.values())
        if end <= begin:
            raise BenchmarkFailed("too few tasks for a steady state: give more rows")
        tokens = 0.0
        for pid, commits in by_worker.items():
            times = ends[pid]
            for before, after, commit in zip(times, times[1:], commits[1:], strict=False):
                inside = min(after, end) - max(before, begin)
                tokens += commit.rows_run * max(0.0, inside) / (after - before)
        return tokens / (end - begin)

    def worker_peak(self) -> int:
        """Largest peak of a process that committed a task."""
        return max(self.peaks[pid] for pid in {commit.pid for commit in self.commits})


def whole_rate(commits: Sequence[Commit]) -> float:
    """Tokens per second from the beginning of the first micro-batch to the last commit."""
    started = min(float(commit.timings["started"]) for commit in commits)
    finished = max(float(commit.timings["finished"]) for commit in commits)
    rows = sum(commit.rows_run for commit in commits if commit.points[0] == 0)
    return rows / (finished - started)


def extract(
    setting: Setting, corpus: Path, out: Path, *, watch: bool = False, **options: object
) -> ClusterRun:
    """Run ``depthscope extract`` over all points, without lens, in a process of its own."""
    given = {"model": setting.model, "data": corpus, "out": out, "dtype": "bfloat16"}
    given |= {"engine": "ray", "lens_rows": "none", **options}
    command = [sys.executable, "-m", "depthscope.jobs", "extract", "--no-statistics", "--quiet"]
    for name, value in given.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    launched, start = time.time(), time.perf_counter()
    log = out.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peaks = _watch(process) if watch else {}
        code = process.wait()
    seconds = time.perf_counter() - start
    if code != 0:
        raise BenchmarkFailed(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-2000:]}")
    commits = sorted(CommitLog(out).commits(), key=lambda commit: float(commit.timings["finished"]))
    return ClusterRun(commits, launched, seconds, peaks)


def _watch(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Peaks of all processes below the command, until it ends."""
    peaks: dict[int, int] = defaultdict(int)
    root = psutil.Process(process.pid)
    pids: set[int] = set()
    looks = 0
    while process.poll() is None:
        if looks % 10 == 0:
            try:
                pids = {process.pid, *(child.pid for child in root.children(recursive=True))}
            except psutil.NoSuchProcess:
                break
        looks += 1
        for pid in pids:
            peaks[pid] = max(peaks[pid], _resident(pid))
        time.sleep(LOOK)
    return dict(peaks)


def _resident(pid: int) -> int:
    """RssAnon + RssShmem of a process in bytes, 0 when it is gone: files it maps do not count."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    return sum(kilobytes) << 10


def remove(out: Path) -> None:
    """Remove a store, and wait until the disk is at rest."""
    subprocess.run(["rm", "-rf", str(out)], check=True)
    os.sync()
