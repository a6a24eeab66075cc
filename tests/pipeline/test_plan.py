"""Plans by hand: rates, memory, limits, refusals and choices, and the figures of the design."""

from __future__ import annotations

from dataclasses import replace

import pytest
from depthscope.pipeline.costs import LayerCosts, ModelCosts, model_costs
from depthscope.pipeline.devices import KINDS, DeviceKind, Devices, parse_devices
from depthscope.pipeline.estimates import ScheduleEstimate
from depthscope.pipeline.memory import sweep_memory
from depthscope.pipeline.model_configs import find_config
from depthscope.pipeline.plan import Plan, choose, choose_codec, plan
from depthscope.pipeline.site import Site, make_site, speed_of
from depthscope.pipeline.sweep_estimate import sweep_needs
from depthscope.pipeline.workload import CorpusSize, Selection, task_rows, volume
from depthscope.storage.errors import RequestError

GB = 10**9
INFINITE = 1e30


def costs_of(name: str) -> ModelCosts:
    found = find_config(name)
    return model_costs(found.config, found.dtype, name=found.name)


def selection(costs: ModelCosts, **changed: object) -> Selection:
    """Every point and nothing else, in micro-batches of 16,384 tokens."""
    plain = Selection(
        points=tuple(range(len(costs.layers) + 1)),
        sublayers=False,
        statistics=False,
        lens_rows=0,
        store_dtype=costs.dtype,
        codec="none",
        batch_tokens=16384,
        packed=False,
        task_rows=16384,
    )
    return replace(plain, **changed)  # type: ignore[arg-type]


def planned(
    costs: ModelCosts, site: Site, corpus: CorpusSize, chosen: Selection, utilisation: float = 0.5
) -> Plan:
    speed = speed_of(costs, site, corpus, chosen, utilisation=utilisation)
    return plan(costs, site, corpus, chosen, speed)


# A model of four layers, each of 500 parameters and 1,000 FLOPs a token, in float32.
LAYER = LayerCosts(parameters=500, used=500, mixing=0, window=None, largest=100)
SMALL = ModelCosts(
    name="small",
    family="llama",
    dtype="float32",
    attention="sdpa",
    hidden=10,
    heads=1,
    vocabulary=50,
    inner=20,
    context=None,
    layers=(LAYER,) * 4,
    frame=250,
    parameters=2750,
)
CORPUS = CorpusSize.of_tokens(100_000, 10)
STORED = selection(SMALL, batch_tokens=100, task_rows=1000)
#: Of a micro-batch inside a layer: 100 tokens of 4·10 + 3·20 values.
WORKING = 100 * 100 * 4


def device(memory: float = 1e9, link: float = INFINITE) -> DeviceKind:
    return DeviceKind("d", int(memory), {"float32": 1e6}, INFINITE, link)


def place(kind: DeviceKind, count: int = 1, nodes: int = 1, **changed: object) -> Site:
    """A million FLOP/s a device, nothing else in the way."""
    site = Site(Devices(kind, count), nodes, 1, 10**12, kind.memory, INFINITE, INFINITE)
    return replace(site, **changed)  # type: ignore[arg-type]


def small(site: Site, chosen: Selection = STORED) -> Plan:
    # A single core encodes as fast as any disk here.
    speed = speed_of(SMALL, site, CORPUS, chosen, utilisation=1.0)
    return plan(SMALL, site, CORPUS, chosen, replace(speed, encode=1 / INFINITE))


def test_one_device_computes_a_million_flops() -> None:
    found = small(place(device()))["resident"]
    assert found.tokens_per_second == pytest.approx(1e6 / 4000)
    assert found.limit == "compute"
    assert found.seconds - found.start_seconds == pytest.approx(100_000 / 250)
    assert found.device_memory == 4 * (4 * 500 + 250) + WORKING
    assert found.bytes_per_second == pytest.approx(250 * 5 * 10 * 4)
    # A shard a point and a commit, for each of 100 tasks.
    assert found.files == 100 * 5 + 100


def test_replicas_and_nodes_multiply() -> None:
    found = small(place(device(), count=3, nodes=2))["resident"]
    assert found.workers == 6
    assert found.tokens_per_second == pytest.approx(6 * 250)


def test_no_more_workers_than_tasks() -> None:
    chosen = replace(STORED, task_rows=50_000)
    found = small(place(device(), count=8), chosen)["resident"]
    assert found.tokens_per_second == pytest.approx(2 * 250)


