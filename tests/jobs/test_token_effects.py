"""Erasure and gradients from the command to results, figures and the report; status and verify."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import depthscope.analysis as da
import numpy as np
import pytest
import xarray as xr
from depthscope.analysis.charts import Matrix
from depthscope.jobs import ExtractSpec, InterveneSpec, extract, intervene
from depthscope.storage.errors import RequestError
from depthscope.storage.status import status
from depthscope.storage.token_table import TokenTable
from depthscope.storage.verify import verify

from ..conftest import sentences, write_jsonl

NAMES = {"erasure": "gone", "gradients": "slopes"}


@pytest.fixture(scope="module")
def store(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a sweep of each kind over three of its documents."""
    folder = tmp_path_factory.mktemp("tokens")
    records: list[dict[str, object]] = [{"text": t} for t in sentences(5, seed=3, longest=30)]
    root = folder / "store"
    data = (str(write_jsonl(folder / "corpus.jsonl", records)),)
    run = {"engine": "process", "threads": 1}
    extract(ExtractSpec(model=str(tiny_model), data=data, out=root, **run))
    some: dict[str, Any] = {"documents": 3, "seed": 1, **run}
    intervene(root, InterveneSpec(name="gone", what="erase", **some))
    intervene(
        root,
        InterveneSpec(name="slopes", what="gradients", part="layer,mlp", steps=4, **some),
    )
    return root


def raw(store: Path, analysis: str) -> xr.Dataset:
    path = store / "effects" / f"{NAMES[analysis]}.zarr"
    return xr.open_zarr(path, consolidated=False).load()


@pytest.mark.parametrize(
    ("analysis", "value", "summary", "place"),
    [
        ("erasure", "output_l2", "output_l2", "point"),
        ("gradients", "attribution", "magnitude", "layer"),
    ],
)
def test_rows_and_means(
    store: Path, analysis: str, value: str, summary: str, place: str, tmp_path: Path
) -> None:
    result = getattr(da, analysis)(da.open(store), resamples=50)
    kept = xr.open_zarr(store / "analysis" / f"{analysis}.zarr", consolidated=False)
    assert kept.attrs["fingerprint"] == result.attrs["fingerprint"]
    made = raw(store, analysis)
    cases = made["case" if analysis == "erasure" else "part"].values.tolist()
    assert result["case"].values.tolist() == cases
    table = TokenTable(store)
    _, starts, lengths = table.document_spans()
    means, rows = [], []
    for n, document in enumerate(made["document"].values.tolist()):
        first, length = int(starts[document]), int(lengths[document])
        rows += range(first, first + length)
        values = made[value].values[:, n, :, :length]
        here = result[value].sel(row=slice(first, first + length - 1))
        np.testing.assert_array_equal(here.values, values)
        assert (here["document"] == document).all()
        assert here["position"].values.tolist() == list(range(length))
        with np.errstate(all="ignore"):
            means.append(np.nanmean(np.abs(values.astype(np.float64)), axis=-1))
    assert result["row"].values.tolist() == rows
    found = da.open(store).sql("SELECT row, token FROM tokens").fetchall()
    assert [dict(found)[row] for row in rows] == result["token"].values.tolist()
    expected = np.nanmean(means, axis=0)
    np.testing.assert_allclose(result[f"{summary}_mean"], expected, rtol=1e-6)
    assert (result[f"{summary}_low"] <= result[f"{summary}_mean"] + 1e-12).all()
    assert (result[f"{summary}_mean"] <= result[f"{summary}_high"] + 1e-12).all()
    assert (result["count"] == 3).all()
    if analysis == "gradients":
        gap = made["completeness_gap"].values.astype(np.float64).mean(axis=1)
        np.testing.assert_allclose(result["completeness_gap"], gap, rtol=1e-5)
    curves, maps = result.depthscope.charts()
    assert curves.name == analysis
    shown = maps.panels[0]
    assert isinstance(shown, Matrix)
    document = int(made["document"][0])
    first = int(starts[document])
    wanted = (
        result[value].isel(case=0).sel(row=slice(first, first + min(lengths[document], 40) - 1))
    )
    np.testing.assert_array_equal(shown.values, wanted.values.astype(np.float64))
    assert shown.x_ticks is not None
    assert len(shown.x_ticks) == shown.values.shape[1]
    assert result.sizes[place] == shown.values.shape[0]
    for engine in ("matplotlib", "plotly"):
        assert result.depthscope.plot(maps.name, engine=engine) is not None


def test_analyze_and_report_know_them(store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    results = da.analyze(store, effects="gone", resamples=20, report=said.append)
    assert "erasure" in results
    assert not {"gradients", "interactions"} & set(results)
    assert any(line.startswith("erasure: Erasure, one position") for line in said)
    with pytest.raises(RequestError, match="hold no integrated gradients"):
        da.analyze(store, ["gradients"], effects="gone")
    with pytest.raises(RequestError, match="no effects named"):
        da.analyze(store, effects="typo")
    paths = da.write_report([store], tmp_path / "report.html")
    names = {path.stem for path in paths.figures}
    assert {"erasure", "erasure_tokens", "gradients", "gradients_tokens"} <= names
    page = paths.page.read_text()
    for text in ("Erasure over tokens", "Attribution over tokens", "Gradients, whole layer"):
        assert text in page


def test_status_and_verify_count_and_check_sweeps(store: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(store, root)
    total = status(root).effects["gone"].tasks_total
    assert total == status(root).effects["gone"].tasks_committed > 1
    assert verify(root).problems == []
    commit = sorted((root / "commits" / "effects" / "gone").glob("*/*.json"))[0]
    shard = root / json.loads(commit.read_text())["shards"][0][0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = verify(root)
    assert found.state == "damaged"
    (problem,) = found.problems
    assert "differs from its digest" in problem
    assert str(shard.relative_to(root)) in problem
    assert verify(root, repair=True).state == "complete"
    assert f"effects gone: {total - 1} of {total} tasks committed" in status(root).sentence
    with pytest.raises(RequestError, match="resume"):
        da.erasure(da.open(root), "gone")
    partial = da.erasure(da.open(root), "gone", partial=True, resamples=20)
    assert partial.sizes["row"] < da.erasure(da.open(store), resamples=20).sizes["row"]
    spec = InterveneSpec(name="gone", what="erase", documents=3, seed=1, engine="process")
    assert intervene(root, spec).committed == 1
    assert verify(root).problems == []
    original = store / shard.relative_to(root)
    assert shard.read_bytes() == original.read_bytes()
