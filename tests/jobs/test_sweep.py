"""The sweep schedule: the same store as the resident one, in pieces that survive any death."""

from __future__ import annotations

import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.engines import make_pool
from depthscope.pipeline import task_sweep
from depthscope.pipeline.layer_stack import LayerStack
from depthscope.storage.commits import CommitLog
from depthscope.storage.errors import RequestError, WorkFailed
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from ..conftest import VOCABULARY, byte_tokenizer, make_llama
from .processes import check_same, data_bytes, request, start, wait_for

SEED = 20261122
KILLS = 12
LAYERS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 layers whose weights lie in several files, layer by layer."""
    folder = tmp_path_factory.mktemp("models") / "deep"
    make_llama(folder, layers=LAYERS, seed=11, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def options(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sweep")
    out = folder / "resident"
    return request(model, folder, out=out, task_rows=512, schedule="resident")


@pytest.fixture(scope="module")
def resident(options: dict[str, Any]) -> dict[str, bytes]:
    extract(ExtractSpec(**options))
    return data_bytes(options["out"])


def sweep(options: dict[str, Any], store: Path, **changes: Any) -> dict[str, Any]:
    return options | {"out": store, "schedule": "sweep"} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batches": "sorted"},
        {"batches": "packed"},
        {"points": "0,3,6", "sublayers": False},
        {"points": "none", "sublayers": False},
        {"rows": "position % 3 = 0", "lens_rows": "position = 2"},
        {"store_dtype": "bfloat16"},
        {"dtype": "bfloat16"},
        {"statistics": False, "lens_rows": "none"},
    ],
    ids=str,
)
def test_the_same_store_as_resident(
    options: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    extract(ExtractSpec(**(options | changes | {"out": tmp_path / "resident"})))
    extract(ExtractSpec(**sweep(options, tmp_path / "sweep", **changes)))
    check_same(tmp_path / "sweep", data_bytes(tmp_path / "resident"))


def test_every_point_has_a_commit_of_its_own(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = extract(ExtractSpec(**sweep(options, store)))
    assert done.committed == done.tasks > 2
    names = {path.stem for path in CommitLog(store).files(0)}
    assert names == {"0-1", *(f"{p}-{p}" for p in range(2, LAYERS + 1))}
    check_same(store, resident)


@pytest.mark.parametrize("place", ["host", "store"])
def test_wherever_the_stream_lives(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path, place: str
) -> None:
    def choose(settings: Any, spec: ExtractSpec) -> Any:
        return make_pool(replace(settings, residual=place, tasks_at_once=2), spec)

    extract(ExtractSpec(**sweep(options, tmp_path / "store")), pool=choose)
    check_same(tmp_path / "store", resident)


@pytest.mark.parametrize("points", ["all", "0,3"])
def test_killed_sweeps_go_on(options: dict[str, Any], tmp_path: Path, points: str) -> None:
    changes = {"points": points}
    extract(ExtractSpec(**(options | changes | {"out": tmp_path / "resident"})))
    expected = data_bytes(tmp_path / "resident")
    draw = random.Random(SEED)
    began = time.monotonic()
    start(sweep(options, tmp_path / "timed", **changes), 0.01).join()
    length = time.monotonic() - began
    kills = finishes = 0
    while kills < KILLS // 2:
        store = tmp_path / f"store-{finishes}"
        while True:
            process = start(sweep(options, store, **changes), 0.01)
            process.join(draw.uniform(0, 1.1 * length))
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            kills += 1
            if kills == KILLS // 2:
                extract(ExtractSpec(**sweep(options, store, **changes)))
                break
        check_same(store, expected)
        finishes += 1


def test_a_killed_sweep_goes_on_at_the_layer_it_had_reached(
    options: dict[str, Any],
    resident: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = tmp_path / "store"
    process = start(sweep(options, store), 0.02)
    log = CommitLog(store)
    wait_for(lambda: log.files(0) and log.reached(0) >= 4)
    process.kill()
    process.join()
    reached = log.reached(0)
    assert 4 <= reached < LAYERS + 1
    layers: list[int] = []
    plain = LayerStack.run

    def noting(self: Any, batch: Any, hidden: Any, on_point: Any, on_layer: Any) -> Any:
        def noted(layer: int, *others: Any) -> None:
            layers.append(layer)
            if on_layer is not None:
                on_layer(layer, *others)

        return plain(self, batch, hidden, on_point, noted)

    monkeypatch.setattr(LayerStack, "run", noting)
    before = {task: log.reached(task) for task in range(len(list(log.paths.commits.iterdir())))}
    extract(ExtractSpec(**sweep(options, store)))
    assert min(layers) == min(before.values()) - 1
    check_same(store, resident)


def test_layers_before_a_damaged_file_are_committed(
    options: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    """The files of later layers are cut short once the run has begun and has checked them."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    weights = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    first = {weights[name] for name in weights if ".layers.0." in name or "embed" in name}
    later = {weights[name] for name in weights if ".layers.5." in name}
    assert not first & later

    def cut_short(settings: Any, spec: ExtractSpec) -> Any:
        pool = make_pool(settings, spec)
        for name in later:
            with (folder / name).open("r+b") as file:
                file.truncate(4096)
        return pool

    store = tmp_path / "store"
    request = ExtractSpec(**sweep(options, store, model=str(folder), retries=0))
    with pytest.raises(WorkFailed, match="|".join(later)):
        extract(request, pool=cut_short)
    assert CommitLog(store).reached(0) >= 2
    assert "0-1" in {path.stem for path in CommitLog(store).files(0)}


