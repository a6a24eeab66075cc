"""The zarr.json documents of Zarr v3 that a store consists of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import atomic
from .errors import Damage, RequestError
from .sharding import BLOCK_BYTES, is_float

Document = dict[str, Any]


def group_metadata(attributes: Mapping[str, Any]) -> Document:
    """A group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def array_metadata(
    shape: tuple[int, ...],
    dtype: str,
    dimensions: tuple[str, ...],
    chunk: tuple[int, ...],
    codecs: list[Document],
    attributes: Mapping[str, Any],
) -> Document:
    """An array; ``chunk`` is the shape of one file. Missing files read as NaN, zero or false."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if is_float(dtype) else False if dtype == "bool" else 0,
        "codecs": codecs,
        "dimension_names": list(dimensions),
        "attributes": dict(attributes),
    }


def chunk_codecs(codec: str, item_size: int) -> list[Document]:
    """The codec chain of a chunk: little-endian bytes, compression if any, crc32c."""
    chain: list[Document] = [{"name": "bytes"}]
    if item_size > 1:
        chain[0]["configuration"] = {"endian": "little"}
    if codec == "zstd":
        blosc = {
            "cname": "zstd",
            "clevel": 1,
            "shuffle": "shuffle",
            "typesize": item_size,
            "blocksize": BLOCK_BYTES,
        }
        chain.append({"name": "blosc", "configuration": blosc})
    return [*chain, {"name": "crc32c"}]


def sharding_codecs(chunk: tuple[int, ...], codec: str, item_size: int) -> list[Document]:
    """The codec chain of a sharded array, its index at the end of the file."""
    configuration = {
        "chunk_shape": list(chunk),
        "codecs": chunk_codecs(codec, item_size),
        "index_codecs": chunk_codecs("none", 8),
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


def read_metadata(root: Path, path: str) -> Document:
    """The zarr.json of an array.

    Raises
    ------
    RequestError
        There is no array at that path.
    Damage
        The file is no JSON object.
    """
    file = root / path / "zarr.json"
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{root}: there is no array {path} in it") from error
    except ValueError as error:
        raise Damage(f"{file} is not JSON; run: depthscope verify {root} --repair") from error
    if not isinstance(found, dict) or found.get("node_type") != "array":
        raise RequestError(f"{root / path}: is not an array")
    return found


def create_metadata(root: Path, path: str, metadata: Document) -> None:
    """Write a zarr.json unless the very same is there.

    Raises
    ------
    RequestError
        Another one is there.
    """
    file = root / path / "zarr.json"
    if atomic.create_json(file, metadata):
        return
    if json.loads(file.read_bytes()) != json.loads(atomic.encode_json(metadata)):
        raise RequestError(f"{root / path}: exists with another layout; use another store")
