"""What a worker has at hand for every task: the model, the arrays, the measures, the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from .model import Body, load_body
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
    max_memory, offload_folder
        Passed on to accelerate's placement.
    trust_remote_code
        Whether code from the model's folder may run.
    """

    root: Path
    folder: Path
    threads: int
    on_error: str = "stop"
    allow_nonfinite: bool = False
    max_memory: dict[Any, int | str] | None = None
    offload_folder: Path | None = None
    trust_remote_code: bool = False


@dataclass
class Equipment:
    """Loaded once, used by every task.

    Attributes
    ----------
    activations, statistics, lens_plans
        The store's arrays by name; empty where the store has none.
    planes
        The points, and what sublayers add, that are stored.
    checked
        Whether the identity check has been made.
    rows_done
        Rows through the model so far.
    """

    settings: WorkerSettings
    clock: Clock
    record: RunRecord
    selections: Selections
    body: Body
    activations: Mapping[str, ArrayPlan]
    planes: list[Plane]
    statistics: Mapping[str, ArrayPlan]
    lens_plans: Mapping[str, ArrayPlan]
    lens: LensMeasure | None
    pool: BlockPool
    writer: WriteBehind
    staging: HostStaging | None
    checked: bool = False
    rows_done: int = field(default=0)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The fields that decide the numbers."""
        return self.record.identity_fields

    @classmethod
    def load(cls, settings: WorkerSettings, clock: Clock) -> Equipment:
        """Read the store's plan and load the model.

        Raises
        ------
        RequestError
            The model cannot be loaded.
        """
        root = settings.root
        record = RunRecord.load(root)
        info = ModelInfo(**record.model)
        body = load_body(
            settings.folder,
            info,
            max_memory=settings.max_memory,
            offload_folder=settings.offload_folder,
            trust_remote_code=settings.trust_remote_code,
        )
        activations = plans_by_name(
            root, [f"{ACTIVATIONS}/{name}" for name in ("residual", *_SUBLAYERS)]
        )
        planes = [Plane("residual", point, i) for i, point in enumerate(record.points)]
        for name in _SUBLAYERS:
            if name in activations:
                planes += [Plane(name, layer, layer) for layer in range(info.layers)]
        lens_plans = plans_by_name(root, [f"{LENS}/{name}" for name in LENS_VALUES])
        return cls(
            settings,
            clock,
            record,
            Selections(root, record),
            body,
            activations,
            planes,
            plans_by_name(root, [f"{STATISTICS}/{n}" for n in ("norm", "norm_ratio", "cosine")]),
            lens_plans,
            _lens(settings, record, info, body) if lens_plans else None,
            BlockPool(clock),
            WriteBehind(clock),
            HostStaging() if body.device.type == "cuda" else None,
        )


def _lens(settings: WorkerSettings, record: RunRecord, info: ModelInfo, body: Body) -> LensMeasure:
    if StorePaths(settings.root).head.exists():
        head = Head.load(settings.root)
    else:
        head = export_head(settings.folder, info, settings.trust_remote_code)
    return LensMeasure(head, int(record.identity_fields["lens_memory"]), body.device)
