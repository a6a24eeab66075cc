"""The arrays of a store, described from its groups; nothing is created here."""

from __future__ import annotations

from collections.abc import Mapping

from depthscope.pipeline.description import ModelInfo
from depthscope.storage.array_names import ARRAYS, LABELS, STATISTICS_AXES, SUBLAYERS
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.layout import ACTIVATIONS, LENS, STATISTICS
from depthscope.storage.run_record import GroupLayout


def item_size(dtype: str) -> int:
    """Bytes of a value of that type."""
    return {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]


def array_plans(
    groups: Mapping[str, GroupLayout],
    model: ModelInfo,
    points: tuple[int, ...],
    dtype: str,
    codec: str,
    *,
    sublayers: bool,
) -> list[ArrayPlan]:
    """Every sharded array of the store."""
    plans: list[ArrayPlan] = []
    if (group := groups.get("activations")) is not None:
        if points:
            plans.append(_wide("residual", "point", len(points), model.hidden, dtype, codec, group))
        if sublayers:
            for name in SUBLAYERS:
                plans.append(_wide(name, "layer", model.layers, model.hidden, dtype, codec, group))
    if (group := groups.get("statistics")) is not None:
        for name, axis in STATISTICS_AXES.items():
            length = len(LABELS[axis])
            plans.append(
                ArrayPlan(
                    path=f"{STATISTICS}/{name}",
                    shape=(length, model.layers, group.rows),
                    dtype="float32",
                    dimensions=(axis, "layer", "row"),
                    chunk=(1, model.layers, group.rows_per_chunk),
                    shard=(length, model.layers, group.rows_per_shard),
                )
            )
    if (group := groups.get("lens")) is not None:
        for name in ARRAYS["lens"]:
            plans.append(
                ArrayPlan(
                    path=f"{LENS}/{name}",
                    shape=(model.layers + 1, group.rows),
                    dtype="float32",
                    dimensions=("point", "row"),
                    chunk=(model.layers + 1, group.rows_per_chunk),
                    shard=(model.layers + 1, group.rows_per_shard),
                )
            )
    return plans


def _wide(
    name: str, axis: str, planes: int, hidden: int, dtype: str, codec: str, group: GroupLayout
) -> ArrayPlan:
    return ArrayPlan(
        path=f"{ACTIVATIONS}/{name}",
        shape=(planes, group.rows, hidden),
        dtype=dtype,
        dimensions=(axis, "row", "hidden"),
        chunk=(1, group.rows_per_chunk, hidden),
        shard=(1, group.rows_per_shard, hidden),
        codec=codec,
    )
