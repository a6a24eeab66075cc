"""Laying an intervention sweep out: documents, splits, tasks, budget; nothing is run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from depthscope.pipeline.branch_plan import make_change
from depthscope.pipeline.costs import ModelCosts
from depthscope.pipeline.interventions import PROGRAMS, Intervention, Rows, as_data
from depthscope.pipeline.memory import working_bytes
from depthscope.storage.effects import EffectsRecord
from depthscope.storage.errors import RequestError
from depthscope.storage.predicates import sample_documents, select_rows
from depthscope.storage.run_record import RunRecord
from depthscope.storage.sampling import sample_keys
from depthscope.storage.token_table import TokenTable

from .intervene_spec import InterveneSpec

SCOPES, KINDS, PARTS = ("all", "future"), ("propagated", "local"), ("layer", "attention", "mlp")
CASES = ("later", "earlier", "answer")
#: Splits of a document where nobody says.
SPLITS = 4


@dataclass(frozen=True)
class Budget:
    """What a worker may hold, and what the model takes of it.

    Attributes
    ----------
    memory
        Bytes for weights, branches and what a call needs.
    weights
        Bytes of the layers that are in memory at a time.
    """

    memory: int
    weights: int


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
    documents, lengths = _documents(root, spec)
    gradients = spec.what == "gradients"
    if gradients:
        scopes, kinds = (), ()
        _check_answer(root, spec, scopes)
    if erases or gradients:
        splits: list[list[int]] = [[] for _ in documents]
    else:
        splits = _splits(spec, scopes, documents, lengths)
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


def _documents(root: Path, spec: InterveneSpec) -> tuple[list[int], list[int]]:
    table = TokenTable(root)
    numbers, _, lengths = table.document_spans()
    long_enough = numbers[lengths >= 2]
    if not len(long_enough):
        raise RequestError(
            f"{root}: every document is shorter than two tokens, so nothing comes after anything: "
            "extract a corpus of longer documents"
        )
    count = min(spec.documents or len(long_enough), len(long_enough))
    if spec.first_documents or count == len(long_enough):
        chosen = long_enough[:count]
    else:
        chosen = np.sort(long_enough[sample_documents(len(long_enough), count, spec.seed)])
    return chosen.tolist(), lengths[chosen].tolist()


def _splits(
    spec: InterveneSpec, scopes: Sequence[str], documents: Sequence[int], lengths: Sequence[int]
) -> list[list[int]]:
    """Positions of every document's splits, filled up with -1 to the same number."""
    if spec.splits is not None and spec.splits_per_document is not None:
        raise RequestError("--splits and --splits-per-document: give one of them")
    if "future" not in scopes:
        return [[-1] for _ in documents]
    if spec.splits == "official":
        rows = [_official(spec.seed, d, n) for d, n in zip(documents, lengths, strict=True)]
    elif spec.splits is not None:
        rows = [_explicit(spec.splits, n) for n in lengths]
    else:
        count = spec.splits_per_document or SPLITS
        rows = [_drawn(spec.seed, d, n, count) for d, n in zip(documents, lengths, strict=True)]
    if all(split < 0 for row in rows for split in row):
        raise RequestError(
            f"--splits {spec.splits or 'drawn'}: no split lies inside a document (a split t needs "
            f"2 ≤ t < tokens; the longest document has {max(lengths)}): give smaller ones"
        )
    most = max(len(row) for row in rows)
    return [row + [-1] * (most - len(row)) for row in rows]


def _explicit(text: str, length: int) -> list[int]:
    try:
        asked = [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(
            f"--splits {text!r}: give positions such as 16,32,48, or official"
        ) from None
    if wrong := [split for split in asked if split < 2]:
        raise RequestError(
            f"--splits {wrong[0]}: a split t acts on positions 1 to t-1, so it is at least 2"
        )
    return [split if split < length else -1 for split in asked]


def _drawn(seed: int, document: int, length: int, count: int) -> list[int]:
    places = np.arange(2, length, dtype=np.int64)
    keys = sample_keys(places, seed + 7919 * (document + 1))
    return sorted(places[np.argsort(keys, kind="stable")[:count]].tolist())


def _official(seed: int, document: int, length: int) -> list[int]:
    """The paper's grid: 8, 16, … below T-4, shuffled, the first four (methods.md 1.3)."""
    grid = np.arange(8, length - 4, 8, dtype=np.int64)
    keys = sample_keys(grid, seed + 7919 * (document + 1))
    return sorted(grid[np.argsort(keys, kind="stable")[:4]].tolist())


def _tasks(
    costs: ModelCosts,
    budget: Budget,
    cases: int,
    lengths: Sequence[int],
    layers: int,
    batch_tokens: int,
) -> tuple[int, int]:
    """Documents and source layers of a task.

    A document's branches take two streams of ``cases · sources`` lines, what its layers add (for
    local effects) and, once per worker, what a call of ``batch_tokens`` needs.
    """
    longest = max(lengths)
    line = longest * costs.hidden * costs.itemsize
    fixed = budget.weights + working_bytes(
        batch_tokens, 2 * costs.hidden, costs.inner, max(4, costs.itemsize)
    )
    kept = 2 * layers * line
    room = budget.memory - fixed - kept
    one = 2 * (cases + 2) * line
    if room < one:
        raise RequestError(
            f"--memory {budget.memory / 1e9:.2f} GB is too little: one layer's branches need "
            f"{(fixed + kept + one) / 1e9:.2f} GB (weights {budget.weights / 1e9:.2f}); give that, "
            "or smaller --batch-tokens"
        )
    sources = min(layers, int(room // (2 * cases * line)))
    if sources < layers:
        return 1, max(1, sources)
    documents = int(room // (2 * (cases * layers + 2) * line + kept))
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
