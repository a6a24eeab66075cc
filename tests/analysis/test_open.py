"""Opening stores: exactly the committed rows, rightly labelled, and no byte more than needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from depthscope.analysis import store as store_module
from depthscope.analysis import stored_arrays, tables, token_columns
from depthscope.analysis.catalogue import CATALOGUE
from depthscope.analysis.convert import to_pandas, to_torch
from depthscope.analysis.store import Run
from depthscope.storage import shard_reader
from depthscope.storage.array_names import ARRAYS
from depthscope.storage.errors import RequestError

from .small_store import POISON, SmallStore, build, commit

THIRD = np.arange(1, 100, 3)
SOME = np.concatenate([np.arange(6, 18), np.arange(48, 55), np.arange(85, 100)])


def open_store(*stores: SmallStore, partial: bool = False) -> Run:
    return store_module.open([store.root for store in stores], partial=partial)


def stored_visible(store: SmallStore, rows: np.ndarray) -> np.ndarray:
    """Corpus rows of a group that a reader may see, one row at a time."""
    shard = store.task_rows if len(rows) == store.rows else 8
    seen = []
    for place, row in enumerate(rows.tolist()):
        owner = int(rows[place // shard * shard]) // store.task_rows
        if owner in store.committed and row // store.task_rows in store.committed:
            seen.append(row)
    return np.array(seen, dtype=np.int64)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every answer that the shard reader has given."""
    found: list[int] = []
    true_read = shard_reader.ArrayReader.read

    def read(self: Any, *selection: Any, **options: Any) -> Any:
        values = true_read(self, *selection, **options)
        found.append(values.nbytes)
        return values

    monkeypatch.setattr(shard_reader.ArrayReader, "read", read)
    return found


def check_values(run: Run, store: SmallStore) -> None:
    """Every array holds the visible rows, bit for bit, and nothing else."""
    rows = stored_visible(store, store.activation_rows)
    expected = {
        "residual": store.h[list(store.points)][:, rows],
        "attention_output": store.a[:, rows],
        "mlp_output": store.m[:, rows],
    }
    for name, values in expected.items():
        array = getattr(run, name)
        np.testing.assert_array_equal(array.row.values, rows)
        np.testing.assert_array_equal(array.values.astype(np.float64), values)
    for name in ("norm", "norm_ratio", "cosine"):
        array = getattr(run, name)
        np.testing.assert_array_equal(array.row.values, store.visible)
        wanted = getattr(store, name)[:, :, store.visible].astype(np.float32)
        np.testing.assert_array_equal(array.values, wanted)
    rows = stored_visible(store, store.lens_rows)
    for name, values in store.lens.items():
        array = run.lens_values[name]
        np.testing.assert_array_equal(array.row.values, rows)
        np.testing.assert_array_equal(array.values, values[:, rows].astype(np.float32))


@pytest.mark.parametrize("committed", [(0, 1, 2, 3), (0, 2), (1, 3)])
@pytest.mark.parametrize(
    "selection",
    [
        {},
        {"activation_rows": THIRD},
        {"activation_rows": SOME, "lens_rows": THIRD},
        {"dtype": "float32", "points": (0, 3)},
    ],
    ids=["all", "third", "some", "points"],
)
def test_exactly_the_committed_rows(
    tmp_path: Path, committed: tuple[int, ...], selection: dict[str, Any]
) -> None:
    store = build(tmp_path / "s", committed=committed, **selection)
    run = open_store(store)
    check_values(run, store)
    assert POISON not in run.residual.values.astype(np.float64)
    assert not np.isnan(run.residual.values.astype(np.float64)).any()
    tokens = run.tokens.order("row").df()
    np.testing.assert_array_equal(tokens["row"], store.visible)
    documents = run.documents.order("document").df()
    np.testing.assert_array_equal(documents["document"], np.unique(store.document[store.visible]))


