"""The arrays are standard Zarr v3: other packages read ours, and we read theirs, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
import zarrs
from depthscope.storage.arrays import ArrayPlan, create_array
from depthscope.storage.bfloat16 import BFloat16
from depthscope.storage.coordinates import create_coordinate
from depthscope.storage.shard_reader import ArrayReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.dtype import UInt16, data_type_registry

from .shard_cases import random_values, same_bits, select, store

PACKAGES = ("zarr-python", "zarrs", "tensorstore")


@dataclass(frozen=True, kw_only=True)
class BFloat16Bits(UInt16):
    """bfloat16 to numpy as its bits.

    zarrs' Python side hands numpy types that are not numpy's own, as ml_dtypes' are, back to
    zarr-python; so its Rust side, which knows bfloat16, gets to decode it only this way.
    """

    _zarr_v3_name: ClassVar[str] = "bfloat16"  # type: ignore[assignment]

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> np.uint16:
        assert data == "NaN"
        return np.uint16(0x7FC0)

    def to_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        return "NaN"


@contextmanager
def pipeline(package: str) -> Iterator[None]:
    """zarrs replaces zarr-python's way from bytes to values and may not fall back on it here."""
    if package != "zarrs":
        yield
        return
    settings = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
    data_type_registry.register("bfloat16", BFloat16Bits)
    try:
        with zarr.config.set(settings):
            yield
    finally:
        data_type_registry.register("bfloat16", BFloat16)


def read_with(package: str, folder: Path) -> NDArray[Any]:
    if package == "tensorstore":
        place = {"driver": "file", "path": str(folder)}
        array = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
        return np.asarray(array.read().result())
    with pipeline(package):
        array = zarr.open_array(folder, mode="r")
        if package == "zarrs":
            assert isinstance(array._async_array.codec_pipeline, zarrs.ZarrsCodecPipeline)
        values = np.asarray(array[...])
        bits = package == "zarrs" and array.metadata.data_type == BFloat16Bits()
        return values.view(ml_dtypes.bfloat16) if bits else values


def plan_of(dtype: str, codec: str) -> ArrayPlan:
    """37 rows: the last shard is partial, and so is its last chunk."""
    return ArrayPlan(
        "g/a", (3, 37, 8), dtype, ("point", "row", "hidden"), (1, 4, 8), (1, 16, 8), codec
    )


def like_residuals(plan: ArrayPlan) -> NDArray[Any]:
    """Values that compress, with every special one among them."""
    values = np.random.default_rng(0).normal(0, 3, plan.shape).astype(plan.numpy_dtype)
    values.reshape(-1)[:7] = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 3e38]
    return values


@pytest.mark.parametrize("bits", ["random", "residual"])
@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("package", PACKAGES)
def test_others_read_what_we_write(
    tmp_path: Path, package: str, dtype: str, codec: str, bits: str
) -> None:
    plan = plan_of(dtype, codec)
    values = random_values(plan) if bits == "random" else like_residuals(plan)
    store(tmp_path, plan, values)
    assert same_bits(read_with(package, tmp_path / "g/a"), values)
    assert same_bits(ArrayReader(tmp_path, "g/a").read(), values)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("package", PACKAGES)
def test_others_read_missing_shards_as_nan(
    tmp_path: Path, package: str, dtype: str, codec: str
) -> None:
    plan = plan_of(dtype, codec)
    values = random_values(plan)
    store(tmp_path, plan, values, leave_out=[(0, 2, 0), (2, 0, 0)])
    values[0, 32:] = values[2, :16] = np.nan
    got = read_with(package, tmp_path / "g/a")
    assert np.isnan(got[0, 32:].astype(np.float32)).all()
    np.testing.assert_array_equal(got.astype(np.float32), values.astype(np.float32))
    ours = ArrayReader(tmp_path, "g/a", missing="fill").read()
    np.testing.assert_array_equal(ours.astype(np.float32), values.astype(np.float32))


