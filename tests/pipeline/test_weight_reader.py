"""Tensors as safetensors' own reader gives them, without a map of the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from depthscope.pipeline import weight_reader
from depthscope.pipeline.weight_reader import WeightReader
from depthscope.storage.errors import RequestError
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
STORED = ["bfloat16", "float16", "float32", "float64", "int64", "int32", "int8", "uint8", "bool"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    numbers = torch.randn(50, 7) * 3
    tensors = {name: numbers.to(getattr(torch, name)) for name in STORED}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("piece", [64, 1 << 20])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_every_tensor_in_every_dtype(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, piece: int
) -> None:
    """Small pieces and small reads, so that both are put together from many."""
    monkeypatch.setattr(weight_reader, "_PIECE", {"cpu": piece})
    monkeypatch.setattr(weight_reader, "_READ", piece)
    reader = WeightReader(folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        read = reader.read(name, CPU, dtype)
        assert read.dtype == (dtype or tensor.dtype)
        assert read.shape == tensor.shape
        assert torch.equal(read, tensor.to(read.dtype))
    assert reader.bytes_read == sum(t.bytes for t in reader.tensors.values())


def test_some_rows(folder: Path) -> None:
    reader = WeightReader(folder)
    whole = load_file(folder / "model.safetensors")["bfloat16"]
    for dtype in (torch.bfloat16, torch.float32):
        rows = torch.empty(5, 7, dtype=dtype)
        reader.read_rows("bfloat16", rows, 40)
        assert torch.equal(rows, whole[40:45].to(dtype))
        read = reader.read("bfloat16", CPU, dtype, slice(40, 45))
        assert torch.equal(read, rows)
    assert reader.bytes_read == 4 * 5 * 7 * 2


def test_reads_that_come_back_short_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(descriptor, [buffers[0][:13]], offset)

    monkeypatch.setattr(os, "preadv", short)
    expected = load_file(folder / "model.safetensors")["float32"]
    assert torch.equal(WeightReader(folder).read("float32", CPU), expected)


def test_the_file_is_never_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, maps = os.preadv, []

    def look(*arguments: Any) -> int:
        maps.append(Path("/proc/self/maps").read_text())
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", look)
    tensor = WeightReader(folder).read("float32", CPU)
    assert tensor.sum() != 0
    assert maps
    assert not any(str(folder) in text for text in (*maps, Path("/proc/self/maps").read_text()))


def test_a_header_whose_bytes_and_shape_disagree(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header = data[: data.index(b"}}") + 2]
    wrong = header.replace(b"[50,7]", b"[50,8]")
    assert len(wrong) == len(header) != 0
    assert wrong != header
    path.write_bytes(wrong + data[len(header) :])
    with pytest.raises(RequestError, match="bytes where its shape says"):
        WeightReader(folder).dtype("float32")
