"""How many tasks of a sweep fit into a budget together, and what where a layer does not fit."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from depthscope.storage.errors import RequestError

from .costs import ModelCosts
from .memory import MemoryNeed, Residual, SweepNeeds, sweep_memory

#: Of a budget that does not hold a layer, experts in memory take one part in so many.
EXPERT_SHARE = 4

_GB = 1e9


def tasks_at_once(
    needs: SweepNeeds,
    memory: int,
    *,
    device_memory: int | None = None,
    residual: Residual = "host",
    most: int = 1 << 20,
) -> int:
    """How many tasks fit into the budget together: at least 1, at most ``most``.

    Parameters
    ----------
    memory
        Bytes of host memory that this worker may use, its interpreter apart.
    device_memory
        Bytes of its device; None where the device is the processor itself.

    Raises
    ------
    RequestError
        Not even one task fits; says how much would.
    """
    on_host = device_memory is None

    def fits(tasks: int) -> bool:
        need = sweep_memory(needs, tasks, residual, on_host=on_host)
        return need.host_total <= memory and need.device_total <= (device_memory or 0)

    if not fits(1):
        need = sweep_memory(needs, 1, residual, on_host=on_host)
        raise RequestError(_too_small(need, memory, device_memory))
    # The need grows with every task, so halving finds the last one that fits.
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def streaming_needs(needs: SweepNeeds, costs: ModelCosts, memory: int) -> SweepNeeds | None:
    """The needs of a sweep that streams experts within a layer; None for a dense model.

    Parameters
    ----------
    needs
        Of a sweep with whole layers.
    costs
        The model's.
    memory
        Bytes of the device, or of the host where that computes.
    """
    mixtures = [layer for layer in costs.layers if layer.experts]
    if not mixtures:
        return None
    pair = 2 * max(layer.expert_parameters for layer in mixtures) * costs.itemsize
    whole = max(layer.experts for layer in mixtures) * costs.itemsize
    return replace(
        needs,
        layer_bytes=[(layer.parameters - layer.experts) * costs.itemsize for layer in costs.layers],
        conversion_bytes=min(whole, max(pair, memory // EXPERT_SHARE)),
        # What the experts are asked, and what each of them answers.
        answers=1 + max(layer.experts_used for layer in mixtures),
    )


def _too_small(need: MemoryNeed, memory: int, device_memory: int | None) -> str:
    if device_memory is not None and need.device_total > device_memory:
        option, has, wants = "--device-memory", device_memory, need.device
    else:
        option, has, wants = "--memory", memory, need.host
    total = ceil(sum(wants.values()) / _GB * 100) / 100
    parts = ", ".join(f"{name} {size / _GB:.2f}" for name, size in wants.items() if size)
    return (
        f"{option} {has / _GB:.2f} GB is too little for a sweep, the smallest schedule: it needs "
        f"{total:.2f} GB ({parts}); give that, or a smaller --task-rows or --batch-tokens"
    )
