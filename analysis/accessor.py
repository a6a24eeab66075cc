"""``result.depthscope.plot()``: the right figure for a result dataset.

Importing this module registers the accessor; ``depthscope.analysis`` does so.
"""

from __future__ import annotations

from typing import Any

import xarray as xr
from depthscope.storage.errors import RequestError

from .charts import Chart
from .depth_charts import depth_chart, depth_score_chart
from .effect_charts import interaction_charts, output_charts
from .geometry_charts import geometry_charts
from .map_charts import map_charts
from .probe_charts import probe_charts
from .result_charts import contribution_charts, lens_chart
from .token_effect_charts import erasure_charts, gradient_charts
from .use_charts import flip_chart, onset_chart, tuned_lens_chart


@xr.register_dataset_accessor("depthscope")  # type: ignore[no-untyped-call]
class ResultAccessor:
    """What depthscope can do with one of its result datasets."""

    def __init__(self, result: xr.Dataset) -> None:
        self._result = result

    def charts(self) -> tuple[Chart, ...]:
        """What there is to draw, without drawing it.

        Raises
        ------
        RequestError
            The dataset is no result for which there is a figure.
        """
        name = str(self._result.attrs.get("analysis", ""))
        label = ", ".join(
            dict.fromkeys(str(i["model"]) for i in self._result.attrs.get("inputs", ()))
        )
        if name.startswith("contributions"):
            return contribution_charts(self._result, label or "model")
        if name.startswith("lens"):
            return (lens_chart(self._result, label or "model"),)
        if name == "interactions":
            matrices = interaction_charts(self._result, label or "model")
            return matrices + output_charts(self._result, label or "model")
        if name == "erasure":
            return erasure_charts(self._result, label or "model")
        if name == "gradients":
            return gradient_charts(self._result, label or "model")
        if name == "tuned_lens":
            return (tuned_lens_chart(self._result, label or "model"),)
        if name.startswith("flips"):
            return (flip_chart(self._result, label or "model"),)
        if name.startswith("onset"):
            return (onset_chart(self._result, label or "model"),)
        if name == "depth_score":
            return (depth_score_chart(self._result, label or "model"),)
        if name == "depth" and (chart := depth_chart({label or "model": self._result})):
            return (chart,)
        if name.startswith("geometry"):
            return geometry_charts(self._result, label or "model")
        if name == "maps":
            return map_charts(self._result)
        if name == "probes":
            return probe_charts(self._result, label or "model")
        raise RequestError(
            f"there is no figure for {name or 'a dataset without the attribute analysis'}; "
            "contributions, lens, tuned_lens, interactions, depth_score, geometry, maps, probes, "
            "onset, flips, and depth where a curve crosses have one"
        )

    def plot(self, which: str | int = 0, engine: str = "matplotlib") -> Any:
        """Draw a figure of the result.

        Parameters
        ----------
        which
            Name or number of one of :meth:`charts`: contributions have ``contributions`` (norm
            ratios) and ``cosines``, interactions one of each scope and kind, such as
            ``interactions_future_propagated``, and ``output_effects_future``.
        engine
            ``matplotlib`` or ``plotly``.

        Returns
        -------
        A matplotlib or plotly figure, which notebooks show by themselves.

        Raises
        ------
        RequestError
            There is no such figure or engine.
        """
        charts = self.charts()
        chosen = [chart for number, chart in enumerate(charts) if which in (number, chart.name)]
        if not chosen:
            raise RequestError(
                f"no figure {which!r}; there are {', '.join(chart.name for chart in charts)}"
            )
        # Imported where they are used: every reader of a store would wait a second for them.
        if engine == "matplotlib":
            from .figures import draw

            return draw(chosen[0])
        if engine == "plotly":
            from .interactive import interactive

            return interactive(chosen[0])
        raise RequestError(f"unknown engine {engine!r}; use matplotlib or plotly")
