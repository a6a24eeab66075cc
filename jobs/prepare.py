"""Laying a store out: everything about it is decided, checked and written before a worker starts.

The store is prepared under a temporary name beside its place and renamed as a whole, so a request
that turns out to be wrong leaves nothing, and a store that exists is always complete in its plan.
Cost: one pass over the corpus's text; no weights are loaded.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from depthscope.pipeline.corpus_key import corpus_key
from depthscope.pipeline.description import ModelInfo, describe_model
from depthscope.pipeline.head_export import export_head
from depthscope.pipeline.model import load_tokenizer, resolve_folder
from depthscope.pipeline.packing import packs_without_mask
from depthscope.pipeline.tokens import CorpusSummary, tokenize_corpus
from depthscope.storage.array_names import PARTS, QUANTITIES
from depthscope.storage.arrays import ArrayPlan, create_array, create_group
from depthscope.storage.atomic import write_json
from depthscope.storage.coordinates import create_coordinate, create_labels
from depthscope.storage.errors import RequestError
from depthscope.storage.layout import ACTIVATIONS, LENS, STATISTICS, StorePaths
from depthscope.storage.predicates import sample_documents, select_rows
from depthscope.storage.run_record import GroupLayout, RunRecord, differences
from depthscope.storage.tables import TableWriter
from depthscope.storage.tasks import choose_task_rows, crossing_rows, selection_layout
from depthscope.storage.token_table import TokenTable
from numpy.typing import NDArray

from .groups import array_plans, item_size
from .room import check_room
from .spec import ExtractSpec

#: Token ids that have no embedding fail on the worker, where ``--on-error`` decides about them.
_ANY_ID = 1 << 31

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


def prepare(
    spec: ExtractSpec, report: Callable[[str], None] = lambda _: None
) -> tuple[RunRecord, Path]:
    """Lay the store out, or check that the one that exists is this very run.

    Returns
    -------
    The run's record and the model's folder.

    Raises
    ------
    RequestError
        The request is wrong, or the store holds another run; nothing is left behind.
    """
    folder = resolve_folder(spec.model, trust_remote_code=spec.trust_remote_code)
    record = _existing(spec.out)
    if record is not None:
        spec = spec.defaults_from(dict(record.identity_fields))
    model = describe_model(
        folder,
        spec.dtype,
        spec.attention,
        name=spec.model,
        trust_remote_code=spec.trust_remote_code,
    )
    if record is not None:
        _check_identity(spec, record, model)
        return record, folder
    return _lay_out(spec, model, folder, report), folder


def _existing(root: Path) -> RunRecord | None:
    if StorePaths(root).run.exists():
        return RunRecord.load(root)
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise RequestError(f"{root} exists and is no store: choose another --out, or empty it")
    except OSError as error:
        raise RequestError(f"{root} cannot be read: {error.strerror}") from error
    return None


def _identity(spec: ExtractSpec, model: ModelInfo, tokens: str) -> dict[str, Any]:
    """What decides the numbers; the request's open fields must have been settled."""
    return {
        "weights": model.weights_digest,
        "config": model.config_digest,
        "tokenizer": model.tokenizer_digest,
        "tokens": tokens,
        "dtype": model.dtype,
        "attention": model.attention,
        "experts": model.experts,
        "points": ",".join(map(str, parse_points(spec.points, model.layers))),
        "sublayers": spec.sublayers,
        "rows": spec.rows,
        "lens_rows": spec.lens_rows,
        "seed": spec.seed,
        "statistics": spec.statistics,
        "store_dtype": _store_dtype(spec, model),
        "codec": spec.codec,
        "batch_tokens": spec.batch_tokens,
        "batches": spec.batches,
        "lens_memory": int(spec.lens_memory),
        "task_rows": spec.task_rows,
    }


def _check_identity(spec: ExtractSpec, record: RunRecord, model: ModelInfo) -> None:
    stored = record.identity_fields
    same_corpus = corpus_key(spec) == record.corpus["key"]
    tokens = str(stored["tokens"]) if same_corpus else "another corpus, or read in another way"
    wanted = _identity(spec, model, tokens)
    if differing := differences(stored, wanted):
        raise RequestError(
            f"{spec.out} holds another run; different are: {'; '.join(differing)}. "
            "Choose another --out, or give the same values"
        )


