"""Laying a store out: points, selections, tasks and coordinates, and two runs that race."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from depthscope.jobs import ExtractSpec
from depthscope.jobs import prepare as prepare_module
from depthscope.jobs.prepare import parse_points, prepare
from depthscope.storage.errors import RequestError
from depthscope.storage.run_record import RunRecord

Make = Callable[..., ExtractSpec]


@pytest.fixture
def make(tiny_model: Path, corpus: Path, tmp_path: Path) -> Make:
    def spec(**options: Any) -> ExtractSpec:
        given = {"out": tmp_path / "store", "lens_rows": "none", "task_rows": 256, **options}
        return ExtractSpec(model=str(tiny_model), data=(str(corpus),), **given)

    return spec


@pytest.mark.parametrize(
    ("text", "points"),
    [("all", (0, 1, 2, 3)), ("none", ()), ("3,0,3", (0, 3)), (" 1 , 2 ", (1, 2))],
)
def test_points(text: str, points: tuple[int, ...]) -> None:
    assert parse_points(text, 3) == points


@pytest.mark.parametrize("text", ["", "0,,2", "4", "0,-1", "first"])
def test_points_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="--points"):
        parse_points(text, 3)


def coordinate(store: Path, name: str) -> list[Any]:
    return list(np.asarray(zarr.open_array(store / name, mode="r")[:]).tolist())


def test_rows_and_labels_of_every_group(make: Make) -> None:
    record, _ = prepare(
        make(rows="position = 0", lens_rows="3", points="0,2", sublayers=True, seed=5)
    )
    store = make().out
    table = pq.read_table(store / "documents.parquet").to_pandas()
    firsts = table.first_row[table.n_tokens > 0].tolist()
    assert coordinate(store, "activations.zarr/row") == firsts
    assert coordinate(store, "activations.zarr/point") == [0, 2]
    assert coordinate(store, "activations.zarr/layer") == [0, 1, 2]
    assert coordinate(store, "statistics.zarr/row") == list(range(record.rows))
    assert coordinate(store, "statistics.zarr/quantity") == ["h", "h_mid", "a", "m", "c"]
    assert coordinate(store, "statistics.zarr/part") == ["attention", "mlp", "layer"]
    assert coordinate(store, "statistics.zarr/lens/point") == [0, 1, 2, 3]
    lens = set(coordinate(store, "statistics.zarr/lens/row"))
    chosen = [
        set(range(first, first + count))
        for first, count in zip(table.first_row, table.n_tokens, strict=True)
        if first in lens
    ]
    assert len(chosen) == 3
    assert set().union(*chosen) == lens
    assert {name: group.rows for name, group in record.groups.items()} == {
        "activations": len(firsts),
        "statistics": record.rows,
        "lens": len(lens),
    }
    assert record.tasks == -(-record.rows // 256)


def test_nothing_to_do_leaves_nothing(make: Make) -> None:
    with pytest.raises(RequestError, match="nothing to do"):
        prepare(make(points="none", statistics=False))
    assert not list(make().out.parent.glob("*store*"))


def test_the_same_request_finds_its_store(make: Make) -> None:
    first, folder = prepare(make())
    again, same = prepare(make())
    assert (again, same) == (first, folder)
    assert again == RunRecord.load(make().out)
    with pytest.raises(RequestError, match=r"points \(store: .0,1,2,3., asked: .0,1.\)"):
        prepare(make(points="0,1"))


@pytest.mark.parametrize("points", ["all", "0,1"])
def test_another_driver_is_faster(make: Make, monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    """The store appears while this run prepares its own: it must be the same run's."""
    true_room = prepare_module.check_room
    others: list[RunRecord] = []

    def check_room(*arguments: Any) -> None:
        true_room(*arguments)
        monkeypatch.setattr(prepare_module, "check_room", true_room)
        others.append(prepare(make())[0])

    monkeypatch.setattr(prepare_module, "check_room", check_room)
    if points == "all":
        assert prepare(make())[0] == others[0]
    else:
        with pytest.raises(RequestError, match="another run"):
            prepare(make(points=points))
    assert RunRecord.load(make().out) == others[0]
    assert not list(make().out.parent.glob(".store.preparing-*"))
