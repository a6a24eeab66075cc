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
from depthscope.pipeline.interventions import PROGRAMS, Intervention, Rows, as_data
from depthscope.pipeline.memory import working_bytes
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.errors import RequestError
from depthscope.storage.predicates import select_rows
from depthscope.storage.run_record import RunRecord

from .document_splits import choose_documents, choose_splits
from .intervene_spec import InterveneSpec

SCOPES, KINDS, PARTS = ("all", "future"), ("propagated", "local"), ("layer", "attention", "mlp")
CASES = ("later", "earlier", "answer")


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
    erases = spec.what == "erase"
    scopes = _known("--scope", spec.scope, SCOPES)
    if erases:
        scopes = _known("--case", spec.case, CASES)
        _check_answer(root, spec, scopes)
    kinds = _known("--kind", spec.kind, KINDS)
    parts = _known("--part", spec.part, PARTS)
    sources = _sources(spec, layers, parts, kinds)
    documents, lengths = choose_documents(root, spec)
    gradients = spec.what == "gradients"
    if gradients:
        scopes, kinds = (), ()
        _check_answer(root, spec, scopes)
    if erases or gradients:
        splits: list[list[int]] = [[] for _ in documents]
    else:
        splits = choose_splits(spec, scopes, documents, lengths)
    batch_tokens = spec.batch_tokens or (65536 if torch.cuda.is_available() else 8192)
    batch_tokens = max(batch_tokens, 3 * max(lengths))
    request = spec.model_dump(mode="json") | {
        "protect_first": spec.protect_first == "yes",
        "patch_from": str(spec.patch_from or root) if spec.what == "patch" else None,
        "batch_tokens": batch_tokens,
    }
    numbers = {
        key: request[key]
        for key in (
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
    }
    identity = numbers | {
        "store_identity": record.identity,
        "dtype": record.model["dtype"],
        "scope": ",".join(scopes),
        "kind": ",".join(kinds),
        "part": ",".join(parts),
        "sources": ",".join(map(str, sources)),
        "documents": documents,
        "splits": splits,
        "patch_from": request["patch_from"],
        "batch_tokens": batch_tokens,
    }
    cases = len(parts) * (("all" in scopes) + ("future" in scopes) * len(splits[0]))
    changes = []
    if erases:
        cases = len(scopes) * max(lengths)
    elif gradients:
        cases = len(parts)
    else:
        changes = [make_change(request, part, source) for part in parts for source in sources]
    per_task = _tasks(costs, budget, cases, lengths, layers + erases, batch_tokens)
    return EffectsRecord(
        name=spec.name,
        identity_fields=identity,
        request=request,
        layers=layers,
        scopes=scopes,
        kinds=kinds,
        parts=parts,
        documents=tuple(documents),
        split_positions=tuple(tuple(row) for row in splits),
        sources=tuple(sources),
        documents_per_task=per_task[0],
        sources_per_task=per_task[1],
        positions=max(lengths) if erases or gradients else 0,
        interventions=tuple(as_data(changes)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _known(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise RequestError(f"{option}: {unknown[0]!r} is unknown; give {', '.join(known)}")
    if not names:
        raise RequestError(f"{option} is empty; give {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _check_answer(root: Path, spec: InterveneSpec, cases: Sequence[str]) -> None:
    if "answer" in cases and spec.answer is None:
        raise RequestError("--case answer: say which tokens are the answer with --answer PREDICATE")
    if spec.answer is not None and not len(select_rows(root, spec.answer)):
        raise RequestError(f"--answer {spec.answer!r} selects no token of this corpus")


def _sources(
    spec: InterveneSpec, layers: int, parts: Sequence[str], kinds: Sequence[str]
) -> list[int]:
    for text in spec.also:
        Intervention.parse(text).check(layers)
    Rows.parse(spec.where)
    if "local" in kinds and spec.what not in ("skip", "zero"):
        raise RequestError(f"--kind local takes a contribution away: it has no {spec.what}")
    if spec.what == "erase":
        last = layers
    elif spec.what in PROGRAMS:
        if tuple(parts) != ("layer",):
            raise RequestError(f"--what {spec.what} orders layers: give --part layer")
        if not 1 <= spec.span <= layers:
            raise RequestError(f"--span {spec.span}: this model has {layers} layers")
        last = layers - spec.span
    else:
        last = layers - 1
    if spec.layers == "all":
        return list(range(last + 1))
    try:
        chosen = sorted({int(part) for part in spec.layers.split(",")})
    except ValueError:
        raise RequestError(
            f"--layers {spec.layers!r}: give all, or numbers such as 0,5,7"
        ) from None
    for layer in chosen:
        if not 0 <= layer <= last:
            raise RequestError(
                f"--layers {layer} does not exist: this model has layers 0 to {layers - 1}"
                + (
                    f", and a span of {spec.span} begins at {last} at most"
                    if last < layers - 1
                    else ""
                )
            )
    return chosen


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
