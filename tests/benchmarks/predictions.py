"""j. What `plan --measure` says a run takes, against what it takes."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import corpora
import random_checkpoint
from depthscope.jobs.plan_build import build_plan
from depthscope.jobs.plan_spec import PlanSpec
from depthscope.jobs.prepare import prepare
from depthscope.jobs.spec import ExtractSpec
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.schedules import TaskWorker, make_worker
from depthscope.storage.run_record import RunRecord
from findings import Finding, Section
from scale import Setting

METHOD = (
    "Three Llamas of random weights in bfloat16; all points and statistics. `plan --measure` runs"
    " once per model and number of threads, then every schedule {rounds} times over the same rows,"
    " in turns, after one run that does not count; a line is |predicted ÷ median of the measured −"
    " 1| in tokens/s, start-up apart. Resident and sweep have {threads} threads; staged is planned"
    " as two nodes of half the threads each and runs as two stages of this process, so that both"
    " share what two nodes would each have."
)

SHAPES = {
    "29 M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
                 "num_attention_heads": 6, "num_key_value_heads": 2},
    "135 M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                  "num_attention_heads": 9, "num_key_value_heads": 3},
    "453 M": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 8,
                  "num_attention_heads": 12, "num_key_value_heads": 2},
}  # fmt: skip
COMMON = {"vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True}
ROWS = {"29 M": 16384, "135 M": 6144, "453 M": 4096}
TASKS = 4


@dataclass(frozen=True)
class Contestant:
    """A schedule over a store that has been laid out; its worker is loaded already."""

    root: Path
    record: RunRecord
    worker: TaskWorker
    together: int

    def rate(self) -> float:
        """Tokens per second of one run; what it wrote is removed again."""
        tasks = list(self.worker.selections.tasks())  # type: ignore[attr-defined]
        start = time.perf_counter()
        with ThreadPoolExecutor(self.together) as pool:
            list(pool.map(self.worker.run, tasks))
        seconds = time.perf_counter() - start
        for name in ("commits", "carried"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for shards in self.root.glob("*.zarr/*/c"):
            if shards.parent.name not in ("point", "layer", "row"):
                shutil.rmtree(shards)
        return self.record.rows / seconds


def run(setting: Setting) -> Section:
    """Every model with every schedule."""
    rounds = setting.scale.rounds
    findings, raw = [], {}
    for name, shape in SHAPES.items():
        folder = setting.scratch / name.replace(" ", "-")
        random_checkpoint.write(folder / "model", setting.model, **COMMON, **shape)
        rows = ROWS[name] // (1 if rounds > 2 else 8)
        predicted, measured = _one_model(setting, folder, rows, rounds)
        for schedule, rate in predicted.items():
            off = abs(rate / median(measured[schedule]) - 1)
            title = f"{name}, {schedule}: off by"
            findings.append(Finding(title, [off], "×", "at most", 0.25))
            findings.append(Finding(f"{name}, {schedule}: predicted", [rate], "tokens/s"))
            findings.append(
                Finding(f"{name}, {schedule}: measured", measured[schedule], "tokens/s")
            )
        raw[name] = {"predicted": predicted, "measured": measured}
        shutil.rmtree(folder)
    method = METHOD.format(rounds=rounds, threads=setting.threads)
    return Section("j", "Predictions of the plan", method, findings, raw)


def _one_model(
    setting: Setting, folder: Path, rows: int, rounds: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    chosen = corpora.choose(folder / "model", rows, seed=7)
    corpus = corpora.write(folder / "corpus.jsonl", chosen)
    request: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": (str(corpus),),
        "lens_rows": "none",
        "dtype": "bfloat16",
        "task_rows": max(256, rows // TASKS // 256 * 256),
        "codec": "none",
    }
    half = max(1, setting.threads // 2)
    contestants = {
        "resident": _contestant(folder, request, "resident", setting.threads),
        "sweep": _contestant(folder, request, "sweep", setting.threads),
        "staged": _contestant(folder, request, "staged", half),
    }
    for one in contestants.values():
        one.rate()
    whole = _plan(request, setting.threads, 1, folder)
    halves = _plan(request, half, 2, folder)
    plans = {"resident": whole, "sweep": whole, "staged": halves}
    predicted = {}
    for name, found in plans.items():
        one = found[name]
        predicted[name] = contestants[name].record.rows / (one.seconds - one.start_seconds)
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in list(contestants) if turn % 2 else list(contestants)[::-1]:
            measured[name].append(contestants[name].rate())
    for one in contestants.values():
        one.worker.close()
    return predicted, measured


def _plan(request: dict[str, Any], threads: int, nodes: int, folder: Path) -> Any:
    return build_plan(
        PlanSpec(
            **request, devices="cpu", cores=threads, nodes=nodes, measure=True, out=str(folder)
        )
    )


def _contestant(folder: Path, request: dict[str, Any], schedule: str, threads: int) -> Contestant:
    root = folder / schedule
    record, _ = prepare(ExtractSpec(**request, out=root, engine="process", threads=threads))
    together = record.tasks if schedule == "sweep" else 2
    settings = WorkerSettings(
        root=root,
        folder=folder / "model",
        threads=threads,
        schedule=schedule,
        tasks_at_once=together,
        stages=2 if schedule == "staged" else 1,
    )
    return Contestant(root, record, make_worker(settings), together)
