"""Layers over a node's devices: even runs within what each device can hold."""

from __future__ import annotations

import logging

import pytest
import torch
from depthscope.pipeline.device_split import device_room, node_devices, split_over_devices
from depthscope.pipeline.gang_worker import share_out
from depthscope.storage.errors import RequestError

MB = 1 << 20


def test_even_runs_where_there_is_room() -> None:
    assert split_over_devices([10] * 8, 0, 4, None) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert split_over_devices([10] * 8, 0, 4, [25] * 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_the_first_device_holds_the_embedding_besides() -> None:
    assert split_over_devices([10] * 8, 0, 2, [1000, 1000]) == [(0, 4), (4, 8)]
    assert split_over_devices([10] * 8, 30, 2, [1000, 1000]) == [(0, 3), (3, 8)]


def test_no_more_devices_than_layers() -> None:
    assert split_over_devices([MB] * 3, 0, 8, [2 * MB] * 8) == [(0, 1), (1, 2), (2, 3)]


def test_a_smaller_device_gets_less() -> None:
    room = [15, 45, 45]
    runs = split_over_devices([10] * 8, 0, 3, room)
    assert [layer for first, last in runs for layer in range(first, last)] == list(range(8))
    assert all(10 * (last - first) <= has for (first, last), has in zip(runs, room, strict=True))


def test_what_does_not_fit_is_refused_with_the_missing_bytes() -> None:
    with pytest.raises(RequestError, match=r"7 layers need 7\.00 GB, 3 .* 6\.00 GB .*1\.00 GB"):
        split_over_devices([10**9] * 7, 0, 3, [2 * 10**9] * 3)
    # Enough in all, but no device holds two of these layers.
    with pytest.raises(RequestError, match="no run of layers fits"):
        split_over_devices([10**9] * 4, 0, 3, [1.9 * 10**9] * 3)  # type: ignore[list-item]


def test_planning_for_other_devices_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        split_over_devices([10] * 8, 0, 4, [25] * 4)
    assert not caplog.records


def test_room_is_what_is_allowed() -> None:
    cpu = torch.device("cpu")
    assert device_room([cpu, cpu], None) is None
    assert device_room([cpu, cpu], 7) == [7, 7]
    assert node_devices()


def test_stages_of_one_node_share_its_devices_out() -> None:
    devices = [torch.device("cuda", number) for number in range(8)]
    assert share_out(devices, 2) == [devices[:4], devices[4:]]
    assert share_out(devices[:2], 3) == [devices[:1], devices[:1], devices[1:2]]
    assert share_out(devices[:1], 2) == [devices[:1], devices[:1]]
