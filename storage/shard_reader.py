"""Reading arrays of a store: one reader behind everything that looks at stored values.

Any axis may be selected by an integer, a slice or an array, independently. Bytes come straight from
the shard files (see gather.py for how), several times faster than through zarr-python; nothing is
cached but descriptors and indexes, which the process shares.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayPlan, Index
from .errors import RequestError, WorkFailed
from .gather import Gather
from .selection import Select, cut_axis, select_axis
from .shard_files import damage, open_shard
from .sharding import CHECKSUM_BYTES, MISSING, checksum, flat_index

Array = NDArray[Any]


class ArrayReader:
    """Reads one array; may be shared by threads, and sent to other processes.

    Parameters
    ----------
    root
        The store.
    path
        The array below it, such as ``activations.zarr/residual``.
    missing
        ``error``: a shard without a file is damage. ``fill``: it holds fill values (NaN).

    Attributes
    ----------
    plan
        The array's shape, data type, chunks and shards.

    Raises
    ------
    RequestError
        There is no such array.
    """

    def __init__(self, root: Path, path: str, missing: str = "error") -> None:
        if missing not in ("error", "fill"):
            raise RequestError(f"missing must be 'error' or 'fill', not {missing!r}")
        self.root, self.path, self.missing = Path(root), path, missing
        self.plan = ArrayPlan.read(self.root, path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""
        return self.plan.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The data type of what `read` returns."""
        return self.plan.numpy_dtype

    def read(self, *selection: Select, as_float32: bool = False) -> Array:
        """Read an orthogonal selection.

        Parameters
        ----------
        selection
            For every axis an integer (drops the axis), a slice, or integers (in any order, repeated
            or not) or a mask; axes left out are taken whole.
        as_float32
            Convert bfloat16 and float16 (exactly) to float32.

        Returns
        -------
        ndarray
            In the array's dtype; bfloat16 is ``ml_dtypes.bfloat16``, bit for bit as stored.

        Raises
        ------
        RequestError
            A position lies outside the array, or there are more selections than axes.
        Damage
            A shard file is missing, cut short, or fails a checksum. Chunks of which only some bytes
            are read are not checked.
        WorkFailed
            A file cannot be read.
        """
        plan = self.plan
        if len(selection) > len(plan.shape):
            raise RequestError(f"{self.path} has the axes {plan.dimensions}, not {len(selection)}")
        every = selection + (slice(None),) * (len(plan.shape) - len(selection))
        axes = [
            select_axis(select, length, chunk, f"{self.path}: {name}")
            for select, length, chunk, name in zip(
                every, plan.shape, plan.chunk, plan.dimensions, strict=True
            )
        ]
        out = np.empty([axis.count for axis in axes], plan.numpy_dtype)
        gather = Gather(self.root, plan, axes, out, self.missing == "fill")
        cuts = [
            cut_axis(axis, chunk, chunks)
            for axis, chunk, chunks in zip(axes, plan.chunk, plan.chunks_per_shard, strict=True)
        ]
        for shard in itertools.product(*cuts):
            gather.shard(shard)
        gather.finish()
        for number, axis in enumerate(axes):
            if axis.order is not None:
                out = np.take(out, axis.order, number)
        out = out.reshape([n for n, axis in zip(out.shape, axes, strict=True) if not axis.dropped])
        return widen(out) if as_float32 else out


def widen(values: Array) -> Array:
    """bfloat16 or float16 as float32, exactly; other data types as they are."""
    if values.dtype.name == "bfloat16":
        # The upper half of a float32; several times faster than ml_dtypes' own conversion.
        bits = values.view(np.uint16).astype(np.uint32)
        return np.left_shift(bits, 16, out=bits).view(np.float32)
    return values.astype(np.float32) if values.dtype == np.float16 else values


def check_shard(root: Path, plan: ArrayPlan, shard: Index) -> None:
    """Check the index and every chunk of a shard against their checksums.

    Raises
    ------
    Damage
        The file is missing or cut short, a checksum fails, a chunk inside the array is missing, or
        one outside it is present; names the file and the chunk.
    WorkFailed
        The file cannot be read.
    """
    path = plan.shard_file(shard)
    counts = plan.shard_chunks(shard)
    inside = {
        flat_index(chunk, plan.chunks_per_shard): chunk
        for chunk in itertools.product(*map(range, counts))
    }
    try:
        file = open_shard(root, plan, path, anew=True)
        present = np.flatnonzero(file.index[:, 0] != MISSING).tolist()
        if len(present) != math.prod(counts) or not inside.keys() >= set(present):
            raise ValueError(f"{len(present)} chunks instead of {math.prod(counts)}")
        for place in sorted(present, key=lambda place: int(file.index[place, 0])):
            offset, length = map(int, file.index[place])
            content = np.empty(length, np.uint8)
            file.read([content.data], offset)
            if checksum(content[:-CHECKSUM_BYTES]) != content[-CHECKSUM_BYTES:].tobytes():
                raise ValueError(f"chunk {inside[place]} fails its checksum")
    except FileNotFoundError as error:
        raise damage(root, path, "the file is missing") from error
    except ValueError as error:
        raise damage(root, path, str(error)) from error
    except OSError as error:
        raise WorkFailed(f"reading {root / path}: {error.strerror}") from error
