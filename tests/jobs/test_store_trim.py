"""Trimmed stores are those that an extraction would have made that was asked for no more."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import depthscope.analysis as da
import numpy as np
import pyarrow.parquet as pq
import pytest
from depthscope.storage import trim_place
from depthscope.storage.errors import RequestError

from ..conftest import sentences
from .test_store_merge import array, files, make, run


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tiny_model, tmp_path_factory.mktemp("whole") / "a", sentences(30, seed=1))


@pytest.fixture(scope="module")
def asked(tiny_model: Path, whole: Path) -> Path:
    """The same corpus, with just what the trims below keep."""
    root = whole.parent.parent / "asked" / "a"
    root.parent.mkdir()
    small: dict[str, Any] = {"points": "0,3", "sublayers": False, "lens_rows": "none"}
    small["data"] = (str(whole.parent / "a.jsonl"),)
    return make(tiny_model, root, sentences(30, seed=1), **small)


TRIM = ("--points", "0,3", "--drop", "sublayers", "--drop", "lens", "--quiet")


def check(out: Path, asked: Path) -> None:
    assert files(out) == files(asked)
    identity, other = (json.loads((s / "run.json").read_text())["identity"] for s in (out, asked))
    assert identity == other
    run("verify", out, "--quiet")


def test_into_a_new_store(whole: Path, asked: Path, tmp_path: Path) -> None:
    before = files(whole)
    out = tmp_path / "out"
    run("store", "trim", whole, *TRIM, "--out", out)
    check(out, asked)
    (commit,) = (out / "commits" / "000001").iterdir()
    (out / json.loads(commit.read_text())["shards"][0][0]).unlink()
    commit.unlink()
    run("store", "trim", whole, *TRIM, "--out", out)
    check(out, asked)
    assert files(whole) == before


def test_in_place_and_killed_on_the_way(
    whole: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a"
    shutil.copytree(whole, root)
    opened = da.open(root).residual
    opened[:, :5].compute()
    steps: list[str] = []

    def die(name: str) -> None:
        """Die the first time that this step is reached; what others see stays whole."""

        def step(*arguments: object, **options: object) -> None:
            steps.append(name)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(trim_place, name, step)
            run("store", "trim", root, *TRIM, code=130)

    die("exchange")
    assert files(root) == files(whole)
    monkeypatch.setattr(os, "link", lambda *a: pytest.fail("it was all there"))
    monkeypatch.setattr(trim_place, "_try_link", lambda *a: None)
    die("sync_folder")
    monkeypatch.undo()
    assert steps == ["exchange", "sync_folder"]
    check(root, asked)
    run("store", "trim", root, *TRIM)
    check(root, asked)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(RequestError, match="open it again"):
        opened[:, 7:9].compute()
    assert np.array_equal(
        da.open(root).residual.values, array(whole, "activations.zarr/residual")[[0, 2]]
    )


def test_without_the_exchange_of_names(
    whole: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a"
    shutil.copytree(whole, root)
    monkeypatch.setattr(trim_place, "exchange", lambda *a: False)
    rename = os.rename

    def once(source: Path, target: Path) -> None:
        if target == root:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(trim_place.os, "rename", once)
    run("store", "trim", root, *TRIM, code=130)
    assert not root.exists()
    monkeypatch.setattr(trim_place.os, "rename", rename)
    run("store", "trim", root, *TRIM)
    check(root, asked)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_text_head_and_refusals(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    drop = [word for name in ("text", "head", "activations") for word in ("--drop", name)]
    run("store", "trim", whole, *drop, "--out", out, "--quiet")
    assert not (out / "head.safetensors").exists()
    assert not (out / "activations.zarr").exists()
    assert "text" not in pq.read_table(out / "documents.parquet").column_names
    tokens = pq.read_table(out / "tokens.parquet")
    assert tokens.column("token").null_count == len(tokens)
    run("verify", out, "--quiet")
    run("query", out, "SELECT kind, count(token) FROM token_documents GROUP BY 1")
    for words, said in (
        (("--points", "0,1"), "--points 1: is not stored; stored points: 0,2,3"),
        (("--drop", "nothing"), "nothing"),
        ((), "nothing to trim"),
        (("--drop", "activations", "--drop", "lens", "--drop", "statistics"), "no array would"),
    ):
        capfd.readouterr()
        run("store", "trim", whole, *words, "--out", tmp_path / "none", code=2)
        lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("depthscope: ")]
        assert len(lines) == 1
        assert said.replace(",", ", ") in lines[0] or said in lines[0]
    assert not (tmp_path / "none").exists()
