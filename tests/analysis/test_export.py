"""Exported rows against plain zarr and numpy reads of the stores they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from depthscope.analysis import export_files, export_rows
from depthscope.analysis.export import export
from depthscope.storage.errors import RequestError
from safetensors.torch import load_file

from .small_store import LENGTHS, SmallStore, build

ROWS = np.flatnonzero(np.arange(sum(LENGTHS)) % 4 != 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """Every fourth row is not stored, document 4 failed, and the third task is not committed."""
    folder = tmp_path_factory.mktemp("export")
    return build(
        folder / "s", activation_rows=ROWS, invalid=(4,), committed=(0, 1, 3), points=(0, 2)
    )


def expected(store: SmallStore) -> dict[str, Any]:
    """What must be exported, in the store's order."""
    rows = ROWS[np.isin(ROWS, store.visible) & (store.document[ROWS] != 4)]
    return {
        "row": rows,
        "document": store.document[rows],
        "position": store.position[rows],
        "token_id": np.array([len(store.token[row]) for row in rows]),
        "vectors": store.h[[0, 2]][:, rows].astype(ml_dtypes.bfloat16),
    }


def order(count: int, seed: int) -> Any:
    """The documented shuffle, in two lines."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")


@pytest.mark.parametrize("memory", [1 << 30, 1000])
def test_every_kind_of_file_shuffled(
    store: SmallStore, tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_files, "FILE_BYTES", 600)
    monkeypatch.setattr(export_rows, "_BLOCK", 700)
    known = expected(store)
    wanted = order(len(known["row"]), 5)
    vectors = known["vectors"][:, wanted]
    done: list[tuple[int, int]] = []
    for name in ("rows.parquet", "rows.zarr", "rows"):
        found = export(
            store.root, tmp_path / name, seed=5, memory=memory, progress=lambda *a: done.append(a)
        )
        assert (found.rows, found.invalid) == (len(wanted), len(ROWS[store.document[ROWS] == 4]))
        assert done[-1] == (len(wanted), len(wanted))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows", "rows.parquet", "rows.zarr"]

    table = pq.read_table(tmp_path / "rows.parquet")
    dataset = xr.open_zarr(tmp_path / "rows.zarr", consolidated=False)
    index = json.loads((tmp_path / "rows" / "index.json").read_text())
    files = [load_file(tmp_path / "rows" / file["file"]) for file in index["files"]]
    assert len(files) > 2
    assert [len(f["row"]) for f in files] == [file["rows"] for file in index["files"]]
    for name in ("row", "document", "position", "token_id"):
        assert table.column(name).to_pylist() == known[name][wanted].tolist()
        assert dataset[name].values.tolist() == known[name][wanted].tolist()
        assert torch.cat([f[name] for f in files]).tolist() == known[name][wanted].tolist()
    for place, point in enumerate((0, 2)):
        plain = vectors[place].astype(np.float32)
        assert np.array_equal(np.stack(table.column(f"residual_{point}").to_numpy()), plain)
        assert np.array_equal(dataset.residual.sel(point=point).values, plain)
        bits = torch.cat([f[f"residual_{point}"] for f in files])
        assert bits.dtype == torch.bfloat16
        assert np.array_equal(bits.view(torch.int16).numpy(), vectors[place].view(np.int16))


def test_chosen_rows_in_order(store: SmallStore, tmp_path: Path) -> None:
    known = expected(store)
    keep = (known["position"] > 0) & (known["document"] % 2 == 1)
    where = "position > 0 AND subject = 'maths'"
    export([store.root], tmp_path / "rows.parquet", points="2", where=where)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == ["row", "document", "position", "token_id", "residual_2"]
    assert table.column("row").to_pylist() == known["row"][keep].tolist()
    plain = known["vectors"][1][keep].astype(np.float32)
    assert np.array_equal(np.stack(table.column("residual_2").to_numpy()), plain)


@pytest.mark.parametrize("array", ["attention_output", "mlp_output"])
def test_what_a_part_added(store: SmallStore, tmp_path: Path, array: str) -> None:
    rows = expected(store)["row"]
    part = store.a if array == "attention_output" else store.m
    for name in ("rows.parquet", "rows.zarr", "rows"):
        export(store.root, tmp_path / name, points="0,2", array=array)
    table = pq.read_table(tmp_path / "rows.parquet")
    dataset = xr.open_zarr(tmp_path / "rows.zarr", consolidated=False)
    tensors = load_file(tmp_path / "rows" / "rows-00000.safetensors")
    for layer in (0, 2):
        plain = part[layer, rows].astype(np.float32)
        name = f"{array}_{layer}"
        assert np.array_equal(np.stack(table.column(name).to_numpy()), plain)
        assert np.array_equal(dataset[array].sel(layer=layer).values, plain)
        assert np.array_equal(tensors[name].float().numpy(), plain)
    with pytest.raises(RequestError, match="layer 3 is not stored; stored layers: 0, 1, 2"):
        export(store.root, tmp_path / "more.zarr", points="3", array=array)


def test_all_orders_are_equally_likely() -> None:
    """Of four rows all 24 orders come alike: chi-squared with 23 degrees of freedom."""
    source = np.zeros(4, [("key", "<u8"), ("row", "<i8")])
    source["row"] = range(4)
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(4800):
        (block,) = export_rows._keyed(iter([source.copy()]), seed)
        place = tuple(export_rows._sorted(block)["row"].tolist())
        counts[place] = counts.get(place, 0) + 1
    assert len(counts) == 24
    # 49.7 is exceeded once in a thousand times.
    assert sum((number - 200) ** 2 / 200 for number in counts.values()) < 49.7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"out": "rows.csv"}, "end it with"),
        ({"out": "no/rows.parquet"}, "no folder"),
        ({"points": "1"}, "point 1 is not stored"),
        ({"where": "positon > 2"}, "positon"),
        ({"where": "position > 999"}, "no row is left"),
        ({"out": "taken"}, "no earlier export"),
    ],
)
def test_refusals(store: SmallStore, tmp_path: Path, words: dict[str, str], said: str) -> None:
    (tmp_path / "taken").mkdir()
    request: dict[str, Any] = {"out": "rows.parquet", **words}
    with pytest.raises(RequestError, match=said):
        export(store.root, tmp_path / request.pop("out"), **request)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
