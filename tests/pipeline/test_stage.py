"""A stage, and gangs of them in one process: order, bounds, failures, and the very same store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from depthscope.jobs import ExtractSpec, extract
from depthscope.jobs.process_pool import ProcessPool
from depthscope.jobs.progress import Silent
from depthscope.pipeline.equipment import WorkerSettings
from depthscope.pipeline.gang_worker import GangWorker
from depthscope.pipeline.handoff import Carried, pack, unpack
from depthscope.pipeline.layer_stack import LayerStack
from depthscope.pipeline.schedules import TaskWorker, make_worker
from depthscope.pipeline.stage import Stage
from depthscope.pipeline.staging import HostStaging
from depthscope.pipeline.worker import Worker
from depthscope.storage.commits import CommitLog
from depthscope.storage.errors import RequestError, WorkFailed

from ..conftest import make_llama
from ..jobs.processes import check_same, data_bytes, request

LAYERS = 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stage")
    make_llama(folder / "model", layers=LAYERS, seed=5)
    return request(folder / "model", folder, out=folder / "resident", task_rows=512)


@pytest.fixture(scope="module")
def resident(options: dict[str, Any]) -> dict[str, bytes]:
    extract(ExtractSpec(**options))
    return data_bytes(options["out"])


Run = Callable[..., Path]


@pytest.fixture
def run(options: dict[str, Any], tmp_path: Path) -> Run:
    """Extract with stages over devices of our own choice; the store."""

    def go(
        ranges: Sequence[tuple[int, int]] = ((0, LAYERS),),
        devices: int = 1,
        prepare: Callable[[GangWorker], None] = lambda worker: None,
        **changes: Any,
    ) -> Path:
        def make(settings: WorkerSettings) -> GangWorker:
            worker = GangWorker(settings, ranges, [CPU] * devices)
            prepare(worker)
            return worker

        schedule = {"schedule": "staged", "stages": len(ranges), "out": tmp_path / "store"}
        spec = ExtractSpec(**(options | schedule | changes))
        extract(spec, pool=lambda settings, spec: ProcessPool(settings, make))
        return tmp_path / "store"

    return go


@pytest.fixture
def settings(options: dict[str, Any], resident: dict[str, bytes]) -> WorkerSettings:
    """For stages that are driven by hand; nothing of theirs is committed."""
    return WorkerSettings(options["out"], Path(options["model"]), threads=1)


@pytest.fixture
def stage(settings: WorkerSettings) -> Iterator[Stage]:
    made = Stage(settings, (0, 2), [CPU])
    yield made
    made.close()


@pytest.mark.parametrize("devices", [1, 2, 9])
def test_all_layers_over_several_devices_are_the_resident_schedule(
    run: Run, resident: dict[str, bytes], devices: int
) -> None:
    store = run(devices=devices)
    check_same(store, resident)
    points = [commit.points for commit in CommitLog(store).commits(0)]
    assert len(points) == min(devices, LAYERS)
    assert [point for first, last in points for point in range(first, last + 1)] == list(
        range(LAYERS + 1)
    )


def test_a_resident_worker_uses_all_devices_of_its_node(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    made: list[TaskWorker] = []

    def make(settings: WorkerSettings) -> TaskWorker:
        made.append(make_worker(settings, [CPU, CPU]))
        return made[0]

    given = options | {"out": tmp_path / "store", "schedule": "resident"}
    extract(ExtractSpec(**given), pool=lambda settings, spec: ProcessPool(settings, make))
    assert isinstance(made[0], GangWorker)
    check_same(tmp_path / "store", resident)


def test_weights_that_fit_no_device_are_moved_in(
    options: dict[str, Any], resident: dict[str, bytes], tmp_path: Path
) -> None:
    made: list[TaskWorker] = []
    said: list[str] = []

    def make(settings: WorkerSettings) -> TaskWorker:
        made.append(make_worker(replace(settings, device_memory=60_000), [CPU, CPU]))
        return made[0]

    class Listening(Silent):
        def message(self, text: str) -> None:
            said.append(text)

    given = options | {"out": tmp_path / "store", "schedule": "resident", "memory": "100KB"}
    extract(
        ExtractSpec(**given),
        progress=Listening(),
        pool=lambda settings, spec: ProcessPool(settings, make),
    )
    assert isinstance(made[0], Worker)
    assert "disk" in made[0].body.model.hf_device_map.values()
    assert [line for line in said if "--schedule sweep is faster" in line]
    check_same(tmp_path / "store", resident)


@pytest.mark.parametrize(
    "ranges", [[(0, 1), (1, 5)], [(0, 2), (2, 3), (3, 5)], [(n, n + 1) for n in range(LAYERS)]]
)
def test_stages_that_have_several_devices_each(
    run: Run, resident: dict[str, bytes], ranges: list[tuple[int, int]]
) -> None:
    check_same(run(ranges, devices=2 * len(ranges)), resident)


def test_rows_that_go_through_staging(run: Run, resident: dict[str, bytes]) -> None:
    check_same(run([(0, 2), (2, 5)], devices=4, prepare=stage_rows), resident)


def stage_rows(worker: GangWorker) -> None:
    """The way from device to host that GPUs use."""
    for handle in worker.handles:
        for device in handle.stage.devices:
            device.equipment.staging = HostStaging()


class Watch:
    """Layers that take a while; how many were at work, and on their way, at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: int | None = None) -> None:
        self._lock = threading.Lock()
        self.working = self.most_working = self.inside = self.most_inside = 0
        plain_run, plain_forward = LayerStack.run, Stage.forward

        def run(stack: Any, *arguments: Any) -> Any:
            self._count("working", 1)
            time.sleep(0.02 if slow is None or slow in stack.blocks else 0)
            try:
                return plain_run(stack, *arguments)
            finally:
                self._count("working", -1)

        def forward(stage: Any, sequence: int, key: str, number: int, carried: Any) -> Any:
            if stage.layers[0] == 0:
                self._count("inside", 1)
            try:
                return plain_forward(stage, sequence, key, number, carried)
            finally:
                if stage.layers[1] == LAYERS:
                    self._count("inside", -1)

        monkeypatch.setattr(LayerStack, "run", run)
        monkeypatch.setattr(Stage, "forward", forward)

    def _count(self, what: str, step: int) -> None:
        with self._lock:
            now = getattr(self, what) + step
            setattr(self, what, now)
            setattr(self, f"most_{what}", max(now, getattr(self, f"most_{what}")))