def test_many_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path / "s", task_rows=8, committed=(0, 1, 4, 7, 12))
    for most in (64, 2):
        monkeypatch.setattr(tables, "MOST_RANGES", most)
        run = open_store(store)
        np.testing.assert_array_equal(run.tokens.order("row").df()["row"], store.visible)
    check_values(run, store)


def test_labels(tmp_path: Path) -> None:
    store = build(tmp_path / "s", activation_rows=THIRD, points=(0, 2, 3), committed=(0, 1, 2, 3))
    run = open_store(store)
    residual = run.residual
    assert residual.dims == ("point", "row", "hidden")
    assert residual.point.values.tolist() == [0, 2, 3]
    assert run.attention_output.layer.values.tolist() == [0, 1, 2]
    assert run.norm.quantity.values.tolist() == ["h", "h_mid", "a", "m", "c"]
    assert run.norm_ratio.part.values.tolist() == ["attention", "mlp", "layer"]
    for row in (1, 40, 97):
        one = residual.sel(row=row)
        document = int(store.document[row])
        assert int(one.document) == document
        assert int(one.position) == store.position[row]
        assert str(one.token.values) == store.token[row]
        assert bool(one.special) == store.special[row]
        assert bool(one.valid)
        assert str(one.subject.values) == ("maths" if document % 2 else "facts")
        assert int(one.line) == document + 1
        # The field called layer must not hide the axis of that name.
        assert int(one.field_layer) == document * 10
    assert np.isnan(residual.difficulty.values[store.document[THIRD] == 3]).all()
    assert "text" not in residual.coords


def test_gapless_rows_cost_no_memory(tmp_path: Path) -> None:
    store = build(tmp_path / "s")
    assert isinstance(open_store(store).residual.indexes["row"], pd.RangeIndex)
    early = build(tmp_path / "t", committed=(0, 1))
    assert isinstance(open_store(early).norm.indexes["row"], pd.RangeIndex)


def test_nothing_is_read_before_it_is_computed(tmp_path: Path, reads: list[int]) -> None:
    run = open_store(build(tmp_path / "s"))
    arrays = [run.residual, run.norm, run.lens_values, run.where("position > 3").residual]
    assert reads == []
    arrays[0].isel(point=2, row=slice(10, 20)).compute()
    assert sum(reads) == 10 * 8 * 2


def test_blocks_are_whole_chunks_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(tmp_path / "s", committed=(0, 2, 3))
    monkeypatch.setattr(stored_arrays, "BLOCK_BYTES", 20 * 8 * 2)
    run = open_store(store)
    blocks = run.residual.chunks
    assert blocks is not None
    assert blocks[0] == (1, 1, 1, 1)
    assert blocks[1] == (16, 16, 16, 16, 4)
    check_values(run, store)


def test_long_axes_keep_their_labels_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path / "s", committed=(0, 2, 3), dtype="float32")
    loaded = open_store(store).residual
    monkeypatch.setattr(token_columns, "BLOCK_ROWS", 16)
    lazy = open_store(store).residual
    assert isinstance(lazy.token.data, da.Array)
    assert max(lazy.token.data.chunks[0]) <= 16
    xr.testing.assert_identical(lazy.compute(), loaded.compute())
    some = lazy.isel(row=[60, 2, 2, 33])
    np.testing.assert_array_equal(some.token.values, loaded.token.values[[60, 2, 2, 33]])
    assert int(lazy.document.isel(row=50)) == int(loaded.document[50])


@pytest.mark.parametrize("seed", range(6))
def test_any_selection_is_what_numpy_selects(tmp_path: Path, seed: int) -> None:
    store = build(tmp_path / "s", committed=(0, 2, 3), activation_rows=THIRD if seed % 2 else None)
    residual = open_store(store).residual
    values = residual.values
    random = np.random.default_rng(seed)
    rows = residual.sizes["row"]
    keys: list[Any] = [
        int(random.integers(rows)),
        slice(*sorted(random.integers(0, rows, 2).tolist())),
        slice(3, rows, 7),
        random.integers(0, rows, 15).tolist(),
        slice(None, None, -1),
    ]
    for key in keys:
        for point in (1, [0, 3], slice(1, 3)):
            found = residual.isel(point=point, row=key).values
            np.testing.assert_array_equal(found, values[point][..., key, :])


