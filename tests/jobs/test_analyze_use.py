"""`depthscope analyze STORE onset flips tuned_lens` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xarray as xr
from depthscope.jobs.cli import main

from ..analysis.small_store import build


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code and what is printed on stdout and stderr, in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, printed.out, printed.err


def test_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build(tmp_path / "s")
    counts = tmp_path / "counts.csv"
    counts.write_text("token_id,count\n3,9\n4,5\n")
    code, out, told = run(
        capsys, "analyze", store.root, "onset", "flips", "tuned_lens", "--json", "--resamples", 20,
        "--ranks", "1,3", "--frequencies", counts, "--steps", 2, "--batch-rows", 32,
        "--optimizer", "sgd", "--learning-rate", 0.01, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, told
    found = {name: xr.open_zarr(path, consolidated=False) for name, path in json.loads(out).items()}
    assert list(found) == ["onset", "flips", "tuned_lens"]
    assert found["onset"]["rank"].values.tolist() == [1, 3]
    assert found["flips"].attrs["parameters"]["frequencies"] == "counts.csv"
    parameters = found["tuned_lens"].attrs["parameters"]
    wanted = {"steps": 2, "batch_rows": 32, "optimizer": "sgd", "learning_rate": 0.01}
    assert {name: parameters[name] for name in wanted} == wanted
    for sentence in ("are overturned later", "reaches rank 1 for good", "for the tuned lens"):
        assert sentence in told
    again = run(capsys, "analyze", store.root, "onset", "--target", "next", "--ranks", "2")
    assert again[0] == 0, again[2]
    saved = xr.open_zarr(store.root / "analysis" / "onset.zarr", consolidated=False)
    assert saved.attrs["parameters"]["source"] == "statistics"


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build(tmp_path / "s", points=(0, 1))
    for arguments, message in (
        (["onset", "--ranks", "1,x"], "--ranks 1,x: give whole numbers"),
        (["onset", "--ranks", "0"], "from 1 on"),
        (["onset", "--by", "pos"], "there is no field tokens"),
        (["flips"], "last point, 3, is not stored"),
        (["tuned_lens"], "last point, 3, is not stored"),
        (["flips", "--frequencies", tmp_path / "none.csv"], "frequencies cannot be read"),
    ):
        code, out, told = run(capsys, "analyze", store.root, *arguments, "--quiet")
        assert (code, out) == (2, "")
        assert len(told.splitlines()) == 1
        assert message in told
