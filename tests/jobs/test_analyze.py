"""`depthscope analyze` and `corpus` as a user meets them: results, refusals, one line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xarray as xr
from depthscope.jobs.cli import main

from ..analysis.effects_store import add_effects, commit_effects
from ..analysis.small_store import build


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code and what is printed on stdout and stderr, in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, printed.out, printed.err


def test_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build(tmp_path / "s", layers=4)
    code, out, _ = run(capsys, "analyze", store.root, "--json", "--resamples", 20)
    assert code == 0
    assert list(json.loads(out)) == ["contributions", "lens", "depth"]
    add_effects(store.root)
    code, out, told = run(
        capsys, "analyze", store.root, "--level", "subject", "--resamples", 20, "--json"
    )
    assert code == 0, told
    found = json.loads(out)
    assert list(found) == ["contributions", "lens", "depth", "interactions", "depth_score"]
    assert "Effective depth of 4 layers" in told
    assert "Changing a layer of the first half" in told
    for name, path in found.items():
        assert Path(path) == store.root.resolve() / "analysis" / f"{name}.zarr"
        assert xr.open_zarr(path, consolidated=False).attrs["parameters"]["resamples"] == 20


def test_options_decide_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build(tmp_path / "s", layers=4)
    add_effects(store.root, "a")
    add_effects(store.root, "b")
    config = tmp_path / "analysis.yaml"
    config.write_text("effects: b\nlevel: subject\nlevels: maths,facts\npart: mlp\nseed: 3\n")
    out = tmp_path / "mine.zarr"
    code, printed, told = run(
        capsys, "analyze", store.root, "depth_score", "--config", config, "--out", out,
        "--confidence", 0.9, "--seed", 4,
    )  # fmt: skip
    assert code == 0, told
    assert str(out) in printed
    result = xr.open_zarr(out, consolidated=False)
    parameters = result.attrs["parameters"]
    wanted = {"effects": "b", "field": "subject", "part": "mlp", "seed": 4, "level": 0.9}
    assert {key: parameters[key] for key in wanted} == wanted
    assert result.level.values.tolist() == ["maths", "facts"]
    assert not (store.root / "analysis").exists()
    code, _, told = run(
        capsys, "analyze", store.root, "depth", "--tokens", "all", "--kl-share", 0.7,
        "--overlap-least", 0.2,
    )  # fmt: skip
    assert code == 0, told
    found = xr.open_zarr(store.root / "analysis" / "depth.zarr", consolidated=False)
    parameters = found.attrs["parameters"]
    assert (parameters["token_set"], parameters["kl_share"], parameters["overlap_least"]) == (
        "all", 0.7, 0.2,
    )  # fmt: skip


def test_several_stores_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [build(tmp_path / name, seed=n, layers=3 + n).root for n, name in enumerate("ab")]
    code, out, told = run(capsys, "analyze", *stores, "depth", "--resamples", 20)
    assert code == 0, told
    lines = out.splitlines()
    assert lines[:2] == [f"depth: {root.resolve()}/analysis/depth.zarr" for root in stores]
    assert lines[3].split() == ["store", "model", "size", "corpus", "layers", "cosine", "kl",
                                "overlap"]  # fmt: skip
    assert [line.split()[0] for line in lines[4:6]] == [str(root) for root in stores]
    code, out, _ = run(capsys, "analyze", stores[0], "depth", stores[1], "--json")
    found = json.loads(out)
    assert list(found["stores"]) == [str(root) for root in stores]
    assert [row["layers"] for row in found["depth"][:2]] == [3, 4]
    code, _, told = run(capsys, "analyze", *stores, "depth", "--out", tmp_path / "x.zarr")
    assert code == 2
    assert "--out takes the result of one store" in told


def test_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build(tmp_path / "s", layers=2)
    code, out, told = run(
        capsys, "analyze", store.root, "probes", "--label", "subject", "--folds", 2, "--pool",
        "mean", "--labels", "maths,facts", "--resamples", 20,
    )  # fmt: skip
    assert code == 0, told
    assert "A linear probe reads subject best at point" in told
    result = xr.open_zarr(out.split(": ")[1].strip(), consolidated=False)
    assert result.label.values.tolist() == ["all", "maths", "facts"]
    assert result.attrs["parameters"]["pool"] == "mean"


def test_an_unfinished_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = build(tmp_path / "s", layers=4)
    effects = add_effects(store.root, committed=(1,))
    code, out, told = run(capsys, "analyze", store.root, "interactions", "--effects", "skip")
    assert (code, out) == (2, "")
    assert told.splitlines()[-1].endswith(
        f"effects skip have 1 of 3 tasks committed: resume with depthscope intervene "
        f"{store.root.resolve()} --name skip, or add --partial to use what is committed"
    )
    # Without names, what cannot be computed yet is left out.
    code, out, _ = run(capsys, "analyze", store.root, "--json", "--resamples", 20)
    assert list(json.loads(out)) == ["contributions", "lens", "depth"]
    code, _, told = run(capsys, "analyze", store.root, "interactions", "--partial")
    assert code == 0, told
    path = store.root / "analysis" / "interactions.zarr"
    assert xr.open_zarr(path, consolidated=False).attrs["documents"]["all"] == 2
    for task in (0, 2):
        commit_effects(effects, task)
    assert run(capsys, "analyze", store.root, "interactions")[0] == 0
    assert xr.open_zarr(path, consolidated=False).attrs["documents"]["all"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interaction"], "unknown analysis interaction; there are contributions, lens, depth"),
        (["interactions"], "has no effects: run depthscope intervene"),
        (["interactions", "--effects", "none"], "has no effects named 'none'"),
        (["depth_score"], "depth_score needs --level FIELD"),
        (["probes"], "probes need --label COLUMN"),
        (["probes", "--label", "colour"], "there is no label 'colour'; documents have"),
        (["depth", "--kl-share", "2"], "kl_share"),
        (["depth", "--tokens", "some"], "is not one of 'content', 'all'"),
        (["--out", "x.zarr"], "--out takes the result of one analysis: name one"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    store = build(tmp_path / "s")
    code, out, told = run(capsys, "analyze", store.root, *arguments, "--quiet")
    assert (code, out) == (2, "")
    assert len(told.splitlines()) == 1
    assert message.replace("-", "_") in told.replace("-", "_")
    assert not (store.root / "analysis").exists()


def test_corpora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sums.jsonl"
    code, out, _ = run(
        capsys, "corpus", "arithmetic", "--out", path, "--documents", 9, "--depths", "1-2,8",
        "--seed", 5,
    )  # fmt: skip
    assert (code, out.strip()) == (0, str(path))
    levels = [json.loads(line)["level"] for line in path.read_text().splitlines()]
    assert levels == [1, 2, 8] * 3
    assert run(capsys, "corpus", "facts", "--out", tmp_path / "facts.jsonl")[0] == 0
    assert len((tmp_path / "facts.jsonl").read_text().splitlines()) == 160
    for wrong in ("some", "3-", "0", "1-9999999"):
        code, _, told = run(capsys, "corpus", "arithmetic", "--out", path, "--depths", wrong)
        assert code == 2
        assert len(told.splitlines()) == 1
        assert "depths" in told
