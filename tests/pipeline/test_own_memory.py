"""Memory that goes back to the system, or waits for the next layer, and never piles up."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from depthscope.pipeline.own_memory import OwnMemory

MIB = 1 << 20


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_freed_memory_goes_back_at_once() -> None:
    memory, before = OwnMemory(), resident()
    parts = [memory.take(MIB).fill_(1) for _ in range(64)]
    assert resident() - before > 60 * MIB
    # Every second one, so that no allocator could give back a contiguous range.
    del parts[::2]
    assert resident() - before < 40 * MIB
    parts.clear()
    assert resident() - before < 8 * MIB
    assert memory.kept == 0


def test_views_keep_it_and_it_is_aligned() -> None:
    memory = OwnMemory()
    view = memory.take(MIB).fill_(7)[1000:2000].view(torch.bfloat16)
    others = [memory.take(MIB).fill_(3) for _ in range(4)]
    gc.collect()
    assert bool((view.view(torch.uint8) == 7).all())
    assert all(part.data_ptr() % 64 == 0 for part in others)
    assert memory.take(100).shape == (100,)


def test_kept_memory_is_taken_again_by_what_is_as_large() -> None:
    memory = OwnMemory()
    memory.keeping = True
    first = memory.take(MIB).fill_(9)
    address = first.data_ptr()
    other = memory.take(2 * MIB)
    del first, other
    assert memory.kept == 3 * MIB
    again = memory.take(MIB)
    assert (again.data_ptr(), int(again[-1])) == (address, 9)
    assert memory.kept == 2 * MIB
    assert memory.take(MIB).data_ptr() != address


def test_what_is_kept_makes_room() -> None:
    memory = OwnMemory()
    memory.keeping = True
    parts = [memory.take(MIB) for _ in range(10)]
    del parts
    assert memory.kept == 10 * MIB
    large = memory.take(4 * MIB + 1)
    assert memory.kept == 5 * MIB
    del large
    memory.release()
    assert memory.kept == 0
    part = memory.take(MIB)
    del part
    assert memory.kept == 0
