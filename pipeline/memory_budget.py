"""How many tasks of a sweep fit into a budget together."""

from __future__ import annotations

from math import ceil

from depthscope.storage.errors import RequestError

from .memory import MemoryNeed, Residual, SweepNeeds, sweep_memory

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
