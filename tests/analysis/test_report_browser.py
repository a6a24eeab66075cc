"""The report in a real browser: figures, hovering and downloads work, no error, no request."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depthscope.analysis.report_page import FactGroup, StoreReport, render_page

from . import synthetic_results as synthetic

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
LAYERS = 6
# Plotly draws a straight run of points as one stroke.
BENDS = np.array([1, 1.3, 0.8, 1.1, 0.9, 1.2, 1])
TOKENS = [
    "The",
    " cat",
    "</script><script>alert(1)</script>",
    " <b>sat</b>",
    "\n",
    ' "quoted"',
    "é",
]

pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="no Chromium: apt-get install chromium to run this test"
)


def reports() -> list[StoreReport]:
    found = []
    for number, label in enumerate(("first <model>", "second")):
        ratio = np.geomspace(9, 0.2, LAYERS) * BENDS[:-1] * (number + 1)
        found.append(
            StoreReport(
                label,
                (FactGroup("Model", (("Name", label),)),),
                (),
                synthetic.contributions(ratio, np.linspace(-0.3, 0.4, LAYERS) * BENDS[:-1]),
                synthetic.lens(
                    np.linspace(8, 0, LAYERS + 1) * BENDS, np.linspace(0, 1, LAYERS + 1) ** 2
                ),
                tuple(
                    synthetic.token_view(
                        TOKENS[: 7 - n], LAYERS, f"Document {n}", seed=10 * number + n
                    )
                    for n in range(2)
                ),
                interactions=synthetic.interactions(LAYERS + number),
            )
        )
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Watched:
    """An opened page, and everything it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        self.trouble: list[str] = []
        self.requests: list[str] = []
        page = self.page
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", self._dialog)
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("#view-line .scatterlayer path.js-line", state="attached")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.trouble.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_page(reports(), "today"), encoding="utf-8")
    return path


@pytest.fixture
def watched(browser: Any, report_file: Path) -> Iterator[Watched]:
    found = Watched(browser, report_file)
    yield found
    assert found.trouble == []
    assert found.requests == [report_file.as_uri()]
    found.page.close()


def line_values(page: Any) -> list[float]:
    """The chosen token's curve, as plotly holds it."""
    values: list[float] = page.evaluate(
        "Array.from(document.getElementById('view-line').data[3].y)"
    )
    return values


def wait_for_token(page: Any, token: int) -> None:
    """Wait until the line is this token's; the page's own policy forbids playwright's waiting."""
    ends = time.monotonic() + 10
    while f"Token {token}," not in page.evaluate(
        "document.getElementById('view-line').layout.title.text"
    ):
        assert time.monotonic() < ends, f"the line of token {token} was not drawn"
        page.wait_for_timeout(50)


def test_every_figure_is_drawn(watched: Watched) -> None:
    plots = watched.page.evaluate(
        """Object.fromEntries([...document.querySelectorAll('.plot')].map(plot => [plot.id, {
            lines: [...plot.querySelectorAll('.scatterlayer .trace path.js-line')]
                .filter(line => line.getAttribute('d').split(/[ML]/).length > 4).length,
            maps: plot.querySelectorAll('.heatmaplayer image').length,
            titled: plot.querySelectorAll('.gtitle').length, width: plot.clientWidth,
        }]))"""
    )
    expected = {"contributions": 6, "cosines": 6, "lens": 8}
    for store in (0, 1):
        for name, curves in expected.items():
            assert plots[f"store-{store}-{name}-plot"]["lines"] >= curves
    assert plots["compared-compared_norm_ratio-plot"]["lines"] >= 6
    assert plots["compared-compared_lens-plot"]["lines"] >= 8
    assert plots["view-map"]["maps"] == 1
    assert plots["view-line"]["lines"] >= 2
    assert all(plot["titled"] and plot["width"] > 700 for plot in plots.values())


def test_curves_stand_where_the_numbers_are(watched: Watched) -> None:
    """Of the drawn points of a curve, read from the picture itself."""
    wanted = reports()[0].contributions
    assert wanted is not None
    measured = watched.page.evaluate(
        """(() => {
            const plot = document.getElementById('store-0-cosines-plot');
            const axis = plot._fullLayout.yaxis;
            const points = [...plot.querySelectorAll('.xy .trace')].map(trace =>
                [...trace.querySelectorAll('.points path')].map(point => {
                    const shift = point.transform.baseVal.consolidate().matrix;
                    return axis.p2d(shift.f);
                })).filter(values => values.length);
            return points;
        })()"""
    )
    for values, part in zip(measured, ("attention", "mlp", "layer"), strict=True):
        means = wanted.cosine_mean.sel(token_set="content", part=part).values
        np.testing.assert_allclose(values, means, atol=0.01)


def test_hovering_a_curve_shows_mean_and_interval(watched: Watched) -> None:
    plot = watched.page.locator("#store-0-contributions-plot")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".points path").first.bounding_box()
    watched.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = plot.locator(".hoverlayer .legend")
    label.wait_for()
    shown = label.text_content()
    assert "Layer 0" in shown
    assert "largest" in shown
    assert "4.05  [4.04, 4.06]" in shown.replace("\xa0", " ")


