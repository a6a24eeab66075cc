"""What a worker of any schedule has at hand for every task: the store's plan, blocks, a writer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from depthscope.storage.arrays import ArrayPlan
from depthscope.storage.head import Head
from depthscope.storage.layout import ACTIVATIONS, LENS, STATISTICS, StorePaths
from depthscope.storage.run_record import RunRecord
from depthscope.storage.tasks import Selections

from .activations import BlockPool, Plane
from .clock import Clock
from .description import ModelInfo
from .head_export import export_head
from .lens import LENS_VALUES, LensMeasure
from .read_meter import ReadMeter
from .staging import HostStaging
from .write_behind import WriteBehind, plans_by_name

_SUBLAYERS = ("attention_output", "mlp_output")


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs beside the store; none of it decides a number.

    Attributes
    ----------
    root
        The store.
    folder
        The model's folder.
    threads
        Intra-op threads.
    on_error
        ``stop`` or ``skip``: what a document that fails does.
    allow_nonfinite
        Whether NaN and infinities are stored rather than refused.
    schedule
        ``resident``, ``staged`` or ``sweep``.
    effects
        The intervention sweep that is run; None for an extraction.
    memory, device_memory
        Bytes that a worker may hold in host memory, and on each of its devices; None: what the
        machine has to offer.
    tasks_at_once
        Tasks that a sweep takes through each layer together; 1 for the other schedules.
    residual
        Where a sweep keeps the stream between layers: ``device``, ``host`` or ``store``.
    expert_memory
        Bytes of experts that a sweep holds at a time; None where whole layers fit.
    stages
        Stages that the model is cut into; 1 for the other schedules.
    devices
        GPUs of each of its processes; 1 where the processor computes.
    node
        The engine's name of the node that the worker is on; empty where there is only one.
    offload_folder
        Where accelerate may put weights that fit neither device nor memory.
    trust_remote_code
        Whether code from the model's folder may run.
    """

    root: Path
    folder: Path
    threads: int
    on_error: str = "stop"
    allow_nonfinite: bool = False
    schedule: str = "resident"
    effects: str | None = None
    memory: int | None = None
    device_memory: int | None = None
    tasks_at_once: int = 1
    residual: str = "host"
    expert_memory: int | None = None
    stages: int = 1
    devices: int = 1
    node: str = ""
    offload_folder: Path | None = None
    trust_remote_code: bool = False


@dataclass
class Equipment:
    """Read once, used by every task.

    Attributes
    ----------
    device
        Where the first layer computes.
    activations, statistics, lens_plans
        The store's arrays by name; empty where the store has none.
    planes
        The points, and what sublayers add, that are stored.
    reads
        What the process has read since its last commit.
    rows_done
        Rows through the model so far; a row through half of the layers counts half.
    """

    settings: WorkerSettings
    clock: Clock
    device: torch.device
    record: RunRecord
    info: ModelInfo
    selections: Selections
    activations: Mapping[str, ArrayPlan]
    planes: list[Plane]
    statistics: Mapping[str, ArrayPlan]
    lens_plans: Mapping[str, ArrayPlan]
    pool: BlockPool
    writer: WriteBehind
    staging: HostStaging | None
    reads: ReadMeter
    rows_done: float = field(default=0.0)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The fields that decide the numbers."""
        return self.record.identity_fields

    @classmethod
    def load(
        cls,
        settings: WorkerSettings,
        clock: Clock,
        device: torch.device,
        reads: ReadMeter | None = None,
    ) -> Equipment:
        """Read the store's plan; ``reads`` was made before the weights were loaded."""
        root = settings.root
        record = RunRecord.load(root)
        info = ModelInfo(**record.model)
        activations = plans_by_name(
            root, [f"{ACTIVATIONS}/{name}" for name in ("residual", *_SUBLAYERS)]
        )
        planes = [Plane("residual", point, i) for i, point in enumerate(record.points)]
        for name in _SUBLAYERS:
            if name in activations:
                planes += [Plane(name, layer, layer) for layer in range(info.layers)]
        return cls(
            settings,
            clock,
            device,
            record,
            info,
            Selections(root, record),
            activations,
            planes,
            plans_by_name(root, [f"{STATISTICS}/{n}" for n in ("norm", "norm_ratio", "cosine")]),
            plans_by_name(root, [f"{LENS}/{name}" for name in LENS_VALUES]),
            BlockPool(clock),
            WriteBehind(clock),
            HostStaging() if device.type == "cuda" else None,
            reads or ReadMeter(),
        )

    def planes_of(self, layers: tuple[int, int]) -> list[Plane]:
        """The planes that layers ``first`` to ``last`` (end excluded) bring forth.

        Layer l brings forth point l+1 and what its sublayers add; the first layer's part also has
        point 0.
        """
        first, last = layers
        return [
            plane
            for plane in self.planes
            if first < plane.place + (plane.array != "residual") <= last
            or (first == 0 and plane.array == "residual" and plane.place == 0)
        ]

    def lens_measure(self) -> LensMeasure | None:
        """The lens of the model's head, on the worker's device; None where none is wanted."""
        if not self.lens_plans:
            return None
        settings = self.settings
        if StorePaths(settings.root).head.exists():
            head = Head.load(settings.root)
        else:
            head = export_head(settings.folder, self.info, settings.trust_remote_code)
        return LensMeasure(head, int(self.identity["lens_memory"]), self.device)
