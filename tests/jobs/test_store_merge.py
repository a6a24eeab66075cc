"""Joined stores against plain zarr, pyarrow and numpy reads of their sources."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from depthscope.jobs import extract
from depthscope.jobs.cli import main
from depthscope.jobs.spec import ExtractSpec

from ..conftest import sentences, write_jsonl

ARRAYS = {
    "activations.zarr": ("residual", "attention_output", "mlp_output"),
    "statistics.zarr": ("norm", "norm_ratio", "cosine"),
    "statistics.zarr/lens": ("kl", "entropy", "next_rank", "next_probability"),
}


def make(model: Path, root: Path, texts: list[str], **changes: Any) -> Path:
    records = [{"text": text, "kind": f"k{i % 3}", root.name: i} for i, text in enumerate(texts)]
    if name := changes.get("token_ids"):
        # One document has an id without an embedding: it fails, and is kept as invalid rows.
        records = [
            {**r, name: [len(texts[0]), 7, 8 if i != 5 else 10**6]} for i, r in enumerate(records)
        ]
        changes["on_error"] = "skip"
    data = write_jsonl(root.parent / f"{root.name}.jsonl", records)
    spec: dict[str, Any] = {
        "model": str(model),
        "data": (str(data),),
        "out": root,
        "engine": "process",
        "threads": 1,
        "points": "0,2,3",
        "sublayers": True,
        "rows": "position % 3 = 0",
        "lens_rows": "position < 4",
        "task_rows": 256,
        "codec": "none",
    }
    extract(ExtractSpec(**spec | changes))
    return root


@pytest.fixture(scope="module")
def stores(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three corpora; tasks of 256, 256 and 128 rows, so that nothing lines up but the first."""
    folder = tmp_path_factory.mktemp("sources")
    return [
        make(tiny_model, folder / "a", sentences(30, seed=1)),
        make(tiny_model, folder / "b", sentences(90, seed=2), token_ids="ids"),
        make(tiny_model, folder / "c", sentences(12, seed=3), task_rows=128),
    ]


def array(root: Path, path: str) -> Any:
    return zarr.open_array(root / path, mode="r")[...]


