"""The documents of an intervention sweep's task, and the commit of what was found in them."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from depthscope.storage.commits import Commit
from depthscope.storage.effects import EffectsRecord, EffectsTask, effects_log
from depthscope.storage.effects_arrays import effects_plans, shard_index
from depthscope.storage.predicates import select_rows
from depthscope.storage.token_table import TokenTable
from numpy.typing import NDArray

from .equipment import Equipment
from .hardware import hardware
from .write_behind import TaskFiles


@dataclass(frozen=True)
class EffectsDocument:
    """A document of a task.

    Attributes
    ----------
    ids
        int64, its tokens.
    splits
        Its splits; -1 where there is none.
    answer
        bool (tokens,): positions that predict a token of the answer.
    """

    ids: torch.Tensor
    splits: tuple[int, ...]
    answer: torch.Tensor


def documents_of(
    equipment: Equipment, record: EffectsRecord, task: EffectsTask
) -> Sequence[EffectsDocument]:
    """The documents of a task, in order."""
    root = equipment.settings.root
    table = TokenTable(root)
    _, starts, lengths = table.document_spans()
    predicate = record.request.get("answer")
    answers = select_rows(root, str(predicate)) if predicate else None
    found = []
    for place in range(*task.rows):
        number = record.documents[place]
        first = int(starts[number])
        last = first + int(lengths[number])
        ids = table.token_ids(first, last).astype(np.int64)
        # The token before an answer's token is the one that predicts it.
        answer = torch.ones(last - first, dtype=torch.bool)
        answer[-1] = False
        if answers is not None:
            low, high = np.searchsorted(answers, (first + 1, last))
            answer[:] = False
            answer[torch.from_numpy(answers[low:high] - first - 1)] = True
        found.append(EffectsDocument(torch.from_numpy(ids), record.split_positions[place], answer))
    return found


def commit_effects(
    equipment: Equipment,
    record: EffectsRecord,
    task: EffectsTask,
    arrays: Mapping[str, NDArray[np.float32]],
    started: float,
) -> tuple[Commit, ...]:
    """Write, publish and commit a task's arrays; empty when another attempt was first."""
    root, attempt = equipment.settings.root, secrets.token_hex(4)
    files = TaskFiles.create(root, task.index, attempt, equipment.clock)
    try:
        for name, plan in effects_plans(record).items():
            files.write_shard(plan, shard_index(record, task, plan), arrays[name])
        shards = files.publish()
    except BaseException:
        files.abort()
        raise
    commit = Commit(
        task=task.index,
        points=(0, record.layers),
        rows=task.rows,
        shards=shards,
        attempt=attempt,
        host=socket.gethostname(),
        pid=os.getpid(),
        hardware=hardware(equipment.settings.threads),
        timings={"started": started, "finished": time.time()},
    )
    return (commit,) if effects_log(root, record.name).add(commit) else ()
