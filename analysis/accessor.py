"""``result.depthscope.plot()``: the right figure for a result dataset.

Importing this module registers the accessor; ``depthscope.analysis`` does so.
"""

from __future__ import annotations

from typing import Any

import xarray as xr
from depthscope.storage.errors import RequestError

from .charts import Chart
from .result_kinds import charts_of


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
        if charts := charts_of(name, self._result, label or "model"):
            return charts
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
