"""Coordinates: numbers and labels along the axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from depthscope.storage.coordinates import create_coordinate, create_labels, read_coordinate
from depthscope.storage.errors import Damage, RequestError


@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_coordinates_are_plain_zarr_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("depthscope.storage.coordinates.COORDINATE_CHUNK", 5)
    values = np.arange(count, dtype=np.int64) ** 3 - 7
    create_coordinate(tmp_path, "g/row", values, "row", {"long_name": "corpus row"})
    array = zarr.open_array(tmp_path / "g/row", mode="r")
    assert array.metadata.dimension_names == ("row",)
    assert array.attrs["long_name"] == "corpus row"
    np.testing.assert_array_equal(array[:], values)
    np.testing.assert_array_equal(read_coordinate(tmp_path, "g/row"), values)


def test_a_coordinate_is_created_once(tmp_path: Path) -> None:
    create_coordinate(tmp_path, "row", np.arange(4), "row")
    create_coordinate(tmp_path, "row", np.arange(4), "row")
    with pytest.raises(RequestError, match="other values"):
        create_coordinate(tmp_path, "row", np.arange(4) + 1, "row")
    with pytest.raises(RequestError, match="another layout"):
        create_coordinate(tmp_path, "row", np.arange(5), "row")
    np.testing.assert_array_equal(read_coordinate(tmp_path, "row"), np.arange(4))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_coordinate_is_named(tmp_path: Path, harm: str) -> None:
    create_coordinate(tmp_path, "row", np.arange(4), "row")
    file = tmp_path / "row/c/0"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(content if harm == "flip" else content[:-5])
    with pytest.raises(Damage, match=r"row/c/0.*depthscope verify"):
        read_coordinate(tmp_path, "row")


def test_labels_are_what_xarray_would_write(tmp_path: Path) -> None:
    create_labels(tmp_path, "part", ["attention", "mlp"], "part")
    array = zarr.open_array(tmp_path / "part", mode="r")
    assert array.metadata.dimension_names == ("part",)
    assert array[:].tolist() == ["attention", "mlp"]
