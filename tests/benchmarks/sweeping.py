"""h. A sweep against a resident model, by rows; and a model four times as large as its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cluster
import corpora
import random_checkpoint
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.plan_build import build_plan
from depthscope.jobs.plan_spec import PlanSpec
from depthscope.pipeline.checkpoint import stored_tensors
from depthscope.storage.commits import Commit, CommitLog
from findings import Finding, Section
from scale import Setting

METHOD = (
    "All points in bfloat16, no statistics, no lens, one task, {threads} threads; tokens/s from the"
    " beginning of the first micro-batch to the last commit, so that the sweep's reading of the"
    " weights counts and the resident model's does not. Schedules take turns. T* is what `plan"
    " --measure` says, measured just before: the rows whose computing takes as long as reading the"
    " weights. Read: the kernel's count for the process (rchar) over the bytes of the layers and"
    " the embedding. The larger model is a random Llama of {large:.2f} GB in bfloat16 and {layers}"
    " layers over {rows:,} rows under `--memory {bound} MB`; its peak is RssAnon + RssShmem, looked"
    " up every {look:.0f} ms, less the peak of the same command over a model of a few kilobytes."
)

CURVE = (128, 512, 2048, 8192)
LARGE = {
    "vocab_size": 49152,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
TINY = LARGE | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LARGE_ROWS = 2048
#: The larger model's bytes over the bound.
TIMES = 4


def run(setting: Setting) -> Section:
    """The curve, then the larger model."""
    quick = setting.scale.rounds < 3
    curve = CURVE[:2] if quick else CURVE
    hiding = _hiding_rows(setting, curve[-1])
    rates, read = _curve(setting, curve)
    findings = _curve_findings(rates, read, hiding, curve)
    size = random_checkpoint.write(setting.scratch / "large", setting.model, **LARGE)
    bound = size // TIMES // 10**6
    rows = 128 if quick else LARGE_ROWS
    peaks, large = _bounded(setting, bound, rows)
    findings += _bounded_findings(peaks, large, bound)
    method = METHOD.format(
        threads=setting.threads,
        large=size / 1e9,
        layers=LARGE["num_hidden_layers"],
        rows=rows,
        bound=bound,
        look=cluster.LOOK * 1000,
    )
    raw = {"curve": rates, "T*": hiding, "peak_mebibytes": peaks, "large_tokens_per_second": large}
    return Section("h", "A sweep", method, findings, raw)


def _hiding_rows(setting: Setting, rows: int) -> float:
    request = {"model": str(setting.model), "dtype": "bfloat16", "tokens": rows}
    more = {"document_tokens": 128, "devices": "cpu", "cores": setting.threads, "measure": True}
    found = build_plan(PlanSpec(**request, **more, out=str(setting.scratch)))["sweep"].hiding_rows
    assert found is not None
    return float(found)


Rates = dict[int, dict[str, list[float]]]


def _curve(setting: Setting, curve: tuple[int, ...]) -> tuple[Rates, list[float]]:
    rates: Rates = {rows: {"sweep": [], "resident": []} for rows in curve}
    read: list[float] = []
    weights = sum(
        tensor.bytes for name, tensor in stored_tensors(setting.model).items() if "head" not in name
    )
    for rows in curve:
        chosen = corpora.choose(setting.model, rows, seed=4)
        corpus = corpora.write(setting.scratch / f"corpus-{rows}.jsonl", chosen)
        for turn in range(setting.scale.rounds):
            for kind in ("sweep", "resident") if turn % 2 else ("resident", "sweep"):
                commits = _extract(setting, corpus, kind)
                rates[rows][kind].append(cluster.whole_rate(commits))
                if kind == "sweep":
                    read.append(sum(commit.bytes_read for commit in commits) / weights)
    return rates, read


def _extract(setting: Setting, corpus: Path, schedule: str) -> list[Commit]:
    out = setting.scratch / "store"
    extract(
        ExtractSpec(
            model=str(setting.model),
            data=(str(corpus),),
            out=out,
            dtype="bfloat16",
            statistics=False,
            lens_rows="none",
            task_rows=16384,
            threads=setting.threads,
            engine="process",
            schedule=schedule,
        )
    )
    commits = list(CommitLog(out).commits())
    cluster.remove(out)
    return commits


def _curve_findings(
    rates: Rates, read: list[float], hiding: float, curve: tuple[int, ...]
) -> list[Finding]:
    findings = []
    for rows in curve:
        pairs = zip(rates[rows]["sweep"], rates[rows]["resident"], strict=True)
        ratio = [one / other for one, other in pairs]
        target = ("at least", 0.85) if rows == curve[-1] else ("", None)
        findings.append(Finding(f"sweep over resident, {rows:,} rows", ratio, "×", *target))  # type: ignore[arg-type]
    most = rates[curve[-1]]
    return [
        *findings,
        Finding("T* of the plan", [hiding], "rows"),
        Finding(f"sweep, {curve[-1]:,} rows", most["sweep"], "tokens/s"),
        Finding(f"resident, {curve[-1]:,} rows", most["resident"], "tokens/s"),
        Finding("weights read by a sweep, over their bytes", read, "×", "at most", 1.05),
    ]


def _bounded(
    setting: Setting, bound: int, rows: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Peaks of the bounded sweep and of the bare command, and tokens/s with and without a bound."""
    random_checkpoint.write(setting.scratch / "tiny", setting.model, **TINY)
    chosen = corpora.choose(setting.model, rows, seed=5)
    corpus = corpora.write(setting.scratch / "large.jsonl", chosen)
    runs = {
        "bare": ("tiny", {"schedule": "sweep", "memory": f"{bound}MB"}),
        "bounded": ("large", {"schedule": "sweep", "memory": f"{bound}MB"}),
        "unbounded": ("large", {"schedule": "resident"}),
    }
    peaks: dict[str, list[float]] = {kind: [] for kind in runs}
    rates: dict[str, list[float]] = {kind: [] for kind in runs}
    for turn in range(setting.scale.rounds):
        for kind in list(runs) if turn % 2 else list(runs)[::-1]:
            model, options = runs[kind]
            done = cluster.extract(
                replace(setting, model=setting.scratch / model),
                corpus,
                setting.scratch / "store",
                watch=True,
                engine="process",
                threads=setting.threads,
                batch_tokens=256,
                **options,
            )
            peaks[kind].append(done.worker_peak() / 1e6)
            rates[kind].append(cluster.whole_rate(done.commits))
            cluster.remove(setting.scratch / "store")
    return peaks, rates


def _bounded_findings(
    peaks: dict[str, list[float]], rates: dict[str, list[float]], bound: int
) -> list[Finding]:
    own = [a - b for a, b in zip(peaks["bounded"], peaks["bare"], strict=True)]
    return [
        Finding("peak of the bounded sweep, over its bound", [p / bound for p in own], "×",
                "at most", 1.0),
        Finding("the bare command's peak", peaks["bare"], "MB"),
        Finding("the resident model's peak, likewise less the bare one's",
                [a - b for a, b in zip(peaks["unbounded"], peaks["bare"], strict=True)], "MB"),
        Finding("bounded sweep over resident without a bound, tokens per second",
                [a / b for a, b in zip(rates["bounded"], rates["unbounded"], strict=True)], "×",
                "at least", 0.6),
        Finding("bounded sweep", rates["bounded"], "tokens/s"),
        Finding("resident without a bound", rates["unbounded"], "tokens/s"),
    ]  # fmt: skip
