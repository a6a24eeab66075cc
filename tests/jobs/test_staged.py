"""The staged schedule: the same store as the resident one, on one node and on two."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs import ray_cluster as cluster_limits
from depthscope.storage.commits import Commit, CommitLog
from depthscope.storage.errors import RequestError
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from ..conftest import byte_tokenizer, make_llama, write_jsonl
from .processes import check_same, data_bytes, request, start, wait_for

LAYERS = 6


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("staged")
    make_llama(folder / "model", layers=LAYERS, seed=21)
    out = folder / "resident"
    return request(folder / "model", folder, out=out, task_rows=512, schedule="resident")


@pytest.fixture(scope="module")
def resident(options: dict[str, Any]) -> dict[str, bytes]:
    extract(ExtractSpec(**options))
    return data_bytes(options["out"])


def staged(options: dict[str, Any], store: Path, **changes: Any) -> dict[str, Any]:
    return options | {"out": store, "schedule": "staged"} | changes


Nodes = Callable[..., dict[str, Any]]


@pytest.fixture
def on_two_nodes(options: dict[str, Any], ray_cluster: str, tmp_path: Path) -> Nodes:
    """Options of a staged extraction over the nodes of a real cluster."""

    def make(**changes: Any) -> dict[str, Any]:
        given = {"engine": "ray", "address": ray_cluster}
        return staged(options, tmp_path / "store", **(given | changes))

    return make


def by_stage(store: Path) -> dict[tuple[int, int], list[Commit]]:
    """The commits of each range of points."""
    found: dict[tuple[int, int], list[Commit]] = {}
    for commit in CommitLog(store).commits():
        found.setdefault(commit.points, []).append(commit)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"points": "0,3,6", "sublayers": False, "lens_rows": "none"},
        {"points": "none", "sublayers": False, "lens_rows": "all"},
        {"rows": "position % 3 = 0", "lens_rows": "position = 2", "batches": "sorted"},
        {"statistics": False, "store_dtype": "bfloat16"},
        {"dtype": "bfloat16", "rows": "document IN (3, 38)"},
    ],
    ids=str,
)
def test_whatever_is_stored(
    options: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    extract(ExtractSpec(**(options | changes | {"out": tmp_path / "resident"})))
    extract(ExtractSpec(**staged(options, tmp_path / "staged", **changes)))
    check_same(tmp_path / "staged", data_bytes(tmp_path / "resident"))


def test_a_task_counts_when_all_stages_have_committed(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = extract(ExtractSpec(**staged(options, store, stages=3)))
    assert done.committed == done.tasks > 2
    stages = by_stage(store)
    assert len(stages) == 3
    assert all(len(commits) == done.tasks for commits in stages.values())
    check_same(store, resident)


def test_documents_that_fail_are_the_same_invalid_rows(
    options: dict[str, Any], tmp_path: Path
) -> None:
    ids: list[dict[str, object]] = [
        {"ids": [2 + (i * j) % 200 for j in range(3 + 7 * i % 50)]} for i in range(40)
    ]
    for poisoned in (0, 1, 11, 39):
        ids[poisoned]["ids"] = [4, 99_999, *range(2, 40)]
    data = write_jsonl(tmp_path / "ids.jsonl", ids)
    changes = {"data": (str(data),), "token_ids": "ids", "on_error": "skip", "task_rows": 64}
    for out, schedule in (("resident", "resident"), ("staged", "staged")):
        given = options | changes | {"out": tmp_path / out, "schedule": schedule}
        assert extract(ExtractSpec(**given)).invalid_documents == 4
    check_same(tmp_path / "staged", data_bytes(tmp_path / "resident"))


def test_a_staged_run_goes_on_where_a_resident_one_left_off_and_back(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    log = CommitLog(store)
    process = start(options | {"out": store}, 0.03)
    wait_for(lambda: list(log.files(0)))
    process.kill()
    process.join()
    before = len(log.complete_tasks(LAYERS))
    process = start(staged(options, store, stages=3), 0.03)
    wait_for(lambda: len(log.complete_tasks(LAYERS)) > before)
    process.kill()
    process.join()
    kinds = {commit.points for commit in log.commits()}
    assert (0, LAYERS) in kinds
    assert len(kinds) > 1
    extract(ExtractSpec(**(options | {"out": store})))
    check_same(store, resident)


def test_a_killed_run_goes_on(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for commits in (1, 4):
        process = start(staged(options, store), 0.03)
        wait_for(lambda n=commits: len(list(CommitLog(store).commits())) >= n)
        process.kill()
        process.join()
    extract(ExtractSpec(**staged(options, store)))
    check_same(store, resident)


@pytest.mark.cluster
def test_stages_on_two_nodes(on_two_nodes: Nodes, resident: dict[str, bytes]) -> None:
    given = on_two_nodes()
    extract(ExtractSpec(**given))
    check_same(given["out"], resident)
    stages = by_stage(given["out"])
    assert len(stages) == 2
    (first, second) = stages.values()
    for one in (first, second):
        assert len({commit.node for commit in one}) == 1
        assert len({commit.pid for commit in one}) == 1
    assert first[0].node != second[0].node
    assert "" not in (first[0].node, second[0].node)
    assert first[0].pid != second[0].pid


@pytest.mark.cluster
def test_packed_stages_and_two_gangs(
    on_two_nodes: Nodes, options: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"dtype": "bfloat16", "lens_rows": "all", "sublayers": False}
    extract(ExtractSpec(**(options | changes | {"out": tmp_path / "resident"})))
    # Four CPUs in all: four stages fill them.
    given = on_two_nodes(stages=2, workers=2, stage_placement="pack", **changes)
    extract(ExtractSpec(**given))
    check_same(given["out"], data_bytes(tmp_path / "resident"))
    assert 2 <= len({commit.pid for commit in CommitLog(given["out"]).commits()}) <= 4


@pytest.mark.cluster
def test_stages_on_a_cluster_of_their_own(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    changes = {"engine": "ray", "stages": 2, "stage_placement": "pack"}
    # In a process of its own: Ray asks for a token in every process that once had such a cluster.
    process = start(staged(options, tmp_path / "store", **changes))
    process.join(240)
    assert process.exitcode == 0
    check_same(tmp_path / "store", resident)
    assert len({commit.pid for commit in CommitLog(tmp_path / "store").commits()}) == 2


@pytest.mark.cluster
def test_stages_that_are_killed(on_two_nodes: Nodes, options: dict[str, Any]) -> None:
    """SIGKILL in mid-run, to one stage and later to the other: the open tasks alone are redone."""
    small = {"task_rows": 128, "batch_tokens": 64, "sublayers": False, "points": "0,2,4,6"}
    given = on_two_nodes(**small)
    reference = options | small | {"out": given["out"].with_name("resident")}
    extract(ExtractSpec(**reference))
    store = given["out"]
    log = CommitLog(store)
    process = start(given)
    before: dict[Path, bytes] = {}
    for stage in (1, 0):
        old = len(log.complete_tasks(LAYERS))
        wait_for(lambda n=old: len(log.complete_tasks(LAYERS)) >= n + 2, 240)
        own = [commit for commit in log.commits() if (commit.points[0] == 0) == (stage == 0)]
        victim = max(own, key=lambda commit: commit.timings["finished"]).pid
        before |= {path: path.read_bytes() for path in log.files()}
        psutil.Process(victim).kill()
    process.join(240)
    assert process.exitcode == 0
    check_same(store, data_bytes(reference["out"]))
    assert {path: path.read_bytes() for path in before} == before
    pids = {commit.pid for commit in log.commits()}
    assert len(pids) == 6, "both stages were started three times"
    assert (store / "failures.jsonl").read_text().count("a stage died") >= 2


@pytest.mark.cluster
def test_each_stage_reads_its_own_tensors_only(on_two_nodes: Nodes, tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="30MB")
    byte_tokenizer().save_pretrained(folder)
    given = on_two_nodes(model=str(folder), lens_rows="none", limit=4, sublayers=False)
    extract(ExtractSpec(**given))
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            sizes |= {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    assert sum(sizes.values()) > 100e6
    for (first, last), commits in by_stage(given["out"]).items():
        layers = range(max(first - 1, 0), last)
        own = sum(
            size
            for name, size in sizes.items()
            if any(f".layers.{layer}." in name for layer in layers)
            or ("embed_tokens" in name and first == 0)
        )
        read = sum(commit.bytes_read for commit in commits)
        assert own < read < 1.05 * own, (first, last, own, read)


@pytest.mark.cluster
def test_more_stages_than_nodes_say_what_is_needed(
    on_two_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_limits, "PATIENCE", 1.0)
    given = on_two_nodes(stages=3)
    wanted = r"3 stages need 3 nodes .*the cluster has 2 .*--stage-placement pack"
    with pytest.raises(RequestError, match=wanted):
        extract(ExtractSpec(**given))
    assert not given["out"].exists()
    with pytest.raises(RequestError, match=r"5 stages need .* no room for all"):
        extract(ExtractSpec(**on_two_nodes(stages=5, stage_placement="pack")))


@pytest.mark.cluster
@pytest.mark.parametrize("schedule", ["resident", "staged"])
def test_devices_that_no_node_has(
    on_two_nodes: Nodes, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    monkeypatch.setattr(cluster_limits, "PATIENCE", 1.0)
    given = on_two_nodes(schedule=schedule, gpus_per_worker=2)
    with pytest.raises(RequestError, match="2 GPUs"):
        extract(ExtractSpec(**given))
    assert not given["out"].exists()


@pytest.mark.cluster
def test_a_bad_checkpoint_is_one_clear_line(
    on_two_nodes: Nodes, options: dict[str, Any], tmp_path: Path
) -> None:
    """Found by the stages, after the store was laid out: nothing of it stays."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(options["model"], tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.4.mlp.down_proj.weight"
    weights[name] = weights[name][:, :32].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    given = on_two_nodes(model=str(folder))
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"layers\.4\.mlp\.down_proj"):
        extract(ExtractSpec(**given))
    assert time.monotonic() - started < 120
    assert not given["out"].exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stages": 7}, r"--stages 7: this model has 6 layers"),
        ({"stages": 7, "engine": "ray"}, r"--stages 7: this model has 6 layers"),
        ({"stages": 2, "schedule": "resident"}, r"--stages is for --schedule staged"),
        ({"gpus_per_worker": 999}, r"--gpus-per-worker 999 .* this machine has \d+"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_met(
    options: dict[str, Any], tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RequestError, match=expected):
        extract(ExtractSpec(**staged(options, tmp_path / "store", **changes)))
    assert not (tmp_path / "store").exists()


def test_no_stages(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stages"):
        ExtractSpec(**staged(options, tmp_path / "store", stages=0))
