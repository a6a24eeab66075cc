"""Onset and flips on a table that is written by hand, and the table against plain sorting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from depthscope.analysis import open as open_store
from depthscope.analysis import top_token_blocks
from depthscope.analysis.flips import flips
from depthscope.analysis.frequencies import buckets_of, token_buckets
from depthscope.analysis.guesses import largest, rank_of
from depthscope.analysis.onset import onset, onset_depths
from depthscope.storage.errors import RequestError

from .ordered_store import ordered_store
from .small_store import SmallStore, build

#: Best guesses of seven rows in two documents, at four points.
GUESSES = [
    [[1], [2], [3], [3]],
    [[5], [4], [5], [4, 5]],
    [[5, 4], [1], [5, 1], [5]],
    [[1], [1], [1], [1]],
    [[3], [1, 2], [2, 3], [2, 1]],
    [[3], [4], [4], [6]],
    [[2], [2], [2], [6]],
]
#: Row 1 is followed by 5, row 2 by 1, row 4 by 2, row 5 by 6.
TOKENS = [1, 3, 5, 1, 1, 2, 6]
LENGTHS = [4, 3]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    folder = tmp_path_factory.mktemp("onset")
    return ordered_store(
        folder / "s", GUESSES, LENGTHS, token_ids=np.array(TOKENS), lens_rows=np.arange(0)
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token 1 is common, 2 and 3 are less so, and the others have never been counted."""
    path = tmp_path_factory.mktemp("counts") / "counts.csv"
    common = [(1, 900), *((100 + n, 800 - n) for n in range(9)), (2, 20), (3, 10)]
    path.write_text("token_id,count\n" + "".join(f"{t},{c}\n" for t, c in common))
    return path


def test_flips_by_hand(store: SmallStore, table: Path) -> None:
    result = flips(open_store(store.root), frequencies=table, resamples=50).sel(token_set="all")
    assert int(result.rows) == 7
    # Point 0: token 1 in rows 0 (turns into 3) and 3 (stays).
    common = result.sel(bucket="1-10")
    np.testing.assert_allclose(common.rate, [1 / 2, 2 / 3, 0, 0])
    np.testing.assert_array_equal(common["count"], [2, 3, 1, 1])
    np.testing.assert_allclose(common.share, [2 / 7, 3 / 7, 1 / 7, 1 / 7])
    # Tokens 2 and 3: rows 4, 5, 6; then 0, 6; then 0, 4, 6; then 0, 4.
    middle = result.sel(bucket="11-100")
    np.testing.assert_allclose(middle.rate, [3 / 3, 2 / 2, 1 / 3, 0])
    np.testing.assert_array_equal(middle["count"], [3, 2, 3, 2])
    assert np.isnan(result.rate.sel(bucket="101-1000")).all()
    np.testing.assert_allclose(result.share.sel(bucket="101-1000"), 0)
    every = result.sel(bucket="any")
    np.testing.assert_allclose(every.rate, [5 / 7, 5 / 7, 3 / 7, 0])
    np.testing.assert_allclose(every.candidate_share, 1)
    # Row 0 at point 0 has candidates 1, 0, 2, 3, 4: one common, two middling.
    one = flips(open_store(store.root).at([0]), frequencies=table).sel(token_set="all", point=0)
    np.testing.assert_allclose(one.candidate_share, [1 / 5, 2 / 5, 0, 2 / 5, 1])


def test_content_leaves_first_positions_out(store: SmallStore, table: Path) -> None:
    result = flips(open_store(store.root), frequencies=table).sel(token_set="content")
    assert int(result.rows) == 5
    np.testing.assert_allclose(result.rate.sel(bucket="any"), [3 / 5, 3 / 5, 3 / 5, 0])


