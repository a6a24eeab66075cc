"""Laying an intervention sweep out: documents, splits, tasks, budget; nothing is run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

import torch
from depthscope.pipeline.branch_plan import make_change
from depthscope.pipeline.costs import ModelCosts
from depthscope.pipeline.interventions import as_data
from depthscope.pipeline.memory import working_bytes
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord

from .effects_axes import PER_TOKEN, Axes, choose_axes
from .intervene_spec import InterveneSpec

#: Of a request, what decides the numbers beside the axes.
_DECIDING = (
    "what",
    "where",
    "protect_first",
    "factor",
    "span",
    "also",
    "patch_document",
    "answer",
    "steps",
)


@dataclass(frozen=True)
class Budget:
    """What a worker may hold, and what the model takes of it.

    Attributes
    ----------
    memory
        Bytes for weights, branches and what a call needs.
    weights
        Bytes of the layers that are in memory at a time, and of the head: beside them where they
        stay, in their place in a sweep.
    units
        Documents, or groups of them, whose branches are in memory at a time.
    computing
        How many of these compute, which takes their streams twice; the others wait.
    """

    memory: int
    weights: int
    units: int = 1
    computing: int = 1


def plan_effects(
    root: Path, spec: InterveneSpec, record: RunRecord, costs: ModelCosts, budget: Budget
) -> EffectsRecord:
    """Everything about a sweep, settled.

    Raises
    ------
    RequestError
        A name is unknown, a layer does not exist, no split lies inside a document, documents are
        shorter than two tokens, or the budget holds not even one branch.
    """
    layers = int(record.model["layers"])
    axes = choose_axes(root, spec, layers)
    longest = max(axes.lengths)
    batch_tokens = spec.batch_tokens or (65536 if torch.cuda.is_available() else 8192)
    batch_tokens = max(batch_tokens, 3 * longest)
    request = spec.model_dump(mode="json") | {
        "protect_first": spec.protect_first == "yes",
        "patch_from": str(spec.patch_from or root) if spec.what == "patch" else None,
        "batch_tokens": batch_tokens,
    }
    places = layers + (spec.what == "erase")
    per_task = _tasks(costs, budget, axes.cases(spec.what), axes.lengths, places, batch_tokens)
    changes = []
    if spec.what not in PER_TOKEN:
        changes = [make_change(request, part, at) for part in axes.parts for at in axes.sources]
    return EffectsRecord(
        name=spec.name,
        identity_fields=_identity(request, record, axes),
        request=request,
        layers=layers,
        scopes=axes.scopes,
        kinds=axes.kinds,
        parts=axes.parts,
        documents=tuple(axes.documents),
        split_positions=tuple(tuple(row) for row in axes.splits),
        sources=tuple(axes.sources),
        documents_per_task=per_task[0],
        sources_per_task=per_task[1],
        positions=longest if spec.what in PER_TOKEN else 0,
        interventions=tuple(as_data(changes)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _identity(request: dict[str, Any], record: RunRecord, axes: Axes) -> dict[str, Any]:
    """Everything that decides the numbers."""
    return {name: request[name] for name in _DECIDING} | {
        "store_identity": record.identity,
        "dtype": record.model["dtype"],
        "scope": ",".join(axes.scopes),
        "kind": ",".join(axes.kinds),
        "part": ",".join(axes.parts),
        "sources": ",".join(map(str, axes.sources)),
        "documents": axes.documents,
        "splits": axes.splits,
        "patch_from": request["patch_from"],
        "batch_tokens": request["batch_tokens"],
    }


def _tasks(
    costs: ModelCosts,
    budget: Budget,
    cases: int,
    lengths: Sequence[int],
    layers: int,
    batch_tokens: int,
) -> tuple[int, int]:
    """Documents and source layers of a task.

    A document's branches take two streams of ``cases · sources`` lines where they compute, one
    where they wait, what its layers add (for local effects) and, once per document that computes,
    what a call of ``batch_tokens`` needs.
    """
    longest = max(lengths)
    line = longest * costs.hidden * costs.itemsize
    fixed = budget.weights + budget.computing * working_bytes(
        batch_tokens, 2 * costs.hidden, costs.inner, max(4, costs.itemsize)
    )
    streams = budget.units + budget.computing
    kept = 2 * budget.units * layers * line
    room = budget.memory - fixed - kept
    one = streams * (cases + 2) * line
    if room < one:
        least = ceil((fixed + kept + one) / 1e6) / 1e3
        raise RequestError(
            f"--memory {budget.memory / 1e9:.3f} GB is too little: one layer's branches need "
            f"{least:.3f} GB (weights and head {budget.weights / 1e9:.3f}); give that, or "
            "smaller --batch-tokens"
        )
    sources = min(layers, int(room // (streams * cases * line)))
    if sources < layers:
        return 1, max(1, sources)
    documents = int(room // (streams * (cases * layers + 2) * line + kept))
    # About eight tasks, so that workers share them and a resumed sweep has little to do again.
    return max(1, min(documents, -(-len(lengths) // 8))), layers


def describe(record: EffectsRecord) -> dict[str, Any]:
    """What a user wants to see before the work starts."""
    pairs = sum(split >= 0 for row in record.split_positions for split in row)
    dropped = sum(split < 0 for row in record.split_positions for split in row)
    return {
        "documents": len(record.documents),
        "splits": pairs,
        "splits_outside": dropped if "future" in record.scopes else 0,
        "tasks": record.tasks,
    }