def _lay_out(
    spec: ExtractSpec, model: ModelInfo, folder: Path, report: Callable[[str], None]
) -> RunRecord:
    points = parse_points(spec.points, model.layers)
    spec = _settled(spec, model, folder)
    out = Path(os.path.abspath(spec.out))
    place = out.parent / f".{out.name}.preparing-{secrets.token_hex(4)}"
    try:
        _remove_stale(out)
        place.mkdir(parents=True)
    except OSError as error:
        raise RequestError(
            f"{spec.out} cannot be written: {error.strerror}: choose another --out"
        ) from error
    try:
        report("tokenising the corpus")
        with TableWriter(StorePaths(place), text=spec.text) as writer:
            # Token ids need no tokenizer; where there is one, it gives them their text.
            needed = spec.token_ids is None or model.tokenizer_digest
            tokenizer = load_tokenizer(folder, spec.trust_remote_code) if needed else None
            corpus = tokenize_corpus(spec, tokenizer, model.context, writer, vocabulary=_ANY_ID)
        record = _record(spec, model, corpus, points, place)
        plans = _create_arrays(place, spec, model, record, points)
        if spec.head:
            export_head(folder, model, spec.trust_remote_code).save(place)
        else:
            checkpoint = {"checkpoint": str(folder), "weights_digest": model.weights_digest}
            write_json(StorePaths(place).head_config, checkpoint)
        check_room(out.parent, plans, record)
        shutil.rmtree(StorePaths(place).partial, ignore_errors=True)
        record.save(place)
        return _put_in_place(spec, place, out, record, model)
    except OSError as error:
        raise RequestError(f"{spec.out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _put_in_place(
    spec: ExtractSpec, place: Path, out: Path, record: RunRecord, model: ModelInfo
) -> RunRecord:
    try:
        os.rename(place, out)
    except OSError:
        # Another run of the same command was faster; its store must be this very run.
        existing = _existing(out)
        if existing is None:
            raise
        _check_identity(spec.defaults_from(dict(existing.identity_fields)), existing, model)
        return existing
    return record


