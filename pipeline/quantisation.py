"""Checkpoints whose weights are quantised: run where transformers runs them, else refused by name.

They run in the resident schedule only. A layer read alone goes through conversions that know plain
tensors, so the other schedules refuse them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from depthscope.storage.errors import RequestError

#: Why what takes layers one by one refuses them.
RESIDENT_ONLY = "which only extract --schedule resident can run"
_MEND = "give the checkpoint in bfloat16, float16 or float32"


def quantisation(config: dict[str, Any]) -> str | None:
    """The scheme's name, from a checkpoint's config; None for plain weights."""
    scheme = _scheme(config)
    if not scheme:
        return None
    return str(scheme.get("quant_method", "unnamed")) if isinstance(scheme, dict) else str(scheme)


def refuse_quantised(method: str | None, folder: Path, reason: str) -> None:
    """Raise RequestError, naming the scheme, unless weights are plain."""
    if method is not None:
        raise RequestError(
            f"model folder {folder} holds weights quantised with {method}, {reason}; {_MEND}"
        )


def check_runs_here(config: dict[str, Any], folder: Path, dtype: str) -> None:
    """Ask transformers whether it runs a quantised checkpoint on this machine's devices.

    Parameters
    ----------
    config
        of the checkpoint, as it stands in config.json.
    folder
        the checkpoint's, for the message.
    dtype
        in which the model would compute.

    Raises
    ------
    RequestError
        it does not: the scheme is unknown, its library is missing, or it needs another device.
    """
    scheme = _scheme(config)
    if not scheme:
        return
    # Imported here, since it takes over a second and few checkpoints need it.
    from transformers.quantizers import AutoHfQuantizer

    device: str | int = 0 if torch.cuda.is_available() else "cpu"
    try:
        quantizer = AutoHfQuantizer.from_config(scheme, pre_quantized=True)
        quantizer.validate_environment(
            dtype=getattr(torch, dtype), device_map={"": device}, weights_only=True
        )
    except Exception as error:  # Every scheme has errors of its own.
        words = " ".join(str(error).split())[:200]
        refuse_quantised(
            quantisation(config), folder, f"which transformers does not run here ({words})"
        )


def _scheme(config: dict[str, Any]) -> Any:
    nested = config.get("text_config") or {}
    return config.get("quantization_config") or nested.get("quantization_config")