@pytest.mark.parametrize("package", PACKAGES)
def test_others_notice_a_flipped_bit(tmp_path: Path, package: str) -> None:
    plan = plan_of("bfloat16", "none")
    store(tmp_path, plan, random_values(plan))
    file = tmp_path / plan.shard_file((1, 1, 0))
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)checksum|digest"):
        read_with(package, tmp_path / "g/a")


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("package", PACKAGES)
def test_we_read_what_others_write(tmp_path: Path, package: str, dtype: str, codec: str) -> None:
    """They leave out chunks of nothing but fill values, and order chunks as they like."""
    plan = plan_of(dtype, codec)
    values = random_values(plan)
    values[1, 4:12] = values[1, 16:32] = values[2] = np.nan
    create_array(tmp_path, plan)
    if package == "tensorstore":
        place = {"driver": "file", "path": str(tmp_path / "g/a")}
        tensorstore.open({"driver": "zarr3", "kvstore": place}).result()[...].write(values).result()
    else:
        with pipeline(package):
            array = zarr.open_array(tmp_path / "g/a", mode="r+")
            array[...] = values.view(array.dtype)
    # zarr-python cannot tell that bfloat16 values are all NaN.
    if package != "zarr-python" or dtype == "float32":
        assert not (tmp_path / plan.shard_file((2, 0, 0))).exists()
    reader = ArrayReader(tmp_path, "g/a", missing="fill")
    for selection in ((), (1, [3, 5, 30, 36]), (slice(None), slice(2, 9), slice(1, 5)), (1, 6)):
        assert same_bits(reader.read(*selection), select(values, selection))


@pytest.mark.parametrize("package", PACKAGES)
def test_others_read_coordinates(tmp_path: Path, package: str) -> None:
    values = np.array([0, 3, 4, 10**12, -1])
    create_coordinate(tmp_path, "g/row", values, "row")
    np.testing.assert_array_equal(read_with(package, tmp_path / "g/row"), values)


def test_zarr_python_makes_bfloat16_arrays_of_its_own(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).astype(ml_dtypes.bfloat16)
    array = zarr.create_array(tmp_path, shape=(12,), dtype=ml_dtypes.bfloat16, chunks=(5,))
    array[:] = values
    again = zarr.open_array(tmp_path, mode="r")
    assert isinstance(again.metadata.data_type, BFloat16)
    assert again.fill_value == 0
    assert same_bits(np.asarray(again[:]), values)
    assert same_bits(read_with("tensorstore", tmp_path), values)


def test_importing_the_data_type_is_enough_in_a_fresh_interpreter(tmp_path: Path) -> None:
    plan = plan_of("bfloat16", "none")
    store(tmp_path, plan, random_values(plan))
    lines = (
        "import sys, zarr, depthscope.storage.bfloat16",
        "print(zarr.open_group(sys.argv[1], mode='r')['a'][...].view('u2').sum(dtype='u8'))",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(tmp_path / "g")]
    (tmp_path / "g/zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(said) == int(random_values(plan).view(np.uint16).sum(dtype=np.uint64))


# -- any plan, any selection -----------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> ArrayPlan:
    axes = draw(st.integers(1, 4))
    lengths = st.integers(1, 11)
    shape = tuple(draw(lengths) for _ in range(axes))
    chunk = tuple(draw(st.sampled_from(sorted({1, 2, 3, n, n + 1}))) for n in shape)
    shard = tuple(c * draw(st.integers(1, 3)) for c in chunk)
    dtype = draw(st.sampled_from(["bfloat16", "float16", "float32", "int64"]))
    names = ("part", "layer", "hidden", "row")[-axes:]
    return ArrayPlan(
        "a", shape, dtype, names, chunk, shard, draw(st.sampled_from(["none", "zstd"]))
    )


def selections(length: int) -> st.SearchStrategy[Any]:
    position = st.integers(-length, length - 1)
    return st.one_of(
        position,
        st.slices(length),
        st.lists(position, max_size=2 * length),
        st.builds(slice, st.integers(0, length), st.integers(0, length)),
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), plan=plans(), seed=st.integers(0, 1000))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, plan: ArrayPlan, seed: int
) -> None:
    """What we write is what zarr-python reads, and any selection of ours is numpy's."""
    root = tmp_path_factory.mktemp("round")
    values = random_values(plan, seed)
    store(root, plan, values)
    assert same_bits(read_with("zarr-python", root / "a"), values)
    reader = ArrayReader(root, "a")
    for _ in range(5):
        selection = data.draw(st.tuples(*map(selections, plan.shape)))
        assert same_bits(reader.read(*selection), select(values, selection))
