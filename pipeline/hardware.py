"""What decides the last bit of a number beside the model: devices, threads and libraries."""

from __future__ import annotations

from typing import Any

import torch
import transformers


def hardware(threads: int) -> dict[str, Any]:
    """Device kind, threads (0 on a GPU, where they decide nothing), versions of the libraries."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "threads": threads if device == "cpu" else 0,
        "capability": torch.backends.cpu.get_cpu_capability() if device == "cpu" else "",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
