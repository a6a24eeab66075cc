"""b. Tokens per second to disk, against the tools that people use."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import corpora
from findings import BenchmarkFailed, Finding, Section
from scale import Setting

PEERS = {
    "hidden_states": "transformers `output_hidden_states`",
    "nnsight_trace": "nnsight",
    "transformer_lens_cache": "TransformerLens `run_with_cache`",
    "hooks": "plain forward hooks, sorted batches",
}
MODES = {"recipe": "its own recipe", "ours": "our batches, tuned"}

#: Two contestants' states may differ by so much (mean |value| of a point): batch shapes differ.
TOLERANCE = 0.01

METHOD = (
    "{rows:,} rows of {documents} documents, bfloat16, {points} points, {threads} threads; one"
    " process each, loaded and warmed up beforehand, taking turns in a shuffled order. The scripts"
    " are in `peers/`. Share: tokens per second over those of a bare forward pass (decoder without"
    " head, nothing written) in our batches, the mean of the passes that open and close the round;"
    " padding counts for nobody. Peers write with safetensors and do not flush; ours is flushed,"
    " digested and committed. Ours is the steady state: such a task between two others; with the"
    " pipeline filled and drained it stands beside. Every contestant's files were opened again and"
    " held rows × {points} × {hidden} values; all hold the same states to {tolerance:.0%}."
)


@dataclass
class Process:
    """A contestant that is loaded and waits."""

    name: str
    process: subprocess.Popen[str]
    errors: Path

    def answer(self) -> dict[str, Any]:
        """The next line it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise BenchmarkFailed(f"{self.name} failed:\n{self.errors.read_text()[-2000:]}")
        return json.loads(line)

    def sample(self, mode: str, folder: Path) -> dict[str, Any]:
        """One sample; what it wrote is removed."""
        assert self.process.stdin is not None
        print(
            json.dumps({"mode": mode, "folder": str(folder)}), file=self.process.stdin, flush=True
        )
        answer = self.answer()
        for path in folder.glob("*"):
            path.unlink()
        if folder.exists():
            folder.rmdir()
        os.sync()
        return answer

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@dataclass
class Rounds:
    """Tokens per second of every contestant and mode, round by round."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    fingerprints: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, key: str, answer: dict[str, Any]) -> None:
        fingerprint = answer.pop("fingerprint", None)
        if fingerprint and not key.endswith(":ours"):
            self.fingerprints[key] = fingerprint
        self.rates.setdefault(key, []).append(answer["rows"] / answer["seconds"])
        self.answers.setdefault(key, []).append(answer)

    def shares(self, key: str) -> list[float]:
        """Rates as shares of the bare pass of their round."""
        bare = self.rates["bare:ours"]
        pairs = [mean(bare[2 * number : 2 * number + 2]) for number in range(len(bare) // 2)]
        return [rate / best for rate, best in zip(self.rates[key], pairs, strict=True)]


def run(setting: Setting) -> Section:
    """All contestants, in rounds."""
    scratch = setting.scratch
    chosen = corpora.choose(setting.model, setting.scale.contest_rows, seed=1)
    corpora.write(scratch / "corpus.jsonl", chosen)
    contestants = _start_all(setting)
    work = json.loads((scratch / "work.json").read_text())
    entries = [("depthscope", "recipe"), ("bare", "recipe")]
    entries += [(peer, mode) for peer in PEERS for mode in MODES]
    rounds, order = Rounds(), random.Random(0)
    for _ in range(setting.scale.rounds):
        order.shuffle(entries)
        for name, mode in [("bare", "ours"), *entries, ("bare", "ours")]:
            rounds.add(f"{name}:{mode}", contestants[name].sample(mode, scratch / "out"))
    for contestant in contestants.values():
        contestant.end()
    _compare_states(rounds)
    return Section(
        "b",
        "Tokens per second to disk, against others",
        METHOD.format(
            rows=sum(map(len, work["documents"])),
            documents=len(work["documents"]),
            points=work["points"],
            hidden=work["hidden"],
            threads=setting.threads,
            tolerance=TOLERANCE,
        ),
        _findings(rounds),
        {"tokens_per_second": rounds.rates, "answers": rounds.answers},
    )


def _start_all(setting: Setting) -> dict[str, Process]:
    """Ours first, since it makes the work; one after another, so that loading disturbs nobody."""
    here, scratch = Path(__file__).parent, setting.scratch
    shared = [
        "--model",
        setting.model,
        "--work",
        scratch / "work.json",
        "--threads",
        setting.threads,
    ]
    own = ["--corpus", scratch / "corpus.jsonl", "--store", scratch / "store"]
    own += ["--task-rows", setting.scale.task_rows]
    python = setting.peers_python
    commands = {"depthscope": [Path(sys.executable), here / "our_contestant.py", *shared, *own]}
    for name in ("bare", *PEERS):
        commands[name] = [python, here / "peers" / f"{name}.py", *shared]
    started = {}
    for name, command in commands.items():
        errors = scratch / f"{name}.log"
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            text=True,
        )
        started[name] = Process(name, process, errors)
        started[name].answer()
    return started


def _compare_states(rounds: Rounds) -> None:
    ours = rounds.fingerprints["depthscope:recipe"]
    for key, theirs in rounds.fingerprints.items():
        apart = max(abs(a - b) / b for a, b in zip(theirs, ours, strict=True))
        if apart > TOLERANCE:
            raise BenchmarkFailed(f"{key} wrote other states than ours: {apart:.1%} apart")


def _findings(rounds: Rounds) -> list[Finding]:
    ours = rounds.shares("depthscope:recipe")
    found = [Finding("**depthscope**, share of bare", ours, "×", "at least", 0.95, 0.97)]
    for mode, words in MODES.items():
        shares = {peer: rounds.shares(f"{peer}:{mode}") for peer in PEERS}
        best = max(shares, key=lambda peer: median(shares[peer]))
        ratio = [mine / other for mine, other in zip(ours, shares[best], strict=True)]
        label = f"depthscope over the best of {words}: {PEERS[best]}"
        found.append(Finding(label, ratio, "×", "at least", 1.0))
        found += [
            Finding(f"{PEERS[peer]}, {words}: share of bare", share, "×")
            for peer, share in shares.items()
        ]
    drained = [
        answer["rows"] / answer["drained_seconds"] for answer in rounds.answers["depthscope:recipe"]
    ]
    bare = rounds.rates["bare:ours"]
    pairs = [mean(bare[2 * number : 2 * number + 2]) for number in range(len(bare) // 2)]
    shares = [rate / best for rate, best in zip(drained, pairs, strict=True)]
    found += [
        Finding("depthscope, pipeline filled and drained: share of bare", shares, "×"),
        Finding(
            "bare pass in the order given, padded: share of bare", rounds.shares("bare:recipe"), "×"
        ),
        Finding("depthscope", rounds.rates["depthscope:recipe"], "tokens/s"),
        Finding("bare pass in our batches", bare, "tokens/s"),
    ]
    return found