def test_the_store_bounds() -> None:
    found = small(place(device(), storage=5_000.0))["resident"]
    assert found.limit == "writing"
    assert found.tokens_per_second == pytest.approx(5_000 / (5 * 10 * 4))
    assert "storage bandwidth" in found.advice
    # A store of one point in two takes twice the rows.
    every_other = replace(STORED, points=(0, 2, 4))
    found = small(place(device(), storage=5_000.0), every_other)["resident"]
    assert found.tokens_per_second == pytest.approx(5_000 / (3 * 10 * 4))


def test_the_cores_that_compress_bound() -> None:
    chosen = replace(STORED, codec="zstd")
    site = place(device(), storage=5e9)
    speed = speed_of(SMALL, site, CORPUS, chosen, utilisation=1.0)
    fast = replace(speed, layers=(1e-12,) * 4)
    found = plan(SMALL, site, CORPUS, chosen, fast)["resident"]
    assert found.limit == "encoding"
    # 0.35 GB/s of uncompressed bytes for each core.
    assert found.tokens_per_second == pytest.approx(0.35e9 / (5 * 10 * 4))


def test_the_link_bounds() -> None:
    found = small(place(device(link=4_000.0)))["resident"]
    assert found.limit == "host copies"
    assert found.tokens_per_second == pytest.approx(4_000 / (5 * 10 * 4))


def test_two_devices_where_one_is_too_small() -> None:
    """5 GB of weights and working memory in all, on devices that hold three layers."""
    memory = 4 * (3 * 500 + 250) + WORKING
    found = small(place(device(memory), count=2))["resident"]
    assert [stage.layers for stage in found.stages] == [(0, 2), (2, 4)]
    assert found.workers == 1
    batches = 100_000 / 100
    assert found.efficiency == pytest.approx(batches / (batches + 1))
    assert found.tokens_per_second == pytest.approx(500 * found.efficiency)


def test_stages_over_nodes() -> None:
    memory = 4 * (2 * 500 + 250) + WORKING
    found = small(place(device(memory), nodes=2))
    assert not found["resident"].fits
    staged = found["staged"]
    assert [(stage.node, stage.layers) for stage in staged.stages] == [(0, (0, 2)), (1, (2, 4))]
    assert [stage.weight_bytes for stage in staged.stages] == [4 * 1250, 4 * 1000]
    assert staged.tokens_per_second == pytest.approx(500 * 1000 / 1001)
    assert staged.files == 100 * 5 + 2 * 100


def test_each_node_writes_its_own_points() -> None:
    """Points 0, 1 and 2 come from the first node, 3 and 4 from the second."""
    staged = small(place(device(), nodes=2, storage=6_000.0))["staged"]
    assert staged.limit == "writing"
    assert staged.tokens_per_second == pytest.approx(6_000 / (3 * 10 * 4))


def test_missing_bytes_are_named() -> None:
    memory = 4 * 1250 + WORKING - 400
    found = small(place(device(memory), count=2))["resident"]
    assert not found.fits
    assert found.missing_bytes == 400
    assert found.limit == "memory"


def test_more_stages_than_layers() -> None:
    found = small(place(device(), nodes=5))["staged"]
    assert not found.fits
    assert "5 devices cannot share 4 layers" in found.reason


def test_a_sweep_by_hand() -> None:
    """Reading a layer takes 2 s, computing it over 1,000 rows 1 s: T* is 2,000 rows."""
    site = place(device(4 * 1000 + WORKING, link=1_000.0))
    found = small(site, replace(STORED, points=()))["sweep"]
    assert found.fits
    assert found.hiding_rows == 2_000
    assert found.residual == "host"
    assert found.batch_rows == 16_000
    # Stream and weights share the way in: 16,000 rows of 40 bytes and 2,000 bytes of weights.
    layer = max(16_000 * 1e-3, (2_000 + 16_000 * 40) / 1_000)
    passes = 100_000 / 16_000
    assert found.seconds - found.start_seconds == pytest.approx(passes * (4 * layer + 2))
    assert found.limit == "host copies"


def test_a_sweep_that_hides_the_loading() -> None:
    site = place(device(link=1_000.0))
    found = small(site, replace(STORED, points=()))["sweep"]
    assert found.residual == "device"
    seconds = 100_000 / 16_000 * (4 * 16_000 * 1e-3 + 2)
    assert found.seconds - found.start_seconds == pytest.approx(seconds)
    assert found.limit == "compute"


