"""The report from stores: right numbers, honest notes, whole files, and no text breaks it."""

from __future__ import annotations

import base64
import csv
import errno
import html
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from depthscope.analysis import report_tables
from depthscope.analysis import store as store_module
from depthscope.analysis.contributions import contributions
from depthscope.analysis.depth_score import depth_score
from depthscope.analysis.flips import flips
from depthscope.analysis.geometry import geometry
from depthscope.analysis.interactions import interactions
from depthscope.analysis.onset import onset
from depthscope.analysis.probes import probes
from depthscope.analysis.report import write_report
from depthscope.analysis.report_page import FactGroup, StoreReport, render_page
from depthscope.analysis.results import open_result
from depthscope.analysis.token_views import MEASURES, token_views
from depthscope.analysis.tuned_lens import LensSettings, tuned_lens
from depthscope.storage.errors import RequestError

from . import synthetic_results as synthetic
from .effects_store import add_effects, commit_effects
from .small_store import build

#: Figures of what every store has.
STATISTICS = {"contributions", "cosines", "lens", "depth", "compared_norm_ratio", "compared_cosine",
              "compared_lens", "compared_depth"}  # fmt: skip
NASTY = [
    "</script><script>alert(1)</script>",
    "<!--",
    "<b>&amp;",
    " a\u2028b",
    '"',
    "\n",
    "\t",
    "",
    "né",
]


