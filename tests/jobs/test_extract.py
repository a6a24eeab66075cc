"""Extraction, end to end, on both engines, against transformers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from depthscope.jobs import ExtractSpec, extract
from depthscope.storage.errors import RequestError, WorkFailed

from ..conftest import sentences, write_jsonl
from ..reference import SlowLlama, check_close, stored

Extract = Callable[..., Any]


@pytest.fixture(params=["process", pytest.param("ray", marks=pytest.mark.cluster)])
def run(request: pytest.FixtureRequest, tiny_model: Path, corpus: Path, tmp_path: Path) -> Extract:
    """Extract the little corpus with the little model; one test, two engines."""
    engine: dict[str, Any] = {"engine": request.param}
    if request.param == "ray":
        engine |= {"address": request.getfixturevalue("ray_cluster"), "workers": 2}

    def go(**options: Any) -> Any:
        base = {
            "model": str(tiny_model),
            "data": (str(corpus),),
            "out": tmp_path / "store",
            "task_rows": 256,
            "batch_tokens": 256,
            "threads": 1,
        }
        return extract(ExtractSpec(**{**base, **engine, **options}))

    return go


@pytest.fixture(scope="module")
def slow(tiny_model: Path) -> SlowLlama:
    return SlowLlama(tiny_model)


def documents(store: Path) -> list[tuple[int, list[int]]]:
    """First row and token ids of every document."""
    tokens = pq.read_table(store / "tokens.parquet")
    table = pq.read_table(store / "documents.parquet")
    ids = tokens.column("token_id").to_numpy()
    return [
        (first, ids[first : first + n].tolist())
        for first, n in zip(
            table.column("first_row").to_pylist(), table.column("n_tokens").to_pylist(), strict=True
        )
    ]


@pytest.mark.parametrize("batches", ["sorted", "packed"])
def test_every_activation_is_what_the_model_computes(
    run: Extract, slow: SlowLlama, tmp_path: Path, batches: str
) -> None:
    result = run(sublayers=True, batches=batches)
    store = tmp_path / "store"
    residual = stored(store, "activations.zarr/residual")
    attention = stored(store, "activations.zarr/attention_output")
    mlp = stored(store, "activations.zarr/mlp_output")
    assert residual.shape == (4, result.rows, 32)
    assert result.tasks > 4
    assert result.committed == result.tasks
    for first, ids in documents(store):
        reference = slow.run(ids)
        rows = slice(first, first + len(ids))
        check_close(residual[:, rows], reference.points)
        check_close(attention[:, rows], reference.attention)
        check_close(mlp[:, rows], reference.mlp)


def test_statistics_are_those_of_the_definitions(
    run: Extract, slow: SlowLlama, tmp_path: Path
) -> None:
    run(points="none")
    store = tmp_path / "store"
    assert not (store / "activations.zarr").exists()
    labelled = xr.open_zarr(store / "statistics.zarr", consolidated=False)
    assert labelled.norm.sel(quantity="h_mid", layer=1).sizes == {"row": len(labelled.row)}
    assert labelled.cosine.part.values.tolist() == ["attention", "mlp", "layer"]
    norm, ratio, cosine = (
        stored(store, f"statistics.zarr/{name}") for name in ("norm", "norm_ratio", "cosine")
    )
    for first, ids in documents(store):
        reference = slow.run(ids)
        h, a, m = (
            x.double().numpy() for x in (reference.points[:-1], reference.attention, reference.mlp)
        )
        rows = slice(first, first + len(ids))
        vectors = [h, h + a, a, m, a + m]
        lengths = [np.sqrt((v * v).sum(-1)) for v in vectors]
        np.testing.assert_allclose(norm[:, :, rows], lengths, rtol=2e-4)
        np.testing.assert_allclose(
            ratio[:, :, rows],
            [lengths[2] / lengths[0], lengths[3] / lengths[1], lengths[4] / lengths[0]],
            rtol=2e-4,
        )
        pairs = [(a, h), (m, h + a), (a + m, h)]
        expected = [(x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1)) for x, y in pairs]
        np.testing.assert_allclose(cosine[:, :, rows], expected, atol=2e-4)


def test_lens_values_are_those_of_the_definitions(
    run: Extract, slow: SlowLlama, tmp_path: Path
) -> None:
    run(points="none", statistics=False, lens_rows="5", seed=3)
    store = tmp_path / "store"
    rows = stored(store, "statistics.zarr/lens/row")
    values = {
        name: stored(store, f"statistics.zarr/lens/{name}")
        for name in (
            "kl",
            "top5_overlap",
            "top1_agreement",
            "entropy",
            "next_rank",
            "next_probability",
        )
    }
    covered = 0
    for first, ids in documents(store):
        place = np.searchsorted(rows, first)
        if place == len(rows) or rows[place] != first:
            continue
        covered += 1
        np.testing.assert_array_equal(rows[place : place + len(ids)], first + np.arange(len(ids)))
        reference = slow.run(ids)
        head = slow.model.lm_head.weight.detach().double()
        with torch.no_grad():
            normed = slow.model.model.norm(reference.points).double()
        log_p = torch.log_softmax(normed @ head.T, dim=-1)
        final = log_p[-1]
        here = {name: value[:, place : place + len(ids)] for name, value in values.items()}
        kl = (log_p.exp() * (log_p - final)).sum(-1)
        np.testing.assert_allclose(here["kl"], kl, atol=1e-5)
        np.testing.assert_allclose(here["entropy"], -(log_p.exp() * log_p).sum(-1), rtol=1e-5)
        np.testing.assert_array_equal(here["top1_agreement"], log_p.argmax(-1) == final.argmax(-1))
        top = log_p.topk(5, dim=-1).indices
        overlap = [
            [
                len(set(p.tolist()) & set(f.tolist())) / 5
                for p, f in zip(layer, top[-1], strict=True)
            ]
            for layer in top
        ]
        np.testing.assert_allclose(here["top5_overlap"], overlap)
        for position, following in enumerate(ids[1:]):
            p = log_p[:, position]
            np.testing.assert_allclose(
                here["next_probability"][:, position], p[:, following].exp(), rtol=1e-4
            )
            rank = 1 + (p > p[:, following, None]).sum(-1)
            np.testing.assert_array_equal(here["next_rank"][:, position], rank)
        assert np.isnan(here["next_rank"][:, -1]).all()
        assert (here["kl"][-1] == 0).all()
        assert (here["top5_overlap"][-1] == 1).all()
    assert covered == 5


@pytest.mark.parametrize(
    "predicate",
    ["position % 4 = 0", "kind = 'k1' AND NOT special", "document IN (3, 38)", "row = 77"],
)
def test_selected_rows_and_points(
    run: Extract, slow: SlowLlama, tmp_path: Path, predicate: str
) -> None:
    run(rows=predicate, points="0,2", lens_rows="none")
    store = tmp_path / "store"
    assert stored(store, "activations.zarr/point").tolist() == [0, 2]
    rows = stored(store, "activations.zarr/row")
    residual = stored(store, "activations.zarr/residual")
    tokens = pq.read_table(store / "tokens.parquet").to_pandas()
    table = pq.read_table(store / "documents.parquet").to_pandas()
    wanted = tokens.merge(table[["document", "kind"]], on="document")
    expected = {
        "position % 4 = 0": wanted[wanted.position % 4 == 0],
        "kind = 'k1' AND NOT special": wanted[(wanted.kind == "k1") & ~wanted.special],
        "document IN (3, 38)": wanted[wanted.document.isin([3, 38])],
        "row = 77": wanted[wanted.row == 77],
    }[predicate]
    np.testing.assert_array_equal(rows, np.sort(expected["row"]))
    for first, ids in documents(store):
        inside = (rows >= first) & (rows < first + len(ids))
        if inside.any():
            reference = slow.run(ids).points[[0, 2]][:, rows[inside] - first]
            check_close(residual[:, inside], reference)
    # Norms cover every row all the same.
    assert np.isfinite(stored(store, "statistics.zarr/norm")).all()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_bfloat16_store_of_a_bfloat16_model(
    run: Extract, tiny_model: Path, tmp_path: Path, codec: str
) -> None:
    run(dtype="bfloat16", codec=codec)
    store = tmp_path / "store"
    residual = stored(store, "activations.zarr/residual")
    assert residual.dtype.name == "bfloat16"
    slow = SlowLlama(tiny_model, torch.bfloat16)
    for first, ids in documents(store):
        check_close(residual[:, first : first + len(ids)], slow.run(ids).points, "bfloat16")


def test_a_document_of_its_own_is_bit_equal(run: Extract, slow: SlowLlama, tmp_path: Path) -> None:
    # A budget of one token gives batches of one document: the shape that transformers sees.
    run(batch_tokens=1, task_rows=4096, sublayers=True)
    store = tmp_path / "store"
    residual = stored(store, "activations.zarr/residual")
    mlp = stored(store, "activations.zarr/mlp_output")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    references = [slow.run(ids) for _, ids in documents(store)]
    torch.set_num_threads(threads)
    for (first, ids), reference in zip(documents(store), references, strict=True):
        np.testing.assert_array_equal(residual[:, first : first + len(ids)], reference.points)
        np.testing.assert_array_equal(mlp[:, first : first + len(ids)], reference.mlp)


def test_running_again_does_nothing_and_another_request_is_refused(
    run: Extract, tmp_path: Path
) -> None:
    first = run()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.json")}
    again = run()
    assert (again.committed, again.rows) == (0, first.rows)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.json")} == before
    with pytest.raises(RequestError, match=r"dtype.*float32.*bfloat16.*points"):
        run(dtype="bfloat16", points="0,1")
    with pytest.raises(RequestError, match="tokens"):
        run(limit=3)


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """Token ids; document 17 (line 18) has one without an embedding."""
    records: list[dict[str, object]] = [
        {"ids": [2 + (i * j) % 200 for j in range(5 + i)]} for i in range(30)
    ]
    records[17]["ids"] = [5, 6, 100_000, 7]
    return write_jsonl(tmp_path / "ids.jsonl", records)


def test_a_poisoned_document_is_named_and_the_rest_committed(
    run: Extract, poisoned: Path, tmp_path: Path
) -> None:
    options = {"data": (str(poisoned),), "token_ids": "ids", "task_rows": 128, "retries": 1}
    with pytest.raises(WorkFailed, match=r"ids\.jsonl line 18 \(document 17\).*100000"):
        run(**options)
    store = tmp_path / "store"
    record = json.loads((store / "run.json").read_text())
    assert len(list((store / "commits").iterdir())) == record["tasks"] - 1
    failures = [json.loads(line) for line in (store / "failures.jsonl").read_text().splitlines()]
    assert [failure["try"] for failure in failures] == [1, 2]
    assert "document 17" in failures[0]["error"]
    result = run(**options, on_error="skip")
    assert (result.invalid_documents, result.committed) == (1, 1)
    valid = pq.read_table(store / "tokens.parquet").to_pandas()
    assert set(valid[~valid.valid].document) == {17}
    residual = stored(store, "activations.zarr/residual")
    bad = ~valid.valid.to_numpy()
    assert np.isnan(residual[:, bad]).all()
    assert np.isfinite(residual[:, ~bad]).all()
    assert np.isnan(stored(store, "statistics.zarr/norm")[:, :, bad]).all()


def test_values_that_are_not_finite_stop_the_run_unless_allowed(
    run: Extract, tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkFailed, match=r"not finite at residual/2"):
        run(model=str(broken), retries=0)
    result = run(model=str(broken), allow_nonfinite=True)
    assert result.nonfinite > 0
    residual = stored(tmp_path / "store", "activations.zarr/residual")
    assert np.isfinite(residual[:2]).all()
    assert result.nonfinite == (~np.isfinite(residual)).sum()


def test_duplicates_are_counted(run: Extract, tmp_path: Path) -> None:
    texts = [*sentences(6), *sentences(2)]
    data = write_jsonl(tmp_path / "twice.jsonl", [{"text": t} for t in texts])
    run(data=(str(data),))
    record = json.loads((tmp_path / "store" / "run.json").read_text())
    assert record["corpus"]["duplicates"] == 2


def test_a_block_that_adds_otherwise_is_refused_and_leaves_no_store(
    run: Extract, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GraniteConfig

    from ..conftest import byte_tokenizer

    torch.manual_seed(1)
    config = GraniteConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        residual_multiplier=0.5,
    )
    folder = tmp_path / "scaled"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with pytest.raises(RequestError, match=r"granite.*layer 0"):
        run(model=str(folder))
    assert not (tmp_path / "store").exists()
