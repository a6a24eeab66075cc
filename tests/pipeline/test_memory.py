"""The memory of a sweep, added up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from depthscope.pipeline.memory import SweepNeeds, kept_bytes, sweep_memory, working_bytes
from depthscope.pipeline.memory_budget import tasks_at_once
from depthscope.storage.errors import RequestError

NEEDS = SweepNeeds(
    layer_bytes=[1000, 3000, 2000, 100],
    frame_bytes=400,
    hidden=10,
    inner=20,
    itemsize=2,
    store_itemsize=4,
    task_rows=50,
    batch_tokens=8,
    statistics=True,
)
WEIGHTS = 3000 + 2000
WORKING = 8 * (4 * 10 + 3 * 20) * 2
RESIDUAL = 50 * 10 * 2
MALLOC = 4 * WORKING
ARGUMENTS = 50 * 5
BLOCKS = 2 * 50 * 2 * 10 * 4
TOKENS = 50 * 32
STATISTICS = 50 * 11 * 4 * 4
ALWAYS = WORKING + MALLOC + BLOCKS


@pytest.mark.parametrize("tasks", [1, 7])
def test_on_a_cpu_everything_is_host_memory(tasks: int) -> None:
    need = sweep_memory(NEEDS, tasks)
    a_task = RESIDUAL + ARGUMENTS + TOKENS + STATISTICS
    assert need.host_total == WEIGHTS + ALWAYS + tasks * a_task
    assert need.device_total == 0


def test_a_stream_in_the_store_takes_no_memory_but_keeps_the_embedding() -> None:
    need = sweep_memory(NEEDS, 7, "store")
    assert need.host_total == WEIGHTS + ALWAYS + 400 + 7 * (TOKENS + STATISTICS)
    crossing = sweep_memory(replace(NEEDS, longest=30), 7, "store")
    assert crossing.host_total == need.host_total + 7 * 30 * 10 * 2


def test_a_large_embedding_decides() -> None:
    need = sweep_memory(replace(NEEDS, frame_bytes=10**6), 2)
    assert need.host_total == 10**6 + ALWAYS + 2 * (RESIDUAL + TOKENS + STATISTICS)


def test_a_large_unembedding_decides() -> None:
    need = sweep_memory(replace(NEEDS, vocabulary=5000, lens_rows=3, lens_memory=1000), 1)
    lens = 4 * 5000 * 10 + 1000 + 3 * 5 * 10 * 2
    assert need.host_total == lens + ALWAYS + TOKENS + STATISTICS


def test_sublayers_conversion_eager_and_what_is_carried() -> None:
    plain = sweep_memory(NEEDS, 1).host_total
    assert sweep_memory(replace(NEEDS, planes=3), 1).host_total == plain + BLOCKS
    assert sweep_memory(replace(NEEDS, planes=0), 1).host_total == plain - BLOCKS
    assert sweep_memory(replace(NEEDS, conversion_bytes=77), 1).host_total == plain + 77
    eager = replace(NEEDS, eager_heads=3, longest=30)
    assert sweep_memory(eager, 1).host_total == plain + (1 + 4) * 8 * 30 * 3 * (4 + 2)
    carrying = replace(NEEDS, stores_stream=False)
    assert sweep_memory(carrying, 1).host_total == plain + 2 * RESIDUAL
    assert sweep_memory(replace(NEEDS, statistics=False), 1).host_total == plain - STATISTICS


def test_on_a_gpu_device_and_host_share() -> None:
    need = sweep_memory(NEEDS, 3, "device", on_host=False)
    assert need.device_total == WEIGHTS + WORKING + 3 * (RESIDUAL + ARGUMENTS)
    assert need.host_total == 3000 + BLOCKS + 3 * (TOKENS + STATISTICS)
    need = sweep_memory(NEEDS, 3, "host", on_host=False)
    assert need.device_total == WEIGHTS + WORKING
    assert need.host_total == 3000 + BLOCKS + 3 * (RESIDUAL + TOKENS + STATISTICS)


def test_malloc_keeps_small_tensors_only_and_arguments_have_a_bound() -> None:
    assert working_bytes(1000, 1000, 9000, 4, most=32 << 20) == 1000 * 4 * 1000 * 4
    assert [kept_bytes(hidden, 2) for hidden in (576, 16384)] == [288, 1024]


@pytest.mark.parametrize("tasks", [1, 2, 9])
def test_as_many_tasks_as_fit(tasks: int) -> None:
    exactly = sweep_memory(NEEDS, tasks).host_total
    assert tasks_at_once(NEEDS, exactly) == tasks
    assert tasks_at_once(NEEDS, exactly + RESIDUAL + ARGUMENTS + TOKENS + STATISTICS - 1) == tasks
    assert tasks_at_once(NEEDS, exactly, most=1) == 1


def test_the_device_bounds_as_well() -> None:
    device = sweep_memory(NEEDS, 4, "device", on_host=False).device_total
    assert tasks_at_once(NEEDS, 10**9, device_memory=device, residual="device") == 4
    fewer = replace(NEEDS, hidden=8)
    assert tasks_at_once(fewer, 10**9, device_memory=device, residual="host", most=9) == 9


def test_too_little_says_how_much() -> None:
    needs = replace(NEEDS, layer_bytes=[10**9, 3 * 10**9, 2 * 10**9])
    with pytest.raises(RequestError, match=r"--memory 4\.00 GB .* needs 5\.01 GB \(weights 5\.00"):
        tasks_at_once(needs, 4 * 10**9)
    with pytest.raises(RequestError, match=r"--device-memory 4\.00 GB .* needs 5\.01 GB"):
        tasks_at_once(needs, 10**12, device_memory=4 * 10**9)


def test_one_layer() -> None:
    need = sweep_memory(replace(NEEDS, layer_bytes=[700]), 1)
    assert need.host["weights"] == 700
