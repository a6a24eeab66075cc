"""i. Two layers of Llama-3.1-405B's dimensions through a sweep, within a bound of memory."""

from __future__ import annotations

from dataclasses import replace

import cluster
import corpora
import machine
import random_checkpoint
import torch
from findings import Finding, Section
from scale import Setting

METHOD = (
    "Two layers of {layer:.2f} GB and the embedding of Llama-3.1-405B's dimensions, random weights"
    " in bfloat16, {rows:,} rows in micro-batches of {batch} tokens, all points, `--schedule sweep"
    " --memory {bound:g} GB`, {threads} threads. Peak: RssAnon + RssShmem of the process less that"
    " of the same command over a model of a few kilobytes. The machine's own limit is its rate of"
    " products of the MLP's matrix with {batch} rows in bfloat16, weights in memory already."
    " Tokens/s count from the first micro-batch to the last commit, reading all weights from a disk"
    " that the page cache cannot hold beside the layers."
)

SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 2,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
TINY = SHAPE | {
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SMALL = SHAPE | {
    "hidden_size": 1024,
    "intermediate_size": 3328,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}
ROWS, BATCH, BOUND_GB = 1024, 512, 15.0


def run(setting: Setting) -> Section:
    """Runs of the one command; every one reads all weights again."""
    quick = setting.scale.rounds < 3
    shape = SMALL if quick else SHAPE
    large, tiny = setting.scratch / "large", setting.scratch / "tiny"
    random_checkpoint.write(large, setting.model, **shape)
    random_checkpoint.write(tiny, setting.model, **TINY)
    corpus = corpora.write(
        setting.scratch / "corpus.jsonl", corpora.choose(setting.model, ROWS, seed=6)
    )
    peaks: dict[str, list[float]] = {"large": [], "tiny": []}
    rates, read = [], []
    for _ in range(1 if quick else 3):
        for model in (tiny, large):
            done = cluster.extract(
                replace(setting, model=model),
                corpus,
                setting.scratch / "store",
                watch=True,
                engine="process",
                schedule="sweep",
                memory=f"{BOUND_GB}GB",
                threads=setting.threads,
                batch_tokens=BATCH,
            )
            peaks[model.name].append(done.worker_peak() / 1e9)
            cluster.remove(setting.scratch / "store")
        rates.append(cluster.whole_rate(done.commits))
        read.append(sum(commit.bytes_read for commit in done.commits) / 1e9)
    return _section(setting, shape, peaks, rates, read)


def _section(
    setting: Setting,
    shape: dict[str, int],
    peaks: dict[str, list[float]],
    rates: list[float],
    read: list[float],
) -> Section:
    d, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = d // shape["num_attention_heads"] * shape["num_key_value_heads"]
    layer = 2 * d * d + 2 * d * keys + 3 * d * inner
    own = [a - b for a, b in zip(peaks["large"], peaks["tiny"], strict=True)]
    limit = _product_rate(setting.threads, inner, d)
    flops = [rate * 2 * shape["num_hidden_layers"] * layer for rate in rates]
    method = METHOD.format(
        layer=2 * layer / 1e9, rows=ROWS, batch=BATCH, bound=BOUND_GB, threads=setting.threads
    )
    findings = [
        Finding("peak over the bound", [p / BOUND_GB for p in own], "×", "at most", 1.0),
        Finding("peak", own, "GB"),
        Finding("sweep", rates, "tokens/s"),
        Finding("weights read in a run", read, "GB"),
        Finding("the layers' products", [rate / 1e9 for rate in flops], "GFLOP/s"),
        Finding("the machine's own rate of such products", [limit / 1e9], "GFLOP/s"),
        Finding("share of the machine's own rate", [rate / limit for rate in flops], "×"),
    ]
    raw = {"peaks": peaks, "tokens_per_second": rates, "gigabytes_read": read}
    return Section("i", "Layers of 405B", method, findings, raw)


def _product_rate(threads: int, rows: int, columns: int) -> float:
    torch.set_num_threads(threads)
    weight = torch.ones(rows, columns, dtype=torch.bfloat16)
    stream = torch.ones(BATCH, columns, dtype=torch.bfloat16)
    seconds = min(machine.timed(lambda: stream @ weight.T) for _ in range(5))
    return 2.0 * rows * columns * BATCH / seconds