class Page(HTMLParser):
    """The tags, attributes and texts of a page, by Python's own parser."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(next(s for s in self.scripts if s.startswith("{")))
        return found


def decoded(view: dict[str, Any], name: str) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(view["values"][name]), "<f4")
    return flat.reshape(-1, len(view["tokens"]))


def one_report(label: str = "tiny", tokens: list[str] | None = None) -> StoreReport:
    return StoreReport(
        label,
        (FactGroup("Model", (("Name", label),)),),
        (f"a note on {label}",),
        synthetic.contributions([0.5, 0.4, 0.3], [-0.2, 0.1, 0.3]),
        synthetic.lens([3, 2, 1, 0], [0, 0.3, 0.6, 1]),
        (synthetic.token_view(tokens or [" one", " two"], 3),),
    )


def test_page_asks_for_nothing() -> None:
    page = Page(render_page([one_report()], "today"))
    addresses = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "action")]
    assert addresses
    assert all((v or "").startswith(("#", "data:")) for v in addresses)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "img", "object")]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "url(" not in page.scripts[0]


def test_headings_and_alternatives() -> None:
    page = Page(render_page([one_report(), one_report("other")], "today"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    images = [a for _, a in page.tags if a.get("role") == "img"]
    assert len(images) == 3 + 2 * 3 + 2
    assert all(a.get("aria-label") for a in images)
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names))
    inner = {
        (a["href"] or "")[1:] for t, a in page.tags if t == "a" and (a["href"] or "")[0] == "#"
    }
    assert inner <= set(names)


def test_text_stays_text() -> None:
    label = "<img src=x onerror=alert(1)> & co"
    page = Page(render_page([one_report(label, NASTY)], "today"))
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert label in page.text
    assert page.data["stores"][0]["documents"][0]["tokens"] == NASTY
    assert "alert(1)" not in page.scripts[-1]


def test_tables_hold_every_number() -> None:
    report = one_report()
    page = Page(render_page([report], "today"))
    links = {a["download"]: a["href"] or "" for t, a in page.tags if t == "a" and "download" in a}
    assert sorted(str(name) for name in links) == ["tiny_contributions.csv", "tiny_lens.csv"]
    for name, result in (("contributions", report.contributions), ("lens", report.lens)):
        assert result is not None
        content = base64.b64decode(links[f"tiny_{name}.csv"].split("base64,")[1]).decode()
        rows = list(csv.DictReader(io.StringIO(content)))
        axes = [axis for axis in ("token_set", "part", "layer", "point") if axis in result.dims]
        assert len(rows) == np.prod([result.sizes[axis] for axis in axes])
        for row in rows:
            at = {a: row[a] if a in ("token_set", "part") else int(row[a]) for a in axes}
            chosen = result.sel(at)
            for variable in result.data_vars:
                assert float(row[str(variable)]) == pytest.approx(float(chosen[variable]), rel=1e-5)


def test_parts_that_were_not_measured_are_left_out() -> None:
    full = one_report()
    bare = StoreReport("bare", full.facts, (), None, full.lens, ())
    page = Page(render_page([bare], "today"))
    assert list(page.data["figures"]) == ["store-0-lens"]
    assert "Contributions were not measured in this store." in page.text
    assert "Token by token" not in page.text
    both = Page(render_page([bare, full], "today"))
    assert [n for n in both.data["figures"] if n.startswith("compared")] == [
        "compared-compared_lens"
    ]


def test_report_of_a_store(tmp_path: Path) -> None:
    store = build(tmp_path / "small", invalid=(4,))
    paths = write_report([store.root], tmp_path / "new" / "out.html", documents=4)
    page = Page(paths.page.read_text(encoding="utf-8"))
    run = store_module.open(store.root)
    result = contributions(run)
    figure = page.data["figures"]["store-0-contributions"]
    curves = [t for t in figure["data"] if t["mode"] == "lines+markers"]
    first = np.frombuffer(base64.b64decode(curves[0]["y"]["bdata"]), curves[0]["y"]["dtype"])
    wanted = result.norm_ratio_mean.sel(token_set="content", part="attention")
    np.testing.assert_array_equal(first, wanted)
    assert "1 of 10 documents failed" in page.text
    assert "How small uses its depth" in page.text
    assert sorted(path.name for path in paths.figures) == [
        "contributions.png",
        "cosines.png",
        "lens.png",
    ]
    assert all(path.parent == tmp_path / "new" / "out_figures" for path in paths.figures)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths.figures)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out.html", "out_figures"]
    assert paths.page.stat().st_size < 8_000_000


def test_interventions_in_the_report(tmp_path: Path) -> None:
    store = build(tmp_path / "small", layers=5)
    effects = add_effects(store.root, committed=(0, 2))
    run = store_module.open(store.root)
    depth_score(run, "subject", partial=True, resamples=20)
    paths = write_report([store.root], tmp_path / "out.html")
    page = Page(paths.page.read_text(encoding="utf-8"))
    names = {
        *(f"interactions_{s}_{k}" for s in ("all", "future") for k in ("propagated", "local")),
        *("output_effects_all", "output_effects_future", "depth_score"),
    }
    assert {f"store-0-{name}" for name in names} <= set(page.data["figures"])
    assert names <= {path.stem for path in paths.figures}
    trace = page.data["figures"]["store-0-interactions_future_propagated"]["data"][0]
    shown = np.frombuffer(base64.b64decode(trace["z"]["bdata"]), trace["z"]["dtype"])
    result = interactions(run, partial=True)
    at = result.effect_mean.sel(scope="future", kind="propagated", part="layer").values
    inside = np.triu(np.ones((5, 5), bool), 1)
    np.testing.assert_array_equal(shown.reshape(5, 5)[inside], at[inside])
    assert "Only 2 of 3 tasks of effects skip are committed" in page.text
    assert "Changing a layer of the first half" in page.text
    assert "The centre of the layers' effect on future later layers" in page.text
    assert "Effective depth of 5 layers" in page.text
    links = {a["download"]: a["href"] or "" for t, a in page.tags if t == "a" and "download" in a}
    assert {"small_interactions.csv", "small_output_effects.csv", "small_depth.csv",
            "small_depth_score.csv", "small_depth_score_trend.csv"} <= set(links)  # fmt: skip
    content = base64.b64decode(links["small_interactions.csv"].split("base64,")[1]).decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    # Ten pairs of layers in two scopes, two kinds and three parts.
    assert len(rows) == 10 * 12
    for row in rows:
        cell = result.sel(
            {key: row[key] for key in ("scope", "kind", "part")}
            | {key: int(row[key]) for key in ("source", "target")}
        )
        assert float(row["effect_mean"]) == pytest.approx(float(cell.effect_mean), rel=1e-5)
        assert int(row["count"]) == int(cell["count"]) == 4

    # Once several sweeps are there, the one that was analysed last stays.
    for task in range(3):
        commit_effects(effects, task)
    add_effects(store.root, "zero", seed=3)
    page = Page(write_report([store.root], tmp_path / "b.html").page.read_text(encoding="utf-8"))
    assert "effects skip" in json.dumps(page.data["figures"])
    (store.root / "analysis" / "interactions.zarr").rename(tmp_path / "away.zarr")
    page = Page(write_report([store.root], tmp_path / "c.html").page.read_text(encoding="utf-8"))
    assert "The store has several effects (skip, zero)" in page.text


def test_models_with_interventions_side_by_side(tmp_path: Path) -> None:
    stores = [build(tmp_path / f"s{n}", seed=n, layers=4 + n, points=()) for n in range(2)]
    for store in stores:
        add_effects(store.root, parts=("layer",))
    paths = write_report([store.root for store in stores], tmp_path / "out.html")
    page = Page(paths.page.read_text(encoding="utf-8"))
    figure = page.data["figures"]["compared-compared_interactions_future"]
    assert [trace["type"] for trace in figure["data"]] == ["heatmap", "heatmap"]
    assert "compared_interactions_future.png" in {path.name for path in paths.figures}
    assert "Effective depth of every store" in page.text
    links = {a["download"]: a["href"] or "" for t, a in page.tags if t == "a" and "download" in a}
    content = base64.b64decode(links["compared_depth.csv"].split("base64,")[1]).decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert [row["store"] for row in rows] == ["s0"] * 3 + ["s1"] * 3
    assert {row["layers"] for row in rows[3:]} == {"5"}
    assert "Share of the depth that every store uses" in page.text
    assert "compared_ratios.csv" in links


def test_long_tables_are_shown_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_tables, "SHOWN_ROWS", 5)
    page = Page(render_page([one_report()], "today"))
    assert "The first 5 of 18 rows; all of them are among the tables to download." in page.text
    assert "18 rows" in page.text
    monkeypatch.setattr(report_tables, "CARRIED_ROWS", 10)
    page = Page(render_page([one_report()], "today"))
    assert "all of them are in the store's analysis folder." in page.text
    links = [a["download"] for t, a in page.tags if t == "a" and "download" in a]
    assert links == ["tiny_lens.csv"]


def test_token_views_are_the_stored_values(tmp_path: Path) -> None:
    rows = np.concatenate([np.arange(6, 18), np.arange(55, 85)])
    store = build(tmp_path / "small", lens_rows=rows, invalid=(4,))
    views = token_views(store_module.open(store.root), documents=9)
    # Documents 2, 6, 7, 8 and 9 have lens rows; 8 and 9 in part or not at all; 4 failed.
    assert views
    for view in views:
        document = int(view.title.split()[1])
        assert document not in (0, 1, 4)
        first = int(np.flatnonzero(store.document == document)[0])
        mine = np.arange(first, first + len(view.tokens))
        assert view.first_row == first
        assert list(view.tokens) == [store.token[row] for row in mine]
        assert view.cut == 0
        assert set(view.values) == set(MEASURES)
        for number, part in enumerate(("attention", "mlp", "layer")):
            np.testing.assert_array_equal(
                view.values[f"cosine.{part}"], store.cosine[number][:, mine].astype(np.float32)
            )
            np.testing.assert_array_equal(
                view.values[f"norm_ratio.{part}"],
                store.norm_ratio[number][:, mine].astype(np.float32),
            )
        kl = np.where(np.isin(mine, rows), store.lens["kl"][:, mine], np.nan).astype(np.float32)
        np.testing.assert_array_equal(view.values["kl"], kl)
        assert "subject" in view.title


def test_tokens_without_text_go_by_their_numbers(tmp_path: Path) -> None:
    store = build(tmp_path / "small")
    path = store.root / "tokens.parquet"
    table = pq.read_table(path)
    nothing = pa.nulls(len(table), pa.string())
    place = table.schema.get_field_index("token")
    pq.write_table(table.set_column(place, "token", nothing), path)
    for view in token_views(store_module.open(store.root)):
        rows = range(view.first_row, view.first_row + len(view.tokens))
        assert list(view.tokens) == [f"#{len(store.token[row])}" for row in rows]


def test_token_views_are_bounded(tmp_path: Path) -> None:
    store = build(tmp_path / "small")
    run = store_module.open(store.root)
    per_token = 4 * (6 * store.layers + 6 * (store.layers + 1))
    for budget in (20 * per_token, 31 * per_token):
        views = token_views(run, documents=20, budget=budget)
        assert 0 < sum(len(view.tokens) for view in views) <= budget // per_token
    short = token_views(run, documents=20, tokens=4)
    lengths = {int(view.title.split()[1]): (len(view.tokens), view.cut) for view in short}
    assert lengths == {n: (min(4, size), max(0, size - 4)) for n, size in enumerate(store.lengths)}
    assert [v.title for v in token_views(run, 3, seed=5)] == [
        v.title for v in token_views(run, 3, seed=5)
    ]


def test_several_stores_and_their_names(tmp_path: Path) -> None:
    stores = [
        build(tmp_path / f"s{n}", seed=n, layers=3 + n, model={"name": "org/same"}).root
        for n in range(2)
    ]
    other = build(tmp_path / "s2", seed=2, model={"name": "demo"}).root
    paths = write_report([*stores, other], tmp_path / "out.html")
    data = Page(paths.page.read_text(encoding="utf-8")).data
    assert [s["label"] for s in data["stores"]] == [
        "same (s0)",
        "same (s1)",
        "SmolLM2-135M-Instruct",
    ]
    shown = set(data["figures"])
    assert {f"compared-compared_{name}" for name in ("norm_ratio", "cosine", "lens")} <= shown
    # Of random curves not every one has an effective depth.
    assert len({name for name in shown if not name.endswith("depth")}) == 3 + 3 * 3
    assert len({path.name for path in paths.figures}) == len(paths.figures) == len(shown)


def test_unfinished_and_poor_stores(tmp_path: Path) -> None:
    part = build(tmp_path / "part", committed=(0, 2))
    page = Page(write_report([part.root], tmp_path / "a.html").page.read_text(encoding="utf-8"))
    assert "Only 2 of 4 tasks are committed" in page.text
    with pytest.raises(RequestError, match="nothing committed yet"):
        write_report([build(tmp_path / "empty", committed=()).root], tmp_path / "b.html")
    with pytest.raises(RequestError, match=r"no run\.json"):
        write_report([tmp_path / "none"], tmp_path / "b.html")
    with pytest.raises(RequestError, match="at least one folder"):
        write_report([], tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    store = build(tmp_path / "small")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="cannot be written"):
        write_report([store.root], tmp_path / "file" / "out.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(RequestError, match="cannot be written"):
        write_report([store.root], tmp_path / "folder.html")
    assert not list(tmp_path.glob(".folder*"))


def test_store_for_reading_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path / "small")

    add_effects(store.root)
    true_mkdir = Path.mkdir

    def mkdir(path: Path, *given: Any, **options: Any) -> None:
        if path.is_relative_to(store.root):
            raise OSError(errno.EROFS, "read-only file system")
        true_mkdir(path, *given, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    page = Page(write_report([store.root], tmp_path / "out.html").page.read_text(encoding="utf-8"))
    assert {"store-0-contributions", "store-0-lens", "store-0-interactions_all_local"} <= set(
        page.data["figures"]
    )
    assert not (store.root / "analysis").exists()


def test_escaped_alternatives_survive() -> None:
    page = render_page([one_report('"quoted" <model>')], "today")
    assert html.escape('"quoted" <model>').replace("&quot;", "&#34;") in page


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves PNG files empty, which take most of a report's time."""
    monkeypatch.setattr("depthscope.analysis.report.save_png", lambda chart, path: None)


