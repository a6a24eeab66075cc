"""What a run costs under each schedule, before anything is loaded; and which schedule to take.

`plan` needs a model's costs (`costs`), the machines (`site`), the corpus's size and what is stored
(`workload`); it touches neither weights nor devices. Arithmetic: `placed_estimates` for resident
and staged, `sweep_estimate`, `memory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from depthscope.storage.errors import RequestError

from .costs import ModelCosts
from .estimates import COMPUTE, Case, ScheduleEstimate
from .placed_estimates import resident, staged
from .site import PLAIN_CORE, ZSTD_CORE, Site, Speed
from .sweep_estimate import sweep
from .workload import ZSTD_RATIO, CorpusSize, Selection, Volume, volume

Schedule = Literal["resident", "staged", "sweep"]
Codec = Literal["none", "zstd"]

#: The resident schedule is taken while it reaches this share of the fastest: it is the simplest.
RESIDENT_SHARE = 0.95

#: A change must help by this factor to be worth a word.
_WORTHWHILE = 1.05

_ESTIMATES: dict[Schedule, Callable[[Case], ScheduleEstimate]] = {
    "resident": resident,
    "staged": staged,
    "sweep": sweep,
}


@dataclass(frozen=True)
class Plan:
    """Every schedule, side by side.

    Attributes
    ----------
    case
        What was planned.
    schedules
        One estimate per schedule.
    """

    case: Case
    schedules: tuple[ScheduleEstimate, ...]

    def __getitem__(self, schedule: str) -> ScheduleEstimate:
        return next(found for found in self.schedules if found.schedule == schedule)


def plan(
    costs: ModelCosts, site: Site, corpus: CorpusSize, selection: Selection, speed: Speed
) -> Plan:
    """Estimate every schedule.

    Parameters
    ----------
    costs
        from `costs.model_costs`.
    site
        from `site.make_site`.
    corpus, selection
        from `workload` and `corpus_size`.
    speed
        from `site.speed_of`.
    """
    case = Case(costs, site, corpus, selection, speed, volume(costs, corpus, selection))
    return Plan(
        case,
        tuple(
            replace(found, advice=_advice(case, found))
            for found in (estimate(case) for estimate in _ESTIMATES.values())
        ),
    )


def choose(found: Plan) -> Schedule:
    """The fastest schedule that fits; the resident one while it is within a few percent.

    Raises
    ------
    RequestError
        None fits; says what the smallest one lacks.
    """
    fitting = [one for one in found.schedules if one.fits]
    if not fitting:
        raise RequestError(f"no schedule fits: sweep {found['sweep'].reason}")
    fastest = min(fitting, key=lambda one: one.seconds)
    for schedule, share in (("resident", RESIDENT_SHARE), ("staged", 1.0)):
        one = found[schedule]
        if one.fits and fastest.seconds >= share * one.seconds:
            return schedule  # type: ignore[return-value]
    return "sweep"


def choose_codec(
    produced: float, storage: float, cores: int, *, cores_compute: bool = False
) -> Codec:
    """Whether compression pays.

    Uncompressed, a node writes the smaller of what it produces and what its storage takes.
    Compressed, the storage takes 1/0.66 as much, but the cores must keep up at 0.35 GB/s each.
    Where both are as fast, compression saves a third of the disk for nothing.

    Parameters
    ----------
    produced
        bytes/s of activations that a node's devices produce when nothing holds them up.
    storage
        bytes/s that the node can write.
    cores
        of the node.
    cores_compute
        whether the model runs on those same cores, so that compressing slows it down.
    """
    plain = min(produced, storage)
    if cores_compute:
        cost = 1 / produced + 1 / (cores * ZSTD_CORE)
        packed = min(1 / cost, storage / ZSTD_RATIO)
        plain = min(1 / (1 / produced + 1 / (cores * PLAIN_CORE)), storage)
    else:
        packed = min(produced, storage / ZSTD_RATIO, cores * ZSTD_CORE)
    return "zstd" if packed >= plain else "none"


def auto_codec(
    costs: ModelCosts, site: Site, corpus: CorpusSize, selection: Selection, speed: Speed
) -> Codec:
    """Whether a run's activations are to be compressed: `choose_codec` for what it produces."""
    planes = selection.planes(0, len(costs.layers))
    if not planes:
        return "none"
    rows = site.devices.count / (sum(speed.layers) + speed.lens * selection.lens_rows / corpus.rows)
    produced = rows * planes * costs.point_bytes(selection.store_itemsize)
    return choose_codec(produced, site.storage, site.cores, cores_compute=site.on_host)


def _advice(case: Case, found: ScheduleEstimate) -> str:
    """The change that helps most, by estimating again with it."""
    if not found.fits:
        return _what_fits(case, found)
    estimate, gains = _ESTIMATES[found.schedule], []  # type: ignore[index]
    for words, changed in _changes(case):
        other = estimate(changed)
        if other.fits:
            gains.append((other.tokens_per_second / found.tokens_per_second, words))
    gain, words = max(gains, default=(1.0, ""))
    if gain >= _WORTHWHILE:
        return f"{words}: {gain:.1f} × the tokens/s"
    if found.limit == COMPUTE:
        return "more or faster devices: it computes all the time"
    return "nothing alone: several bounds lie close together"


def _changes(case: Case) -> list[tuple[str, Case]]:
    site, selection = case.site, case.selection
    doubled = [
        ("twice the storage bandwidth", replace(site, storage=2 * site.storage)),
        ("twice the bandwidth of the weights", replace(site, weights=2 * site.weights)),
        (
            "twice the memory",
            replace(site, memory=2 * site.memory, device_memory=2 * site.device_memory),
        ),
    ]
    changes = [(words, replace(case, site=changed)) for words, changed in doubled]
    if len(selection.points) > 2:
        fewer = replace(selection, points=selection.points[::2])
        changes.append(("half of the points", _with(case, fewer)))
    if selection.lens_rows:
        changes.append(
            ("no lens values (--lens-rows none)", _with(case, replace(selection, lens_rows=0)))
        )
    return changes


def _with(case: Case, selection: Selection) -> Case:
    stored: Volume = volume(case.costs, case.corpus, selection)
    return replace(case, selection=selection, volume=stored)


def _what_fits(case: Case, found: ScheduleEstimate) -> str:
    """The next larger set of machines that takes this schedule."""
    site, kind = case.site, case.site.devices.kind
    estimate = _ESTIMATES[found.schedule]  # type: ignore[index]

    def fits(**changed: Any) -> bool:
        return estimate(replace(case, site=replace(site, **changed))).fits

    if found.schedule == "staged":
        for nodes in range(site.nodes + 1, 65):
            if fits(nodes=nodes):
                return f"it fits over {nodes} such nodes"
    counts = [] if site.on_host else [n for n in (2, 4, 8, 16) if n > site.devices.count]
    for count in counts:
        memory = site.memory // site.devices.count * count
        if fits(devices=replace(site.devices, count=count), memory=memory):
            return f"it fits on {count} × {kind.name} a node"
    for percent in range(110, 2001, 10):
        device = site.device_memory * percent // 100
        if fits(device_memory=device, memory=site.memory * percent // 100):
            what = "of memory" if site.on_host else f"on each {kind.name}"
            return f"it fits with {device / 1e9:.0f} GB {what}"
    return "no single change makes it fit"