def test_onset_by_hand(store: SmallStore, table: Path) -> None:
    result = onset(open_store(store.root), ranks=(1, 2), frequencies=table, resamples=50)
    assert result.depth_mean.dims == ("token_set", "outcome", "class", "criterion", "rank")
    every = result.sel(token_set="all", outcome="all", rank=1)
    # Targets: 3, 4, 5, 1, 2, 6, 6; first at 2, 1, 0, 0, 2, 3, 3; for good at 2, 3, 2, 0, 2, 3, 3.
    rest, middle, common = (every.sel({"class": c}) for c in ("rest", "11-100", "1-10"))
    np.testing.assert_allclose(rest.depth_mean, [(1 + 0 + 3 + 3) / 4, (3 + 2 + 3 + 3) / 4])
    np.testing.assert_allclose(middle.depth_mean, [2, 2])
    np.testing.assert_allclose(common.depth_mean, [0, 0])
    assert rest["count"].values.tolist() == [4, 4]
    assert middle["count"].values.tolist() == [2, 2]
    # Rank 2: row 4 has token 2 second at point 1 and from there on; row 1 has 4 first at 1.
    middle = result.sel({"token_set": "all", "outcome": "all", "rank": 2, "class": "11-100"})
    np.testing.assert_allclose(middle.depth_mean, [(2 + 1) / 2, (2 + 1) / 2])
    assert (every.reached.sel({"class": ["1-10", "11-100", "rest", "any"]}) == 1).all()
    together = every.sel({"class": "any"}).depth_mean
    np.testing.assert_allclose(together, [(2 + 1 + 0 + 0 + 2 + 3 + 3) / 7, (2 + 3 + 2 + 0 + 8) / 7])
    assert np.isnan(every.depth_mean.sel({"class": "101-1000"})).all()


def test_correct_and_incorrect_rows(store: SmallStore, table: Path) -> None:
    result = onset(open_store(store.root), ranks=(1,), frequencies=table).sel(
        token_set="all", rank=1, criterion="first"
    )
    # Rows 0, 4 and 5 predict what follows (3, 2 and 6); 1 and 2 do not; nothing follows 3 and 6.
    correct = result.sel(outcome="correct")["count"]
    wrong = result.sel(outcome="incorrect")["count"]
    assert correct.sel({"class": ["11-100", "rest"]}).values.tolist() == [2, 1]
    assert wrong.sel({"class": ["1-10", "11-100", "rest"]}).values.tolist() == [0, 0, 2]


def test_the_token_that_follows(store: SmallStore, table: Path) -> None:
    result = onset(open_store(store.root), target="next", ranks=(1,), frequencies=table)
    every = result.sel(token_set="all", outcome="all", rank=1)
    # Row 2 is followed by 1: first at point 1, not kept. Row 1 by 5: at 0, not kept.
    common = every.sel({"class": "1-10"})
    np.testing.assert_allclose(common.depth_mean, [1, np.nan])
    np.testing.assert_allclose(common.reached, [1, 0])
    assert common.class_rows.values.tolist() == [1, 1]
    assert every["class_rows"].sel({"class": "any"}).values.tolist() == [5, 5]
    assert result.attrs["parameters"]["source"] == "activations"


def test_the_workers_ranks_need_no_residuals(tmp_path: Path) -> None:
    made = build(tmp_path / "s", lengths=(3, 3), points=(0,), layers=2, task_rows=32)
    import zarr

    ranks = np.array([[9, 1, 2, 7, 7, 7], [3, 4, 2, 7, 7, 7], [1, 2, 2, 7, 1, 7]], np.float32)
    path = made.root / "statistics.zarr" / "lens" / "next_rank"
    ranks[:, [2, 5]] = np.nan
    zarr.open_array(path)[...] = ranks
    result = onset(open_store(made.root), target="next", ranks=(1, 3))
    every = result.sel({"token_set": "all", "outcome": "all", "class": "any"})
    # Only rows 0 (at 2), 1 (at 0, lost again) and 4 (at 2) reach rank 1.
    assert every["count"].sel(rank=1).values.tolist() == [3, 2]
    # Rank 3: row 0 at 1, row 1 at 0 and again at 2, row 4 at 2.
    assert every["count"].sel(rank=3).values.tolist() == [3, 3]
    assert float(every.depth_mean.sel(criterion="stays", rank=3)) == pytest.approx((1 + 2 + 2) / 3)
    assert result.attrs["parameters"]["source"] == "statistics"
    with pytest.raises(RequestError, match="last point, 2, is not stored"):
        onset(open_store(made.root))