def test_a_sweep_that_memory_bounds() -> None:
    """Room for the stream of one task only, where two would hide the loading."""
    site = place(device(link=1_000.0))
    case = small(site, replace(STORED, points=())).case
    need = sweep_memory(sweep_needs(case), 1, "device", on_host=False)
    tight = replace(site, device_memory=need.device_total, memory=need.host_total)
    found = small(tight, replace(STORED, points=()))["sweep"]
    assert found.batch_rows == 1_000
    assert found.limit == "memory"
    assert found.tokens_per_second == pytest.approx(1_000 / (4 * 2 + 2))
    assert "memory" in found.advice


def test_weights_that_no_page_cache_holds_come_from_the_disk() -> None:
    case = small(place(device(link=1_000.0)), replace(STORED, points=())).case
    need = sweep_memory(sweep_needs(case), 1, "device", on_host=False).host_total
    site = place(device(link=1_000.0), memory=need + 9_000 - 1, weights=500.0)
    assert small(site, replace(STORED, points=()))["sweep"].hiding_rows == 4_000
    site = place(device(link=1_000.0), memory=need + 9_000, weights=500.0)
    assert small(site, replace(STORED, points=()))["sweep"].hiding_rows == 2_000


@pytest.mark.parametrize(
    ("name", "rate", "produced"),
    [
        ("llama-3.1-8b", 272.9e3, 73.8e9),
        ("llama-3.1-70b", 28.3e3, 37.6e9),
    ],
)
def test_the_facts_of_the_design(name: str, rate: float, produced: float) -> None:
    """8×H100 at 50%, a store that takes everything."""
    costs = costs_of(name)
    site = make_site(parse_devices("h100:8"), storage=1e12, cores=1000)
    corpus = CorpusSize.of_tokens(10**9, 2048)
    found = planned(costs, site, corpus, selection(costs))["resident"]
    # 70B takes two copies over four devices each.
    assert found.workers * len(found.stages) == 8
    assert found.tokens_per_second == pytest.approx(rate, rel=0.002)
    assert found.bytes_per_second == pytest.approx(produced, rel=0.003)


@pytest.mark.parametrize(
    ("link", "rows"), [("55GB/s", 8_900), ("25GB/s", 20_000), ("7GB/s", 70_000)]
)
def test_405b_sweeps_on_one_device(link: str, rows: int) -> None:
    """T* of the design, 609 tokens/s, and a million tokens in 27 minutes."""
    costs = costs_of("llama-3.1-405b")
    kind = parse_devices(f"memory=80GB,tflops=989,link={link}")
    site = make_site(kind, memory=2000 * GB, storage=1e12, cores=1000)
    corpus = CorpusSize.of_tokens(2**20, 2048)
    found = planned(costs, site, corpus, selection(costs))
    assert not found["resident"].fits
    sweep = found["sweep"]
    assert sweep.hiding_rows == pytest.approx(rows, rel=0.03)
    assert sweep.tokens_per_second == pytest.approx(609, rel=0.01)
    minutes = (sweep.seconds - sweep.start_seconds) / 60
    assert minutes == pytest.approx(27 * 2**20 / 1e6, rel=0.07)
    assert choose(found) == "sweep"


def test_405b_on_one_node_and_on_two() -> None:
    costs = costs_of("llama-3.1-405b")
    corpus = CorpusSize.of_tokens(10**7, 2048)

    def over(devices: str, nodes: int = 1) -> Plan:
        return planned(costs, make_site(parse_devices(devices), nodes), corpus, selection(costs))

    found = over("h100:8")
    weights = costs.body_bytes
    assert not found["resident"].fits
    # Weights and a micro-batch's working memory on each of 8 devices of 80 GB, 2 GB kept free.
    working = 16384 * (4 * 16384 + 3 * 53248) * 2
    missing = weights - 2 * 16384 + 8 * working - 8 * 78 * GB
    assert found["resident"].missing_bytes == pytest.approx(missing, rel=1e-6)
    assert f"{missing / GB:.1f} GB are missing" in found["resident"].reason
    assert found["sweep"].fits
    assert choose(found) == "sweep"

    staged = over("h100:8", 2)["staged"]
    assert staged.fits
    assert len(staged.stages) == 16
    assert sum(stage.weight_bytes for stage in staged.stages) == weights
    assert max(stage.memory_bytes for stage in staged.stages) <= 78 * GB
    resident = over("h200:8")["resident"]
    assert resident.fits
    assert len(resident.stages) == 8
    assert max(stage.memory_bytes for stage in resident.stages) <= 139 * GB


