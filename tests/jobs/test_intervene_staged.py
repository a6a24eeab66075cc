"""Intervention sweeps over the stages of a model: the very bytes of the resident schedule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from depthscope.jobs import ExtractSpec, Intervened, InterveneSpec, extract, intervene
from depthscope.jobs.cli import main
from depthscope.jobs.effects_schedule import EffectsLayout, effects_budget
from depthscope.pipeline.costs import model_costs
from depthscope.pipeline.effects_unit import EffectsUnit
from depthscope.storage.verify import verify
from transformers import LlamaConfig

from ..conftest import make_llama, sentences, write_jsonl
from ..pipeline.test_families import DOCUMENTS, FAMILIES, make_model

#: Families whose blocks differ: in their order, their norms, their windows, their experts, and one
#: that is found by the names of its modules alone; each with the dtype it is tried in.
BLOCKS = {
    "gemma2": "bfloat16",
    "gpt2": "float32",
    "gpt_neox_parallel": "bfloat16",
    "qwen3_moe": "float32",
    "stablelm": "float32",
    "olmo3": "bfloat16",
}
OPTIONS: dict[str, Any] = {"engine": "process", "threads": 1, "seed": 4}
STAGED: dict[str, Any] = {"schedule": "staged", "stages": 2}


def make_store(model: Path, data: Path, root: Path, **options: Any) -> Path:
    given = {"engine": "process", "threads": 1, "lens_rows": "none"} | options
    extract(ExtractSpec(model=str(model), data=(str(data),), out=root, **given))
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine documents and a Llama of five layers."""
    folder = tmp_path_factory.mktemp("stages")
    make_llama(folder / "model", layers=5, seed=11)
    data = write_jsonl(folder / "corpus.jsonl", [{"text": t} for t in sentences(9, seed=3)])
    return make_store(folder / "model", data, folder / "store", sublayers=True)


def sweep(root: Path, copy: Path, **options: Any) -> Intervened:
    """The same name in a copy of the store, so that all that is written may be compared."""
    if not copy.exists():
        shutil.copytree(root, copy)
    return intervene(copy, InterveneSpec(**({"name": "sweep"} | OPTIONS | options)))


def check_same(one: Path, other: Path) -> None:
    """Both are complete and sound, with the same bytes but for paths and times."""
    found = []
    for root in (one, other):
        assert verify(root).problems == []
        folder = root / "effects" / "sweep.zarr"
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".json"]
        found.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


@pytest.mark.parametrize("family", BLOCKS)
def test_every_kind_of_block(family: str, tmp_path: Path) -> None:
    make_model(FAMILIES[family][0], tmp_path / "model")
    data = write_jsonl(tmp_path / "ids.jsonl", [{"ids": ids} for ids in DOCUMENTS])
    options = {"token_ids": "ids", "dtype": BLOCKS[family], "points": "none"}
    store = make_store(tmp_path / "model", data, tmp_path / "store", **options)
    every = {"part": "layer,attention,mlp", "kind": "propagated,local", "splits_per_document": 1}
    sweep(store, tmp_path / "resident", schedule="resident", **every)
    sweep(store, tmp_path / "staged", **STAGED, **every)
    check_same(tmp_path / "resident", tmp_path / "staged")


@pytest.mark.parametrize(
    ("stages", "options"),
    [
        (3, {"what": "reverse", "span": 3, "scope": "all"}),
        (2, {"what": "mean", "part": "mlp", "also": ("attention:scale=0.5:3",)}),
        (2, {"what": "patch", "part": "layer", "patch_document": 1, "batch_tokens": 300}),
        (3, {"what": "erase", "case": "later,earlier", "documents": 1}),
        (2, {"what": "skip", "layers": "0,4", "batch_tokens": 256, "kind": "propagated,local"}),
    ],
    ids=lambda value: value["what"] if isinstance(value, dict) else None,
)
def test_whatever_is_changed(
    store: Path, stages: int, options: dict[str, Any], tmp_path: Path
) -> None:
    options = {"documents": 3, "splits_per_document": 1} | options
    sweep(store, tmp_path / "resident", schedule="resident", **options)
    sweep(store, tmp_path / "staged", schedule="staged", stages=stages, **options)
    check_same(tmp_path / "resident", tmp_path / "staged")


def test_stages_end_what_a_resident_sweep_began(store: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tasks = sweep(store, whole, schedule="resident").tasks
    shutil.copytree(whole, cut)
    for folder in sorted((cut / "commits" / "effects" / "sweep").iterdir())[1::2]:
        (commit,) = folder.iterdir()
        for path, *_ in json.loads(commit.read_text())["shards"]:
            (cut / path).unlink()
        commit.unlink()
    assert sweep(store, cut, **STAGED).committed == tasks // 2 > 1
    check_same(whole, cut)
    assert sweep(store, cut, **STAGED).committed == 0


def test_the_public_command(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(store, tmp_path / "resident", schedule="resident", documents=2)
    shutil.copytree(store, tmp_path / "staged")
    words = "--name sweep --engine process --threads 1 --seed 4 --documents 2 --schedule staged"
    with pytest.raises(SystemExit) as left:
        main(["intervene", str(tmp_path / "staged"), *words.split(), "--json", "--quiet"])
    assert left.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["committed"] == said["tasks"] == 2
    check_same(tmp_path / "resident", tmp_path / "staged")


def test_a_unit_that_fails_is_run_again_with_its_task(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"documents": 3, "scope": "all"}
    sweep(store, tmp_path / "resident", schedule="resident", **options)
    run_layer, failed = EffectsUnit.run_layer, list[int]()

    def fails_once(self: EffectsUnit, layer: int, *rest: Any) -> None:
        if layer == 4 and not failed:
            failed.append(layer)
            raise OSError("lost a line")
        run_layer(self, layer, *rest)

    monkeypatch.setattr(EffectsUnit, "run_layer", fails_once)
    done = sweep(store, tmp_path / "staged", **STAGED, **options)
    assert failed == [4]
    assert done.committed == done.tasks == 3
    check_same(tmp_path / "resident", tmp_path / "staged")


def test_a_stage_counts_its_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those before them that a program applies again; the last one counts the head."""
    for name in ("is_available", "device_count"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 12}
    config = LlamaConfig(vocab_size=50, num_attention_heads=4, **sizes)
    costs = model_costs(config, "float32", attention="sdpa")
    layer, head = costs.layer_bytes[0], 4 * 50 * 64 + 7
    run: Any = SimpleNamespace(rows=90, documents=9, identity_fields={"lens_memory": 7})

    def weights(stages: int, engine: str = "ray", **options: Any) -> int:
        given = {"engine": engine, "schedule": "staged", "stages": stages, **options}
        spec = InterveneSpec(name="sweep", memory="1GB", **given)
        return effects_budget(spec, EffectsLayout("staged", stages), costs, run).weights

    whole = 12 * layer + costs.frame_bytes + head
    assert weights(1) == whole
    assert weights(12) == max(layer + costs.frame_bytes, layer + head)
    assert weights(12, what="repeat", span=3) == 3 * layer + head
    assert weights(3) < 0.55 * whole
    assert weights(3, "process") == whole
    assert weights(2, "process", what="swap") == whole + layer
