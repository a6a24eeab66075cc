"""The command line as a user or a script meets it: real processes, exit codes, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ..conftest import Run


@pytest.mark.cluster
def test_a_store_by_default_on_ray(
    depthscope: Run, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {tiny_model}\ndata: [{corpus}]\nlens-rows: 3\npoints: none\n")
    result = depthscope(
        "extract",
        "--config",
        config,
        "--out",
        store,
        "--points",
        "0,3",
        "--task-rows",
        512,
        "--json",
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["committed"] == answer["tasks"]
    # Without a terminal progress is plain lines on stderr; the command line wins over the file.
    assert "rows/s" in result.stderr
    assert "\r" not in result.stderr
    assert json.loads((store / "run.json").read_text())["points"] == [0, 3]

    status = json.loads(depthscope("status", store, "--json").stdout)
    assert status == {
        "state": "complete",
        "rows_total": answer["rows"],
        "rows_committed": answer["rows"],
        "tasks_total": answer["tasks"],
        "tasks_committed": answer["tasks"],
        "tasks_begun": 0,
        "effects": {},
        "share_committed": 1.0,
        "problems": [],
    }

    shard = store / "activations.zarr/residual/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    damaged = depthscope("verify", store, "--json")
    assert damaged.returncode == 1
    assert json.loads(damaged.stdout)["state"] == "damaged"
    assert depthscope("verify", store, "--repair", "--quiet").returncode == 0
    assert json.loads(depthscope("status", store, "--json").stdout)["state"] == "incomplete"
    again = depthscope(
        "extract", "--config", config, "--out", store, "--points", "0,3", "--task-rows", 512
    )
    assert again.returncode == 0, again.stderr
    assert depthscope("verify", store).returncode == 0


def test_queries(depthscope: Run, tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    made = depthscope(
        "extract", "--model", tiny_model, "--data", corpus, "--out", store, "--engine", "process"
    )
    assert made.returncode == 0, made.stderr
    sql = "SELECT kind, count(*) AS n FROM documents GROUP BY kind ORDER BY kind"
    assert "k0" in depthscope("query", store, sql).stdout
    assert json.loads(depthscope("query", store, sql, "--json").stdout)[0] == {
        "kind": "k0",
        "n": 14,
    }
    out = tmp_path / "some.npz"
    asked = depthscope(
        "query", store, "SELECT row FROM tokens WHERE position = 2", "--points", "0,3", "--out", out
    )
    assert asked.returncode == 0, asked.stderr
    with np.load(out) as answer:
        assert sorted(answer) == ["point", "residual", "row"]
        assert answer["residual"].shape == (2, len(answer["row"]), 32)
    refused = depthscope(
        "query", store, "SELECT kind FROM documents", "--points", "0", "--out", out
    )
    assert refused.returncode == 2
    assert "row" in refused.stderr
    assert depthscope("query", store, "SELEKT 1").returncode == 2
    results = json.loads(depthscope("analyze", store, "--json").stdout)
    assert sorted(results) == ["contributions", "depth", "lens"]


def test_help_names_every_command(depthscope: Run) -> None:
    text = depthscope("--help").stdout
    for command in ("corpus", "demo", "extract", "analyze", "query", "report", "verify", "status"):
        assert f"  {command} " in text