@pytest.mark.usefixtures("undrawn")
def test_results_that_were_asked_for(tmp_path: Path) -> None:
    """Tuned lens, flips, onset, probes and geometry, of two models of different depth."""
    stores = [build(tmp_path / f"s{n}", layers=3 + n, lens_rows=np.arange(0)) for n in range(2)]
    for store in stores:
        run = store_module.open(store.root)
        tuned_lens(run, LensSettings(steps=0), resamples=9)
        flips(run, resamples=9)
        onset(run, resamples=9)
        probes(run, "subject", pool="mean", folds=2, resamples=9)
        geometry(run, resamples=9)
    onset(store_module.open(stores[1].root), target="next", resamples=9)
    paths = write_report([store.root for store in stores], tmp_path / "out.html")
    page = Page(paths.page.read_text(encoding="utf-8"))
    own = {"tuned_lens", "flips", "onset", "probes", "probes_by_class", "similarity",
           "layer_change", "shape"}  # fmt: skip
    # The onsets follow different targets, so they are not laid over each other.
    both = {"tuned_lens", "flips", "probes", "geometry"}
    shown = {f"store-{n}-{name}" for n in range(2) for name in own}
    shown |= {f"compared-compared_{name}" for name in both}
    assert {n for n in page.data["figures"] if n.split("-", 2)[-1] not in STATISTICS} == shown
    assert len(paths.figures) == len(page.data["figures"])
    assert "A linear probe reads subject best" in page.text
    drawn = page.data["figures"]["compared-compared_flips"]["data"]
    curves = [one for one in drawn if one["mode"] == "lines+markers"][:2]
    for layers, curve in zip((3, 4), curves, strict=True):
        x = np.frombuffer(base64.b64decode(curve["x"]["bdata"]), curve["x"]["dtype"])
        np.testing.assert_allclose(x, np.arange(layers + 1) / layers)
    links = {a["download"]: a["href"] or "" for t, a in page.tags if t == "a" and "download" in a}
    table = base64.b64decode(links["s1_onset.csv"].split("base64,")[1]).decode()
    result = open_result(stores[1].root / "analysis" / "onset.zarr")
    assert len(list(csv.DictReader(io.StringIO(table)))) == result["depth_mean"].size


@pytest.mark.usefixtures("undrawn")
def test_a_result_of_fewer_tasks_is_said_to_be_old(tmp_path: Path) -> None:
    store = build(tmp_path / "small")
    late = store.root / "commits" / "000003" / f"0-{store.layers}.json"
    late.rename(tmp_path / "late.json")
    flips(store_module.open(store.root), resamples=9)
    text = write_report([store.root], tmp_path / "a.html").page.read_text(encoding="utf-8")
    assert "is older than the store" not in text
    (tmp_path / "late.json").rename(late)
    text = write_report([store.root], tmp_path / "b.html").page.read_text(encoding="utf-8")
    assert "flips is older than the store" in text
    assert "depthscope analyze small flips" in text
