"""The values that every schedule's estimate is made of, and what they have in common.

All rates are upper bounds of which the smallest holds: computing, writing (the store's bandwidth,
or the cores that encode), copying from device to host, loading weights. Writing runs behind the
model, so bounds do not add up; on a processor the writer also takes time from the model's cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .costs import ModelCosts
from .memory import Residual, working_bytes
from .site import Site, Speed
from .task_windows import WINDOW_BYTES
from .workload import CorpusSize, Selection, Volume

#: Names of what may bound a run.
COMPUTE, WRITING, ENCODING = "compute", "writing", "encoding"
COPYING, LOADING, MEMORY = "host copies", "weight loading", "memory"


@dataclass(frozen=True)
class Case:
    """Everything that an estimate follows from."""

    costs: ModelCosts
    site: Site
    corpus: CorpusSize
    selection: Selection
    speed: Speed
    volume: Volume

    @property
    def batch_tokens(self) -> int:
        """Tokens of the largest micro-batch: a long document is one of its own."""
        return max(min(self.selection.batch_tokens, self.corpus.rows), self.corpus.longest)

    @property
    def working(self) -> int:
        """Bytes that a micro-batch needs inside a layer."""
        costs = self.costs
        return working_bytes(
            self.batch_tokens,
            costs.hidden,
            costs.inner,
            costs.itemsize,
            eager_heads=costs.heads if costs.attention == "eager" else 0,
            longest=self.corpus.longest,
        )

    @property
    def lens_bytes(self) -> int:
        """Bytes of the unembedding in float32 and of the lens's arrays."""
        if not self.selection.lens_rows:
            return 0
        return 4 * self.costs.vocabulary * self.costs.hidden + self.selection.lens_memory

    def planes(self, first: int, last: int) -> float:
        """Planes that a row of some layers stores, on average over all rows."""
        return self.selection.planes(first, last) * self.selection.row_share

    def row_bytes(self, first: int, last: int) -> float:
        """Bytes written for a row of some layers; with the last come the numbers."""
        numbers = self.volume.number_bytes / self.corpus.rows
        planes = self.planes(first, last) * self.volume.plane_bytes
        return planes + (numbers if last == len(self.costs.layers) else 0.0)

    def blocks(self, first: int, last: int) -> int:
        """Bytes of a worker's two blocks of stored rows."""
        planes, hidden = self.planes(first, last), self.costs.hidden
        every = max(1, self.selection.planes(0, len(self.costs.layers)))
        rows = max(4 * self.selection.batch_tokens, WINDOW_BYTES // (every * hidden * 4))
        rows = min(rows, self.selection.task_rows) + self.corpus.longest
        return int(2 * planes * rows * hidden * self.selection.store_itemsize)

    def statistics_bytes(self, rows: int) -> int:
        """Bytes of the statistics of so many rows."""
        return rows * len(self.costs.layers) * 11 * 4 if self.selection.statistics else 0

    def write_rate(self, row_bytes: float) -> tuple[str, float]:
        """Rows/s that a node writes, and what bounds them."""
        if not row_bytes:
            return WRITING, float("inf")
        stored = self.site.storage / row_bytes
        encoded = self.site.cores / (self.speed.encode * self._raw(row_bytes))
        if self.site.on_host or stored <= encoded:
            return WRITING, stored
        return ENCODING, encoded

    def stolen(self, row_bytes: float) -> float:
        """Seconds of a row that the writer takes from the model."""
        return self.speed.encode * self._raw(row_bytes) * self.speed.stolen

    def bookkeeping(self) -> float:
        """Seconds of a row of one part, for what is done once a part and once a micro-batch."""
        return self.speed.part / self.selection.task_rows + self.speed.batch / self.batch_tokens

    def _raw(self, row_bytes: float) -> float:
        """Bytes before compression; those are what encoding takes its time for."""
        raw = self.costs.hidden * self.selection.store_itemsize
        return row_bytes * raw / self.volume.plane_bytes

    def copy_seconds(self, first: int, last: int) -> float:
        """Seconds of a row's way from device to host."""
        if self.site.on_host:
            return 0.0
        size = self.planes(first, last) * self.costs.hidden * self.selection.store_itemsize
        return size / self.site.devices.kind.link

    def lens_seconds(self) -> float:
        """Seconds of lens values, spread over all rows."""
        return self.speed.lens * min(1.0, self.selection.lens_rows / self.corpus.rows)


@dataclass(frozen=True)
class StageEstimate:
    """The layers of one device.

    Attributes
    ----------
    node, device
        Where: number of the node within the worker, and of the device within the node.
    layers
        First layer and one past the last.
    weight_bytes, memory_bytes
        Weights, and all that the device must hold.
    """

    node: int
    device: int
    layers: tuple[int, int]
    weight_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class ScheduleEstimate:
    """What one schedule needs and gives.

    Attributes
    ----------
    schedule
        ``resident``, ``staged`` or ``sweep``.
    fits
        Whether it can run.
    reason
        Why not.
    missing_bytes
        Memory that is missing.
    workers
        Copies of the model, or devices that sweep, that work side by side.
    stages
        The devices of one worker.
    device_memory, host_memory
        Bytes of the fullest device, and of a node.
    efficiency
        Share of the time in which devices are not waiting for their pipeline to fill.
    batch_rows, hiding_rows
        Of a sweep: rows that go through each layer together, and T*, from which on loading hides.
    residual
        Of a sweep: where the stream is held.
    streams_experts
        Of a sweep: whether the experts of a layer come group after group, since it does not fit.
    tokens_per_second
        In the steady state, of all nodes.
    bounds
        Tokens/s that each bound would allow.
    limit
        What bounds it.
    start_seconds, seconds
        Until the first row is computed, and in all.
    bytes_per_second
        Written by all nodes.
    files, inodes
        Shards and commits; these, and the folders that they lie in.
    advice
        What would help most.
    """

    schedule: str
    fits: bool
    reason: str = ""
    missing_bytes: int = 0
    workers: int = 0
    stages: tuple[StageEstimate, ...] = ()
    device_memory: int = 0
    host_memory: int = 0
    efficiency: float = 1.0
    batch_rows: int | None = None
    hiding_rows: int | None = None
    residual: Residual | None = None
    streams_experts: bool = False
    tokens_per_second: float = 0.0
    bounds: Mapping[str, float] = field(default_factory=dict)
    limit: str = ""
    start_seconds: float = 0.0
    seconds: float = 0.0
    bytes_per_second: float = 0.0
    files: int = 0
    inodes: int = 0
    advice: str = ""


def refused(schedule: str, reason: str, missing: int = 0, **known: object) -> ScheduleEstimate:
    """An estimate of a schedule that cannot run."""
    return ScheduleEstimate(
        schedule,
        fits=False,
        reason=reason,
        missing_bytes=missing,
        limit=MEMORY,
        **known,  # type: ignore[arg-type]
    )
