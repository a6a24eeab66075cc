"""torch and one of its devices, for who asks for them: this package does without torch."""

from __future__ import annotations

import importlib
from typing import Any

from depthscope.storage.errors import RequestError


def open_device(name: str, mend: str) -> tuple[Any, Any]:
    """The module torch, products of it in full float32, and a device that has been tried.

    Parameters
    ----------
    name
        ``cpu``, ``cuda``, ``cuda:1`` …
    mend
        What to do where it cannot be used, for the message.

    Raises
    ------
    RequestError
        torch cannot use the device.
    """
    torch = importlib.import_module("torch")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}); {mend}"
        ) from None
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch, device
