"""Plans and metadata of arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from depthscope.storage.arrays import ArrayPlan, create_array, create_group
from depthscope.storage.bfloat16 import BFloat16
from depthscope.storage.errors import Damage, RequestError

PLAN = ArrayPlan(
    "activations.zarr/residual",
    (31, 1000, 16),
    "bfloat16",
    ("point", "row", "hidden"),
    (1, 64, 16),
    (1, 256, 16),
    attributes={"units": "1"},
)


def test_arithmetic_of_a_plan() -> None:
    assert PLAN.grid == (31, 4, 1)
    assert PLAN.chunks_per_shard == (1, 4, 1)
    assert PLAN.nbytes == 31 * 1000 * 16 * 2
    assert PLAN.chunk_nbytes == 64 * 16 * 2
    assert len(list(PLAN.shards)) == 31 * 4
    assert PLAN.shard_file((30, 3, 0)) == "activations.zarr/residual/c/30/3/0"


def test_rows_of_shards_cover_every_row_once() -> None:
    ranges = [PLAN.shard_rows(j) for j in range(PLAN.row_shards)]
    assert ranges == [(0, 256), (256, 512), (512, 768), (768, 1000)]
    assert list(PLAN.shards_of_rows(2)) == [(p, 2, 0) for p in range(31)]


def test_bytes_of_a_shard_at_the_border() -> None:
    # 232 rows are 4 chunks of 64, each padded and with 4 bytes of checksum; 4 index entries.
    assert PLAN.shard_shape((0, 3, 0)) == (1, 232, 16)
    assert PLAN.shard_nbytes((0, 3, 0)) == 4 * (64 * 32 + 4) + 4 * 16 + 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "float8"}, "float8"),
        ({"codec": "lz4"}, "lz4"),
        ({"shard": (1, 100, 16)}, "whole number of chunks"),
        ({"chunk": (1, 0, 16)}, "positive"),
        ({"dimensions": ("point", "row")}, "differ in length"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change: dict[str, object], said: str) -> None:
    fields = {name: getattr(PLAN, name) for name in PLAN.__dataclass_fields__}
    with pytest.raises(RequestError, match=said):
        ArrayPlan(**{**fields, **change})


@pytest.mark.parametrize(
    ("codec", "dtype"), [(c, d) for c in ("none", "zstd") for d in ("bfloat16", "float32")]
)
def test_a_created_array_is_read_back_as_planned(tmp_path: Path, codec: str, dtype: str) -> None:
    plan = ArrayPlan("g/a", (3, 10), dtype, ("layer", "row"), (3, 2), (3, 4), codec, {"a": [1]})
    create_group(tmp_path, "g", {"made": "here"})
    create_array(tmp_path, plan)
    create_array(tmp_path, plan)
    assert ArrayPlan.read(tmp_path, "g/a") == plan
    array = zarr.open_array(tmp_path / "g/a", mode="r")
    assert array.shape == (3, 10)
    assert isinstance(array.metadata.data_type, BFloat16) == (dtype == "bfloat16")
    assert array.chunks == (3, 2)
    assert array.shards == (3, 4)
    assert array.metadata.dimension_names == ("layer", "row")
    assert array.attrs.asdict() == {"a": [1]}
    assert np.isnan(np.asarray(array[:], np.float32)).all()
    assert zarr.open_group(tmp_path / "g", mode="r").attrs.asdict() == {"made": "here"}


def test_an_array_with_another_layout_is_not_replaced(tmp_path: Path) -> None:
    create_array(tmp_path, PLAN)
    before = (tmp_path / PLAN.path / "zarr.json").read_bytes()
    other = ArrayPlan(PLAN.path, (2, 8), "float32", ("point", "row"), (1, 8), (1, 8))
    with pytest.raises(RequestError, match="another layout"):
        create_array(tmp_path, other)
    assert (tmp_path / PLAN.path / "zarr.json").read_bytes() == before


def test_reading_a_plan_that_is_not_there_or_not_ours(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no array"):
        ArrayPlan.read(tmp_path, "missing")
    create_group(tmp_path, "group")
    with pytest.raises(RequestError, match="not an array"):
        ArrayPlan.read(tmp_path, "group")
    zarr.create_array(tmp_path / "plain", shape=(4,), dtype="f4", chunks=(2,))
    with pytest.raises(RequestError, match="not a sharded array"):
        ArrayPlan.read(tmp_path, "plain")
    zarr.create_array(
        tmp_path / "gzip",
        shape=(4,),
        dtype="f4",
        chunks=(2,),
        shards=(4,),
        compressors=zarr.codecs.GzipCodec(),
        dimension_names=["row"],
        fill_value=np.nan,
    )
    with pytest.raises(RequestError, match="codecs"):
        ArrayPlan.read(tmp_path, "gzip")


def test_metadata_that_is_not_json_is_damage(tmp_path: Path) -> None:
    create_array(tmp_path, PLAN)
    (tmp_path / PLAN.path / "zarr.json").write_text('{"shape"')
    with pytest.raises(Damage, match="not JSON"):
        ArrayPlan.read(tmp_path, PLAN.path)


def test_the_fill_value_follows_the_data_type(tmp_path: Path) -> None:
    for dtype, fill in {"float32": "NaN", "bfloat16": "NaN", "int64": 0, "bool": False}.items():
        create_array(tmp_path, ArrayPlan(dtype, (2,), dtype, ("row",), (1,), (2,)))
        assert json.loads((tmp_path / dtype / "zarr.json").read_text())["fill_value"] == fill
