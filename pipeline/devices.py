"""Devices that a model may run on: what vendors publish, or numbers of one's own.

Sources: the vendors' data sheets of the SXM parts, dense rates (no sparsity); float32 without
TF32, as torch multiplies by default. Links are what pinned copies reach over PCIe 5 (55 GB/s of
64) and PCIe 4 (25 of 32).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import psutil
import torch
from depthscope.storage.errors import RequestError

_GB = 10**9
_TERA = 10**12


@dataclass(frozen=True)
class DeviceKind:
    """One kind of device.

    Attributes
    ----------
    name
        What it is called.
    memory
        Bytes of it.
    flops
        FLOP/s of matrix products by dtype, at peak.
    bandwidth
        Bytes/s of its memory.
    link
        Bytes/s between host and device, one way.
    is_host
        Whether its memory is the host's own: a CPU.
    source
        Where the numbers are from, where that must be said.
    """

    name: str
    memory: int
    flops: Mapping[str, float]
    bandwidth: float
    link: float
    is_host: bool = False
    source: str = ""


@dataclass(frozen=True)
class Devices:
    """The devices of one node."""

    kind: DeviceKind
    count: int


def _gpu(
    name: str, memory: float, half: float, single: float, bandwidth: float, link: float
) -> DeviceKind:
    """In GB, TFLOP/s, TFLOP/s, TB/s and GB/s."""
    flops = {"bfloat16": half, "float16": half, "float32": single}
    return DeviceKind(
        name,
        int(memory * _GB),
        {dtype: rate * _TERA for dtype, rate in flops.items()},
        bandwidth * _TERA,
        link * _GB,
    )


KINDS = {
    kind.name: kind
    for kind in (
        _gpu("h100", 80, 989, 67, 3.35, 55),
        _gpu("h200", 141, 989, 67, 4.8, 55),
        _gpu("b200", 180, 2250, 75, 7.7, 55),
        _gpu("a100-80", 80, 312, 19.5, 2.0, 25),
        _gpu("a100-40", 40, 312, 19.5, 1.555, 25),
        _gpu("l40s", 48, 362, 91.6, 0.864, 25),
        _gpu("rtx4090", 24, 165, 82.6, 1.008, 25),
    )
}
"""Kinds of GPU by name."""

#: Of a core that nobody has measured: 16 multiply-adds in float32 at 2.5 GHz, half of them reached;
#: twice that in 16 bits where the processor has instructions for it.
_GUESSED_CORE = 40 * _GB
_CALL = "give a kind and a count such as h100:8, or name=x,memory=96GB,tflops=400,link=50GB/s:4"


def parse_devices(text: str) -> Devices:
    """Devices of one node, from ``h100:8`` or numbers of one's own.

    Parameters
    ----------
    text
        a kind of `KINDS` or ``cpu``, or ``key=value`` pairs joined by commas; then, after a
        colon, how many of them (default: 1). Keys: ``memory`` (such as 96GB) and ``tflops``
        (TFLOP/s of 16-bit matrix products) are needed; ``name``, ``tflops32`` (of float32;
        default: an eighth), ``link`` (host to device, such as 50GB/s; default 25GB/s) and
        ``bandwidth`` (of its memory; default 1TB/s) may be left out.

    Raises
    ------
    RequestError
        the kind is unknown, or a number is wrong.
    """
    before, colon, after = text.rpartition(":")
    name, number = (before, after.strip()) if colon else (text, "1")
    if not number.isdigit() or not 1 <= int(number) <= 64:
        raise RequestError(f"--devices {text!r}: {number!r} is no number of devices; {_CALL}")
    count = int(number)
    if "=" in name:
        return Devices(_own_kind(name, text), count)
    key = name.strip().lower()
    if key == "cpu":
        return Devices(this_cpu(), count)
    if key not in KINDS:
        raise RequestError(
            f"--devices {text!r}: no kind is called {name!r}; known are "
            f"{', '.join(KINDS)} and cpu; {_CALL}"
        )
    return Devices(KINDS[key], count)


def _own_kind(pairs: str, text: str) -> DeviceKind:
    values: dict[str, str] = {}
    for pair in pairs.split(","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if key not in ("name", "memory", "tflops", "tflops32", "link", "bandwidth") or not equals:
            raise RequestError(f"--devices {text!r}: {pair.strip()!r} is not understood; {_CALL}")
        values[key] = value
    if missing := [key for key in ("memory", "tflops") if key not in values]:
        raise RequestError(f"--devices {text!r}: {missing[0]} is missing; {_CALL}")
    half = _number(values["tflops"], text)
    kind = _gpu(
        values.get("name", "own device"),
        size(values["memory"], f"--devices {text!r}") / _GB,
        half,
        _number(values["tflops32"], text) if "tflops32" in values else half / 8,
        1.0,
        25,
    )
    where = f"--devices {text!r}"
    changed = {k: float(size(values[k], where)) for k in ("link", "bandwidth") if k in values}
    return replace(kind, **changed)  # type: ignore[arg-type]


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise RequestError(f"--devices {text!r}: {value!r} is no number of TFLOP/s; {_CALL}")
    return number


_UNITS = {"": 1, **{f"{p}B": 1000**i for i, p in enumerate(("", "K", "M", "G", "T", "P"))}}
_UNITS |= {f"{p}iB": 1024**i for i, p in enumerate(("", "K", "M", "G", "T", "P")) if p}
_BY_CASE = {unit.lower(): factor for unit, factor in _UNITS.items()}


def size(text: str, where: str) -> int:
    """Bytes, or bytes per second, from ``96GB``, ``50 GB/s``, ``1.5TiB`` or a plain number.

    Raises
    ------
    RequestError
        It is no positive size; ``where`` begins the message.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*?)(/s)?\s*", text)
    if match is None or match[2].lower() not in _BY_CASE or float(match[1]) <= 0:
        raise RequestError(f"{where}: {text!r} is no size; write 96GB, 1.5TiB or 50GB/s")
    return int(float(match[1]) * _BY_CASE[match[2].lower()])


def this_cpu() -> DeviceKind:
    """This machine's processor, at a guessed rate; `calibrate` measures a better one."""
    cores = len(os.sched_getaffinity(0))
    single = float(cores * _GUESSED_CORE)
    capability = torch.backends.cpu.get_cpu_capability()
    half = single * 2 if "AVX512" in capability else single / 2
    return DeviceKind(
        "cpu",
        psutil.virtual_memory().total,
        {"bfloat16": half, "float16": single / 4, "float32": single},
        10e9 * cores,
        5e9,
        is_host=True,
        source=f"a guess for {cores} cores; plan --measure measures them",
    )


def present_devices() -> Devices:
    """The devices of the machine this runs on: its GPUs, or its processor.

    A GPU that the table does not know gets the rates of the A100, with its own memory.
    """
    if not torch.cuda.is_available():
        return Devices(this_cpu(), 1)
    properties = torch.cuda.get_device_properties(0)
    name, memory = str(properties.name), int(properties.total_memory)
    kind = _known_gpu(name, memory)
    source = "" if kind else f"{name} is not in the table: rates of an A100"
    kind = kind or KINDS["a100-80"]
    return Devices(
        replace(kind, name=kind.name if not source else name, memory=memory, source=source),
        torch.cuda.device_count(),
    )


def _known_gpu(name: str, memory: int) -> DeviceKind | None:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    fitting = [
        kind for key, kind in KINDS.items() if re.sub(r"[^a-z0-9]", "", key.split("-")[0]) in plain
    ]
    # One name may stand for several sizes of memory.
    return min(fitting, key=lambda kind: abs(kind.memory - memory), default=None)
