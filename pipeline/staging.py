"""From device to host behind the model's back.

On a GPU the rows that are stored are gathered on the device, copied on a stream of their own into
pinned memory while the next layers compute, and put in order on the host while the next batch is
being computed. Two pinned areas take turns, so a batch never waits for the one before it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .placement import Placement


@dataclass
class _Area:
    """One batch on its way: its rows in batch order, and what tells that all have arrived."""

    rows: torch.Tensor
    placement: Placement
    arrivals: list[Any]


class HostStaging:
    """The two pinned areas of a worker and the copy streams of its devices."""

    def __init__(self) -> None:
        self._memory = [torch.empty(0), torch.empty(0)]
        self._turn = 0
        self._taking = False
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._current: _Area | None = None
        self._previous: _Area | None = None

    def begin(self, placement: Placement, planes: int, hidden: int, dtype: torch.dtype) -> None:
        """Open an area for the next batch."""
        count = len(placement.source)
        self._turn ^= 1
        needed = planes * count * hidden
        if self._memory[self._turn].numel() < needed or self._memory[self._turn].dtype != dtype:
            self._memory[self._turn] = torch.empty(
                needed, dtype=dtype, pin_memory=torch.cuda.is_available()
            )
        rows = self._memory[self._turn][:needed].view(planes, count, hidden)
        self._previous, self._current = self._current, _Area(rows, placement, [])
        self._taking = True

    def take(self, plane: int, hidden: torch.Tensor) -> None:
        """Start the copy of one plane of the batch, (lines, width, d)."""
        area = self._current
        if area is None or not len(area.placement.source):
            return
        flat = hidden.reshape(-1, hidden.shape[-1])
        source = torch.from_numpy(area.placement.source).to(flat.device, non_blocking=True)
        rows = flat.index_select(0, source).to(area.rows.dtype)
        with self._copy_stream(rows):
            area.rows[plane].copy_(rows, non_blocking=True)

    def end(self) -> None:
        """Note the end of the batch's copies."""
        self._taking = False
        if self._current is not None:
            for stream in self._streams.values():
                event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(stream)
                self._current.arrivals.append(event)

    def drop(self) -> None:
        """Forget the batch that is being taken, if one is; those before it still settle."""
        if self._taking:
            for stream in self._streams.values():
                stream.synchronize()
            self._current, self._previous = self._previous, None
            self._turn ^= 1
            self._taking = False

    def clear(self) -> None:
        """Forget every batch, because the task has failed."""
        for stream in self._streams.values():
            stream.synchronize()
        self._current = self._previous = None
        self._taking = False

    def settle(self, block: torch.Tensor, base: int, *, last: bool = False) -> None:
        """Put the batch before the current one, or with ``last`` every batch, into the block."""
        areas = [self._previous, self._current if last else None]
        self._previous = None
        if last:
            self._current = None
        for area in areas:
            if area is None:
                continue
            for event in area.arrivals:
                event.synchronize()
            place = 0
            for _, target, length in area.placement.runs():
                rows = area.rows[:, place : place + length]
                block[:, target - base : target - base + length] = rows
                place += length

    def _copy_stream(self, rows: torch.Tensor) -> AbstractContextManager[object]:
        if not rows.is_cuda:
            return nullcontext()
        if rows.device not in self._streams:
            self._streams[rows.device] = torch.cuda.Stream(rows.device)  # type: ignore[no-untyped-call]
        stream = self._streams[rows.device]
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        # Keeps the gathered rows from being reused before the copy has read them.
        rows.record_stream(stream)
        return torch.cuda.stream(stream)
