"""What was run, in words, from a store's record and its commits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import xarray as xr
from depthscope.storage.commits import CommitLog
from depthscope.storage.run_record import RunRecord

from .report_page import FactGroup
from .store import Run

_SHOWN_DIGITS = 16

#: Models that the command line knows by another name.
BUILT_IN = {"demo": "SmolLM2-135M-Instruct"}


@dataclass(frozen=True)
class CommitCounts:
    """What the commits of a store say together.

    Attributes
    ----------
    nonfinite
        Non-finite values in all arrays.
    hardware
        Every kind of hardware that did a part, as text.
    hosts
        Number of machines.
    seconds
        Time spent on tasks, summed over workers.
    """

    nonfinite: int
    hardware: tuple[str, ...]
    hosts: int
    seconds: float

    @classmethod
    def of(cls, root: Path) -> CommitCounts:
        """Read every commit of a store."""
        nonfinite, seconds = 0, 0.0
        hardware: Counter[str] = Counter()
        hosts = set()
        for commit in CommitLog(root).commits():
            nonfinite += sum(commit.nonfinite.values())
            times = commit.timings
            seconds += max(times.get("finished", 0.0) - times.get("started", 0.0), 0.0)
            hosts.add(commit.host)
            if commit.hardware:
                hardware[_phrase(commit.hardware)] += 1
        return cls(nonfinite, tuple(sorted(hardware)), len(hosts), seconds)


def model_label(record: RunRecord) -> str:
    """A short name of the model: the last part of its hub name or folder."""
    name = str(record.model.get("name") or "model")
    if name in BUILT_IN:
        return BUILT_IN[name]
    return PurePath(name.replace("\\", "/")).name or name


def facts(run: Run, counts: CommitCounts) -> tuple[FactGroup, ...]:
    """Facts about the one store that a run shows, in groups."""
    snapshot = run.snapshots[0]
    record = snapshot.record
    return (
        FactGroup("Model", _model(record)),
        FactGroup("Corpus", _corpus(record)),
        FactGroup("Run", _run(run, counts)),
        FactGroup("Software and hardware", _surroundings(record, counts)),
    )


def notes(run: Run, counts: CommitCounts, results: Iterable[xr.Dataset | None]) -> tuple[str, ...]:
    """What a reader must know before trusting the numbers; empty where all is well."""
    snapshot = run.snapshots[0]
    record = snapshot.record
    found = []
    if len(snapshot.complete) < record.tasks:
        found.append(
            f"Only {len(snapshot.complete):,} of {record.tasks:,} tasks are committed: the figures "
            "show those. The same extract command resumes the run."
        )
    if snapshot.invalid:
        found.append(
            f"{len(snapshot.invalid):,} of {record.documents:,} documents failed; they are left "
            "out of every figure."
        )
    missing = max((int(r.attrs.get("nonfinite_values", 0)) for r in results if r is not None),
                  default=0)  # fmt: skip
    if counts.nonfinite or missing:
        found.append(
            f"The run met {counts.nonfinite:,} non-finite values; "
            f"{missing:,} of the measured ones are left out of the means."
        )
    return tuple(found)


def _model(record: RunRecord) -> tuple[tuple[str, str], ...]:
    model = record.model
    return _known(
        ("Name", model.get("name")),
        ("Architecture", model.get("architecture")),
        ("Layers", model.get("layers")),
        ("Hidden size", model.get("hidden")),
        ("Vocabulary", model.get("vocabulary")),
        ("Parameters", model.get("parameters")),
        ("dtype", model.get("dtype")),
        ("Attention", model.get("attention")),
        ("Experts", model.get("experts")),
        ("Quantisation", model.get("quantisation")),
        ("Weights", _digest(model.get("weights_digest"))),
        ("Tokenizer", _digest(model.get("tokenizer_digest"))),
    )


def _corpus(record: RunRecord) -> tuple[tuple[str, str], ...]:
    corpus = record.corpus
    sources = [str(source.get("path")) for source in corpus.get("sources", ())]
    more = f" and {len(sources) - 5} more" if len(sources) > 5 else ""
    return _known(
        ("Sources", ", ".join(sources[:5]) + more if sources else None),
        ("Documents", record.documents),
        ("Rows (tokens)", record.rows),
        ("Longest document", corpus.get("longest")),
        ("Exact duplicates", corpus.get("duplicates")),
        ("Truncated", corpus.get("truncated")),
        ("Skipped", corpus.get("skipped")),
        ("Digest", _digest(corpus.get("digest"))),
    )


def _run(run: Run, counts: CommitCounts) -> tuple[tuple[str, str], ...]:
    snapshot = run.snapshots[0]
    record = snapshot.record
    groups = record.groups
    fields = record.identity_fields
    return _known(
        ("Identity", _digest(record.identity)),
        ("Started", record.created[:16].replace("T", " ") + " UTC"),
        ("Tasks committed", f"{len(snapshot.complete):,} of {record.tasks:,}"),
        ("Points stored", len(record.points) if record.points else "none"),
        ("Rows with activations", groups["activations"].rows if "activations" in groups else 0),
        ("Rows with statistics", groups["statistics"].rows if "statistics" in groups else 0),
        ("Rows with lens values", groups["lens"].rows if "lens" in groups else 0),
        ("Stored as", fields.get("store_dtype")),
        ("Tokens in a batch", fields.get("batch_tokens")),
        ("Seed", fields.get("seed")),
        ("Rows run twice", record.rows_run_twice),
        ("Failed documents", len(snapshot.invalid)),
        ("Non-finite values", counts.nonfinite),
        ("Time in tasks", _duration(counts.seconds) if counts.seconds else None),
    )


def _surroundings(record: RunRecord, counts: CommitCounts) -> tuple[tuple[str, str], ...]:
    kinds = counts.hardware
    return _known(
        *sorted(record.software.items()),
        ("Machines", counts.hosts or None),
        *((f"Hardware {n}" if len(kinds) > 1 else "Hardware", k) for n, k in enumerate(kinds, 1)),
    )


def _known(*facts: tuple[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in facts
        if value is not None
    )


def _digest(value: Any) -> str | None:
    return str(value)[:_SHOWN_DIGITS] if value else None


def _phrase(hardware: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(hardware.items()))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
