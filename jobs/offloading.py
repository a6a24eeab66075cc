"""A resident model that is larger than its devices: possible, slow, and said beforehand."""

from __future__ import annotations

import psutil
import torch
from depthscope.storage.run_record import RunRecord

from .groups import item_size
from .schedule import Layout, device_budget
from .spec import ExtractSpec


def offload_warning(spec: ExtractSpec, record: RunRecord, layout: Layout) -> str | None:
    """One line for a resident run whose weights do not fit the devices; None for others.

    On a cluster elsewhere only the workers know their devices, so nothing is said.
    """
    if layout.schedule != "resident" or spec.address:
        return None
    workers = spec.workers or 1
    needed = int(record.model["parameters"]) * item_size(str(record.model["dtype"]))
    device = device_budget(spec)
    if device is not None:
        what, room = "GPUs", device * torch.cuda.device_count() // workers
    else:
        what = "memory"
        room = int(spec.memory or psutil.virtual_memory().available / workers)
    if needed <= room:
        return None
    return (
        f"the model takes {needed / 1e9:.2f} GB, a worker's {what} {room / 1e9:.2f} GB: weights "
        "that do not fit are moved in for every micro-batch; --schedule sweep is faster"
    )
