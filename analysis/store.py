"""Opening stores: everything committed as lazy, labelled arrays, and as tables for SQL.

``open`` looks at the commits once; the run it returns shows exactly what they cover, also while a
worker is still writing. Nothing is read before it is computed, and a block is at most about 64 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import xarray as xr
from depthscope.storage.array_names import ARRAYS
from depthscope.storage.coverage import commit_points
from depthscope.storage.errors import RequestError
from numpy.typing import NDArray

from .catalogue import CATALOGUE, axis_labels, find_plan, require_plan
from .rows import RowAxis
from .snapshot import Snapshot, require_one_model, take_snapshot
from .stored_arrays import StoredArray, StoredPart, lazy
from .tables import add_activation_rows, connect, matching_rows, select
from .token_columns import TOKEN_COLUMNS, TokenColumns, row_columns

StorePath = str | Path


def open(stores: StorePath | Sequence[StorePath], partial: bool = False) -> Run:
    """Open a store, or several of one model as one corpus.

    Parameters
    ----------
    stores
        A store's folder, or several; rows and documents of the later ones are renumbered to follow
        those of the earlier ones, and the coordinate ``store`` says where a row comes from.
    partial
        Also show tasks that have committed only some points. ``residual`` then has NaN at the
        points that a row's task has not committed, as have the sublayers' outputs at layers whose
        point l+1 is not; points that nothing shown has committed are left out. Statistics and lens
        values are there for tasks that have committed the last point. A row that is NaN because
        its document failed has ``valid`` false.

    Raises
    ------
    RequestError
        A folder is no store, or the stores are of different models.
    """
    folders = [stores] if isinstance(stores, str | Path) else list(stores)
    if not folders:
        raise RequestError("no store was named; give at least one folder")
    snapshots: list[Snapshot] = []
    rows = documents = 0
    for index, folder in enumerate(folders):
        found = take_snapshot(Path(folder).resolve(), index, partial=partial)
        snapshots.append(replace(found, row_offset=rows, document_offset=documents))
        rows, documents = rows + found.record.rows, documents + found.record.documents
    require_one_model(snapshots)
    return Run(tuple(snapshots))


@dataclass(frozen=True, eq=False)
class Run:
    """The committed content of one or several stores, or a selection of its rows.

    Attributes
    ----------
    snapshots
        What each store had committed when it was opened.
    selected
        Ascending rows to which this view is restricted; None shows all.
    predicates
        The predicates that made the selection.
    """

    snapshots: tuple[Snapshot, ...]
    selected: NDArray[np.int64] | None = None
    predicates: tuple[str, ...] = ()

    @property
    def info(self) -> Mapping[str, Any]:
        """The content of run.json, of the first store where several are open."""
        record = self.snapshots[0].record
        return {**asdict(record), "identity": record.identity}

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return int(self.snapshots[0].record.model["layers"])

    @property
    def residual(self) -> xr.DataArray:
        """The residual stream: (point, row, hidden), in the store's dtype.

        numpy computes with bfloat16 slowly or not at all: reduce ``.astype("float32")``.
        """
        return self._array("residual")

    @property
    def attention_output(self) -> xr.DataArray:
        """What attention adds to the stream: (layer, row, hidden), in the store's dtype."""
        return self._array("attention_output")

    @property
    def mlp_output(self) -> xr.DataArray:
        """What the MLP adds to the stream: (layer, row, hidden), in the store's dtype."""
        return self._array("mlp_output")

    @property
    def norm(self) -> xr.DataArray:
        """Euclidean norms of h, h+a, a, m and c: (quantity, layer, row), float32."""
        return self._array("norm")

    @property
    def norm_ratio(self) -> xr.DataArray:
        """‖a‖/‖h‖, ‖m‖/‖h+a‖, ‖c‖/‖h‖: (part, layer, row), float32."""
        return self._array("norm_ratio")

    @property
    def cosine(self) -> xr.DataArray:
        """cos(a, h), cos(m, h+a), cos(c, h): (part, layer, row), float32."""
        return self._array("cosine")

    @property
    def lens_values(self) -> xr.Dataset:
        """The logit lens of the rows chosen for it: six variables (point, row), float32."""
        return xr.Dataset({name: self._array(name) for name in ARRAYS["lens"]})

    @property
    def tokens(self) -> duckdb.DuckDBPyRelation:
        """The visible rows of the token table, one per token."""
        return self._tables.table("tokens")

    @property
    def documents(self) -> duckdb.DuckDBPyRelation:
        """The documents of the visible rows, with the corpus's own fields."""
        return self._tables.table("documents")

    def sql(self, text: str) -> duckdb.DuckDBPyRelation:
        """The answer to one SELECT statement, computed when it is fetched.

        Its tables are ``tokens``, ``documents``, ``token_documents`` (both joined) and
        ``activation_rows`` (the rows whose activations are stored).

        Raises
        ------
        RequestError
            It is no SQL, no single SELECT, or names what is not there.
        """
        return select(self._tables, text)

    def where(self, predicate: str) -> Run:
        """The same run restricted to the rows for which a SQL predicate holds.

        The predicate speaks of the columns of ``tokens`` and of the fields of their documents.
        Reading the result reads only what its rows need.

        Raises
        ------
        RequestError
            The predicate is no SQL, names an unknown column, or is not true or false.
        """
        rows = matching_rows(self._tables, predicate)
        return Run(self.snapshots, rows, (*self.predicates, predicate))

    def at(self, rows: Sequence[int] | NDArray[np.int64]) -> Run:
        """The same run restricted to these rows, in ascending order; unknown ones are not shown."""
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        if self.selected is not None:
            wanted = np.intersect1d(wanted, self.selected, assume_unique=True)
        return Run(self.snapshots, wanted, (*self.predicates, f"{len(wanted)} rows by number"))

    def has(self, name: str) -> bool:
        """Whether every opened store has the array (``residual``, ``norm``, ``kl`` …)."""
        return all(find_plan(snapshot, name) is not None for snapshot in self.snapshots)

    def axis(self, group: str) -> RowAxis:
        """The visible rows of ``activations``, ``statistics``, ``lens`` or ``tokens``."""
        return RowAxis.of(self.snapshots, group, self.selected)

    def stored(self, name: str) -> StoredArray:
        """An array without labels, for reductions that read it themselves.

        Raises
        ------
        RequestError
            A store does not have it; the message says which option of extract makes it.
        """
        parts = tuple(self._part(snapshot, name) for snapshot in self.snapshots)
        if len({part.plan.dtype for part in parts}) > 1:
            found = ", ".join(f"{part.plan.dtype} in {part.root}" for part in parts)
            raise RequestError(f"{name} cannot be joined: it is {found}")
        return StoredArray(parts, self.axis(CATALOGUE[name].group))

    def columns(self, axis: RowAxis) -> TokenColumns:
        """The token and document columns along an axis."""
        return TokenColumns(self.snapshots, axis)

    @cached_property
    def points(self) -> tuple[int, ...]:
        """Points that every opened store has, as far as any of them shows them."""
        stored = set.intersection(*(set(s.record.points) for s in self.snapshots))
        return tuple(sorted(stored & {p for s in self.snapshots for p in s.points}))

    def _part(self, snapshot: Snapshot, name: str) -> StoredPart:
        plan, record = require_plan(snapshot, name), snapshot.record
        points = tuple(commit_points(plan, record))
        if name != "residual" or record.points == self.points:
            return StoredPart(snapshot.root, plan, points=points)
        places = tuple(record.points.index(point) for point in self.points)
        return StoredPart(snapshot.root, plan, places, points)

    def _array(self, name: str) -> xr.DataArray:
        array = self.stored(name)
        labels = {
            dimension: np.array(self.points, dtype=np.int64)
            if name == "residual"
            else axis_labels(self.snapshots[0], name, dimension)
            for dimension in array.dimensions
            if dimension not in ("row", "hidden")
        }
        result = xr.DataArray(lazy(array), dims=array.dimensions, name=name, coords=labels)
        index = xr.indexes.PandasIndex(array.axis.index, "row")
        result = result.assign_coords(xr.Coordinates.from_xindex(index))
        result = result.assign_coords(self._coordinates(name, array.axis))
        entry = CATALOGUE[name]
        return result.assign_attrs(long_name=entry.meaning, units=entry.unit)

    def _coordinates(self, name: str, axis: RowAxis) -> dict[str, Any]:
        group = CATALOGUE[name].group
        if group not in self._loaded:
            columns = self.columns(axis)
            names = [*TOKEN_COLUMNS, *columns.document_columns]
            found = {_free(n): ("row", v) for n, v in row_columns(columns, names).items()}
            if len(self.snapshots) > 1:
                found["store"] = ("row", row_columns(columns, ["store"])["store"])
            self._loaded[group] = found
        return self._loaded[group]

    @cached_property
    def _loaded(self) -> dict[str, dict[str, Any]]:
        return {}

    @cached_property
    def _tables(self) -> duckdb.DuckDBPyConnection:
        connection = connect(self.snapshots, self.selected)
        if all(snapshot.has_group("activations") for snapshot in self.snapshots):
            add_activation_rows(connection, self.axis("activations"))
        return connection


#: Names that a document's field must not take away from the axes.
_TAKEN = frozenset({"point", "layer", "row", "hidden", "quantity", "part", *CATALOGUE})


def _free(name: str) -> str:
    return f"field_{name}" if name in _TAKEN else name
