"""From a sweep's request to its branches: which passes there are, where they act, what is measured.

Split t (0-based): scope ``future`` acts on positions 1..t-1 and measures at t and after it; scope
``all`` acts on and measures positions from 1 on. Position 0 takes part only where asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from depthscope.storage.effects import EffectsRecord, EffectsTask

from .interventions import OPERATIONS, PROGRAMS, Branch, Intervention, Program, Rows
from .local_effects import LocalCase


def masks(
    scope: str, split: int, length: int, protect_first: bool, where: Rows
) -> tuple[torch.Tensor, torch.Tensor]:
    """bool (length,) each: positions acted on, and measured."""
    places = torch.arange(length)
    spared = places >= (1 if protect_first else 0)
    if scope == "all":
        return spared & where.mask(length, length), spared.clone()
    return spared & (places < split) & where.mask(length, length), places >= split


def cases(
    record: EffectsRecord, length: int, splits: tuple[int, ...]
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Scope, split number, and masks of everything that is measured of a document."""
    request = record.request
    where = Rows.parse(str(request["where"]))
    protect = bool(request["protect_first"])
    for scope, name in enumerate(record.scopes):
        if name == "all":
            yield scope, 0, *masks(name, 0, length, protect, where)
            continue
        for number, split in enumerate(splits):
            if split >= 0:
                yield scope, number, *masks(name, split, length, protect, where)


def branches_of(
    record: EffectsRecord,
    task: EffectsTask,
    document: int,
    length: int,
    splits: tuple[int, ...],
) -> Iterator[Branch]:
    """The propagated branches of one document of a task."""
    if "propagated" not in record.kinds:
        return
    kind = record.kinds.index("propagated")
    also = tuple(Intervention.parse(text) for text in record.request["also"])
    for scope, number, acts, measures in cases(record, length, splits):
        for part, name in enumerate(record.parts):
            for source in range(*task.sources):
                if source in record.sources:
                    where = (scope, kind, part, number, source)
                    change = make_change(record.request, name, source)
                    if isinstance(change, Program):
                        yield Branch(document, where, acts, measures, program=change)
                    else:
                        yield Branch(document, where, acts, measures, (change, *also))


def erasures_of(
    record: EffectsRecord, task: EffectsTask, document: int, length: int, answer: torch.Tensor
) -> Iterator[Branch]:
    """The erasures of one document of a task: at every point, of every position asked for.

    Parameters
    ----------
    answer
        bool (length,): positions that predict the answer; all False where none is known.
    """
    request = record.request
    places = torch.arange(length)
    spared = places >= (1 if request["protect_first"] else 0)
    wanted = torch.nonzero(spared & Rows.parse(str(request["where"])).mask(length, length))[:, 0]
    for case, name in enumerate(record.scopes):
        for position in wanted.tolist():
            one = places == position
            acts = spared & (places < position) if name == "earlier" else one
            measures = answer & ~one if name == "answer" else places > position
            if not bool(acts.any()) or not bool(measures.any()):
                continue
            for point in range(*task.sources):
                if point in record.sources:
                    where = (case, point, position)
                    yield Branch(document, where, acts, measures, erases=point)


def make_change(request: Any, part: str, source: int) -> Intervention | Program:
    """The intervention, or layer program, of one part and source layer."""
    what = str(request["what"])
    if what in PROGRAMS:
        return Program(what, source, source + int(request["span"]))
    if what not in OPERATIONS:
        raise RuntimeError(f"{what} makes no branches of a sweep over layers")
    return Intervention(part, what, source, Rows(), float(request["factor"]))  # type: ignore[arg-type]


def local_cases(
    record: EffectsRecord,
    task: EffectsTask,
    document: int,
    length: int,
    splits: tuple[int, ...],
) -> list[LocalCase]:
    """The local effects of one document of a task."""
    if "local" not in record.kinds:
        return []
    kind = record.kinds.index("local")
    found = []
    for scope, number, acts, measures in cases(record, length, splits):
        for part, name in enumerate(record.parts):
            branches = tuple(
                Branch(document, (scope, kind, part, number, source), acts, measures)
                for source in range(*task.sources)
                if source in record.sources
            )
            found.append(LocalCase(document, name, branches))
    return found
