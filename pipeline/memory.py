"""How much memory a sweep needs, in bytes.

A sweep goes through three phases; its need is the largest of them. With t tasks of r rows, hidden
size d, inner size I, a micro-batch of b tokens, i bytes a value, s bytes a stored value, p stored
planes a layer (the point; with sublayers two more), L layers, V rows of the unembedding and n lens
rows of a task:

    embedding   frame + residual
    layers      the two largest neighbouring layers + conversion + residual + arguments + carried
                (+ frame, where the stream is in the store)
    lens        4·V·d + lens budget + lens rows
    always      working + malloc + blocks + tokens + statistics

    residual    t·r·d·i             the stream between two layers; where it is read back from the
                                    store, t·longest·d·i for documents that begin in other tasks
    arguments   t·r·min(d·i/4, 1024)  rotations and masks, kept from layer to layer where the
                                    stream is on the device that computes
    working     b·(4·d + 3·I)·i     what one micro-batch needs inside a layer; with eager
                                    attention also b·longest·heads·(4 + i) for its scores
    malloc      4 × working         on a CPU: what malloc keeps of freed tensors of many sizes
                                    (measured: up to 3.7 ×); those of 32 MiB or more it gives back
    blocks      2·r·(p+1)·d·s       one being filled, one being written; layer 0 brings forth a
                                    point more
    tokens      t·r·32              token ids and positions
    statistics  t·r·11·L·4          kept until the last layer, whose commit has them
    carried     2·r·d·i             of one task, where the store does not hold its whole stream
    lens rows   n·(L+1)·d·i         of one task

On a CPU all of it is host memory. On a GPU the weights, the frame, arguments, working and the lens
are on the device, and the residual is on the device or the host; the host holds the largest layer
once more, pinned on its way, and the rest. The interpreter and its libraries are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

#: Where the stream is held between two layers.
Residual = Literal["device", "host", "store"]

#: Numbers per row and layer that statistics keep, float32.
_STATISTICS_BYTES = 11 * 4

#: Bytes of a row's token ids and positions.
_TOKEN_BYTES = 32
#: What is kept of a token's arguments at most, so that they stay small beside any stream.
_ARGUMENT_BYTES = 1024
#: malloc gives allocations of this size and more back to the system, and keeps smaller ones.
_GIVEN_BACK = 32 << 20
#: How much of what it is given malloc keeps, in units of the most that was in use at a time.
_KEPT_BY_MALLOC = 4


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

    @property
    def malloc(self) -> int:
        """What malloc keeps of a micro-batch's temporaries once they are freed."""
        return _KEPT_BY_MALLOC * working_bytes(
            self.batch_tokens,
            self.hidden,
            self.inner,
            self.itemsize,
            eager_heads=self.eager_heads,
            longest=self.longest,
            most=_GIVEN_BACK,
        )

    def arguments(self, tasks: int) -> int:
        """The layers' arguments of so many tasks."""
        return tasks * self.task_rows * kept_bytes(self.hidden, self.itemsize)

    def residual(self, tasks: int) -> int:
        """The stream of so many tasks between two layers."""
        return tasks * self.task_rows * self.hidden * self.itemsize * (1 + self.answers)

    def crossing(self, tasks: int) -> int:
        """Of a stream in the store, what it lacks: documents that begin in an earlier task."""
        return tasks * self.longest * self.hidden * self.itemsize

    @property
    def blocks(self) -> int:
        """The worker's two blocks of stored rows, at layer 0, which has point 0 as well."""
        planes = self.planes + 1 if self.planes else 0
        return 2 * self.task_rows * planes * self.hidden * self.store_itemsize

    def tokens(self, tasks: int) -> int:
        """Token ids and positions of so many tasks."""
        return tasks * self.task_rows * _TOKEN_BYTES

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
    most: int | None = None,
) -> int:
    """What a micro-batch needs inside a layer; with eager attention, its scores too.

    With ``most``, only tensors smaller than that count.
    """
    scores = longest * eager_heads * (4 + itemsize)
    sizes = [(4, hidden * itemsize), (3, inner * itemsize), (1, scores)]
    sizes = [(count, batch_tokens * size) for count, size in sizes]
    return sum(count * size for count, size in sizes if most is None or size < most)


def kept_bytes(hidden: int, itemsize: int) -> int:
    """What a sweep keeps of one token's arguments at most, from layer to layer."""
    return min(hidden * itemsize // 4, _ARGUMENT_BYTES)


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
    held, near = residual != "store", "host" if on_host else "device"
    stream = needs.residual(tasks) if held else needs.crossing(tasks)
    # Where nothing is held, the first layer embeds every micro-batch when its turn comes.
    frame = 0 if held else needs.frame_bytes
    layers = {
        "weights": needs.weights,
        "frame": frame,
        "arguments": needs.arguments(tasks) if residual == near else 0,
    }
    always = {
        "blocks": needs.blocks,
        "tokens": needs.tokens(tasks),
        "statistics": needs.measured(tasks),
    }
    if on_host:
        always |= {"working": needs.working, "malloc": needs.malloc}
        return MemoryNeed(
            _largest(
                {"frame": needs.frame_bytes, "residual": stream, **always},
                {**layers, "residual": stream, "carried": needs.carried, **always},
                {"lens": needs.lens, **always},
            )
        )
    here = stream if residual == "device" else 0
    device = _largest(
        {"frame": needs.frame_bytes, "residual": here},
        {**layers, "working": needs.working, "residual": here},
        {"lens": needs.lens},
    )
    pinned = max([needs.frame_bytes, *needs.layer_bytes]) + needs.conversion_bytes
    host = {"weights": pinned, "residual": stream - here, "carried": needs.carried, **always}
    return MemoryNeed(host, device)


def _largest(*phases: dict[str, int]) -> dict[str, int]:
    return max(phases, key=lambda phase: sum(phase.values()))