def test_a_run_that_is_still_writing(tmp_path: Path) -> None:
    store = build(tmp_path / "s", committed=(0, 2))
    before = open_store(store)
    twin = build(tmp_path / "t", committed=(0, 1, 2))
    (store.root / "statistics.zarr").rename(tmp_path / "old")
    (twin.root / "statistics.zarr").rename(store.root / "statistics.zarr")
    commit(store, 1)
    np.testing.assert_array_equal(before.norm.row.values, store.visible)
    np.testing.assert_array_equal(before.tokens.order("row").df()["row"], store.visible)
    after = open_store(store)
    np.testing.assert_array_equal(after.norm.row.values, twin.visible)
    np.testing.assert_array_equal(
        after.norm.values, store.norm[:, :, twin.visible].astype(np.float32)
    )


def test_where_reads_only_its_rows(tmp_path: Path, reads: list[int]) -> None:
    store = build(tmp_path / "s", committed=(0, 1, 3))
    run = open_store(store).where("token <> ' the' AND position > 1 AND subject = 'maths'")
    wanted = [
        row
        for row in store.visible
        if store.token[row] != " the" and store.position[row] > 1 and store.document[row] % 2
    ]
    assert len(wanted) > 4
    residual = run.residual.sel(point=[0, 3]).compute()
    assert residual.row.values.tolist() == wanted
    np.testing.assert_array_equal(residual.values.astype(np.float64), store.h[[0, 3]][:, wanted])
    assert residual.token.values.tolist() == [store.token[row] for row in wanted]
    assert sum(reads) == 2 * len(wanted) * 8 * 2
    assert run.norm.row.values.tolist() == wanted
    assert sorted(run.tokens.df()["row"]) == wanted
    narrower = run.where("position > 5")
    assert narrower.norm.row.values.tolist() == [r for r in wanted if store.position[r] > 5]
    assert run.at([wanted[1], 0]).norm.row.values.tolist() == [wanted[1]]
    nothing = run.where("false")
    assert nothing.residual.shape == (4, 0, 8)
    assert nothing.residual.values.shape == (4, 0, 8)
    assert nothing.tokens.df().empty


@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        ("", "empty"),
        ("tokn = 'x'", "tokn"),
        ("position +", "syntax"),
        ("position + 1", "true or false"),
        ("true; DROP VIEW tokens", "SELECT|syntax"),
    ],
)
def test_bad_predicates(tmp_path: Path, predicate: str, message: str) -> None:
    run = open_store(build(tmp_path / "s"))
    with pytest.raises(RequestError, match=message) as caught:
        run.where(predicate)
    assert "\n" not in str(caught.value)


def test_documents_that_failed(tmp_path: Path) -> None:
    marked = build(tmp_path / "s", invalid=(4,))
    # While the run is going on, only the commits know of the failure.
    unmarked = build(tmp_path / "t", invalid=(4,), marked=False, committed=(0, 1))
    for store in (marked, unmarked):
        run = open_store(store)
        failed = store.document[store.visible] == 4
        np.testing.assert_array_equal(run.residual.valid.values, ~failed)
        assert np.isnan(run.residual.values.astype(np.float64)[:, failed]).all()
        tokens = run.tokens.order("row").df()
        np.testing.assert_array_equal(tokens["valid"].to_numpy(), ~failed)
        assert run.where("NOT valid").norm.row.values.tolist() == store.visible[failed].tolist()


