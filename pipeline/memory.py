"""How much memory a sweep needs, in bytes, and how many tasks fit into a budget together.

A sweep goes through three phases; its need is the largest of them. With t tasks of r rows, hidden
size d, inner size I, a micro-batch of b tokens, i bytes a value, s bytes a stored value, p stored
planes a layer (the point; with sublayers two more), L layers, V rows of the unembedding and n lens
rows of a task:

    embedding   frame + residual
    layers      the two largest neighbouring layers + conversion + working + residual
                + blocks + statistics + carried (+ frame, where the stream is in the store)
    lens        4·V·d + lens budget + lens rows + statistics

    residual    t·r·d·i             the stream between two layers; none where it is read back
                                    from the store
    working     b·(4·d + 3·I)·i     what one micro-batch needs inside a layer; with eager
                                    attention also b·longest·heads·(4 + i) for its scores
    blocks      2·r·p·d·s           one being filled, one being written
    statistics  t·r·11·L·4          kept until the last layer, whose commit has them
    carried     2·r·d·i             of one task, where the store does not hold its whole stream
    lens rows   n·(L+1)·d·i         of one task

On a CPU all of it is host memory. On a GPU the weights, the frame, working and the lens are on the
device, and the residual is on the device or the host; the host holds the largest layer once more,
pinned on its way, and the rest. The interpreter and its libraries are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import Literal

from depthscope.storage.errors import RequestError

#: Where the stream is held between two layers.
Residual = Literal["device", "host", "store"]

#: Numbers per row and layer that statistics keep, float32.
_STATISTICS_BYTES = 11 * 4

_GB = 1e9


@dataclass(frozen=True)
class SweepNeeds:
    """What decides the memory of one sweep worker; sizes in bytes where nothing else is said.

    Attributes
    ----------
    layer_bytes
        Weights of each layer.
    frame_bytes
        Weights of what comes before the layers.
    hidden, inner
        Values per token of the stream, and in the widest place inside a layer.
    itemsize, store_itemsize
        Of a computed and of a stored value.
    task_rows
        Places of a task's micro-batches: its rows, those run twice and padding included.
    batch_tokens
        Tokens of the largest micro-batch.
    planes
        Stored planes of a layer: 1 for the point, 2 more with sublayers, 0 for none.
    stores_stream
        Whether the store gets every row of every point in the model's dtype.
    statistics
        Whether rows are measured.
    vocabulary, lens_rows, lens_memory
        For lens values: rows of the unembedding, rows of a task that get them, and the budget of
        arrays of rows × vocabulary. No lens rows: no lens.
    eager_heads, longest
        Heads of eager attention (0 where attention keeps no scores), longest document.
    conversion_bytes
        What turning stored tensors into a layer's weights needs besides; where experts are
        streamed, the experts in memory.
    answers
        Where experts are streamed: what is kept of a token besides its stream, in units of it.
    """

    layer_bytes: Sequence[int]
    frame_bytes: int
    hidden: int
    inner: int
    itemsize: int
    store_itemsize: int
    task_rows: int
    batch_tokens: int
    planes: int = 1
    stores_stream: bool = True
    statistics: bool = True
    vocabulary: int = 0
    lens_rows: int = 0
    lens_memory: int = 0
    eager_heads: int = 0
    longest: int = 0
    conversion_bytes: int = 0
    answers: int = 0

    @property
    def weights(self) -> int:
        """The largest two neighbouring layers, and what conversion needs."""
        sizes = list(self.layer_bytes)
        pairs = [a + b for a, b in pairwise(sizes)]
        return max(pairs or sizes) + self.conversion_bytes

    @property
    def working(self) -> int:
        """What one micro-batch needs inside a layer."""
        return working_bytes(
            self.batch_tokens,
            self.hidden,
            self.inner,
            self.itemsize,
            eager_heads=self.eager_heads,
            longest=self.longest,
        )

    def residual(self, tasks: int) -> int:
        """The stream of so many tasks between two layers."""
        return tasks * self.task_rows * self.hidden * self.itemsize * (1 + self.answers)

    @property
    def blocks(self) -> int:
        """The worker's two blocks of stored rows."""
        return 2 * self.task_rows * self.planes * self.hidden * self.store_itemsize

    def measured(self, tasks: int) -> int:
        """Statistics of so many tasks, kept until the last layer."""
        layers = len(self.layer_bytes)
        return tasks * self.task_rows * layers * _STATISTICS_BYTES if self.statistics else 0

    @property
    def carried(self) -> int:
        """One task's stream on its way to a file, where the store does not hold it."""
        return 0 if self.stores_stream else 2 * self.residual(1)

    @property
    def lens(self) -> int:
        """The unembedding in float32, the lens's arrays, and the rows of one task."""
        if not self.lens_rows:
            return 0
        rows = self.lens_rows * (len(self.layer_bytes) + 1) * self.hidden * self.itemsize
        return 4 * self.vocabulary * self.hidden + self.lens_memory + rows


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by use, of the phase that needs most.

    Attributes
    ----------
    device
        On the device; empty on a CPU.
    host
        In host memory.
    """

    host: Mapping[str, int]
    device: Mapping[str, int] = field(default_factory=dict)

    @property
    def host_total(self) -> int:
        """Bytes of host memory."""
        return sum(self.host.values())

    @property
    def device_total(self) -> int:
        """Bytes of device memory."""
        return sum(self.device.values())


def working_bytes(
    batch_tokens: int,
    hidden: int,
    inner: int,
    itemsize: int,
    *,
    eager_heads: int = 0,
    longest: int = 0,
) -> int:
    """What a micro-batch needs inside a layer; with eager attention, its scores too."""
    scores = batch_tokens * longest * eager_heads * (4 + itemsize)
    return batch_tokens * (4 * hidden + 3 * inner) * itemsize + scores


def sweep_memory(
    needs: SweepNeeds, tasks: int, residual: Residual = "host", *, on_host: bool = True
) -> MemoryNeed:
    """What a sweep of so many tasks needs.

    Parameters
    ----------
    tasks
        Tasks swept together.
    residual
        Where the stream is held between two layers.
    on_host
        Whether the device is the processor itself, so that all memory is the host's.
    """
    stream = 0 if residual == "store" else needs.residual(tasks)
    # Where nothing is held, the first layer embeds every micro-batch when its turn comes.
    frame = needs.frame_bytes if residual == "store" else 0
    layers = {"weights": needs.weights, "frame": frame, "working": needs.working}
    measured = {"statistics": needs.measured(tasks)}
    written = {"blocks": needs.blocks, "carried": needs.carried, **measured}
    if on_host:
        return MemoryNeed(
            _largest(
                {"frame": needs.frame_bytes, "residual": stream, **measured},
                {**layers, "residual": stream, **written},
                {"lens": needs.lens, **measured},
            )
        )
    here = stream if residual == "device" else 0
    device = _largest(
        {"frame": needs.frame_bytes, "residual": here},
        {**layers, "residual": here},
        {"lens": needs.lens},
    )
    pinned = max([needs.frame_bytes, *needs.layer_bytes]) + needs.conversion_bytes
    return MemoryNeed({"weights": pinned, "residual": stream - here, **written}, device)


def _largest(*phases: dict[str, int]) -> dict[str, int]:
    return max(phases, key=lambda phase: sum(phase.values()))


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
