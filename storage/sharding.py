"""The Zarr v3 ``sharding_indexed`` format, as far as this store uses it.

A shard file holds encoded chunks and, at its end, an index: for every chunk of the shard in C
order its offset and its length as two little-endian 64-bit numbers (both 2^64-1 where there is
none); then the crc32c of the index. An encoded chunk is the little-endian values, compressed where
the codec says so, and the crc32c of those bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

Array = NDArray[Any]

#: Bytes of a crc32c.
CHECKSUM_BYTES = 4
#: Offset and length of a chunk that is not there.
MISSING = (1 << 64) - 1
#: blosc's own choice of block compresses residuals to 0.77 of their size, this one to 0.65.
BLOCK_BYTES = 512 << 10
CODECS = ("none", "zstd")

#: Every data type an array may have, by its name in Zarr.
DTYPES: dict[str, np.dtype[Any]] = (
    {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    | {
        kind.__name__: np.dtype(kind)
        for kind in (
            *(np.int8, np.int16, np.int32, np.int64),
            *(np.uint8, np.uint16, np.uint32, np.uint64),
            *(np.float16, np.float32, np.float64),
        )
    }
    | {"bool": np.dtype(bool)}
)


def is_float(dtype: str) -> bool:
    """Whether a data type of ``DTYPES`` has a NaN."""
    return "float" in dtype


def checksum(data: Array) -> bytes:
    """The crc32c of contiguous bytes (uint8) as it stands in the file."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")


def encode(codec: str, values: Array, item_size: int) -> Array:
    """The bytes (uint8) of a chunk without their checksum; a view of ``values`` if uncompressed.

    Compression runs in one thread and outside the interpreter lock; its bytes depend on the values
    alone.
    """
    if codec == "none":
        return values
    compressed = blosc.compress(
        values, b"zstd", 1, blosc.SHUFFLE, blocksize=BLOCK_BYTES, typesize=item_size
    )
    return np.frombuffer(compressed, np.uint8)


def decode(codec: str, encoded: Array, out: Array) -> None:
    """Put the values of a chunk (bytes without checksum) into ``out`` (contiguous uint8).

    Raises
    ------
    ValueError
        The bytes are not a chunk of this size.
    """
    if codec == "none":
        if encoded.size != out.size:
            raise ValueError(f"{encoded.size} bytes instead of {out.size}")
        out[:] = encoded
        return
    try:
        stated = int.from_bytes(encoded[4:8].tobytes(), "little")
        if encoded.size < 16 or stated != out.size:
            raise ValueError(f"holds {stated} bytes instead of {out.size}")
        blosc.decompress(encoded, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def index_bytes(chunks: int) -> int:
    """Length of an index with its checksum."""
    return 16 * chunks + CHECKSUM_BYTES


def encode_index(index: NDArray[np.uint64]) -> bytes:
    """An index (chunks, 2) as it stands at the end of the file."""
    content = np.ascontiguousarray(index, "<u8").view(np.uint8).reshape(-1)
    return content.tobytes() + checksum(content)


def decode_index(content: bytes, file_bytes: int) -> NDArray[np.uint64]:
    """The index (chunks, 2) in the last bytes of a file of ``file_bytes`` bytes.

    Raises
    ------
    ValueError
        The checksum fails, or a chunk would lie outside the file.
    """
    body = np.frombuffer(content, np.uint8)[:-CHECKSUM_BYTES]
    if checksum(body) != content[-CHECKSUM_BYTES:]:
        raise ValueError("the index fails its checksum")
    index = body.view("<u8").reshape(-1, 2)
    present = index[index[:, 0] != MISSING]
    room = np.uint64(max(0, file_bytes - len(content)))
    # Subtracting, since offset + length may wrap around in a forged index.
    if ((present[:, 1] > room) | (present[:, 0] > room - np.minimum(present[:, 1], room))).any():
        raise ValueError("the index points outside the file")
    return index


def flat_index(position: Sequence[int], shape: Sequence[int]) -> int:
    """The number of a position in C order."""
    number = 0
    for i, n in zip(position, shape, strict=True):
        number = number * n + i
    return number


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements from one position to the next along each axis, in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