def test_micro_batches_are_in_flight_over_all_devices(
    run: Run, resident: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    check_same(run([(0, 2), (2, 5)], devices=3), resident)
    assert watch.most_working == 3


@pytest.mark.parametrize("slow", [0, LAYERS - 1])
def test_no_more_are_on_their_way_than_devices_can_take(
    run: Run,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slow: int,
) -> None:
    # One task of many micro-batches.
    many = {"batch_tokens": 16, "task_rows": 4096}
    extract(ExtractSpec(**(options | many | {"out": tmp_path / "resident"})))
    watch = Watch(monkeypatch, slow)
    check_same(run([(0, 2), (2, 5)], devices=2, **many), data_bytes(tmp_path / "resident"))
    assert 2 <= watch.most_inside <= 4


def test_a_stage_takes_micro_batches_in_their_order_however_they_arrive(stage: Stage) -> None:
    task = stage.selections.task(0)
    count = stage.begin(task, "a")
    assert count > 3
    in_order = [stage.forward(n, "a", n, None) for n in range(count)]
    stage.abort("a", (0, count))
    assert stage.begin(task, "b") == count
    with ThreadPoolExecutor(count) as threads:
        backwards = [
            threads.submit(stage.forward, count + n, "b", n, None) for n in reversed(range(count))
        ]
        results = [future.result(60) for future in reversed(backwards)]
    stage.abort("b", (count, 2 * count))
    for one, other in zip(in_order, results, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.hidden, other.hidden)


def test_a_task_that_is_given_up_lets_the_next_one_pass(stage: Stage) -> None:
    task, other = stage.selections.task(0), stage.selections.task(1)
    stage.begin(task, "a")
    stage.begin(other, "b")
    stage.forward(0, "a", 0, None)
    with ThreadPoolExecutor(2) as threads:
        # Micro-batches 1 and 2 of the first task never come: its sender is gone.
        waiting = threads.submit(stage.forward, 3, "b", 0, None)
        late = threads.submit(stage.forward, 2, "a", 2, None)
        time.sleep(0.1)
        assert not waiting.done()
        stage.abort("a", (0, 3))
        assert waiting.result(60) is not None
        with pytest.raises(WorkFailed, match="given up"):
            late.result(60)
    stage.abort("b", (3, 4))
    assert not list((stage.settings.root / "partial").glob("*/*"))


def test_what_is_handed_on_survives_the_way_between_processes() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        hidden = torch.randn(2, 3, 4).to(dtype)
        statistics = torch.randn(11, 2, 5).numpy()
        for lens in (None, torch.randn(3, 2, 4).to(dtype)):
            packed = pack(Carried(hidden, statistics, lens))
            for array in (packed.hidden, packed.lens):
                if array is not None:
                    array.flags.writeable = False  # As Ray's object store gives it.
            back = unpack(packed)
            assert back.hidden.dtype == dtype
            assert torch.equal(back.hidden, hidden)
            back.hidden.zero_()  # Its own memory.
            assert back.statistics is statistics
            assert (back.lens is None) == (lens is None)
            if lens is not None and back.lens is not None:
                assert torch.equal(back.lens, lens)


@pytest.mark.parametrize("layer", [0, 2, LAYERS - 1])
@pytest.mark.parametrize("staged", [False, True])
def test_a_failure_anywhere_costs_its_task_only(
    run: Run,
    resident: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    layer: int,
    staged: bool,
) -> None:
    """Each layer fails once in the middle of a task; the tasks around it are in the line, too."""
    plain, calls = LayerStack.run, [0]

    def fail_once(stack: Any, *arguments: Any) -> Any:
        if layer in stack.blocks:
            calls[0] += 1
            if calls[0] in (7, 19):
                raise RuntimeError("a device fell over")
        return plain(stack, *arguments)

    monkeypatch.setattr(LayerStack, "run", fail_once)
    store = run(
        [(0, 2), (2, 3), (3, 5)],
        devices=5,
        prepare=stage_rows if staged else lambda worker: None,
    )
    check_same(store, resident)
    assert not list((store / "partial").glob("*"))
    assert (store / "failures.jsonl").read_text().count("a device fell over") >= 1


def test_a_failure_that_stays_is_named_and_the_rest_committed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = LayerStack.run

    def fail(stack: Any, batch: Any, *arguments: Any) -> Any:
        if 3 in stack.blocks and any(piece.document == 40 for piece in batch.pieces):
            raise RuntimeError("document 40 is too much")
        return plain(stack, batch, *arguments)

    monkeypatch.setattr(LayerStack, "run", fail)
    with pytest.raises(WorkFailed, match=r"1 of \d+ tasks failed.*document 40 is too much"):
        run([(0, 2), (2, 5)], retries=1)
    log = CommitLog(tmp_path / "store")
    whole = log.complete_tasks(LAYERS)
    begun = sorted(int(path.name) for path in log.paths.commits.iterdir())
    assert whole == begun
    assert not list((tmp_path / "store" / "partial").glob("*"))


def test_a_layer_that_adds_otherwise_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stack: Any, batch: Any, hidden: Any) -> None:
        if 4 in stack.blocks:
            raise RequestError("model type 'odd' cannot be captured: at layer 4")

    monkeypatch.setattr(LayerStack, "check_identity", refuse)
    with pytest.raises(RequestError, match="layer 4"):
        run([(0, 2), (2, 5)])
    assert not (tmp_path / "store").exists()


def test_a_gang_that_is_closed_in_mid_run_lets_everybody_go(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    plain = LayerStack.run

    def slowly(stack: Any, *arguments: Any) -> Any:
        begun.set()
        time.sleep(0.05)
        return plain(stack, *arguments)

    monkeypatch.setattr(LayerStack, "run", slowly)
    worker = GangWorker(settings, [(0, 2), (2, 5)], [CPU] * 3)
    tasks = [worker.selections.task(number) for number in range(3)]
    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(worker.run, task) for task in tasks]
        assert begun.wait(60)
        started = time.monotonic()
        worker.close()
        for future in running:
            assert future.exception(60) is not None
    assert time.monotonic() - started < 10
    assert not list((settings.root / "partial").glob("*/*"))


def test_layers_that_do_not_fit_the_devices_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"5 layers need .*missing.*--device-memory"):
        run(devices=2, device_memory="40KB")
    assert not (tmp_path / "store").exists()
    check = run(devices=3, device_memory="100KB")
    assert len(list(CommitLog(check).files(0))) == 3
