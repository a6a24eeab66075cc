"""The arrays of a new store: which rows each group stores, how it is cut, metadata, coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from depthscope.pipeline.corpus_key import corpus_key
from depthscope.pipeline.description import ModelInfo
from depthscope.pipeline.tokens import CorpusSummary
from depthscope.storage.array_names import GROUPS, LABELS
from depthscope.storage.arrays import ArrayPlan, create_array, create_group
from depthscope.storage.coordinates import create_coordinate, create_labels
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import ACTIVATIONS, LENS, STATISTICS
from depthscope.storage.predicates import sample_documents, select_rows
from depthscope.storage.run_record import GroupLayout, RunRecord
from depthscope.storage.tasks import choose_task_rows, crossing_rows, selection_layout
from depthscope.storage.token_table import TokenTable
from numpy.typing import NDArray

from .groups import array_plans, item_size
from .identity import identity_fields, store_dtype
from .spec import ExtractSpec

#: Libraries whose versions run.json keeps.
SOFTWARE = (
    "depthscope",
    "torch",
    "transformers",
    "accelerate",
    "ray",
    "zarr",
    "numpy",
    "tokenizers",
)

#: The option that selects the rows of a group.
_OPTIONS = {"activations": "--rows", "lens": "--lens-rows"}


def make_record(
    place: Path,
    spec: ExtractSpec,
    model: ModelInfo,
    corpus: CorpusSummary,
    points: tuple[int, ...],
) -> RunRecord:
    """Cut the corpus into tasks and the groups into shards, and write the groups' rows.

    Parameters
    ----------
    place
        The store that is being made; its token tables are there.

    Raises
    ------
    RequestError
        The corpus is empty, a selection selects nothing, or nothing is to be stored.
    """
    if corpus.rows == 0:
        raise RequestError(f"{', '.join(spec.data)}: no tokens in the corpus: give another --data")
    first_rows = TokenTable(place).document_spans()[1]
    row_bytes = model.hidden * item_size(store_dtype(spec, model))
    task_rows = spec.task_rows or choose_task_rows(first_rows, corpus.rows, row_bytes)
    spec = spec.model_copy(update={"task_rows": task_rows})
    widths: dict[str, int] = {}
    if points or spec.sublayers:
        widths["activations"] = row_bytes
    if spec.statistics:
        widths["statistics"] = 4 * model.layers
    if spec.lens_rows != "none":
        widths["lens"] = 4 * (model.layers + 1)
    if not widths:
        raise RequestError("nothing to do: --points none, --no-statistics and --lens-rows none")
    return RunRecord(
        identity_fields=identity_fields(spec, model, points, corpus.digest),
        specification=spec.model_dump(mode="json"),
        model=asdict(model),
        corpus={**asdict(corpus), "key": corpus_key(spec)},
        rows=corpus.rows,
        documents=corpus.documents,
        task_rows=task_rows,
        tasks=-(-corpus.rows // task_rows),
        rows_run_twice=crossing_rows(first_rows, corpus.rows, task_rows),
        points=points,
        groups=_cut_groups(place, spec, corpus.rows, task_rows, widths),
        software={name: version(name) for name in SOFTWARE},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cut_groups(
    place: Path, spec: ExtractSpec, rows: int, task_rows: int, widths: Mapping[str, int]
) -> dict[str, GroupLayout]:
    """Cut the groups that are wanted, given with the bytes of a row, and write their rows."""
    selections = {"activations": spec.rows, "lens": spec.lens_rows}
    groups = {}
    for name, row_bytes in widths.items():
        stored = _selected(place, name, selections.get(name, "all"), rows, spec.seed)
        groups[name] = selection_layout(len(stored), rows, task_rows, row_bytes)
        path = f"{GROUPS[name]}/row"
        create_coordinate(place, path, stored, "row", {"long_name": "corpus row"})
    return groups


def _selected(place: Path, group: str, selection: str, rows: int, seed: int) -> NDArray[np.int64]:
    """Ascending corpus rows of a selection."""
    if selection == "all":
        return np.arange(rows, dtype=np.int64)
    if selection.isdigit():
        table = TokenTable(place)
        chosen = sample_documents(table.documents, int(selection), seed)
        documents, starts, lengths = table.document_spans()
        keep = np.isin(documents, chosen)
        ranges = [np.arange(s, s + n) for s, n in zip(starts[keep], lengths[keep], strict=True)]
        found = np.concatenate([np.empty(0, np.int64), *ranges]).astype(np.int64)
    else:
        found = select_rows(place, selection)
    if not len(found):
        raise RequestError(f"{_OPTIONS[group]} {selection!r} selects no row of this corpus")
    return found


def create_arrays(
    place: Path, spec: ExtractSpec, model: ModelInfo, record: RunRecord
) -> list[ArrayPlan]:
    """Write the metadata of every array, and the coordinates of all axes but the row.

    Returns
    -------
    The sharded arrays.
    """
    codec, dtype = str(record.identity_fields["codec"]), store_dtype(spec, model)
    plans = array_plans(record.groups, model, record.points, dtype, codec, sublayers=spec.sublayers)
    layers = np.arange(model.layers, dtype=np.int64)
    if "activations" in record.groups:
        create_group(place, ACTIVATIONS)
        if record.points:
            points = np.array(record.points, np.int64)
            create_coordinate(place, f"{ACTIVATIONS}/point", points, "point")
        if spec.sublayers:
            create_coordinate(place, f"{ACTIVATIONS}/layer", layers, "layer")
    if "statistics" in record.groups or "lens" in record.groups:
        labels = {axis: list(names) for axis, names in LABELS.items()}
        create_group(place, STATISTICS, labels)
    if "statistics" in record.groups:
        create_coordinate(place, f"{STATISTICS}/layer", layers, "layer")
        for axis, names in LABELS.items():
            create_labels(place, f"{STATISTICS}/{axis}", names, axis)
    if "lens" in record.groups:
        create_group(place, LENS)
        all_points = np.arange(model.layers + 1, dtype=np.int64)
        create_coordinate(place, f"{LENS}/point", all_points, "point")
    for plan in plans:
        create_array(place, plan)
    return plans