def test_several_stores_are_one_corpus(tmp_path: Path) -> None:
    first = build(tmp_path / "a", seed=1, committed=(0, 2))
    second = build(
        tmp_path / "b", seed=2, lengths=(20, 30, 14), committed=(1,), invalid=(1,), points=(0, 1, 3)
    )
    run = open_store(first, second)
    rows = np.concatenate([first.visible, second.visible + 100])
    residual = run.residual
    assert residual.point.values.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(residual.row.values, rows)
    np.testing.assert_array_equal(residual.store.values, rows >= 100)
    wanted = np.concatenate(
        [first.h[[0, 1, 3]][:, first.visible], second.h[[0, 1, 3]][:, second.visible]], axis=1
    )
    np.testing.assert_array_equal(residual.values.astype(np.float64), wanted)
    documents = np.concatenate(
        [first.document[first.visible], second.document[second.visible] + len(first.lengths)]
    )
    np.testing.assert_array_equal(residual.document.values, documents)
    tokens = run.tokens.order("row").df()
    np.testing.assert_array_equal(tokens["row"], rows)
    np.testing.assert_array_equal(tokens["document"], documents)
    np.testing.assert_array_equal(tokens["valid"].to_numpy(), documents != 11)
    table = run.documents.order("document").df().set_index("document")
    assert table.loc[11, "first_row"] == 120
    assert table.loc[11, "store"] == 1
    chosen = run.where("store = 1 AND subject = 'maths' AND line = 2")
    np.testing.assert_array_equal(chosen.norm.row.values, rows[documents == 11])
    assert chosen.residual.sel(row=140).line == 2


@pytest.mark.parametrize("field", ["weights_digest", "layers", "dtype"])
def test_different_models_are_refused(tmp_path: Path, field: str) -> None:
    first = build(tmp_path / "a")
    second = build(tmp_path / "b")
    content = json.loads((second.root / "run.json").read_text())
    content["model"][field] = "other" if field != "layers" else 4
    (second.root / "run.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=field):
        open_store(first, second)


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ({"sublayers": False}, "mlp_output", "--sublayers"),
        ({"points": ()}, "residual", "--points none"),
        ({"lens_rows": np.arange(0)}, "lens_values", "--lens-rows none"),
    ],
)
def test_what_is_not_there(
    tmp_path: Path, options: dict[str, Any], name: str, message: str
) -> None:
    run = open_store(build(tmp_path / "s", **options))
    with pytest.raises(RequestError, match=message):
        getattr(run, name)
    assert run.norm.shape == (5, 3, 100)


def _newer(root: Path) -> None:
    content = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps({**content, "format": 99}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(_newer, "99"), (lambda root: (root / "run.json").unlink(), "no store")],
)
def test_what_cannot_be_opened(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    store = build(tmp_path / "s")
    spoil(store.root)
    with pytest.raises(RequestError, match=message):
        open_store(store)


def test_a_store_without_commits_is_empty(tmp_path: Path) -> None:
    run = open_store(build(tmp_path / "s", committed=()))
    assert run.residual.shape == (4, 0, 8)
    assert run.residual.values.size == 0
    assert run.tokens.df().empty


def test_torch_and_pandas(tmp_path: Path) -> None:
    store = build(tmp_path / "s", committed=(0, 2))
    residual = open_store(store).residual.sel(point=[1, 3])
    tensor = to_torch(residual)
    assert tensor.dtype == torch.bfloat16
    wanted = store.h[[1, 3]][:, store.visible]
    assert torch.equal(tensor.double(), torch.from_numpy(wanted))
    assert residual.values.dtype == ml_dtypes.bfloat16
    frame = to_pandas(residual)
    assert frame.index.tolist() == store.visible.tolist()
    np.testing.assert_array_equal(frame[3].to_numpy(), wanted[1])
    one = to_pandas(residual.sel(point=1))
    np.testing.assert_array_equal(one.to_numpy(), wanted[0])


def test_the_catalogue_describes_every_array() -> None:
    assert {name: entry.group for name, entry in CATALOGUE.items()} == {
        name: group for group, names in ARRAYS.items() for name in names
    }


def test_info_is_the_content_of_run_json(tmp_path: Path) -> None:
    store = build(tmp_path / "s")
    info = open_store(store).info
    assert info["model"]["layers"] == 3
    assert info["rows"] == 100
    assert len(info["identity"]) == 64