def test_hovering_a_heat_map_shows_the_pair_of_layers(watched: Watched) -> None:
    for name, columns in (
        ("store-0-interactions_future_propagated", LAYERS),
        ("compared-compared_interactions_future", LAYERS),
    ):
        plot = watched.page.locator(f"#{name}-plot")
        plot.scroll_into_view_if_needed()
        assert plot.locator(".heatmaplayer image").count() == 2
        assert plot.locator(".cbtitle").count() == 2
        box = plot.locator(".heatmaplayer image").first.bounding_box()
        # Blank cells are no part of the picture's hovering, but of its size.
        step = box["width"] / columns, box["height"] / columns
        watched.page.mouse.move(box["x"] + 4.5 * step[0], box["y"] + 1.5 * step[1])
        label = plot.locator(".hoverlayer .hovertext")
        label.wait_for()
        shown = label.text_content()
        assert "source layer 1 → target layer 4" in shown
        assert "0.4 Relative change" in shown
        assert "95% interval from 0.36" in shown
        assert "95% interval to 0.44" in shown
        assert "documents 12" in shown
        watched.page.mouse.move(box["x"] + 1.5 * step[0], box["y"] + 4.5 * step[1])
        label.wait_for(state="detached")


def test_hovering_a_token_shows_its_values_by_layer(watched: Watched) -> None:
    view = reports()[0].views[0]
    words = watched.page.locator("#view-text span")
    assert words.all_text_contents()[:4] == TOKENS[:4]
    for token in (2, 3, 0):
        words.nth(token).hover()
        wait_for_token(watched.page, token)
        np.testing.assert_allclose(
            line_values(watched.page), view.values["norm_ratio.layer"][:, token]
        )
    title = watched.page.locator("#view-line .gtitle").text_content()
    assert "Token 0, “The”, by layer" in title


def test_hovering_the_map_and_arrow_keys(watched: Watched) -> None:
    page, view = watched.page, reports()[0].views[0]
    area = page.locator("#view-map .heatmaplayer image")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 3.5 / len(TOKENS), box["y"] + box["height"] / 2)
    wait_for_token(page, 3)
    np.testing.assert_allclose(line_values(page), view.values["norm_ratio.layer"][:, 3])
    assert page.locator("#view-text span.chosen").text_content() == TOKENS[3]
    page.locator("#view-text span.chosen").focus()
    page.keyboard.press("ArrowRight")
    wait_for_token(page, 4)


def test_choices_change_the_view(watched: Watched) -> None:
    page = watched.page
    page.select_option("#view-store", label="second")
    page.select_option("#view-document", label="Document 1")
    page.select_option("#view-measure", value="kl")
    view = reports()[1].views[1]
    chosen = page.locator("#view-text span.chosen")
    token = int(chosen.get_attribute("data-token"))
    np.testing.assert_allclose(line_values(page), view.values["kl"][:, token])
    rows = page.evaluate(
        "document.getElementById('view-map').data[0].z.map(row => Array.from(row))"
    )
    np.testing.assert_allclose(rows, view.values["kl"])
    assert page.locator("#view-text span").count() == 6
    page.fill("#view-level", "5")
    assert "point 5" in page.locator("#level-label").text_content()
    assert f"{view.values['kl'][5, 0]:.4g}" in page.locator("#view-text span").first.get_attribute(
        "title"
    )


def test_downloads(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    with page.expect_download() as waiting:
        page.locator("a[download$='second_lens.csv']").click()
    waiting.value.save_as(tmp_path / "lens.csv")
    rows = list(csv.DictReader((tmp_path / "lens.csv").open(newline="")))
    result = reports()[1].lens
    assert result is not None
    assert len(rows) == 2 * (LAYERS + 1)
    chosen = [float(r["kl_mean"]) for r in rows if r["token_set"] == "content"]
    np.testing.assert_allclose(chosen, result.kl_mean.sel(token_set="content"), rtol=1e-5)
    with page.expect_download() as waiting:
        page.click("#view-download")
    waiting.value.save_as(tmp_path / "tokens.csv")
    cells = list(csv.DictReader((tmp_path / "tokens.csv").open(newline="", encoding="utf-8")))
    view = reports()[0].views[0]
    assert len(cells) == sum(values.size for values in view.values.values())
    assert [c["token"] for c in cells[: len(TOKENS)]] == TOKENS
    chosen = [
        float(c["value"])
        for c in cells
        if c["measure"] == "cosine.mlp" and c["token_number"] == "3"
    ]
    np.testing.assert_allclose(chosen, view.values["cosine.mlp"][:, 3], rtol=1e-6)
    assert {
        c["value"] for c in cells if c["measure"] == "next_rank" and c["token_number"] == "6"
    } == {""}


def test_dark_and_light(browser: Any, report_file: Path) -> None:
    dark = Watched(browser, report_file, color_scheme="dark")
    page = dark.page

    def paper() -> str:
        found: str = page.evaluate(
            "document.getElementById('store-0-lens-plot').layout.paper_bgcolor"
        )
        return found

    assert paper() == "#12161c"
    page.click("#theme")
    assert paper() == "#ffffff"
    page.click("#theme")
    assert paper() == "#12161c"
    assert dark.trouble == []
    page.close()


def test_findings_and_tables_without_scripts(browser: Any, report_file: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(report_file.as_uri())
    assert page.locator(".findings li").count() == 8
    assert page.locator("noscript").first.is_visible()
    page.close()
