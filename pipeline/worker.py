"""A worker: loads the model once and turns tasks into committed data.

For every task: find the documents it needs, cut them into windows and micro-batches, run the
model's body, let the recorders take what is asked for, and leave writing, publishing and the commit
to the write-behind thread. Plain code in one process; engines only place it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from depthscope.storage.commits import Commit, CommitLog
from depthscope.storage.tasks import Selections, Task

from .clock import Clock
from .equipment import Equipment, WorkerSettings
from .task_run import TaskRun
from .write_behind import TaskFiles


def hardware(threads: int) -> dict[str, Any]:
    """What decides the last bit of a number: device kind, threads and libraries."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "threads": threads if device == "cpu" else 0,
        "capability": torch.backends.cpu.get_cpu_capability() if device == "cpu" else "",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _bytes_read() -> int:
    """Bytes that this process has read so far, from the page cache or below; 0 where unknown."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


class Worker:
    """Runs tasks, one at a time on a compute thread, while earlier ones are being written.

    Parameters
    ----------
    settings
        Where the store and the model are, and the limits.

    Raises
    ------
    RequestError
        The model cannot be loaded.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.clock = Clock()
        # All of torch's work stays on one thread, so that there is one team of intra-op threads.
        self._compute = ThreadPoolExecutor(
            1, "compute", initializer=torch.set_num_threads, initargs=(settings.threads,)
        )
        self.equipment = self._compute.submit(Equipment.load, settings, self.clock).result()
        self._log = CommitLog(settings.root)

    @property
    def selections(self) -> Selections:
        """The store's tasks."""
        return self.equipment.selections

    def run(self, task: Task) -> Commit | None:
        """Turn a task into committed data; blocks until the commit is on the disk.

        Returns
        -------
        Commit or None
            None when another attempt committed the task first.

        Raises
        ------
        PoisonedDocumentError, NonFiniteError
            A document fails, and documents that fail stop the run.
        OSError
            The store cannot be written.
        """
        return self._compute.submit(self._run, task).result().result()

    def progress(self) -> tuple[int, Mapping[str, float]]:
        """Rows through the model so far, and seconds by kind of work."""
        return self.equipment.rows_done, self.clock.seconds()

    def close(self) -> None:
        """Finish what is queued."""
        self._compute.shutdown()
        self.equipment.writer.close()

    def _run(self, task: Task) -> Future[Commit | None]:
        attempt = secrets.token_hex(4)
        files = TaskFiles.create(self.settings.root, task.index, attempt, self.clock)
        before, started, read = self.clock.seconds(), time.time(), _bytes_read()
        writer = self.equipment.writer
        try:
            with torch.inference_mode():
                run = TaskRun(self.equipment, task, files)
                run.go()
        except BaseException:
            # Behind what the task has queued already, so that nothing is written after it.
            writer.submit(files.abort)
            raise
        commit = Commit(
            task=task.index,
            points=(0, self.equipment.body.info.layers),
            rows=task.rows,
            shards=(),
            nonfinite=run.nonfinite,
            invalid_documents=tuple(sorted(run.invalid.items())),
            attempt=attempt,
            host=socket.gethostname(),
            pid=os.getpid(),
            hardware=hardware(self.settings.threads),
            rows_run=run.rows_run,
            bytes_read=_bytes_read() - read,
        )
        finish = partial(self._finish, commit, files, run, before, started)
        return writer.submit(finish)

    def _finish(
        self,
        commit: Commit,
        files: TaskFiles,
        run: TaskRun,
        before: Mapping[str, float],
        started: float,
    ) -> Commit | None:
        try:
            for future in run.written:
                future.result()
            run.write_numbers()
            shards = files.publish()
        except BaseException:
            files.abort()
            raise
        seconds = {k: round(v - before[k], 6) for k, v in self.clock.seconds().items()}
        times = {"started": started, "finished": time.time()}
        commit = replace(commit, shards=shards, timings={**seconds, **times})
        return commit if self._log.add(commit) else None
