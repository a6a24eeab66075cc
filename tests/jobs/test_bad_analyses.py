"""Requests that no analysis can answer: exit code 2, and one line that says what, where and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from depthscope.jobs.cli import main

from ..analysis.paired_stores import store

LENGTHS = [3] * 20
H = np.random.default_rng(0).normal(size=(3, 60, 70))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr, in this process."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments), "--quiet"])
    printed = capsys.readouterr()
    assert (left.value.code, printed.out) == (2, "")
    (line,) = printed.err.splitlines()
    return line


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("good") / "s", H, LENGTHS).root


def test_stores_that_do_not_belong_together(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps.zarr"
    names = [str(number) for number in range(20)]
    half = [f"{number if number < 8 else 100 + number:032x}" for number in range(20)]
    # Eight of the documents are the same, by what their tokens are digested to.
    other = store(tmp_path / "other", H, LENGTHS, texts=names, digests=half).root
    said = refused(capsys, "map", good, other, "--out", out, "--least-shared", 0.6)
    assert "share 8 of 20 documents (documents 0, 1, 2, 3, 4, … of the first)" in said
    assert "extract both from one corpus, or accept less than 60% with --least-shared" in said
    ids = store(tmp_path / "ids", H, LENGTHS, token_ids=np.full(60, 77)).root
    assert "no rows of the two stores pair" in refused(capsys, "map", good, ids, "--out", out)
    said = refused(capsys, "map", good, good, "--out", out, "--ridge", 0)
    assert "training rows for 70 dimensions: least squares needs more rows" in said
    assert not out.exists()


def test_nothing_is_committed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = store(tmp_path / "bare", H, LENGTHS, committed=()).root
    for name in ("contributions", "lens", "depth", "geometry"):
        said = refused(capsys, "analyze", bare, name)
        assert "nothing is committed yet" in said, said
    assert "nothing is committed yet" in refused(
        capsys, "analyze", bare, "probes", "--label", "subject"
    )
    said = refused(capsys, "map", bare, bare, "--out", tmp_path / "m.zarr")
    assert "maps have no rows: nothing is committed yet" in said
    said = refused(capsys, "report", bare, "--out", tmp_path / "r.html")
    assert "has nothing committed yet: run extract to its end first" in said


def test_what_a_lens_needs(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    headless = store(tmp_path / "headless", H, LENGTHS).root
    (headless / "head.json").unlink()
    said = refused(capsys, "analyze", headless, "lens", "--source", "activations")
    assert "--no-head" in said
    short = store(tmp_path / "short", H, LENGTHS, points=(0, 1)).root
    said = refused(capsys, "analyze", short, "lens", "--source", "activations")
    assert "the last point, 2, is not stored" in said
    none = store(tmp_path / "none", H, LENGTHS, points=()).root
    said = refused(capsys, "analyze", none, "probes", "--label", "subject")
    assert "has no residual: it was extracted with --points none" in said