def test_first_and_lasting() -> None:
    rank = np.array([[5, 1, 1, 9], [1, 2, 1, 9], [4, 1, 1, 9], [1, 1, 1, 2]], np.float32)
    first, stays = onset_depths(rank, (0, 8, 16, 30), (1, 2))
    np.testing.assert_array_equal(first, [[8, 0, 0, np.nan], [8, 0, 0, 30]])
    np.testing.assert_array_equal(stays, [[30, 16, 0, np.nan], [30, 0, 0, 30]])


def test_intervals_are_over_documents(store: SmallStore) -> None:
    result = flips(open_store(store.root), resamples=400, seed=3).sel(
        token_set="all", bucket="any", point=0
    )
    # The documents flip 2 of 4 and 3 of 3; resamples mix them, and only them.
    assert float(result.low) == pytest.approx(2 / 4)
    assert float(result.high) == pytest.approx(3 / 3)


def test_the_corpus_counts_its_tokens(store: SmallStore) -> None:
    result = flips(open_store(store.root)).sel(token_set="all")
    # Twelve tokens: those of the corpus by count, 1 (3 times), then 2, 3, 5, 6; never more than 10.
    np.testing.assert_allclose(result.share.sel(bucket="1-10", point=0), 1)
    np.testing.assert_allclose(result.share.sel(bucket="1-10", point=1), 5 / 7)
    np.testing.assert_allclose(result.share.sel(bucket="rest", point=1), 2 / 7)


def test_buckets_by_rank() -> None:
    counts = np.zeros(2000, np.int64)
    counts[500:1700] = np.arange(1200, 0, -1)
    counts[3] = 10_000
    found = buckets_of(counts)
    assert found[[3, 500, 508, 509, 598, 599, 1498, 1499, 1699, 0]].tolist() == [
        0, 0, 0, 1, 1, 2, 2, 3, 3, 3,
    ]  # fmt: skip


def test_the_largest_of_many_tokens() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 5003)).astype(np.float32)
    logits[1, 5000] = 50
    logits[2, [7, 4000]] = 60
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    before = logits.copy()
    np.testing.assert_array_equal(largest(logits, 5), expected)
    np.testing.assert_array_equal(logits, before)
    ranks = rank_of(logits, np.array([5000] * 6))
    assert ranks.tolist() == [1 + int((row > row[5000]).sum()) for row in logits]
    assert rank_of(logits[:3], np.array([-1, 5000, 5003])).tolist() == [0, 1, 0]


def test_the_table_in_slices_holes_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_token_blocks, "LOGIT_BYTES", 4 * 40 * 3)
    monkeypatch.setattr(top_token_blocks, "BLOCK_ROWS", 16)
    made = build(tmp_path / "s", dtype="float32", committed=(0, 2), invalid=(0,))
    result = flips(open_store(made.root), resamples=20).sel(token_set="all", bucket="any")
    logits = np.empty((4, made.rows, 40))
    for point in range(4):
        h = made.h[point]
        normed = h / np.sqrt((h * h).mean(axis=1, keepdims=True) + 1e-5) * made.weight
        logits[point] = normed @ made.unembedding.T.astype(np.float64)
    valid = made.visible[made.document[made.visible] > 0]
    best = logits.argmax(axis=2)[:, valid]
    np.testing.assert_allclose(result.rate, (best != best[-1]).mean(axis=1))
    assert int(result.rows) == len(valid)
    saved = xr.open_zarr(made.root / "analysis" / "top_tokens.zarr", consolidated=False)
    final = saved.final_rank.sel(row=valid).values
    for at, row in enumerate(valid):
        for point in range(4):
            own = logits[point, row]
            assert final[point, at] == 1 + int((own > own[best[-1, at]]).sum())
    assert (saved.top.sel(row=range(5)).values == -1).all()


