"""The commands map and analyze geometry, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ..analysis.paired_stores import store
from ..conftest import Run


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("stores")
    random = np.random.default_rng(0)
    lengths = [12] * 30
    h = random.normal(size=(3, 360, 6))
    turned = h @ np.linalg.qr(random.normal(size=(6, 6)))[0]
    return store(folder / "a", h, lengths).root, store(folder / "b", turned, lengths).root


def test_map_writes_result_and_figures(
    stores: tuple[Path, Path], depthscope: Run, tmp_path: Path
) -> None:
    out = tmp_path / "maps.zarr"
    done = depthscope("map", *stores, "--out", out, "--json", "--ridge", "0,1e-3", "--seed", 3)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["out"] == str(out)
    assert [Path(p).name for p in found["figures"]] == ["maps_maps.png", "maps_map_depth.png"]
    assert all(Path(p).read_bytes().startswith(b"\x89PNG") for p in found["figures"])
    result = xr.open_zarr(out, consolidated=False)
    assert float(np.diagonal(result.relative_error).max()) < 1e-5
    assert result.attrs["parameters"]["ridges"] == [0, 0.001]
    assert "equal tokens" in done.stderr


def test_map_refuses_in_one_line(
    stores: tuple[Path, Path], depthscope: Run, tmp_path: Path
) -> None:
    done = depthscope("map", *stores, "--out", tmp_path / "x.zarr", "--source-points", "1,x")
    assert done.returncode == 2
    assert "--source-points 1,x: write numbers joined by commas" in done.stderr
    done = depthscope("map", *stores, "--out", tmp_path / "x.zarr", "--memory", "1MB", "--quiet")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "give --memory" in done.stderr
    assert not (tmp_path / "x.zarr").exists()


def test_analyze_geometry(stores: tuple[Path, Path], depthscope: Run) -> None:
    done = depthscope("analyze", stores[0], "geometry", "--memory", "4GB", "--resamples", 50)
    assert done.returncode == 0, done.stderr
    assert "block influence" in done.stderr
    result = xr.open_zarr(stores[0] / "analysis" / "geometry.zarr", consolidated=False)
    assert dict(result.sizes)["point"] == 3
    assert float(result["count"].sel(token_set="all")) == 360
