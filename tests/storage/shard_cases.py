"""Small arrays for tests of the store, and slow, obvious ways to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from depthscope.storage.arrays import ArrayPlan, Index, create_array
from depthscope.storage.shard_writer import write_shard
from numpy.typing import NDArray


def random_values(plan: ArrayPlan, seed: int = 0) -> NDArray[Any]:
    """Every bit at random: NaNs with payloads, infinities and subnormals are among them."""
    shape = (*plan.shape, plan.numpy_dtype.itemsize)
    bits = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return bits.view(plan.numpy_dtype)[..., 0]


def shard_values(plan: ArrayPlan, shard: Index, values: NDArray[Any]) -> NDArray[Any]:
    return values[tuple(slice(i * n, (i + 1) * n) for i, n in zip(shard, plan.shard, strict=True))]


def store(
    root: Path, plan: ArrayPlan, values: NDArray[Any], leave_out: Sequence[Index] = ()
) -> None:
    """Create an array and all its shards but some."""
    create_array(root, plan)
    for shard in plan.shards:
        if shard not in leave_out:
            part = shard_values(plan, shard, values)
            written = write_shard(plan, shard, part, root / "partial")
            (root / written.path).parent.mkdir(parents=True, exist_ok=True)
            written.temporary.rename(root / written.path)


def select(values: NDArray[Any], selection: Sequence[Any]) -> NDArray[Any]:
    """An orthogonal selection, one axis after another from the last."""
    for axis in reversed(range(len(selection))):
        one = selection[axis]
        if isinstance(one, slice | int):
            values = values[(slice(None),) * axis + (one,)]
        else:
            values = np.take(values, np.asarray(one, np.int64), axis)
    return values


def same_bits(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()
    )
