"""k. The layer-interaction matrix, against the slow way and against nnsight."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import corpora
import numpy as np
from contest import Process
from depthscope.pipeline.checkpoint import stored_tensors
from findings import BenchmarkFailed, Finding, Section
from scale import Setting
from skip_runs import SPLITS, OurSweeps, Swept, counting, flops_of_one_pass
from transformers import AutoTokenizer

PEERS = {"skips_hooks": "the slow way (hooks)", "skips_nnsight": "nnsight"}

#: Effects of two contestants may differ by so much of max(1, effect): batch shapes differ.
TOLERANCE = 1e-4

#: What the watched sweep may hold.
MEMORY = 1_100_000_000

METHOD = (
    "The whole matrix of {layers} × {layers} layers in float32, scope future, {documents} questions"
    " of GSM8K ({low} to {high} tokens, {tokens} in all) × {splits} splits, {threads} threads. Ours"
    " is `intervene` from the start of its first task to its last commit, reading the weights"
    " included. The others are processes that have loaded the model and warmed up; they work one"
    " pass and one document at a time, so in every round they measure {some} of the documents,"
    " another in every round, and times are compared per token and pass. All take turns in a"
    " shuffled order. Effects and output effects of all contestants agree to 1e-4 · max(1, E)."
    " Layer passes, FLOP (torch's counter, the head apart) and the head's rows are counted in one"
    " document; the bound is {splits} × L(L+1)/2 passes of one line. Memory: another process,"
    " RssAnon + RssShmem every 20 ms beyond those after its imports."
)


@dataclass(frozen=True)
class Size:
    """How much is run: rounds, documents, how many of them a peer measures in a round, and the
    documents of the growing sweeps."""

    rounds: int
    documents: int
    some: int
    growth: tuple[int, int, int]


FULL = Size(3, 10, 1, (2, 4, 8))
QUICK = Size(1, 2, 1, (1, 2, 2))


@dataclass
class Rounds:
    """Seconds, and seconds per token and pass, of every contestant, round by round.

    ``apart`` is the largest |ΔE| / max(1, E) between ours and a peer's, of every round.
    """

    rates: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    apart: list[float] = field(default_factory=list)

    def add(self, name: str, seconds: float, work: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)
        self.rates.setdefault(name, []).append(seconds / work)


def run(setting: Setting) -> Section:
    """Rounds of the contest; then counts, weights, growth and memory of ours."""
    size = FULL if setting.scale.rounds >= 5 else QUICK
    corpus = _questions(setting, size.documents)
    ours = OurSweeps(setting, corpus, setting.scratch / "store")
    rounds = _contest(setting, size, ours)
    growth = _growth(ours, size)
    lengths = [len(ids) for ids in ours.documents]
    return Section(
        "k",
        "The layer-interaction matrix",
        METHOD.format(
            layers=ours.layers,
            documents=len(lengths),
            low=min(lengths),
            high=max(lengths),
            tokens=sum(lengths),
            splits=len(SPLITS),
            threads=setting.threads,
            some=size.some,
        ),
        [
            *_speeds(rounds),
            *_counts(setting, ours),
            *_weights(setting, ours),
            Finding("time per document, 4× the documents over 1×", growth, "×", "at most", 1.1),
            *_memory(setting, ours),
        ],
        {
            "seconds": rounds.seconds,
            "seconds_per_token_and_pass": rounds.rates,
            "largest_difference": rounds.apart,
        },
    )


def _questions(setting: Setting, count: int) -> Path:
    """Questions that are a little longer than the last split."""
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    chosen: list[str] = []
    for text in corpora.texts(6):
        question = text.partition("\n")[0]
        if 8 <= len(tokenizer(question).input_ids) - max(SPLITS) <= 24:
            chosen.append(question)
        if len(chosen) == count:
            break
    return corpora.write(setting.scratch / "questions.jsonl", chosen)


def _contest(setting: Setting, size: Size, ours: OurSweeps) -> Rounds:
    work = {"documents": ours.documents, "splits": [SPLITS] * len(ours.documents)}
    (setting.scratch / "work.json").write_text(json.dumps(work))
    peers = {name: _start(setting, name) for name in PEERS}
    rounds, order = Rounds(), random.Random(0)
    passes = len(SPLITS) * ours.layers + 1
    amounts = np.array([len(ids) * passes for ids in ours.documents], float)
    for turn in range(size.rounds):
        chosen = [(size.some * turn + n) % len(amounts) for n in range(size.some)]
        for name in order.sample(["depthscope", *PEERS], len(PEERS) + 1):
            if name == "depthscope":
                swept = ours.sweep()
                rounds.add(name, swept.seconds, amounts.sum())
            else:
                seconds = _ask(peers[name], chosen, setting.scratch / f"{name}.npz")
                rounds.add(name, seconds, amounts[chosen].sum())
        for name in PEERS:
            rounds.apart.append(_apart(swept, setting.scratch / f"{name}.npz", chosen, name))
    for peer in peers.values():
        peer.end()
    return rounds


def _start(setting: Setting, name: str) -> Process:
    script = Path(__file__).with_name("peers") / f"{name}.py"
    errors = setting.scratch / f"{name}.log"
    command = [setting.peers_python, script, "--model", setting.model]
    command += ["--work", setting.scratch / "work.json", "--threads", setting.threads]
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        text=True,
    )
    started = Process(name, process, errors)
    started.answer()
    return started


def _ask(peer: Process, documents: Sequence[int], out: Path) -> float:
    if peer.process.stdin is None:
        raise BenchmarkFailed(f"{peer.name} cannot be asked")
    print(
        json.dumps({"documents": documents, "out": str(out)}), file=peer.process.stdin, flush=True
    )
    return float(peer.answer()["seconds"])


def _apart(swept: Swept, path: Path, documents: Sequence[int], name: str) -> float:
    """Largest |ΔE| / max(1, E); fails where it is more than allowed."""
    cell = swept.effects.sel(scope="future", kind="propagated", part="layer")
    cell = cell.isel(document=list(documents))
    with np.load(path) as theirs:
        target, source = cell["target"].values, cell["source"].values
        later = target[None, :] > source[:, None]
        pairs = [(cell["effect_max"].values[..., later], theirs["effect_max"][..., later])]
        pairs.append((cell["output_l2_max"].values, theirs["output_l2_max"]))
    apart = max(float((np.abs(a - b) / np.maximum(1, b)).max()) for a, b in pairs)
    if not apart <= TOLERANCE:
        raise BenchmarkFailed(f"{name} measured other effects than ours: {apart:.2g} apart")
    return apart


def _speeds(rounds: Rounds) -> list[Finding]:
    ours, seconds = rounds.rates["depthscope"], rounds.seconds["depthscope"]
    found = []
    for name, words in PEERS.items():
        ratio = [theirs / mine for theirs, mine in zip(rounds.rates[name], ours, strict=True)]
        found.append(Finding(f"time of {words} over ours", ratio, "×", "at least", 2.0, 3.5))
    found.append(Finding("the whole matrix, ours", seconds, "s"))
    for name, words in PEERS.items():
        whole = [
            rate / mine * second
            for rate, mine, second in zip(rounds.rates[name], ours, seconds, strict=True)
        ]
        found.append(Finding(f"the whole matrix, {words}", whole, "s"))
    return found


def _counts(setting: Setting, ours: OurSweeps) -> list[Finding]:
    """Of one document, whose splits share one baseline and one no-op."""
    with counting() as counts:
        ours.sweep(1)
    bound = len(SPLITS) * ours.layers * (ours.layers + 1) / 2
    one = flops_of_one_pass(setting.model, ours.documents[0])
    flop = counts.flops / (bound / ours.layers * one)
    measured = sum(len(ours.documents[0]) - split for split in SPLITS)
    head = counts.head_rows / (measured * (ours.layers + 2))
    label = "rows through the head over the measured rows of branches, baseline and no-op"
    return [
        Finding(
            "layer passes over the bound", [counts.lines.total() / bound], "×", "at most", 1.05
        ),
        Finding("their FLOP over the bound's", [flop], "×", "at most", 1.05),
        Finding("layer calls for one document", [float(counts.calls.total())]),
        Finding(label, [head], "×", "at most", 1.0),
    ]


def _weights(setting: Setting, ours: OurSweeps) -> list[Finding]:
    """All documents in one sweep over the layers."""
    stored = sum(tensor.bytes for tensor in stored_tensors(setting.model).values())
    read = ours.sweep(schedule="sweep", splits="16", memory=8 * 10**9).bytes_read
    label = "weights read for the whole matrix by the sweep schedule, over the checkpoint's"
    return [Finding(label, [read / stored], "×", "at most", 1.0)]


def _growth(ours: OurSweeps, size: Size) -> list[float]:
    """Seconds per token of 4 n documents over those of n, and of 2 n; one split each."""
    each = []
    for documents in size.growth:
        tokens = sum(map(len, ours.documents[:documents]))
        each.append(ours.sweep(documents, splits=str(SPLITS[1])).seconds / tokens)
    return [each[2] / each[0], each[2] / each[1]]


def _memory(setting: Setting, ours: OurSweeps) -> list[Finding]:
    child = Path(__file__).with_name("skip_child.py")
    spec = {
        "name": "memory",
        "scope": "future",
        "splits": ",".join(map(str, SPLITS)),
        "documents": 2,
        "engine": "process",
        "threads": setting.threads,
        "schedule": "resident",
        "memory": MEMORY,
    }
    command = [sys.executable, str(child), json.dumps({"root": str(ours.root), "spec": spec})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkFailed(f"the watched sweep failed: {done.stderr[-1000:]}")
    peak = json.loads(done.stdout)["peak"] / 1e9
    label = f"peak memory where {MEMORY / 1e9:g} GB are allowed"
    return [Finding(label, [peak], "GB", "at most", MEMORY / 1e9)]
