"""Laying a stage's layers over the devices of its node, in contiguous runs.

accelerate places them, on the meta device, within the memory that each device may use. By itself it
fills one device after the other; devices that work at the same time should hold equal shares, so it
is offered no more of each device than its share, unless the shares do not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from accelerate import infer_auto_device_map
from depthscope.storage.errors import RequestError
from torch import nn

from .stage_split import split_layers

#: Of what is free on a GPU, so that micro-batches have room beside the weights.
_SHARE = 0.9


def node_devices() -> list[torch.device]:
    """The devices that this process computes on: its GPUs, or the processor."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return gpus or [torch.device("cpu")]


def device_room(devices: Sequence[torch.device], device_memory: int | None) -> list[int] | None:
    """Bytes that weights may take on each device; None: as many as they need."""
    if device_memory is not None:
        return [device_memory] * len(devices)
    if any(device.type != "cuda" for device in devices):
        return None
    return [int(_SHARE * torch.cuda.mem_get_info(device)[0]) for device in devices]


def split_over_devices(
    layer_bytes: Sequence[int], first_bytes: int, devices: int, room: Sequence[int] | None
) -> list[tuple[int, int]]:
    """Runs of layers (end excluded) for as many devices as are of use, in order.

    Parameters
    ----------
    layer_bytes
        Bytes of each layer.
    first_bytes
        What the first device holds besides.
    devices
        How many there are; no more are used than there are layers.
    room
        Bytes of each; None: enough.

    Raises
    ------
    RequestError
        The layers do not fit; says how many bytes are missing.
    """
    shares = split_layers(
        layer_bytes, layer_bytes, min(devices, len(layer_bytes)), first_bytes=first_bytes
    )
    if room is None:
        return shares
    wanted = [sum(layer_bytes[first:last]) for first, last in shares]
    wanted[0] += first_bytes
    fits = all(need <= have for need, have in zip(wanted, room, strict=False))
    placed = _place(layer_bytes, first_bytes, wanted if fits else list(room))
    if placed is None:
        have, need = sum(room) / 1e9, (sum(layer_bytes) + first_bytes) / 1e9
        lack = f"missing {need - have:.2f} GB" if need > have else "but no run of layers fits each"
        raise RequestError(
            f"{len(layer_bytes)} layers need {need:.2f} GB, {len(room)} devices offer {have:.2f} GB"
            f" ({lack}): give more --stages, --device-memory or --schedule sweep"
        )
    return placed


def _place(
    layer_bytes: Sequence[int], first_bytes: int, room: Sequence[int]
) -> list[tuple[int, int]] | None:
    """Runs that accelerate makes; None where some layer is left without a device."""
    module = nn.Module()
    if first_bytes:
        module.add_module("frame", _Weights(first_bytes))
    for layer, size in enumerate(layer_bytes):
        module.add_module(f"layer{layer}", _Weights(size))
    # accelerate keeps room on its first device for the largest layer, in case one is offloaded.
    # None is here, and a first device of no bytes leaves all others as they are.
    limits: dict[int | str, int | str] = {0: 0}
    limits.update({number + 1: size for number, size in enumerate(room)})
    with _unasked():
        placed = infer_auto_device_map(
            module, max_memory=limits, no_split_module_classes=["_Weights"], clean_result=False
        )
    homes = [placed[f"layer{layer}"] for layer in range(len(layer_bytes))]
    if "disk" in placed.values():
        return None
    runs = [[layer for layer, _ in run] for _, run in groupby(enumerate(homes), lambda x: x[1])]
    return [(run[0], run[-1] + 1) for run in runs]


@contextmanager
def _unasked() -> Iterator[None]:
    """Plan for devices by number without accelerate's looking for them."""
    log = logging.getLogger("accelerate.utils.modeling")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class _Weights(nn.Module):
    """As many bytes as a layer's weights, on the meta device."""

    def __init__(self, size: int) -> None:
        super().__init__()
        empty = torch.empty(size, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(empty, requires_grad=False)