def test_choosing() -> None:
    found = small(place(device(), count=2))
    assert choose(found) == "resident"
    slow = tuple(
        replace(one, seconds=one.seconds * (1.04 if one.schedule == "resident" else 1.0))
        for one in found.schedules
    )
    assert choose(Plan(found.case, slow)) == "resident"
    slower = tuple(
        replace(one, seconds={"resident": 110.0, "staged": 120.0, "sweep": 100.0}[one.schedule])
        for one in found.schedules
    )
    assert choose(Plan(found.case, slower)) == "sweep"


def test_nothing_fits() -> None:
    found = small(place(device(1_000), memory=1_000))
    assert not any(one.fits for one in found.schedules)
    with pytest.raises(RequestError, match=r"no schedule fits: sweep .* it needs"):
        choose(found)


@pytest.mark.parametrize(
    ("produced", "storage", "cores", "codec"),
    [
        (73.8e9, 5e9, 128, "zstd"),  # the disk is the limit, and 15 cores fill it
        (73.8e9, 5e9, 8, "none"),  # eight cores compress 2.8 GB/s
        (20.3e9, 25e9, 128, "zstd"),  # as fast either way: a third less disk
        (20.3e9, 25e9, 16, "none"),
    ],
)
def test_whether_compression_pays(produced: float, storage: float, cores: int, codec: str) -> None:
    assert choose_codec(produced, storage, cores) == codec


def test_compression_on_the_models_own_cores() -> None:
    assert choose_codec(40e6, 1e9, 2, cores_compute=True) == "none"
    assert choose_codec(400e6, 50e6, 2, cores_compute=True) == "zstd"


def test_volume_by_hand() -> None:
    chosen = replace(STORED, statistics=True, sublayers=True, lens_rows=500)
    found = volume(SMALL, CORPUS, chosen)
    planes = 5 + 2 * 4
    assert found.plane_rows == planes * 100_000
    assert found.number_bytes == 100_000 * 11 * 4 * 4 + 500 * 6 * 5 * 4
    # A lens shard holds a quarter of what a task of 1,000 rows selects: one row.
    assert found.files == 100 * planes + 3 * 100 + 6 * 500
    assert found.rows_run == 100_000


def test_rows_run_twice_are_counted() -> None:
    corpus = CorpusSize.of_lengths([30] * 1000)
    chosen = replace(STORED, task_rows=100)
    # Borders at 100, 200 and 300 cut documents after 10, 20 and 0 tokens, and so on.
    assert (
        volume(SMALL, corpus, chosen).rows_run
        == 30_000 + sum(border % 30 for border in range(100, 25_600, 100)) * 30_000 // 25_600
    )


def test_task_rows_are_those_of_a_store() -> None:
    costs = costs_of("llama-3.1-405b")
    assert task_rows(costs, CorpusSize.of_tokens(10**9, 2048), 2) == 8192
    assert task_rows(costs, CorpusSize.of_tokens(10**13, 2048), 2) == 8192


def test_kinds_have_every_dtype() -> None:
    assert all(set(kind.flops) == {"bfloat16", "float16", "float32"} for kind in KINDS.values())


def test_experts_are_streamed_where_layers_do_not_fit() -> None:
    """Two layers of DeepSeek-V3 are 46 GB; without experts, a few GB and groups of experts."""
    costs = costs_of("deepseek-v3")
    corpus = CorpusSize.of_tokens(2**20, 2048)
    chosen = selection(costs, points=())

    def sweep_on(devices: str) -> ScheduleEstimate:
        site = make_site(parse_devices(devices), memory=2000 * GB)
        return planned(costs, site, corpus, chosen)["sweep"]

    whole, streamed = sweep_on("memory=80GB,tflops=165"), sweep_on("memory=24GB,tflops=165")
    assert whole.fits
    assert not whole.streams_experts
    assert streamed.fits
    assert streamed.streams_experts
    assert streamed.device_memory <= 22 * GB
    assert streamed.tokens_per_second < whole.tokens_per_second
