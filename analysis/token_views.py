"""A few documents token by token: what the report shows when a token is hovered.

The documents are drawn with a seed, among those that have lens values where a store has any, and
their number is bounded by bytes, so that a page stays small whatever the size of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from depthscope.storage.array_names import ARRAYS, PARTS
from numpy.typing import NDArray

from .store import Run

Float32s = NDArray[np.float32]

#: A token as it is shown, in SQL: its number where the store keeps no text.
SHOWN_TOKEN = "coalesce(token, '#' || token_id)"

#: Columns of documents.parquet that the store adds to the corpus's own fields.
OWN_COLUMNS = frozenset(
    {"document", "source", "line", "first_row", "n_tokens", "digest", "text", "store"}
)


@dataclass(frozen=True)
class Measure:
    """A number that every token has at every layer or point.

    Attributes
    ----------
    label, unit
        As shown; the unit is empty for pure numbers.
    axis
        ``layer`` or ``point``.
    scale
        ``logarithmic``, ``linear`` from zero, ``share`` (0 to 1) or ``diverging`` (-1 to 1).
    """

    label: str
    unit: str
    axis: str
    scale: str


MEASURES: Mapping[str, Measure] = {
    "norm_ratio.layer": Measure("Norm ratio, whole layer", "‖a+m‖/‖h‖", "layer", "logarithmic"),
    "norm_ratio.attention": Measure("Norm ratio, attention", "‖a‖/‖h‖", "layer", "logarithmic"),
    "norm_ratio.mlp": Measure("Norm ratio, MLP", "‖m‖/‖h+a‖", "layer", "logarithmic"),
    "cosine.layer": Measure("Cosine, whole layer", "cos(a+m, h)", "layer", "diverging"),
    "cosine.attention": Measure("Cosine, attention", "cos(a, h)", "layer", "diverging"),
    "cosine.mlp": Measure("Cosine, MLP", "cos(m, h+a)", "layer", "diverging"),
    "kl": Measure("Lens: KL to the final prediction", "nats", "point", "linear"),
    "entropy": Measure("Lens: entropy", "nats", "point", "linear"),
    "top5_overlap": Measure("Lens: top-5 overlap", "share", "point", "share"),
    "top1_agreement": Measure("Lens: top-1 agreement", "0 or 1", "point", "share"),
    "next_probability": Measure("Lens: probability of the next token", "", "point", "share"),
    "next_rank": Measure("Lens: rank of the next token", "1 = best", "point", "logarithmic"),
}


@dataclass(frozen=True, eq=False)
class TokenView:
    """One document, or its beginning.

    Attributes
    ----------
    title
        Its number, and the short fields that the corpus gave it.
    tokens
        The decoded pieces, in order; ``#`` and the token's number in a store without text.
    first_row
        Row of the first one in the store.
    cut
        Tokens of the document that are left out at its end.
    values
        By name of ``MEASURES``: (layer or point, token) float32, NaN where there is no value.
    """

    title: str
    tokens: tuple[str, ...]
    first_row: int
    cut: int
    values: Mapping[str, Float32s]


def token_views(
    run: Run, documents: int = 8, tokens: int = 160, seed: int = 0, budget: int = 2_000_000
) -> tuple[TokenView, ...]:
    """Draw documents of a run and read their values.

    Parameters
    ----------
    documents, tokens
        At most so many documents, and so many tokens of each.
    seed
        Decides which documents are drawn.
    budget
        Bytes of values that all of them may hold together.
    """
    per_token = 4 * (6 * run.layers + 6 * (run.layers + 1))
    left = max(budget // per_token, 16)
    views: list[TokenView] = []
    for document in _draw(run, documents, seed):
        if left < 2:
            break
        view = _view(run, document, min(tokens, left))
        left -= len(view.tokens)
        views.append(view)
    return tuple(views)


def _draw(run: Run, documents: int, seed: int) -> list[int]:
    """Numbers of valid documents, ascending, found through randomly drawn rows."""
    name = next((name for name in ("kl", "norm_ratio") if run.has(name)), None)
    if name is None:
        return []
    rows = run.axis("lens" if name == "kl" else "statistics").index
    if not len(rows):
        return []
    places = np.random.default_rng(seed).permutation(min(len(rows), 1 << 20))
    # An axis longer than a million rows is sampled evenly instead of being shuffled whole.
    drawn = rows[places[: 40 * documents] * (len(rows) // len(places))]
    listed = ", ".join(str(int(row)) for row in drawn)
    found = run.sql(
        f"SELECT row, document FROM tokens WHERE valid AND row IN ({listed})"
    ).fetchall()
    of_row = {int(row): int(document) for row, document in found}
    order = dict.fromkeys(of_row[int(row)] for row in drawn if int(row) in of_row)
    return sorted(list(order)[:documents])


def _view(run: Run, document: int, tokens: int) -> TokenView:
    found = run.sql(
        f"SELECT row, {SHOWN_TOKEN} FROM tokens WHERE document = {document} ORDER BY row"
    ).fetchall()
    shown = found[:tokens]
    rows = np.array([row for row, _ in shown], dtype=np.int64)
    return TokenView(
        title=_title(run, document),
        tokens=tuple(token for _, token in shown),
        first_row=int(rows[0]),
        cut=len(found) - len(shown),
        values=_values(run.at(rows), rows),
    )


def _values(part: Run, rows: NDArray[np.int64]) -> dict[str, Float32s]:
    values: dict[str, Float32s] = {}
    for name in ("norm_ratio", "cosine"):
        if part.has(name):
            array = _along(getattr(part, name), rows)
            values |= {f"{name}.{p}": _float32(array.sel(part=p), "layer") for p in PARTS}
    if part.has("kl"):
        lens = part.lens_values
        values |= {name: _float32(_along(lens[name], rows), "point") for name in ARRAYS["lens"]}
    return {name: values[name] for name in MEASURES if name in values}


def _along(array: xr.DataArray, rows: NDArray[np.int64]) -> xr.DataArray:
    """The array at these rows, NaN at those that it does not have."""
    bare = array.drop_vars([name for name in array.coords if name not in array.dims])
    return bare.load().reindex(row=rows)


def _float32(array: xr.DataArray, axis: str) -> Float32s:
    return np.asarray(array.transpose(axis, "row").values, dtype=np.float32)


def _title(run: Run, document: int) -> str:
    """The document's number and up to four short fields of its own."""
    found = run.sql(f"SELECT * FROM documents WHERE document = {document}")
    fields = dict(zip(found.columns, found.fetchall()[0], strict=True))
    shown = [
        f"{name} {value}"
        for name, value in fields.items()
        if name not in OWN_COLUMNS and value is not None and len(str(value)) <= 24
    ]
    return " · ".join([f"Document {document}", *shown[:4]])
