"""g. A model cut into two stages on two nodes: do both work at once, and what does the cut cost?"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cluster
import corpora
import ray
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.ray_gang import StageActor
from depthscope.jobs.ray_gang_pool import RayGangPool
from depthscope.pipeline.checkpoint import stored_tensors
from depthscope.storage.commits import Commit, CommitLog
from findings import Finding, Section
from ray.cluster_utils import Cluster
from scale import Setting

METHOD = (
    "A Ray cluster of two nodes on this machine, a stage of one thread on each; {rows:,} rows, all"
    " points in bfloat16, {batches} micro-batches of {tokens} tokens. Each stage writes down when"
    " it began and ended with every micro-batch. Overlap: time in which both worked, over the"
    " working time of the one that worked less. The ideal for M micro-batches and P stages is"
    " M + P − 1 times what the slower stage took for a micro-batch on average. Read: what the"
    " kernel counted for the stage's process since before its weights were loaded, over the bytes"
    " of its own tensors. Two resident workers of one thread, in turn with it, use the same two"
    " cores without a cut."
)

STAGES = 2
TASKS = 5
BATCH_TOKENS = 256

Span = tuple[float, float]


class TracedStageActor(StageActor):
    """A stage that writes down when it works."""

    def load(self, settings: Any, layers: tuple[int, int]) -> int:
        """Read the layers, and follow every device of the stage."""
        count = super().load(settings, layers)
        trace = settings.root.with_suffix(".spans") / f"{layers[0]}.jsonl"
        trace.parent.mkdir(exist_ok=True)
        for device in self._stage.devices:
            device._do = partial(_traced, device._do, trace)
        return count


def _traced(work: Any, trace: Path, step: Any) -> None:
    started = time.time()
    work(step)
    if step.kind == "run":
        with trace.open("a") as file:
            file.write(json.dumps((started, time.time())) + "\n")


@dataclass(frozen=True)
class StagedRun:
    """One finished extraction: working times by stage, and the commits."""

    spans: Sequence[Sequence[Span]]
    commits: Sequence[Commit]
    own_bytes: dict[tuple[int, int], int]

    @property
    def seconds(self) -> float:
        """From the first micro-batch's beginning to the last one's end."""
        return max(end for own in self.spans for _, end in own) - min(
            start for own in self.spans for start, _ in own
        )

    @property
    def rows(self) -> int:
        """Rows through the whole model."""
        return sum(commit.rows_run for commit in self.commits if commit.points[0] == 0)

    def overlap(self) -> float:
        """Share of the smaller stage's work during which the other worked."""
        one, other = self.spans
        both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in one for b in other)
        return both / min(sum(end - start for start, end in own) for own in self.spans)

    def over_ideal(self) -> float:
        """Tokens per second over those of M + P - 1 steps of the slower stage."""
        count = len(self.spans[0])
        slower = max(sum(end - start for start, end in own) / count for own in self.spans)
        return slower * (count + STAGES - 1) / self.seconds

    def balance(self) -> float:
        """Working time of the smaller stage over that of the larger one."""
        times = sorted(sum(end - start for start, end in own) for own in self.spans)
        return times[0] / times[-1]

    def read(self) -> list[float]:
        """Bytes read over bytes of the stage's own tensors, by stage."""
        total: dict[tuple[int, int], int] = defaultdict(int)
        for commit in self.commits:
            total[commit.points] += commit.bytes_read
        return [total[points] / own for points, own in self.own_bytes.items()]


