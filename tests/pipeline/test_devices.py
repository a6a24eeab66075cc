"""Device lists: kinds, numbers of one's own, and what is wrong about others."""

from __future__ import annotations

import pytest
from depthscope.pipeline.devices import KINDS, parse_devices, present_devices, size
from depthscope.storage.errors import RequestError


def test_kinds_and_counts() -> None:
    found = parse_devices("H100:8")
    assert (found.kind, found.count) == (KINDS["h100"], 8)
    assert found.kind.flops["bfloat16"] == 989e12
    assert found.kind.memory == 80e9
    assert parse_devices("a100-40").count == 1
    assert parse_devices("cpu").kind.is_host
    assert {"h100", "h200", "a100-80", "a100-40", "b200", "l40s", "rtx4090"} == set(KINDS)


def test_numbers_of_ones_own() -> None:
    found = parse_devices("name=x,memory=96GB,tflops=400,link=50GB/s:4")
    kind = found.kind
    assert (kind.name, kind.memory, found.count) == ("x", 96e9, 4)
    assert (kind.flops["bfloat16"], kind.flops["float32"]) == (400e12, 50e12)
    assert kind.link == 50e9
    assert parse_devices("memory=1TiB,tflops=1,tflops32=1").kind.flops["float32"] == 1e12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h300:8", "no kind is called 'h300'"),
        ("h100:0", "'0' is no number of devices"),
        ("h100:many", "'many' is no number"),
        ("h100:", "'' is no number"),
        ("memory=96GB", "tflops is missing"),
        ("memory=much,tflops=4", "'much' is no size"),
        ("memory=96GB,tflops=-4", "'-4' is no number of TFLOP/s"),
        ("memory=96GB,tflops=4,colour=red", "'colour=red' is not understood"),
        ("", "no kind is called ''"),
    ],
)
def test_wrong_devices_are_one_line(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_devices(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("96GB", 96e9), ("1.5 TiB", 1.5 * 2**40), ("50GB/s", 50e9), ("7", 7)]
)
def test_sizes(text: str, value: float) -> None:
    assert size(text, "--memory") == value


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-1GB", "5 parsecs", "1e999GB"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(RequestError, match=r"--memory: .* is no size"):
        size(text, "--memory")


def test_this_machine_has_a_device() -> None:
    found = present_devices()
    assert found.count >= 1
    assert found.kind.memory > 1e8
    assert all(rate > 0 for rate in found.kind.flops.values())
