"""The report as one HTML page, from plain inputs: datasets, facts and a few documents.

Nothing is read from disk but the page's own template, and the page asks for nothing: plotly.js, the
numbers and the styles stand inside it, and its content security policy forbids any request.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import xarray as xr
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .charts import Chart
from .depth_charts import depth_chart
from .depth_table import depth_table, ratio_table
from .effect_charts import compared_interactions
from .findings import findings
from .interactive import interactive
from .report_tables import result_tables, table, table_of
from .result_charts import comparison_charts
from .result_kinds import charts_of, sentences_of
from .token_views import MEASURES, TokenView
from .use_comparison import use_comparison_charts


@dataclass(frozen=True)
class FactGroup:
    """Facts about a run under one heading, in the order in which they are shown."""

    title: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class StoreReport:
    """What the page shows of one store.

    Attributes
    ----------
    label
        A short name, unlike those of the other stores.
    facts
        What was run.
    notes
        What a reader must know before trusting the numbers: missing tasks, failed documents.
    contributions, lens
        Results; None where the store does not allow one.
    views
        Documents shown token by token.
    depth, interactions, depth_score, erasure, gradients
        Further results, likewise.
    saved
        Results that are only made when they are asked for, such as ``onset_pos``, by name.
    """

    label: str
    facts: tuple[FactGroup, ...]
    notes: tuple[str, ...]
    contributions: xr.Dataset | None
    lens: xr.Dataset | None
    views: tuple[TokenView, ...]
    depth: xr.Dataset | None = None
    interactions: xr.Dataset | None = None
    depth_score: xr.Dataset | None = None
    erasure: xr.Dataset | None = None
    gradients: xr.Dataset | None = None
    saved: Mapping[str, xr.Dataset] = field(default_factory=dict)

    @property
    def results(self) -> Mapping[str, xr.Dataset | None]:
        """The results by the names of their analyses, in the order of the page."""
        first, last = ("contributions", "lens", "depth"), ("interactions", "depth_score", "erasure",
                                                           "gradients")  # fmt: skip
        return {
            **{name: getattr(self, name) for name in first},
            **self.saved,
            **{name: getattr(self, name) for name in last},
        }

    @property
    def charts(self) -> tuple[Chart, ...]:
        """The figures of the results that there are."""
        return tuple(
            chart
            for name, result in self.results.items()
            if result is not None
            for chart in charts_of(name, result, self.label)
        )

    @property
    def sentences(self) -> list[str]:
        """What was found, in words."""
        found = findings(self.contributions, self.lens)
        for name, result in self.results.items():
            if result is not None and name not in ("contributions", "lens"):
                found += sentences_of(name, result)
        return found


def compared_charts(reports: Sequence[StoreReport]) -> tuple[Chart, ...]:
    """Figures that show several stores side by side; none for one store."""
    contributions = {r.label: r.contributions for r in reports if r.contributions is not None}
    lenses = {r.label: r.lens for r in reports if r.lens is not None}
    charts = comparison_charts(contributions, lenses)
    charts += use_comparison_charts({r.label: r.saved for r in reports})
    depths = _depths(reports)
    if len(depths) > 1 and (chart := depth_chart(depths, "compared_depth")):
        charts += (chart,)
    interactions = {r.label: r.interactions for r in reports if r.interactions is not None}
    return charts + compared_interactions(interactions)


def _depths(reports: Sequence[StoreReport]) -> dict[str, xr.Dataset]:
    return {report.label: report.depth for report in reports if report.depth is not None}


def render_page(reports: Sequence[StoreReport], created: str) -> str:
    """The whole page.

    Parameters
    ----------
    reports
        One or several stores.
    created
        When the page was made, as it is to be shown.
    """
    compared = [_figure("compared", chart) for chart in compared_charts(reports)]
    depths, compared_tables = _depths(reports), []
    if len(depths) > 1:
        ratios = table("compared_ratios", ratio_table(depths))
        compared_tables.append(("Share of the depth that every store uses, by rule", ratios))
        numbers = table("compared_depth", depth_table(depths))
        compared_tables.append(("Effective depth of every store", numbers))
    stores = [_store(number, report) for number, report in enumerate(reports)]
    drawn = [*compared, *(figure for store in stores for figure in store["figures"])]
    data = {
        "figures": {figure["id"]: figure["plotly"] for figure in drawn},
        "measures": {name: asdict(measure) for name, measure in MEASURES.items()},
        "stores": [
            {"label": report.label, "documents": [_view(view) for view in report.views]}
            for report in reports
        ],
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    return environment.from_string(_own_file("report.html")).render(
        title=_title(reports),
        created=created,
        stores=stores,
        compared=compared,
        compared_tables=compared_tables,
        has_views=any(report.views for report in reports),
        style=Markup(_own_file("report.css")),
        script=Markup(_script(_own_file("report_theme.js") + _own_file("report_tokens.js"))),
        plotly=Markup(_script(get_plotlyjs())),
        data=Markup(_json(data)),
    )


def _title(reports: Sequence[StoreReport]) -> str:
    if len(reports) == 1:
        return f"How {reports[0].label} uses its depth"
    return f"How {', '.join(r.label for r in reports[:-1])} and {reports[-1].label} use their depth"


def _store(number: int, report: StoreReport) -> dict[str, Any]:
    prefix = f"store-{number}"
    tables = result_tables(report.label, report.results)
    figures = [
        _figure(prefix, chart) | {"table": tables[table_of(chart.name)]} for chart in report.charts
    ]
    return {
        "id": prefix,
        "label": report.label,
        "facts": report.facts,
        "notes": report.notes,
        "findings": report.sentences,
        "figures": figures,
        "tables": list(tables.values()),
    }


def _figure(prefix: str, chart: Chart) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{chart.name}",
        "heading": chart.heading,
        "explanation": chart.explanation,
        "alternative": chart.alternative,
        "plotly": json.loads(interactive(chart).to_json()),
        "table": None,
    }


def _view(view: TokenView) -> Mapping[str, Any]:
    return {
        "title": view.title,
        "tokens": list(view.tokens),
        "firstRow": view.first_row,
        "cut": view.cut,
        "values": {
            name: base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()
            for name, values in view.values.items()
        },
    }


def _json(data: Any) -> str:
    """JSON that can stand inside a script element, whatever its strings hold."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _script(source: str) -> str:
    return source.replace("</script", "<\\/script")


def _own_file(name: str) -> str:
    return files(__package__ or "depthscope.analysis").joinpath(name).read_text(encoding="utf-8")