def test_a_sweep_goes_on_where_a_resident_run_left_off_and_back(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    process = start(options | {"out": store}, 0.02)
    wait_for(lambda: list(CommitLog(store).files(0)))
    process.kill()
    process.join()
    process = start(sweep(options, store), 0.02)
    wait_for(lambda: any(len(list(CommitLog(store).files(task))) > 2 for task in range(5)))
    process.kill()
    process.join()
    extract(ExtractSpec(**(options | {"out": store})))
    check_same(store, resident)


def test_the_stream_is_carried_now_and_then_where_the_store_lacks_it(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_sweep, "STREAM_SECONDS", 0.0)
    changes = {"points": "none", "sublayers": False}
    extract(ExtractSpec(**(options | changes | {"out": tmp_path / "resident"})))
    store = tmp_path / "store"
    plain = task_sweep.TaskSweep.run_layer

    def until_four(self: Any, layer: int, run: Any) -> None:
        if layer == 4:
            raise RuntimeError("the power went")
        plain(self, layer, run)

    monkeypatch.setattr(task_sweep.TaskSweep, "run_layer", until_four)
    with pytest.raises(WorkFailed, match="the power went"):
        extract(ExtractSpec(**sweep(options, store, retries=0, **changes)))
    layers: list[int] = []

    def noting(self: Any, layer: int, run: Any) -> None:
        layers.append(layer)
        plain(self, layer, run)

    monkeypatch.setattr(task_sweep.TaskSweep, "run_layer", noting)
    extract(ExtractSpec(**sweep(options, store, **changes)))
    assert min(layers) == 4
    check_same(store, data_bytes(tmp_path / "resident"))


def test_damaged_carried_files_start_the_task_anew(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    process = start(sweep(options, store), 0.02)
    wait_for(lambda: CommitLog(store).reached(0) >= 3)
    process.kill()
    process.join()
    damaged = 0
    for path in (store / "carried").rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        damaged += 1
    assert damaged
    extract(ExtractSpec(**sweep(options, store)))
    check_same(store, resident)


def test_too_little_memory_says_how_much_is_needed(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--memory .* too little .* needs"):
        extract(ExtractSpec(**sweep(options, tmp_path / "store", memory="10KB")))


@pytest.mark.parametrize("experts", ["one", "several"])
def test_experts_are_streamed_where_a_layer_does_not_fit(
    options: dict[str, Any], tmp_path: Path, experts: str
) -> None:
    torch.manual_seed(5)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        # A dense layer among them.
        mlp_only_layers=[1],
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    folder = tmp_path / "moe"
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    own = {"model": str(folder), "out": tmp_path / "resident"}
    extract(ExtractSpec(**(options | own)))
    one = 3 * 32 * 48 * 4

    def choose(settings: Any, spec: ExtractSpec) -> Any:
        budget = 2 * one if experts == "one" else 6 * one
        return make_pool(replace(settings, expert_memory=budget), spec)

    asked = ExtractSpec(**sweep(options, tmp_path / "sweep", model=str(folder)))
    extract(asked, pool=choose)
    check_same(tmp_path / "sweep", data_bytes(tmp_path / "resident"))
