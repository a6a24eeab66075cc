"""Where a run goes: nodes, devices, memory and disks, and how fast one device works.

Rates that nobody gave are assumed, and said so: half of a GPU's peak, 200 GB of host memory and 16
cores for each GPU, 5 GB/s to the store and 7 GB/s from the weights for each node.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from .calibration import Calibration
from .costs import ModelCosts
from .devices import Devices
from .workload import CorpusSize, Selection

#: Memory of a GPU that the driver, libraries and fragments take.
DEVICE_RESERVE = 2 * 10**9

#: Bytes/s at which one core compresses (design: 0.33 to 0.40 GB/s).
ZSTD_CORE = 0.35e9

#: Bytes/s at which one core checks, digests and hands over uncompressed bytes.
PLAIN_CORE = 1.5e9

#: Seconds until a worker's interpreter and libraries are up, on a cluster that runs.
START_SECONDS = 20.0

#: Seconds of Python and of the file system on a processor, which is computing at that time: for a
#: part (a task's layers on one worker, with its files and commit), and for a micro-batch of it.
PART_SECONDS, BATCH_SECONDS = 0.010, 0.004

_HOST_MEMORY, _CORES = 200 * 10**9, 16
_STORAGE, _WEIGHTS = 5e9, 7e9
_GUESSED_DISK, _GUESSED_FLUSH = 1e9, 0.003


@dataclass(frozen=True)
class Site:
    """The machines of a run.

    Attributes
    ----------
    devices
        Of one node.
    nodes
        How many.
    cores, memory
        Of a node: processor cores, and bytes of host memory that may be used.
    device_memory
        Bytes of each device that may be used.
    storage, weights
        Bytes/s of one node to the store, and from where the checkpoint lies.
    assumed
        Which of these nobody gave, as sentences.
    """

    devices: Devices
    nodes: int
    cores: int
    memory: int
    device_memory: int
    storage: float
    weights: float
    assumed: tuple[str, ...] = ()

    @property
    def on_host(self) -> bool:
        """Whether the device is the processor."""
        return self.devices.kind.is_host


def make_site(
    devices: Devices,
    nodes: int = 1,
    *,
    cores: int | None = None,
    memory: int | None = None,
    device_memory: int | None = None,
    storage: float | None = None,
    weights: float | None = None,
    calibration: Calibration | None = None,
) -> Site:
    """The site, with what is left open measured, looked up or assumed."""
    kind, count = devices.kind, devices.count
    assumed: list[str] = []

    def settle(given: float | None, default: float, text: str) -> float:
        if given is None:
            assumed.append(text)
        return default if given is None else given

    if kind.is_host:
        disk = calibration.disk if calibration else None
        memory = memory or psutil.virtual_memory().total * 9 // 10
        if disk is None:
            storage = settle(storage, _GUESSED_DISK, "1 GB/s to the store and from the weights")
        else:
            storage = storage or disk.write
        weights = weights or (disk.read if disk else _GUESSED_DISK)
        cores = cores or len(os.sched_getaffinity(0))
        return Site(
            devices, nodes, cores, int(memory), int(memory), storage, weights, tuple(assumed)
        )
    return Site(
        devices,
        nodes,
        int(settle(cores, _CORES * count, f"{_CORES * count} cores a node")),
        int(settle(memory, _HOST_MEMORY * count, f"{_HOST_MEMORY * count / 1e9:.0f} GB a node")),
        device_memory or max(0, kind.memory - DEVICE_RESERVE),
        settle(storage, _STORAGE, "5 GB/s a node to the store"),
        settle(weights, _WEIGHTS, "7 GB/s a node from the weights"),
        tuple(assumed),
    )


@dataclass(frozen=True)
class Speed:
    """Seconds of one device.

    Attributes
    ----------
    layers
        For a row, of each layer with its statistics.
    frame
        For a row, outside the layers.
    plane
        For a row and stored plane, of copying it aside; 0 where that hides behind computing.
    lens
        For a row that gets lens values, at all points.
    encode
        Of a core, for a byte that is written.
    load
        For a byte of weights that lie in the page cache.
    call
        For a row and layer of a sweep, beside the layer itself.
    part, batch
        For a task's layers on one worker, and for each of its micro-batches, beside computing.
    flush
        Of a small file.
    stolen
        Share of a core's writing and loading that computing loses: 0 beside a GPU.
    source
        How this is known.
    """

    layers: tuple[float, ...]
    frame: float
    plane: float
    lens: float
    encode: float
    load: float
    call: float
    part: float
    batch: float
    flush: float
    stolen: float
    source: str


def speed_of(
    costs: ModelCosts,
    site: Site,
    corpus: CorpusSize,
    selection: Selection,
    *,
    utilisation: float = 0.5,
    calibration: Calibration | None = None,
) -> Speed:
    """How fast one device works: from a calibration, or from its rates and a utilisation."""
    if calibration is not None:
        return _measured(costs, site, corpus, selection, calibration)
    kind = site.devices.kind
    rate = kind.flops[costs.dtype] * utilisation
    flops = 2.0 * costs.vocabulary * costs.hidden * (len(costs.layers) + 1)
    return Speed(
        layers=tuple(value / rate for value in costs.layer_flops(corpus.document_tokens)),
        frame=0.0,
        plane=0.0,
        lens=flops / (kind.flops["float32"] * utilisation),
        encode=1 / (ZSTD_CORE if selection.codec == "zstd" else PLAIN_CORE),
        load=1 / kind.link,
        call=0.0,
        part=PART_SECONDS if site.on_host else 0.0,
        batch=BATCH_SECONDS if site.on_host else 0.0,
        flush=_GUESSED_FLUSH if site.on_host else 0.0,
        stolen=1.0 / site.cores if site.on_host else 0.0,
        source=kind.source or f"{utilisation:.0%} of {rate / utilisation / 1e12:g} TFLOP/s",
    )


def _measured(
    costs: ModelCosts,
    site: Site,
    corpus: CorpusSize,
    selection: Selection,
    calibration: Calibration,
) -> Speed:
    model, disk, sweep = calibration.model, calibration.disk, calibration.sweep
    measured = model.statistics if selection.statistics else 0.0
    zstd = selection.codec == "zstd"
    return Speed(
        layers=tuple(
            value + measured for value in calibration.layers(costs, corpus.document_tokens)
        ),
        frame=model.frame,
        plane=model.plane,
        lens=model.lens,
        encode=1 / ZSTD_CORE if zstd else disk.encode_seconds,
        load=sweep.load if sweep else 1 / disk.read_again,
        call=sweep.call if sweep else 0.0,
        part=PART_SECONDS,
        batch=BATCH_SECONDS,
        flush=disk.flush_seconds,
        stolen=1.0 / site.cores if calibration.threads >= site.cores else 0.0,
        source=f"measured on this machine with {calibration.threads} threads",
    )
