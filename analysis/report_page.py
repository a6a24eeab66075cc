"""The report as one HTML page, from plain inputs: datasets, facts and a few documents.

Nothing is read from disk but the page's own template, and the page asks for nothing: plotly.js, the
numbers and the styles stand inside it, and its content security policy forbids any request.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import xarray as xr
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .charts import Chart
from .findings import findings
from .interactive import interactive
from .result_charts import comparison_charts, contribution_charts, lens_chart
from .token_views import MEASURES, TokenView


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
    """

    label: str
    facts: tuple[FactGroup, ...]
    notes: tuple[str, ...]
    contributions: xr.Dataset | None
    lens: xr.Dataset | None
    views: tuple[TokenView, ...]

    @property
    def charts(self) -> tuple[Chart, ...]:
        """The figures of the results that there are."""
        charts: tuple[Chart, ...] = ()
        if self.contributions is not None:
            charts += contribution_charts(self.contributions, self.label)
        if self.lens is not None:
            charts += (lens_chart(self.lens, self.label),)
        return charts


def compared_charts(reports: Sequence[StoreReport]) -> tuple[Chart, ...]:
    """Figures that show several stores side by side; none for one store."""
    contributions = {r.label: r.contributions for r in reports if r.contributions is not None}
    lenses = {r.label: r.lens for r in reports if r.lens is not None}
    return comparison_charts(contributions, lenses)


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
    tables = {
        name: _table(f"{file_stem(report.label)}_{name}", result)
        for name, result in (("contributions", report.contributions), ("lens", report.lens))
        if result is not None
    }
    of_figure = {"contributions": "contributions", "cosines": "contributions", "lens": "lens"}
    figures = [
        _figure(prefix, chart) | {"table": tables[of_figure[chart.name]]} for chart in report.charts
    ]
    return {
        "id": prefix,
        "label": report.label,
        "facts": report.facts,
        "notes": report.notes,
        "findings": findings(report.contributions, report.lens),
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


def _table(name: str, result: xr.Dataset) -> dict[str, Any]:
    frame = result.to_dataframe().reset_index()
    first = [column for column in result.dims if column in frame]
    frame = frame[[*first, *(column for column in frame.columns if column not in first)]]
    content = frame.to_csv(index=False, float_format="%.6g").encode()
    return {
        "file": f"{name}.csv",
        "address": f"data:text/csv;charset=utf-8;base64,{base64.b64encode(content).decode()}",
        "columns": list(frame.columns),
        "rows": [[_shown(value) for value in row] for row in frame.itertuples(index=False)],
    }


def _shown(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)


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


def file_stem(label: str) -> str:
    """A label as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", label).strip("._") or "store"


def _own_file(name: str) -> str:
    return files(__package__ or "depthscope.analysis").joinpath(name).read_text(encoding="utf-8")