def _record(
    spec: ExtractSpec,
    model: ModelInfo,
    corpus: CorpusSummary,
    points: tuple[int, ...],
    place: Path,
) -> RunRecord:
    if corpus.rows == 0:
        raise RequestError(f"{', '.join(spec.data)}: no tokens in the corpus: give another --data")
    first_rows = TokenTable(place).document_spans()[1]
    store_dtype = _store_dtype(spec, model)
    row_bytes = model.hidden * item_size(store_dtype)
    task_rows = spec.task_rows or choose_task_rows(first_rows, corpus.rows, row_bytes)
    spec = spec.model_copy(update={"task_rows": task_rows})
    groups: dict[str, GroupLayout] = {}
    selected = {"activations": spec.rows, "lens": spec.lens_rows}
    wanted = {"activations": bool(points) or spec.sublayers, "lens": spec.lens_rows != "none"}
    if spec.statistics:
        statistics_bytes = 4 * model.layers
        groups["statistics"] = selection_layout(
            corpus.rows, corpus.rows, task_rows, statistics_bytes
        )
    widths = {"activations": row_bytes, "lens": 4 * (model.layers + 1)}
    for name in ("activations", "lens"):
        if not wanted[name]:
            continue
        rows = _selected(place, selected[name], corpus.rows, spec.seed, option=name)
        count = corpus.rows if rows is None else len(rows)
        groups[name] = selection_layout(count, corpus.rows, task_rows, widths[name])
        _create_group(place, name, rows, count)
    if not groups:
        raise RequestError("nothing to do: --points none, --no-statistics and --lens-rows none")
    return RunRecord(
        identity_fields=_identity(spec, model, corpus.digest),
        specification=spec.model_dump(mode="json"),
        model=asdict(model),
        corpus={**asdict(corpus), "key": corpus_key(spec)},
        rows=corpus.rows,
        documents=corpus.documents,
        task_rows=task_rows,
        tasks=-(-corpus.rows // task_rows),
        rows_run_twice=crossing_rows(first_rows, corpus.rows, task_rows),
        points=points,
        groups=groups,
        software={name: version(name) for name in SOFTWARE},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _selected(
    place: Path, selection: str, rows: int, seed: int, *, option: str
) -> NDArray[np.int64] | None:
    """Corpus rows of a selection; None for all of them."""
    if selection == "all":
        return None
    table = TokenTable(place)
    if selection.isdigit():
        chosen = sample_documents(table.documents, int(selection), seed)
        documents, starts, lengths = table.document_spans()
        keep = np.isin(documents, chosen)
        ranges = [np.arange(s, s + n) for s, n in zip(starts[keep], lengths[keep], strict=True)]
        found = np.concatenate([np.empty(0, np.int64), *ranges]).astype(np.int64)
    else:
        found = select_rows(place, selection)
    if not len(found):
        option = {"activations": "--rows", "lens": "--lens-rows"}[option]
        raise RequestError(f"{option} {selection!r} selects no row of this corpus")
    return None if len(found) == rows else found


def _create_group(place: Path, name: str, rows: NDArray[np.int64] | None, count: int) -> None:
    path = {"activations": ACTIVATIONS, "lens": LENS}[name]
    values = np.arange(count, dtype=np.int64) if rows is None else rows
    create_coordinate(place, f"{path}/row", values, "row", {"long_name": "corpus row"})


def _create_arrays(
    place: Path, spec: ExtractSpec, model: ModelInfo, record: RunRecord, points: tuple[int, ...]
) -> list[ArrayPlan]:
    codec = str(record.identity_fields["codec"])
    plans = array_plans(
        record.groups, model, points, _store_dtype(spec, model), codec, sublayers=spec.sublayers
    )
    layers = np.arange(model.layers, dtype=np.int64)
    if "activations" in record.groups:
        create_group(place, ACTIVATIONS)
        if points:
            create_coordinate(place, f"{ACTIVATIONS}/point", np.array(points, np.int64), "point")
        if spec.sublayers:
            create_coordinate(place, f"{ACTIVATIONS}/layer", layers, "layer")
    if "statistics" in record.groups or "lens" in record.groups:
        create_group(place, STATISTICS, {"quantity": list(QUANTITIES), "part": list(PARTS)})
    if "statistics" in record.groups:
        create_coordinate(place, f"{STATISTICS}/layer", layers, "layer")
        create_labels(place, f"{STATISTICS}/quantity", QUANTITIES, "quantity")
        create_labels(place, f"{STATISTICS}/part", PARTS, "part")
        rows = np.arange(record.rows, dtype=np.int64)
        create_coordinate(place, f"{STATISTICS}/row", rows, "row", {"long_name": "corpus row"})
    if "lens" in record.groups:
        create_group(place, LENS)
        all_points = np.arange(model.layers + 1, dtype=np.int64)
        create_coordinate(place, f"{LENS}/point", all_points, "point")
    for plan in plans:
        create_array(place, plan)
    return plans


def parse_points(text: str, layers: int) -> tuple[int, ...]:
    """Turn ``all``, ``none`` or ``0,8,16`` into ascending points.

    Raises
    ------
    RequestError
        A point is no number, or outside 0..L.
    """
    if text == "all":
        return tuple(range(layers + 1))
    if text == "none":
        return ()
    try:
        points = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise RequestError(
            f"--points {text!r}: give all, none, or numbers such as 0,8,16"
        ) from None
    if points[0] < 0 or points[-1] > layers:
        wrong = points[0] if points[0] < 0 else points[-1]
        raise RequestError(
            f"--points {wrong}: this model has {layers} layers, so its points are 0 to {layers}"
        )
    return points


def _store_dtype(spec: ExtractSpec, model: ModelInfo) -> str:
    return model.dtype if spec.store_dtype == "model" else spec.store_dtype


def _settled(spec: ExtractSpec, model: ModelInfo, folder: Path) -> ExtractSpec:
    """Fill in what depends on the machine that lays the store out; the store then keeps it."""
    gpu = _has_gpu()
    # Compress only where cores are left over: on a CPU the model itself uses all of them.
    codec = "zstd" if gpu and (os.cpu_count() or 1) >= 16 else "none"
    packs = not gpu and packs_without_mask(folder, model, spec.trust_remote_code)
    batches: Literal["packed", "sorted"] = "packed" if packs else "sorted"
    return spec.model_copy(
        update={
            "codec": codec if spec.codec == "auto" else spec.codec,
            "batches": batches if spec.batches == "auto" else spec.batches,
            "batch_tokens": spec.batch_tokens or (16384 if gpu else 1024),
        }
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _remove_stale(out: Path) -> None:
    """Remove what preparations that were killed left beside the store."""
    for folder in out.parent.glob(f".{out.name}.preparing-*"):
        if datetime.now().timestamp() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def summary_of(record: RunRecord) -> Mapping[str, Any]:
    """The few numbers that a user wants to see before the work starts."""
    return {
        "rows": record.rows,
        "documents": record.documents,
        "tasks": record.tasks,
        "points": len(record.points),
    }
