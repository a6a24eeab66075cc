"""Describing and creating the arrays of a store.

Describing an array (`ArrayPlan`) computes nothing and touches no file. The driver creates all
metadata once; workers only fill shards that it already describes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RequestError
from .metadata import (
    array_metadata,
    create_metadata,
    group_metadata,
    read_metadata,
    sharding_codecs,
)
from .sharding import CHECKSUM_BYTES, CODECS, DTYPES, index_bytes, is_float

Index = tuple[int, ...]


@dataclass(frozen=True)
class ArrayPlan:
    """A sharded array, described but not created.

    Attributes
    ----------
    path
        Where it lies below the store, such as ``activations.zarr/residual``.
    shape, dimensions
        Length and name of every axis.
    dtype
        A name of ``sharding.DTYPES``.
    chunk, shard
        Lengths of a chunk and of a shard along every axis; a shard is a whole number of chunks.
    codec
        ``none``, or ``zstd`` (blosc, level 1, byte shuffle). A crc32c ends every chunk in both.
    attributes
        Free metadata.

    Raises
    ------
    RequestError
        The lengths do not fit together, or the data type or codec is unknown.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    codec: str = "none"
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("shape", "dimensions", "chunk", "shard"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.dtype not in DTYPES:
            raise RequestError(f"{self.path}: unknown dtype {self.dtype!r}; use {_names(DTYPES)}")
        if self.codec not in CODECS:
            raise RequestError(f"{self.path}: unknown codec {self.codec!r}; use {_names(CODECS)}")
        if not len(self.shape) == len(self.dimensions) == len(self.chunk) == len(self.shard):
            raise RequestError(f"{self.path}: shape, dimensions, chunk and shard differ in length")
        if min((*self.chunk, *self.shard, *(n + 1 for n in self.shape)), default=0) < 1:
            raise RequestError(f"{self.path}: lengths of chunks and shards must be positive")
        if any(whole % part for whole, part in zip(self.shard, self.chunk, strict=True)):
            raise RequestError(
                f"{self.path}: shard {self.shard} is no whole number of chunks {self.chunk}"
            )

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The data type in numpy (``ml_dtypes.bfloat16`` for bfloat16)."""
        return DTYPES[self.dtype]

    @property
    def fill(self) -> Any:
        """What a missing chunk reads as: NaN for floats, zero otherwise."""
        return self.numpy_dtype.type(float("nan") if is_float(self.dtype) else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all values, uncompressed."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk's values, uncompressed and without its checksum."""
        return math.prod(self.chunk) * self.numpy_dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Shards along every axis; the last one may be partly outside the array."""
        return tuple(-(-n // s) for n, s in zip(self.shape, self.shard, strict=True))

    @property
    def chunks_per_shard(self) -> tuple[int, ...]:
        """Chunks of a shard along every axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def shards(self) -> Iterator[Index]:
        """The index of every shard, in C order."""
        return itertools.product(*map(range, self.grid))

    @property
    def row_axis(self) -> int:
        """The axis named ``row``."""
        return self.dimensions.index("row")

    @property
    def row_shards(self) -> int:
        """Shards along the row axis."""
        return self.grid[self.row_axis]

    def shard_rows(self, position: int) -> tuple[int, int]:
        """First row and one past the last row of the shards at a place along the row axis."""
        length, rows = self.shard[self.row_axis], self.shape[self.row_axis]
        return position * length, min(rows, (position + 1) * length)

    def shards_of_rows(self, position: int) -> Iterator[Index]:
        """Every shard at a place along the row axis (one per point, say), in C order."""
        axes = [range(n) for n in self.grid]
        axes[self.row_axis] = range(position, position + 1)
        return itertools.product(*axes)

    def shard_file(self, shard: Index) -> str:
        """Path of a shard's file below the store."""
        return "/".join((self.path, "c", *map(str, shard)))

    def shard_shape(self, shard: Index) -> tuple[int, ...]:
        """Length of a shard along every axis, without what lies outside the array."""
        return tuple(
            min(s, n - i * s) for i, s, n in zip(shard, self.shard, self.shape, strict=True)
        )

    def shard_chunks(self, shard: Index) -> tuple[int, ...]:
        """Chunks along every axis that reach into the array; only these are stored."""
        shape = self.shard_shape(shard)
        return tuple(-(-n // c) for n, c in zip(shape, self.chunk, strict=True))

    def shard_nbytes(self, shard: Index) -> int:
        """Bytes of a shard's file: exact where uncompressed, else about the most it takes."""
        overhead = CHECKSUM_BYTES if self.codec == "none" else CHECKSUM_BYTES + 64
        index = index_bytes(math.prod(self.chunks_per_shard))
        return math.prod(self.shard_chunks(shard)) * (self.chunk_nbytes + overhead) + index

    def metadata(self) -> dict[str, Any]:
        """The content of the array's zarr.json."""
        codecs = sharding_codecs(self.chunk, self.codec, self.numpy_dtype.itemsize)
        return array_metadata(
            self.shape, self.dtype, self.dimensions, self.shard, codecs, self.attributes
        )

    @classmethod
    def read(cls, root: Path, path: str) -> ArrayPlan:
        """The plan of an array that exists, from its metadata.

        Raises
        ------
        RequestError
            There is no such array, or it was not laid out by this project.
        """
        found = read_metadata(root, path)
        try:
            sharding = found["codecs"][0]["configuration"]
            names = [codec["name"] for codec in sharding["codecs"]]
            plan = cls(
                path=path,
                shape=found["shape"],
                dtype=found["data_type"],
                dimensions=found["dimension_names"],
                chunk=sharding["chunk_shape"],
                shard=found["chunk_grid"]["configuration"]["chunk_shape"],
                codec="zstd" if "blosc" in names else "none",
                attributes=found["attributes"],
            )
        except (KeyError, IndexError, TypeError) as error:
            raise RequestError(f"{root / path}: not a sharded array of this project") from error
        differing = [name for name, value in plan.metadata().items() if found.get(name) != value]
        if differing:
            raise RequestError(f"{root / path}: this version cannot read its {_names(differing)}")
        return plan


def create_group(root: Path, path: str, attributes: Mapping[str, Any] | None = None) -> None:
    """Create a Zarr group; nothing happens when it exists with these attributes.

    Raises
    ------
    RequestError
        It exists with other attributes.
    """
    create_metadata(root, path, group_metadata(attributes or {}))


def create_array(root: Path, plan: ArrayPlan) -> None:
    """Create the metadata of an array; nothing happens when it exists just so.

    Raises
    ------
    RequestError
        Another array exists at that path.
    """
    create_metadata(root, plan.path, plan.metadata())


def _names(known: Iterable[str]) -> str:
    return ", ".join(known)
