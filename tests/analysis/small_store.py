"""Small stores made by zarr-python, pyarrow and json alone, following the layout of design.md.

The numbers are random, so every expected value is computed from the arrays kept here, by plain
loops in float64. What belongs to uncommitted tasks is either missing or filled with ``POISON``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from depthscope.storage.bfloat16 import BFloat16
from numpy.typing import NDArray
from safetensors.numpy import save_file
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

POISON = 777.0
LENGTHS = (5, 1, 12, 7, 30, 3, 9, 16, 2, 15)
WORDS = (" the", " cat", " sat", "!", "é", " on")
EPSILON = 1e-5
Array = NDArray[Any]
Change = Callable[[Array, Array, Array], None]


@dataclass
class SmallStore:
    """A store on disk, and everything that is in it."""

    root: Path
    lengths: tuple[int, ...]
    h: Array
    a: Array
    m: Array
    special: Array
    token: list[str]
    weight: Array
    unembedding: Array
    task_rows: int
    points: tuple[int, ...]
    activation_rows: Array
    lens_rows: Array
    committed: tuple[int, ...]
    norm: Array
    norm_ratio: Array
    cosine: Array
    lens: dict[str, Array] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    @property
    def layers(self) -> int:
        return len(self.a)

    @property
    def document(self) -> Array:
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def position(self) -> Array:
        return np.concatenate([np.arange(n) for n in self.lengths])

    @property
    def visible(self) -> Array:
        """Rows of committed tasks."""
        return np.flatnonzero(np.isin(np.arange(self.rows) // self.task_rows, self.committed))


def build(
    root: Path,
    *,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    layers: int = 3,
    hidden: int = 8,
    vocabulary: int = 40,
    task_rows: int = 32,
    dtype: str = "bfloat16",
    points: Sequence[int] | None = None,
    activation_rows: Array | None = None,
    lens_rows: Array | None = None,
    committed: Sequence[int] | None = None,
    invalid: Sequence[int] = (),
    sublayers: bool = True,
    change: Change | None = None,
    model: dict[str, Any] | None = None,
    marked: bool = True,
) -> SmallStore:
    """Write a store; ``change`` may alter h (L+1, N, d), a and m (L, N, d) in place."""
    random = np.random.default_rng(seed)
    rows = sum(lengths)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    h = random.normal(size=(layers + 1, rows, hidden))
    a, m = random.normal(size=(2, layers, rows, hidden)) * 0.5
    if change is not None:
        change(h, a, m)
    h, a, m = (x.astype(kind).astype(np.float64) for x in (h, a, m))
    document = np.repeat(np.arange(len(lengths)), lengths)
    for number in invalid:
        for x in (h, a, m):
            x[:, document == number] = np.nan
    tasks = -(-rows // task_rows)
    every = np.arange(rows)
    store = SmallStore(
        root=root,
        lengths=tuple(lengths),
        h=h,
        a=a,
        m=m,
        special=random.random(rows) < 0.15,
        token=[WORDS[i] for i in random.integers(0, len(WORDS), rows)],
        weight=random.normal(size=hidden).astype(np.float32),
        unembedding=random.normal(size=(vocabulary, hidden)).astype(np.float32),
        task_rows=task_rows,
        points=tuple(range(layers + 1)) if points is None else tuple(points),
        activation_rows=every if activation_rows is None else activation_rows,
        lens_rows=every if lens_rows is None else lens_rows,
        committed=tuple(range(tasks)) if committed is None else tuple(committed),
        norm=np.empty((5, layers, rows)),
        norm_ratio=np.empty((3, layers, rows)),
        cosine=np.empty((3, layers, rows)),
    )
    with np.errstate(invalid="ignore"):
        _measure(store)
    root.mkdir(parents=True)
    _tables(store, invalid if marked else ())
    _arrays(store, kind, sublayers)
    _run_record(store, dtype, model or {})
    _head(store)
    for task in store.committed:
        mine = [n for n in invalid if task in set((np.flatnonzero(document == n)) // task_rows)]
        commit(store, task, invalid=mine)
    return store


def commit(
    store: SmallStore,
    task: int,
    points: tuple[int, int] | None = None,
    invalid: Sequence[int] = (),
) -> None:
    """Write the commit of a task."""
    first, last = points or (0, store.layers)
    folder = store.root / "commits" / f"{task:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    end = min((task + 1) * store.task_rows, store.rows)
    content = {
        "task": task,
        "points": [first, last],
        "rows": [task * store.task_rows, end],
        "shards": [],
        "nonfinite": {},
        "invalid_documents": [[number, "it failed"] for number in invalid],
        "attempt": "one",
        "host": "here",
        "pid": 1,
        "hardware": {},
        "timings": {},
    }
    (folder / f"{first}-{last}.json").write_text(json.dumps(content))


def lens_of(h: Array, final: Array, weight: Array, unembedding: Array) -> tuple[float, ...]:
    """KL, top-5 overlap, top-1 agreement and entropy of one row, in float64."""
    logs = []
    for x in (h, final):
        normed = x / np.sqrt((x * x).mean() + EPSILON) * weight
        logits = unembedding.astype(np.float64) @ normed
        logits = logits - logits.max()
        logs.append(logits - np.log(np.exp(logits).sum()))
    p, q = logs
    tops = [set(np.argsort(-x)[:5].tolist()) for x in logs]
    kl = sum(float(np.exp(x) * (x - y)) for x, y in zip(p, q, strict=True))
    entropy = -sum(float(np.exp(x) * x) for x in p)
    return kl, len(tops[0] & tops[1]) / 5, float(p.argmax() == q.argmax()), entropy


def _measure(store: SmallStore) -> None:
    """Statistics and lens values of every row, one at a time."""
    for layer in range(store.layers):
        for row in range(store.rows):
            h, a, m = (x[layer, row] for x in (store.h, store.a, store.m))
            norms = [float(np.sqrt((x * x).sum())) for x in (h, h + a, a, m, a + m)]
            store.norm[:, layer, row] = norms
            pairs = [(a, h), (m, h + a), (a + m, h)]
            for part, (added, base) in enumerate(pairs):
                size, length = np.sqrt((added * added).sum()), np.sqrt((base * base).sum())
                store.norm_ratio[part, layer, row] = size / max(length, 1e-6)
                store.cosine[part, layer, row] = (added * base).sum() / max(size * length, 1e-30)
    names = ("kl", "top5_overlap", "top1_agreement", "entropy")
    store.lens = {name: np.empty((store.layers + 1, store.rows)) for name in names}
    for point in range(store.layers + 1):
        for row in range(store.rows):
            values = lens_of(store.h[point, row], store.h[-1, row], store.weight, store.unembedding)
            for name, value in zip(names, values, strict=True):
                broken = np.isnan(store.h[point, row]).any()
                store.lens[name][point, row] = np.nan if broken else value


def _tables(store: SmallStore, invalid: Sequence[int]) -> None:
    first = np.cumsum([0, *store.lengths[:-1]])
    count = len(store.lengths)
    documents = pa.table(
        {
            "document": pa.array(range(count), pa.int64()),
            "source": ["corpus.jsonl"] * count,
            "line": pa.array(range(1, count + 1), pa.int64()),
            "first_row": pa.array(first, pa.int64()),
            "n_tokens": pa.array(store.lengths, pa.int64()),
            "digest": [f"{n:032x}" for n in range(count)],
            "text": [f"text of {n}" for n in range(count)],
            "subject": ["maths" if n % 2 else "facts" for n in range(count)],
            "difficulty": pa.array([None if n == 3 else n for n in range(count)], pa.int64()),
            "layer": pa.array([n * 10 for n in range(count)], pa.int64()),
        }
    )
    pq.write_table(documents, store.root / "documents.parquet", row_group_size=3)
    tokens = pa.table(
        {
            "row": pa.array(range(store.rows), pa.int64()),
            "document": pa.array(store.document, pa.int64()),
            "position": pa.array(store.position, pa.int32()),
            "token_id": pa.array([len(t) for t in store.token], pa.int32()),
            "token": store.token,
            "char_start": pa.array(store.position * 2, pa.int32()),
            "char_end": pa.array(store.position * 2 + 2, pa.int32()),
            "special": store.special,
            "role": pa.nulls(store.rows, pa.string()),
            "valid": ~np.isin(store.document, invalid),
        }
    )
    pq.write_table(tokens, store.root / "tokens.parquet", row_group_size=20)


def _arrays(store: SmallStore, kind: Any, sublayers: bool) -> None:
    layers, points = np.arange(store.layers), np.array(store.points, dtype=np.int64)
    _group(store.root / "activations.zarr")
    _group(store.root / "statistics.zarr")
    _group(store.root / "statistics.zarr" / "lens")
    activations = store.root / "activations.zarr"
    rows = store.activation_rows
    shard, chunk = _cut(store, rows)
    _coordinate(activations / "row", rows, "row")
    if len(points):
        _coordinate(activations / "point", points, "point")
        names = ("point", "row", "hidden")
        values = store.h[list(store.points)][:, rows].astype(kind)
        _array(store, activations / "residual", values, names, rows, shard, chunk)
    if sublayers:
        _coordinate(activations / "layer", layers, "layer")
        names = ("layer", "row", "hidden")
        for name, values in (("attention_output", store.a), ("mlp_output", store.m)):
            _array(
                store, activations / name, values[:, rows].astype(kind), names, rows, shard, chunk
            )
    statistics = store.root / "statistics.zarr"
    _coordinate(statistics / "layer", layers, "layer")
    _coordinate(statistics / "row", np.arange(store.rows), "row")
    for name, axis in (("norm", "quantity"), ("norm_ratio", "part"), ("cosine", "part")):
        values = getattr(store, name).astype(np.float32)
        every = np.arange(store.rows)
        _array(store, statistics / name, values, (axis, "layer", "row"), every, store.task_rows, 8)
    lens = statistics / "lens"
    _coordinate(lens / "point", np.arange(store.layers + 1), "point")
    _coordinate(lens / "row", store.lens_rows, "row")
    shard, chunk = _cut(store, store.lens_rows)
    for name in (*store.lens, "next_rank", "next_probability"):
        values = store.lens.get(name, store.lens["kl"])[:, store.lens_rows].astype(np.float32)
        _array(store, lens / name, values, ("point", "row"), store.lens_rows, shard, chunk)


def _cut(store: SmallStore, rows: Array) -> tuple[int, int]:
    """Rows of a shard and of a chunk."""
    return (store.task_rows, 8) if len(rows) == store.rows else (8, 4)


def _array(
    store: SmallStore,
    path: Path,
    values: Array,
    names: tuple[str, ...],
    rows: Array,
    shard_rows: int,
    chunk_rows: int,
) -> None:
    at = names.index("row")
    inner = [
        1 if n in ("point", "layer", "quantity", "part") else values.shape[i]
        for i, n in enumerate(names)
    ]
    if "layer" in names and "hidden" not in names:
        inner[1] = values.shape[1]
    if names == ("point", "row"):
        inner[0] = values.shape[0]
    inner[at] = chunk_rows
    outer = [*inner]
    outer[at] = shard_rows
    if names[0] in ("quantity", "part"):
        outer[0] = values.shape[0]
    codecs: list[Any] = [BytesCodec(endian="little"), Crc32cCodec()]
    array = zarr.create(
        shape=values.shape,
        dtype=BFloat16() if values.dtype.name == "bfloat16" else values.dtype,
        chunks=tuple(outer),
        codecs=[ShardingCodec(chunk_shape=tuple(inner), codecs=codecs)],
        dimension_names=names,
        fill_value=np.nan,
        store=path,
        zarr_format=3,
    )
    values = values.copy()
    key: list[Any] = [slice(None)] * values.ndim
    missing = []
    for shard in range(-(-len(rows) // shard_rows)):
        task = int(rows[shard * shard_rows]) // store.task_rows
        if task not in store.committed:
            key[at] = slice(shard * shard_rows, (shard + 1) * shard_rows)
            values[tuple(key)] = POISON
            missing.append(shard)
    array[...] = values
    for shard in missing[1::2]:
        for file in path.glob("c/**/*"):
            if file.is_file() and file.relative_to(path / "c").parts[at] == str(shard):
                file.unlink()


def _coordinate(path: Path, values: Array, name: str) -> None:
    values = np.asarray(values, dtype=np.int64)
    array = zarr.create(
        shape=values.shape,
        dtype=values.dtype,
        chunks=(max(1, len(values)),),
        codecs=[BytesCodec(endian="little"), Crc32cCodec()],
        dimension_names=(name,),
        store=path,
        zarr_format=3,
    )
    array[...] = values


def _group(path: Path) -> None:
    zarr.create_group(path, zarr_format=3)


def _run_record(store: SmallStore, dtype: str, model: dict[str, Any]) -> None:
    groups = {
        name: {
            "rows": len(rows),
            "rows_per_shard": _cut(store, rows)[0],
            "rows_per_chunk": _cut(store, rows)[1],
        }
        for name, rows in (
            ("activations", store.activation_rows),
            ("statistics", np.arange(store.rows)),
            ("lens", store.lens_rows),
        )
        if len(rows)
    }
    content = {
        "format": 1,
        "identity": "",
        "identity_fields": {"weights": str(store.root), "dtype": dtype},
        "specification": {},
        "model": {
            "name": store.root.name,
            "layers": store.layers,
            "hidden": store.h.shape[-1],
            "vocabulary": len(store.unembedding),
            "dtype": dtype,
            "weights_digest": "w",
            **model,
        },
        "corpus": {},
        "rows": store.rows,
        "documents": len(store.lengths),
        "task_rows": store.task_rows,
        "tasks": -(-store.rows // store.task_rows),
        "rows_run_twice": 0,
        "points": list(store.points),
        "groups": groups,
        "software": {},
        "created": "2026-01-01T00:00:00Z",
    }
    (store.root / "run.json").write_text(json.dumps(content))


def _head(store: SmallStore) -> None:
    save_file(
        {"norm.weight": store.weight, "unembedding.weight": store.unembedding},
        store.root / "head.safetensors",
    )
    settings = {
        "format": 1,
        "norm": "rmsnorm",
        "epsilon": EPSILON,
        "soft_cap": None,
        "scale": 1.0,
    }
    (store.root / "head.json").write_text(json.dumps(settings))
