"""The stored stream of a run, where what is asked of it needs the final prediction."""

from __future__ import annotations

from depthscope.storage.errors import RequestError

from .store import Run
from .stored_arrays import StoredArray


def residual_to_the_last(run: Run, otherwise: str) -> StoredArray:
    """The stored residuals, the last point among them.

    Parameters
    ----------
    run
        From ``open``.
    otherwise
        What is impossible without the last point, for the message.

    Raises
    ------
    RequestError
        There are no residuals, no rows of them, or the last point is not stored.
    """
    root, residual = run.snapshots[0].root, run.stored("residual")
    if run.layers not in run.points:
        raise RequestError(
            f"{root}: the last point, {run.layers}, is not stored, so {otherwise}: extract with "
            "--points that have it"
        )
    if not len(residual.axis):
        raise RequestError(f"{root} has no stored rows: nothing is committed yet, or selected")
    return residual