def run(*words: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == code


def files(root: Path) -> dict[str, bytes]:
    """Data arrays and tables: what must be the same byte for byte."""
    found = [p for p in root.rglob("*") if p.is_file() and ("c" in p.parts or p.suffix)]
    keep = (p for p in found if "commits" not in p.parts and p.name != "run.json")
    return {str(p.relative_to(root)): p.read_bytes() for p in keep if p.suffix != ".lock"}


def check_joined(out: Path, sources: list[Path]) -> None:
    runs = [json.loads((s / "run.json").read_text()) for s in sources]
    offsets = np.cumsum([0, *(r["rows"] for r in runs)])
    numbers = np.cumsum([0, *(r["documents"] for r in runs)])
    for group, names in ARRAYS.items():
        rows = [array(s, f"{group}/row") + o for s, o in zip(sources, offsets, strict=False)]
        assert np.array_equal(array(out, f"{group}/row"), np.concatenate(rows))
        for name in names:
            parts = [array(s, f"{group}/{name}") for s in sources]
            axis = 2 if group == "statistics.zarr" else 1
            whole = array(out, f"{group}/{name}")
            assert whole.tobytes() == np.concatenate(parts, axis=axis).tobytes(), name
    tokens = pq.read_table(out / "tokens.parquet")
    assert tokens.column("row").to_pylist() == list(range(offsets[-1]))
    for name in ("position", "token_id", "token", "char_start", "special", "valid"):
        expected = pa.chunked_array(
            [c for s in sources for c in pq.read_table(s / "tokens.parquet").column(name).chunks]
        )
        assert tokens.column(name).to_pylist() == expected.to_pylist(), name
    documents = pq.read_table(out / "documents.parquet").to_pandas()
    assert documents.document.tolist() == list(range(numbers[-1]))
    places = tokens.column("document").to_numpy()
    assert np.array_equal(np.searchsorted(places, documents.document), documents.first_row)
    originals = [pq.read_table(s / "documents.parquet").to_pandas() for s in sources]
    for name in ("text", "kind", "digest", "n_tokens", "line", "source"):
        assert documents[name].tolist() == [v for o in originals for v in o[name]], name
    assert documents.b.dropna().astype(int).tolist() == list(range(runs[1]["documents"]))


def test_three_corpora(stores: list[Path], tmp_path: Path) -> None:
    before = [files(store) for store in stores]
    out = tmp_path / "all"
    run("store", "merge", out, *stores, "--quiet")
    check_joined(out, stores)
    assert [files(store) for store in stores] == before
    assert 0 < (~pq.read_table(out / "tokens.parquet").column("valid").to_numpy()).sum() < 9
    run("verify", out, "--quiet")
    # What the merged store says of itself must also be what its shards and commits are.
    shutil.rmtree(out / "commits" / "000001")
    made = files(out)
    run("store", "merge", out, *stores, "--quiet")
    assert files(out) == made
    run("verify", out, "--quiet")


def test_a_merge_that_was_killed_goes_on(stores: list[Path], tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run("store", "merge", whole, *stores, "--quiet")
    # Killed by itself while a shard is made: one of the second task's.
    shards = sum(len(json.loads(p.read_text())["shards"]) for p in whole.glob("commits/000000/*"))
    code = f"""
import os, pathlib, signal
from depthscope.storage import merge, merge_plan, merge_shards
make, left = merge_shards.ShardMaker.make, iter(range({shards + 7}))
def deadly(*a):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(*a)
merge_shards.ShardMaker.make = deadly
out, *stores = map(pathlib.Path, {[str(path) for path in (out, *stores)]!r})
plan = merge_plan.plan_merge(stores)
merge.merge(out, plan, merge.lay_out_merge(out, plan))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [path.name for path in (out / "commits").iterdir()] == ["000000"]
    assert (out / "partial").is_dir()
    run("verify", out, "--quiet")
    run("store", "merge", out, *stores, "--quiet")
    assert files(out) == files(whole)
    assert not list((out / "partial").glob("*"))
    run("verify", out, "--quiet")


def test_two_halves_of_one_run(stores: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    """Each half lacks tasks; together they are the undisturbed run, and extract agrees."""
    whole, data = stores[0], (str(stores[0].parent / "a.jsonl"),)
    halves = [
        make(tiny_model, tmp_path / name, sentences(1), data=data, tasks=tasks)
        for name, tasks in (("one", "0,2-"), ("two", "1"))
    ]
    out = tmp_path / "out"
    run("store", "merge", out, halves[1], "--quiet")
    assert [path.name for path in out.glob("commits/*")] == ["000001"]
    shutil.rmtree(out)
    run("store", "merge", out, *halves, "--quiet")
    assert files(out) == files(whole)
    run("verify", out, "--quiet")
    identities = [json.loads((s / "run.json").read_text())["identity"] for s in (out, whole)]
    assert identities[0] == identities[1]


def test_refusals(
    stores: list[Path],
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def said() -> str:
        lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("depthscope: ")]
        assert len(lines) == 1, lines
        return lines[0]

    out = tmp_path / "out"
    other = make(tiny_model, tmp_path / "b", sentences(3), points="0,3", codec="zstd")
    run("store", "merge", out, stores[0], other, "--quiet", code=2)
    assert (text := said()).count(";") == 2
    assert 'codec ("none", "zstd")' in text
    assert 'points ("0,2,3", "0,3")' in text
    open_store = tmp_path / "a"
    shutil.copytree(stores[0], open_store)
    shutil.rmtree(open_store / "commits" / "000001")
    run("store", "merge", out, open_store, stores[1], "--quiet", code=2)
    assert "tasks are not committed" in said()
    run("store", "merge", stores[0], *stores, "--quiet", code=2)
    assert "choose another place" in said()
    run("store", "merge", out, tmp_path / "nowhere", code=2)
    assert "is no store" in said()
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))
    victim = next(open_store.glob("activations.zarr/mlp_output/c/1/0/0"))
    victim.write_bytes(victim.read_bytes()[:-9] + b"damaged!!")
    run("store", "merge", out, open_store, "--quiet", code=1)
    assert "differs from its digest" in said()
    assert os.path.relpath(victim, open_store) not in {str(p) for p in out.rglob("*")}