def test_the_table_is_made_once(store: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_store(store.root)
    before = flips(run, resamples=30)

    def refuse(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(top_token_blocks.TopTokenBlocks, "block", refuse)
    xr.testing.assert_identical(flips(run, resamples=30), before)
    onset(run, ranks=(3,), resamples=30)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    headless = build(tmp_path / "a")
    (headless.root / "head.json").unlink()
    short = build(tmp_path / "b", points=(0, 1))
    none = build(tmp_path / "c", points=())
    for made, message in (
        (headless, "--no-head"),
        (short, "last point, 3, is not stored"),
        (none, "--points none"),
        (build(tmp_path / "d", committed=()), "nothing is committed"),
    ):
        for analysis in (flips, onset):
            with pytest.raises(RequestError, match=message) as raised:
                analysis(open_store(made.root))
            assert "\n" not in str(raised.value)
    run = open_store(build(tmp_path / "e").root)
    for options, message in (
        ({"target": "last"}, "unknown target"),
        ({"ranks": ()}, "ranks"),
        ({"by": "letter"}, "unknown classes"),
    ):
        with pytest.raises(RequestError, match=message):
            onset(run, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("counts.txt", "", "are read from"),
        ("counts.csv", "token,count\na,1\n", "need the columns token_id and count"),
        ("counts.csv", "token_id,count\n1,-2\n", "whole numbers"),
        ("missing.csv", None, "cannot be read"),
    ],
)
def test_tables_that_are_none(
    store: SmallStore, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=message):
        token_buckets(open_store(store.root), tmp_path / name)


def test_tables_of_every_kind(store: SmallStore, tmp_path: Path) -> None:
    counts = {"token_id": [1, 2], "count": [5, 4]}
    pq.write_table(pa.table(counts), tmp_path / "c.parquet")
    lines = [json.dumps({"token_id": t, "count": c}) for t, c in zip(*counts.values(), strict=True)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    for name in ("c.parquet", "c.jsonl"):
        found = token_buckets(open_store(store.root), tmp_path / name)
        assert found[np.array([1, 2, 3, -1, 4_000_000])].tolist() == [0, 0, 3, -1, 3]


def test_charts_say_what_they_show(store: SmallStore, table: Path) -> None:
    run = open_store(store.root)
    flipped = flips(run, frequencies=table, resamples=30)
    chart = flipped.depthscope.charts()[0]
    assert chart.name == "flips"
    assert "5 content tokens of 2 documents" in chart.subtitle
    assert "95% interval over documents" in chart.subtitle
    rates, shares = chart.panels
    assert [curve.label for curve in rates.curves] == [
        "ranks 1-10", "ranks 11-100", "ranks 101-1000", "rarer", "all tokens",
    ]  # fmt: skip
    np.testing.assert_array_equal(
        rates.curves[-1].mean, flipped.rate.sel(token_set="content", bucket="any")
    )
    np.testing.assert_array_equal(
        shares.curves[0].low, flipped.share_low.sel(token_set="content", bucket="1-10")
    )
    began = onset(run, ranks=(1, 2), frequencies=table, resamples=30)
    chart = began.depthscope.charts()[0]
    assert (chart.name, len(chart.panels)) == ("onset", 2)
    panel = chart.panels[0]
    assert panel.title == "The likeliest token (5 rows)"
    assert panel.y_label == "Mean depth (point)"
    assert panel.x_ticks == ("1-10", "rest", "any")
    at = began.sel({"token_set": "content", "outcome": "all", "rank": 1, "criterion": "stays"})
    for name, values in (("depth_mean", panel.curves[1].mean), ("low", panel.curves[1].low)):
        np.testing.assert_array_equal(values, at[name].sel({"class": ["1-10", "rest", "any"]}))
    assert began.depthscope.plot().axes
