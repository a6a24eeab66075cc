"""A head comes back from a store as it went in, and says what is wrong when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from depthscope.storage.errors import Damage, RequestError
from depthscope.storage.head import Head
from safetensors.torch import load_file

FULL = Head(
    norm="layernorm",
    epsilon=1e-5,
    weight=np.arange(4, dtype=np.float32),
    norm_bias=np.ones(4, np.float32),
    unembedding=np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16),
    bias=np.zeros(3, np.float16),
    soft_cap=30.0,
    scale=0.125,
)
PLAIN = Head("rmsnorm", 1e-6, np.ones(4, np.float32), np.ones((3, 4), np.float32))


@pytest.mark.parametrize("head", [FULL, PLAIN])
def test_round_trip(tmp_path: Path, head: Head) -> None:
    head.save(tmp_path)
    back = Head.load(tmp_path)
    for name, value in vars(head).items():
        found = getattr(back, name)
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype
            assert np.array_equal(found, value)
        else:
            assert found == value
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.json", "head.safetensors"]


def test_the_files_open_without_depthscope(tmp_path: Path) -> None:
    FULL.save(tmp_path)
    arrays = load_file(tmp_path / "head.safetensors")
    assert arrays["unembedding.weight"].tolist() == FULL.unembedding.astype(float).tolist()
    settings = json.loads((tmp_path / "head.json").read_text())
    assert settings["norm"] == "layernorm"
    assert settings["soft_cap"] == 30.0


def test_missing_newer_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--no-head"):
        Head.load(tmp_path)
    PLAIN.save(tmp_path)
    whole = (tmp_path / "head.safetensors").read_bytes()
    (tmp_path / "head.safetensors").write_bytes(whole[:-5])
    with pytest.raises(Damage, match="head"):
        Head.load(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(whole)
    settings = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(settings | {"format": 99}))
    with pytest.raises(RequestError, match="newer"):
        Head.load(tmp_path)
