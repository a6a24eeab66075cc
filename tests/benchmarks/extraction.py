"""a. Extraction of all points to disk, over a bare forward pass of the same batches."""

from __future__ import annotations

import os
from statistics import mean

import corpora
from findings import Finding, Section
from our_run import BareModel, OurRun, Sample
from scale import Setting

METHOD = (
    "{rows:,} rows of {documents} documents in {tasks} tasks, bfloat16, {threads} threads. In one"
    " process a bare forward pass (decoder without head, no KV cache) and an extraction of all"
    " points to disk take turns over the same batches; each extraction is divided by the mean of"
    " the bare passes before and after it. Steady state: from the first commit to the last but"
    " one, so that every task that counts was computed while another was written, and the bare pass"
    " runs the batches of just those; every shard is checksummed, digested, flushed and committed"
    " in that time."
)

#: What each variant stores beside all points.
VARIANTS = {
    "plain": {},
    "statistics": {"statistics": True},
    "lens": {"lens_rows": "document % 16 = 0"},
}


def run(setting: Setting) -> Section:
    """Rounds of bare, plain, bare, statistics, bare, lens, bare."""
    scale, scratch = setting.scale, setting.scratch
    chosen = corpora.choose(setting.model, scale.contest_rows)
    corpus = corpora.write(scratch / "corpus.jsonl", chosen)
    runs = {
        name: OurRun(setting, corpus, scratch / name, **options)
        for name, options in VARIANTS.items()
    }
    bare = BareModel(setting)
    batches = runs["plain"].steady_batches
    bare.seconds_per_row(batches[:2])
    passes: list[float] = [bare.seconds_per_row(batches)]
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(scale.rounds):
        for name, ours in runs.items():
            samples[name].append(ours.sample())
            ours.clear()
            os.sync()
            passes.append(bare.seconds_per_row(batches))
            ratios[name].append(samples[name][-1].seconds_per_row / mean(passes[-2:]))
    record = runs["plain"].record
    lens_rows = runs["lens"].record.groups["lens"].rows
    return Section(
        "a",
        "Extraction over a bare forward pass",
        METHOD.format(
            rows=record.rows,
            documents=record.documents,
            tasks=record.tasks,
            threads=setting.threads,
        ),
        _findings(ratios, samples, passes, lens_rows),
        {
            "bare_seconds_per_row": passes,
            **{
                f"{name}_seconds_per_row": [s.seconds_per_row for s in taken]
                for name, taken in samples.items()
            },
            **{
                f"{name}_seconds_by_kind": [s.kinds for s in taken]
                for name, taken in samples.items()
            },
        },
    )


def _findings(
    ratios: dict[str, list[float]],
    samples: dict[str, list[Sample]],
    passes: list[float],
    lens_rows: int,
) -> list[Finding]:
    share = lens_rows / samples["lens"][0].rows
    each = [sample.kinds["lens"] / lens_rows / mean(passes) for sample in samples["lens"]]
    return [
        Finding("all points: time over bare", ratios["plain"], "×", "at most", 1.06, 1.03),
        Finding(
            "all points and statistics: time over bare",
            ratios["statistics"],
            "×",
            "at most",
            1.10,
            1.05,
        ),
        Finding(
            f"all points and lens for {share:.0%} of the rows: time over bare", ratios["lens"], "×"
        ),
        Finding("lens values of one row, over one row of the bare pass", each, "×"),
        Finding("bare forward pass", [1 / taken for taken in passes], "tokens/s"),
    ]
