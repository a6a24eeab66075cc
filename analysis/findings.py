"""Three plain sentences about what was found, made from the numbers alone.

Each names its sample and, where the result has one, its 95% interval; where there is nothing of the
kind to report (no drop, no crossing), it says so.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .result_charts import interval_name, sample_size

Floats = NDArray[np.float64]


class _Chosen(NamedTuple):
    """A result's token set: its name, its part of the result, and the values that are spoken of."""

    name: str
    result: xr.Dataset
    values: Floats

    @classmethod
    def of(cls, result: xr.Dataset, variable: str, **labels: str) -> _Chosen | None:
        """Content tokens, or all where there are none; None where no value is finite."""
        name = "content" if int(result["count"].sel(token_set="content")) else "all"
        chosen = result.sel({"token_set": name, **labels})
        values = _values(chosen, variable)
        return cls(name, chosen, values) if np.isfinite(values).any() else None


def findings(contributions: xr.Dataset | None, lens: xr.Dataset | None) -> list[str]:
    """Sentences about the size of contributions, their direction, and the prediction.

    Parameters
    ----------
    contributions, lens
        Results of the analyses of those names; None where the store does not allow one.

    Returns
    -------
    list of str
        Always three.
    """
    size = direction = "Contributions were not measured in this store."
    if contributions is not None:
        size, direction = _size(contributions), _direction(contributions)
    prediction = "The logit lens was not measured in this store."
    return [size, direction, prediction if lens is None else _prediction(lens)]


def _size(result: xr.Dataset) -> str:
    found = _Chosen.of(result, "norm_ratio_mean", part="layer")
    if found is None:
        return "How much the layers add cannot be said: no token has a finite norm ratio."
    name, chosen, values = found
    half = max(len(values) // 2, 1)
    # A model of one layer is its own first and second half.
    early, late = (float(np.nanmedian(part)) for part in (values[:half], values[-half:]))
    opening = (
        f"Over {name} tokens, the median layer of the first half adds {early:.2f} of the norm of "
        f"the stream it reads, of the second half {late:.2f}"
    )
    first, last = _longest_run(values < early / 2)
    if first > last:
        least = int(np.nanargmin(values))
        return (
            f"{opening}; no layer falls below half of the early value (least: layer {least} with "
            f"{_with_interval(chosen, 'norm_ratio', least)}; {_sample(result, name)})."
        )
    where = f"layer {first} falls" if first == last else f"layers {first} to {last} fall"
    return (
        f"{opening}; {where} below half of the early value (layer {first}: "
        f"{_with_interval(chosen, 'norm_ratio', first)}; {_sample(result, name)})."
    )


def _direction(result: xr.Dataset) -> str:
    found = _Chosen.of(result, "cosine_mean", part="layer")
    if found is None:
        return "The direction of the layers cannot be said: no token has a finite cosine."
    name, chosen, values = found
    sign = _clear_sign(chosen)
    closing = (
        f"{int((sign < 0).sum())} of {len(values)} layers clearly weaken it, "
        f"{int((sign > 0).sum())} clearly strengthen it ({_sample(result, name)})."
    )
    clear = np.flatnonzero(sign)
    turns = [(a, b) for a, b in pairwise(clear.tolist()) if sign[a] < 0 < sign[b]]
    if not turns:
        least, most = int(np.nanargmin(values)), int(np.nanargmax(values))
        return (
            f"Over {name} tokens, what the layers add never turns from weakening the stream to "
            f"strengthening it: its cosine with the stream lies between "
            f"{_with_interval(chosen, 'cosine', least)} (layer {least}) and "
            f"{_with_interval(chosen, 'cosine', most)} (layer {most}); {closing}"
        )
    before, after = turns[-1]
    return (
        f"Over {name} tokens, what the layers add last turns from weakening the stream (layer "
        f"{before}: cosine {_with_interval(chosen, 'cosine', before)}) to strengthening it (layer "
        f"{after}: {_with_interval(chosen, 'cosine', after)}); {closing}"
    )


def _clear_sign(chosen: xr.Dataset) -> NDArray[np.int64]:
    """-1 or 1 where the interval excludes zero, else 0; the mean's sign where there is none."""
    mean, low, high = (_values(chosen, f"cosine_{key}") for key in ("mean", "low", "high"))
    low, high = np.where(np.isfinite(low), low, mean), np.where(np.isfinite(high), high, mean)
    return (low > 0).astype(np.int64) - (high < 0).astype(np.int64)


def _prediction(result: xr.Dataset) -> str:
    found = _Chosen.of(result, "top1_agreement_mean")
    if found is None:
        return "When the prediction settles cannot be said: no token has finite lens values."
    name, chosen, agreement = found
    points = chosen["point"].values
    settled = len(points) - 1
    while settled > 0 and agreement[settled - 1] > 0.5:
        settled -= 1
    if settled == len(points) - 1:
        before = max(settled - 1, 0)
        return (
            f"Over {name} tokens, the best guess of the logit lens is the final one for more than "
            f"half of them only after the last layer; at point {points[before]} it is so for "
            f"{agreement[before]:.0%}, and the KL divergence to the final prediction is "
            f"{_with_interval(chosen, 'kl', before)} nats ({_sample(result, name)})."
        )
    return (
        f"Over {name} tokens, the best guess of the logit lens is the final one for more than half "
        f"of them from point {points[settled]} of {points[-1]} on ({agreement[settled]:.0%}), "
        f"where the KL divergence to the final prediction is still "
        f"{_with_interval(chosen, 'kl', settled)} nats ({_sample(result, name)})."
    )


def _sample(result: xr.Dataset, name: str) -> str:
    return f"{sample_size(result, name)}; {interval_name(result)}s in brackets"


def _values(chosen: xr.Dataset, name: str) -> Floats:
    return np.asarray(chosen[name].values, dtype=np.float64)


def _with_interval(chosen: xr.Dataset, name: str, at: int) -> str:
    mean, low, high = (float(chosen[f"{name}_{key}"].values[at]) for key in ("mean", "low", "high"))
    # Adding zero turns a rounded -0.00 into 0.00.
    mean, low, high = (round(value, 2) + 0.0 for value in (mean, low, high))
    return (
        f"{mean:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite([low, high]).all() else f"{mean:.2f}"
    )


def _longest_run(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """First and last place of the longest run of true; (0, -1) where there is none."""
    best, start = (0, -1), 0
    for at, value in enumerate(mask):
        if not value:
            start = at + 1
        elif at - start > best[1] - best[0]:
            best = (start, at)
    return best
