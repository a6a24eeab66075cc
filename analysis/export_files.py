"""Files that exported rows are written to, a batch at a time.

Parquet and Zarr are those of `answers`: bfloat16 becomes float32 there, which every reader knows.
A folder of safetensors keeps the bits as they are stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from depthscope.storage.atomic import write_json
from depthscope.storage.errors import RequestError
from depthscope.storage.shard_reader import widen
from numpy.typing import NDArray
from safetensors.numpy import save_file

from .answers import ParquetAnswer, Shape, ZarrAnswer
from .export_rows import IDENTITY, Records, RowSource

#: Bytes of one safetensors file, about.
FILE_BYTES = 256 << 20

_COLUMNS = pa.schema(
    [
        ("row", pa.int64()),
        ("document", pa.int64()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
    ]
)


class RowFile(Protocol):
    """Where rows go.

    Attributes
    ----------
    batch_rows
        Rows of a batch; the last one may be shorter.
    """

    batch_rows: int

    def write(self, records: Records) -> None:
        """Take one batch."""

    def close(self) -> None:
        """Complete the file under its temporary name."""


class AnswerFile:
    """``.parquet`` and ``.zarr``: rows; ``residual_<point>``, or residual (point, row, hidden)."""

    def __init__(
        self, kind: type[ParquetAnswer | ZarrAnswer], path: Path, source: RowSource, rows: int
    ) -> None:
        self._source = source
        dtype = widen(np.empty(0, source.vector_dtype)).dtype if source.points else None
        types: Mapping[str, np.dtype[Any]] = {
            field.name: np.dtype(field.type.to_pandas_dtype()) for field in _COLUMNS
        }
        shape = Shape(_COLUMNS, types, rows, source.points, source.hidden, dtype, source.array)
        self.batch_rows = shape.batch_rows
        self._answer = kind(path, shape)

    def write(self, records: Records) -> None:
        """Append rows."""
        columns = [pa.array(np.ascontiguousarray(records[name])) for name in IDENTITY]
        vectors = None
        if self._source.points:
            moved = np.ascontiguousarray(records["vector"].transpose(1, 0, 2))
            vectors = widen(moved.view(self._source.vector_dtype))
        self._answer.write(pa.table(columns, schema=_COLUMNS), vectors)

    def close(self) -> None:
        """Complete the file."""
        self._answer.close()


class SafetensorsFolder:
    """``rows-00000.safetensors`` and so on: identity, ``residual_<point>`` (row, hidden)."""

    def __init__(self, path: Path, source: RowSource, about: Mapping[str, Any]) -> None:
        self._path, self._source, self._about = path, source, dict(about)
        self._files: list[dict[str, Any]] = []
        self.batch_rows = max(1, FILE_BYTES // source.record.itemsize)
        path.mkdir()

    def write(self, records: Records) -> None:
        """Write one file."""
        tensors: dict[str, NDArray[Any]] = {
            name: np.ascontiguousarray(records[name]) for name in IDENTITY
        }
        for place, point in enumerate(self._source.points):
            vectors = np.ascontiguousarray(records["vector"][:, place])
            tensors[f"{self._source.array}_{point}"] = vectors.view(self._source.vector_dtype)
        name = f"rows-{len(self._files):05d}.safetensors"
        save_file(tensors, self._path / name, {k: json.dumps(v) for k, v in self._about.items()})
        self._files.append({"file": name, "rows": len(records)})

    def close(self) -> None:
        """Write the list of files."""
        rows = sum(file["rows"] for file in self._files)
        write_json(self._path / "index.json", {**self._about, "rows": rows, "files": self._files})


def row_file(
    temporary: Path, out: Path, source: RowSource, rows: int, about: Mapping[str, Any]
) -> RowFile:
    """The kind of file that an ending asks for; a folder of safetensors without one."""
    if out.suffix:
        kind = ParquetAnswer if out.suffix == ".parquet" else ZarrAnswer
        return AnswerFile(kind, temporary, source, rows)
    return SafetensorsFolder(temporary, source, about)


def check_out(out: Path) -> None:
    """Refuse a name that nothing can be written to.

    Raises
    ------
    RequestError
        The ending is unknown, the folder that it lies in is missing, or a folder of safetensors
        would replace something.
    """
    if out.suffix not in (".parquet", ".zarr", ""):
        raise RequestError(
            f"--out {out}: end it with .parquet or .zarr, or name a folder for safetensors"
        )
    if not out.absolute().parent.is_dir():
        raise RequestError(f"--out {out}: there is no folder {out.parent}")
    if not out.suffix and out.exists() and not (out / "index.json").exists():
        raise RequestError(f"--out {out}: is there already and no earlier export: choose another")