def run(setting: Setting) -> Section:
    """Rounds of staged and of two resident workers, in changing order."""
    scale, scratch = setting.scale, setting.scratch
    chosen = corpora.choose(setting.model, scale.worker_rows, seed=3)
    corpus = corpora.write(scratch / "corpus.jsonl", chosen)
    task_rows = max(64, scale.worker_rows // TASKS // 64 * 64)
    staged: list[StagedRun] = []
    resident: list[float] = []
    for turn in range(scale.rounds):
        for kind in ("staged", "resident") if turn % 2 else ("resident", "staged"):
            out = scratch / kind
            if kind == "staged":
                staged.append(_staged(setting, corpus, out, task_rows))
            else:
                # Tasks small enough for each of two workers to have several.
                done = cluster.extract(
                    setting,
                    corpus,
                    out,
                    workers=STAGES,
                    threads=1,
                    task_rows=max(64, task_rows // 3 // 64 * 64),
                    batch_tokens=BATCH_TOKENS,
                )
                resident.append(done.steady_rate())
            cluster.remove(out)
    return _section(setting, staged, resident)


def _section(setting: Setting, staged: list[StagedRun], resident: list[float]) -> Section:
    count = len(staged[0].spans[0])
    rates = [done.rows / done.seconds for done in staged]
    findings = [
        Finding(
            "work of the smaller stage that was overlapped",
            [done.overlap() for done in staged],
            "×",
            "at least",
            0.85,
        ),
        Finding(
            f"tokens per second over the ideal of M = {count}, P = {STAGES}",
            [done.over_ideal() for done in staged],
            "×",
        ),
        Finding(
            f"M / (M + P − 1) for M = {count}, P = {STAGES}", [count / (count + STAGES - 1)], "×"
        ),
        Finding("working time of the smaller stage", [s.balance() for s in staged], "× larger's"),
        Finding("two stages", rates, "tokens/s"),
        Finding("two resident workers", resident, "tokens/s"),
        Finding(
            "two stages over two resident workers",
            [one / other for one, other in zip(rates, resident, strict=True)],
            "×",
        ),
    ]
    for number, (first, last) in enumerate(staged[0].own_bytes):
        findings.append(
            Finding(
                f"bytes read by the stage of points {first} to {last}, over its own",
                [done.read()[number] for done in staged],
                "×",
                "at most",
                1.05,
            )
        )
    return Section(
        "g",
        "Two stages on two nodes",
        METHOD.format(rows=staged[0].rows, batches=count, tokens=BATCH_TOKENS),
        findings,
        {"staged_tokens_per_second": rates, "resident_tokens_per_second": resident},
    )


def _staged(setting: Setting, corpus: Path, out: Path, task_rows: int) -> StagedRun:
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        spec = ExtractSpec(
            model=str(setting.model),
            data=(str(corpus),),
            out=out,
            dtype="bfloat16",
            statistics=False,
            lens_rows="none",
            task_rows=task_rows,
            batch_tokens=BATCH_TOKENS,
            threads=1,
            schedule="staged",
            address=nodes.address,
        )
        # Nodes look for modules where depthscope is installed, not here.
        ray.cloudpickle.register_pickle_by_value(_this_module())
        extract(spec, pool=partial(RayGangPool, actor=TracedStageActor))
    finally:
        ray.shutdown()
        nodes.shutdown()
    traces = sorted(out.with_suffix(".spans").glob("*.jsonl"), key=lambda path: int(path.stem))
    spans = [[json.loads(line) for line in path.read_text().splitlines()] for path in traces]
    for path in traces:
        path.unlink()
    commits = list(CommitLog(out).commits())
    ranges = sorted({commit.points for commit in commits})
    own = {points: _own_bytes(setting.model, points) for points in ranges}
    return StagedRun(spans, commits, own)


def _this_module() -> Any:
    import sys

    return sys.modules[__name__]


def _own_bytes(model: Path, points: tuple[int, int]) -> int:
    """Bytes of the tensors of the layers that bring these points forth."""
    layers = range(max(points[0] - 1, 0), points[1])
    return sum(
        tensor.bytes
        for name, tensor in stored_tensors(model).items()
        if any(f".layers.{layer}." in name for layer in layers)
        or ("embed_tokens" in name and points[0] == 0)
    )
